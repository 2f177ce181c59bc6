"""Anatomies of models that are adapted, checkpointed or in training, and what is left behind."""

from __future__ import annotations

import gc
import threading
import weakref
from functools import partial
from typing import Any

import peft
import pytest
import torch
from torch import nn

import lxt
import zoo
from lxt.latent.anatomy import Anatomy, anatomy_of
from lxt.latent.units import Site
from test_contracts import traces, without_tensors


def scanned(name: str) -> Anatomy:
    model = zoo.build(name, dtype=torch.float32)
    of = zoo.example(name, model, length=7)
    return anatomy_of(model, lambda: of.run(model))


# --- models that others have changed --------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["lora", "dora", "ia3", "loha"])
@pytest.mark.parametrize("training", [False, True])
def test_adapters_stand_for_the_layers_that_they_wrap(adapter: str, training: bool) -> None:
    base = zoo.build("llama", dtype=torch.float32)
    plain = anatomy_of(base, lambda: base(input_ids=torch.arange(3, 10)[None]))
    targets = ["v_proj", "o_proj", "down_proj"]
    config: Any = {
        "lora": lambda: peft.LoraConfig(r=4, target_modules=targets, lora_dropout=0.1),
        "dora": lambda: peft.LoraConfig(r=4, target_modules=targets, use_dora=True),
        "ia3": lambda: peft.IA3Config(target_modules=targets, feedforward_modules=["down_proj"]),
        "loha": lambda: peft.LoHaConfig(r=4, target_modules=targets),
    }[adapter]()
    model: Any = peft.get_peft_model(base, config).train(training)  # type: ignore[arg-type]
    found = anatomy_of(model, lambda: model(input_ids=torch.arange(3, 10)[None]))
    # IA3 scales what comes out of o_proj, and leaves what goes in to the layer that it wraps.
    within = ".base_layer" if adapter == "ia3" else ""
    for layer, before in zip(found.layers, plain.layers, strict=True):
        assert layer.heads == Site(
            f"base_model.model.{before.path}.self_attn.o_proj{within}", end="input", heads=4
        )
        assert layer.neurons == (
            Site(f"base_model.model.{before.path}.mlp.down_proj", end="input"),
        )


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5", "qwen3_next"])
def test_checkpointing_and_training_change_nothing(name: str, reentrant: bool) -> None:
    expected = scanned(name)
    model = zoo.build(name, dtype=torch.float32, training=True)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    of = zoo.example(name, model, length=7)
    assert anatomy_of(model, lambda: of.run(model)) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["llama", "t5", "mixtral"])
def test_any_type(name: str, dtype: torch.dtype) -> None:
    model = zoo.build(name, dtype=dtype)
    of = zoo.example(name, model, length=7)
    assert anatomy_of(model, lambda: of.run(model)) == scanned(name)


def test_under_autocast_no_grad_inference_and_a_composite() -> None:
    for around in (
        lambda model: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda model: torch.no_grad(),
        lambda model: torch.inference_mode(),
        lambda model: lxt.attnlrp.context(model),
    ):
        model = zoo.build("llama", dtype=torch.float32)
        of = zoo.example("llama", model, length=7)
        with around(model):
            found = anatomy_of(model, lambda of=of, model=model: of.run(model))
        assert found == scanned("llama")


# --- what is left behind --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "t5", "mixtral", "mamba"])
@pytest.mark.parametrize("training", [False, True])
def test_no_trace_is_left(name: str, training: bool) -> None:
    model = zoo.build(name, dtype=torch.float32, training=training)
    next(model.parameters()).requires_grad_(False)
    of = zoo.example(name, model, length=7)
    of.run(model)  # what models cache on their first run is not ours
    before, drawn = without_tensors(traces(model)), torch.get_rng_state()

    def failing() -> None:
        of.run(model)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        anatomy_of(model, failing)
    assert without_tensors(traces(model)) == before
    anatomy_of(model, lambda: of.run(model))
    assert without_tensors(traces(model)) == before
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.is_grad_enabled()


def test_it_is_kept_until_modules_change() -> None:
    model = zoo.build("llama", dtype=torch.float32)
    runs: list[int] = []

    def run() -> None:
        runs.append(1)
        model(input_ids=torch.arange(3, 10)[None])

    first = anatomy_of(model, run)
    assert anatomy_of(model, run) is first
    assert len(runs) == 1
    mlp: Any = model.get_submodule("model.layers.0.mlp")
    mlp.down_proj = nn.Sequential(mlp.down_proj)
    assert anatomy_of(model, run).layers[0].neurons[0].module.endswith("mlp.down_proj.0")
    assert len(runs) == 2


def test_no_model_is_kept_alive() -> None:
    model = zoo.build("llama", dtype=torch.float32)
    anatomy_of(model, partial(model, input_ids=torch.arange(3, 10)[None]))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_failing_or_an_empty_run_is_not_kept() -> None:
    model = zoo.build("llama", dtype=torch.float32)
    assert anatomy_of(model, lambda: None) == Anatomy(())
    assert len(anatomy_of(model, lambda: model(input_ids=torch.arange(3, 10)[None])).layers) == 2


def test_a_model_without_layers_has_none() -> None:
    model = nn.Linear(3, 3)
    assert anatomy_of(model, lambda: model(torch.ones(2, 3))) == Anatomy(())


def test_threads_see_their_own_pass_only() -> None:
    model = zoo.build("llama", dtype=torch.float32)
    expected = scanned("llama")
    start, found = threading.Barrier(4), list[Anatomy]()

    def scan() -> None:
        start.wait()
        found.append(anatomy_of(model, lambda: model(input_ids=torch.arange(3, 10)[None])))

    threads = [threading.Thread(target=scan) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4
    assert not any(module._forward_hooks for module in model.modules())
