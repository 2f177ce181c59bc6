"""Steering leaves nothing behind, and runs again as it ran: copies, threads, checkpoints."""

from __future__ import annotations

import copy
import io
import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lxt
import zoo
from lxt.errors import AlreadyRegistered, InvalidModel, UnusedEditWarning
from lxt.latent.edits import Add, Scale, Set
from lxt.latent.steering import steer
from lxt.latent.units import Site, Unit
from steered import UNITS, Planted, V, generated, logits

# --- nothing else --------------------------------------------------------------------------------


def trace(model: nn.Module) -> list[Any]:
    return [
        (
            sorted(set(vars(m)) - {"_is_full_backward_hook"}),
            *(len(v) for k, v in sorted(vars(m).items()) if "hooks" in k and v is not None),
        )
        for m in model.modules()
    ]


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_removal_leaves_no_trace(name: str) -> None:
    model = zoo.build(name)
    before = trace(model)
    units = {unit(position=-1): Scale(0) for unit in UNITS[name].values()}
    handle = steer(model, units)
    assert trace(model) != before
    handle.remove()
    handle.remove()
    assert trace(model) == before
    with pytest.raises(RuntimeError, match="mine"), steer(model, units):
        raise RuntimeError("mine")
    assert trace(model) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_edits_that_change_nothing_are_identical_to_the_bit(dtype: torch.dtype) -> None:
    model = zoo.build("llama", dtype=dtype)
    example = zoo.example("llama", model)
    plain = logits(model, example)
    for position in (None, 2):
        units = [unit(position=position) for unit in UNITS["llama"].values()]
        for edits in ({}, dict.fromkeys(units, Scale(1)), dict.fromkeys(units, Add(0.0))):
            with steer(model, edits):
                assert torch.equal(
                    logits(model, example).view(torch.int16), plain.view(torch.int16)
                )


def test_another_instance_a_copy_and_a_pickle() -> None:
    model, other, x = Planted(), Planted(), torch.tensor([[[5.0, 3.0]]])
    handle = steer(model, {Unit("inner", 0): Set(0)})
    copied = copy.deepcopy(model)
    assert [m(x).item() for m in (model, other, copied)] == [-3, 2, 2]
    with pytest.raises(AlreadyRegistered, match="Planted is steered"):
        torch.save(model, io.BytesIO())
    handle.remove()
    torch.save(model, io.BytesIO())
    assert copied(x).item() == 2
    language = zoo.build("llama")
    ids = torch.tensor([[3, 4, 5]])
    with steer(language, {Unit("layers.0", position=-1): Scale(0)}):
        copied = copy.deepcopy(language)
    assert torch.equal(generated(copied, ids, ids), generated(language, ids, ids))


def test_threads_with_two_instances_and_with_one() -> None:
    models = [zoo.build("llama", seed=seed) for seed in range(2)]
    units = [Unit("layers.0", direction=V, position=p) for p in (2, -1)]
    ids = torch.randint(3, 128, (4, 9), generator=torch.Generator().manual_seed(0))
    jobs = [(m, ids[:, : 5 + n]) for m in (0, 1) for n in range(4)]
    handles = [steer(m, {u: Set(20.0)}) for m, u in zip(models, units, strict=True)]
    expected = [generated(models[m], i, torch.ones_like(i)) for m, i in jobs]
    found: dict[int, Tensor] = {}

    def work(number: int) -> None:
        m, i = jobs[number]
        found[number] = generated(models[m], i, torch.ones_like(i))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for handle in handles:
        handle.remove()
    assert all(torch.equal(found[n], one) for n, one in enumerate(expected))


def test_inference_mode_then_gradients() -> None:
    model = zoo.build("llama")
    example = zoo.example("llama", model)
    with steer(model, {Unit("layers.0", direction=V): Set(2)}):
        with torch.inference_mode():
            plain = example.run(model)
        run = example.run(model)
        run.sum().backward()
    assert torch.equal(run.detach(), plain)


# --- checkpoints, compilation --------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 4)).double()
        self.is_on = True

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False) if self.is_on else self.inner(x)


@pytest.mark.parametrize("position", [None, 1])
@pytest.mark.parametrize("under", [False, True])
@pytest.mark.parametrize("at", ["inner.1", "inner.0"])
def test_a_checkpoint_runs_again_as_it_ran(position: int | None, under: bool, at: str) -> None:
    model = Checkpointed()
    x = torch.randn(2, 3, 4, dtype=torch.float64).requires_grad_()
    edits = {Unit(Site(at, "input"), 2, position=position): Scale(5.0)}

    def gradient(is_on: bool) -> Tensor:
        model.is_on = is_on
        with steer(model, edits):
            if under:
                with lxt.attnlrp.context(model):
                    y = model(x).square()
            else:
                y = model(x).square()
        return torch.autograd.grad(y.sum(), x)[0]  # the edits are off by now

    plain = gradient(False)
    assert torch.equal(gradient(True), plain)
    y = model(x).square()
    expected = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    with warnings.catch_warnings(), steer(model, edits):  # put on between the passes
        warnings.simplefilter("ignore", UnusedEditWarning)
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], expected)
    assert not torch.allclose(expected, plain)


@pytest.mark.parametrize("position", [None, 1, -1])
def test_explain_with_checkpointed_layers(position: int | None) -> None:
    model = zoo.build("llama")
    ids = zoo.example("llama", model, batch=1).input_ids
    edits = {unit(position=position): Set(2.0) for unit in UNITS["llama"].values()}
    unsteered = lxt.explain(model, ids).relevance
    with steer(model, edits):
        plain = lxt.explain(model, ids).relevance
        torch.testing.assert_close(lxt.explain(model, ids, checkpoint=1).relevance, plain)
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.testing.assert_close(lxt.explain(model, ids).relevance, plain)
    assert not torch.allclose(plain, unsteered)


def test_what_is_compiled() -> None:
    model, x = Planted(), torch.tensor([[[5.0, 3.0]]])
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(InvalidModel, match="is compiled"):
        steer(compiled, {Unit("inner", 0): Set(0)})
    compiled(x)
    handle = steer(model, {Unit("inner", 0): Set(0)})
    if compiled(x).item() == -3:  # a compiler that sees new hooks
        handle.remove()
    else:
        with pytest.warns(UnusedEditWarning, match=r"nothing was done to inner\[0\]"):
            handle.remove()
    torch._dynamo.reset()
