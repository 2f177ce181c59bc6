"""A propagation is scoped to one instance, one thread and one forward; and it can be undone."""

import copy
import gc
import io
import pickle
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import lxt
import zoo
from lxt.errors import AlreadyRegistered, InvalidModel
from test_contracts import close, relevance


class Gated(nn.Module):
    """x · σ(x W), and a plain module inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.gate(x))


def gradient(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    (result,) = torch.autograd.grad(model(x).sum(), x)
    return result


def wait(barrier: threading.Barrier) -> None:
    barrier.wait()


@pytest.fixture
def x() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, dtype=torch.float64, generator=generator).requires_grad_()


def test_only_the_registered_instance_changes(x: torch.Tensor) -> None:
    first, second = Gated(), Gated()
    second.load_state_dict(first.state_dict())
    plain = gradient(first, x)
    with lxt.attnlrp.context(first):
        assert not close(gradient(first, x), plain, 1e-3)
        assert torch.equal(gradient(second, x), plain)
        # what the caller computes is the caller's: no rule reaches outside of the forward
        (outside,) = torch.autograd.grad(F.silu(x).sum(), x)
    (silu,) = torch.autograd.grad(F.silu(x).sum(), x)
    assert torch.equal(outside, silu)
    assert torch.equal(gradient(first, x), plain)


def test_two_models_with_two_composites_coexist(x: torch.Tensor) -> None:
    model = Gated()
    expected = {}
    for composite in (lxt.attnlrp, lxt.cp_lrp):
        with composite.context(model):
            expected[composite.name] = gradient(model, x)
    other = copy.deepcopy(model)
    with lxt.attnlrp.context(model), lxt.cp_lrp.context(other):
        assert torch.equal(gradient(model, x), expected["attnlrp"])
        assert torch.equal(gradient(other, x), expected["cp_lrp"])


def test_two_threads_with_two_models_never_meet() -> None:
    """Both are inside their forward at once, held there by a barrier in the middle."""
    barrier = threading.Barrier(2, timeout=60)
    results: dict[str, torch.Tensor] = {}
    errors: list[BaseException] = []
    models, alone = {}, {}
    for composite in (lxt.attnlrp, lxt.cp_lrp):
        model = models[composite] = zoo.build("llama")
        alone[composite.name] = relevance(model, zoo.example("llama", model), composite)
        for layer in model.model.layers:
            layer.mlp.register_forward_pre_hook(lambda *_: wait(barrier))

    def run(composite: lxt.Composite) -> None:
        try:
            model = models[composite]
            example = zoo.example("llama", model)
            results[composite.name] = relevance(model, example, composite)
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(c,)) for c in (lxt.attnlrp, lxt.cp_lrp)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for name, expected in alone.items():
        assert torch.equal(results[name], expected)


def test_one_model_in_two_threads(x: torch.Tensor) -> None:
    """Parameters stay constants until the last thread has left, and are handed back then."""
    model = Gated()
    barrier = threading.Barrier(2, timeout=60)
    with lxt.attnlrp.context(model):
        expected = gradient(model, x)
        hook = model.gate.register_forward_pre_hook(lambda *_: wait(barrier))
        results: list[torch.Tensor] = []
        inputs = [x.detach().clone().requires_grad_() for _ in range(2)]
        threads = [
            threading.Thread(target=lambda v=v: results.append(gradient(model, v))) for v in inputs
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        hook.remove()
    assert all(torch.equal(result, expected) for result in results)
    assert len(results) == 2
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_registered_model_inside_the_forward_of_another(x: torch.Tensor) -> None:
    """A model that is called, not contained: each part under its own rules."""
    inner = Gated()

    class Outer(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.silu(calls[0](x)) * x

    calls, outer = [inner], Outer()
    with lxt.cp_lrp.context(inner), lxt.attnlrp.context(outer):
        nested = gradient(outer, x)
    with lxt.cp_lrp.context(inner):
        h = inner(x)
    slope = torch.sigmoid(h).detach()
    g_h = slope * x.detach() / 2
    (through,) = torch.autograd.grad(h, x, g_h)
    assert close(nested, through + F.silu(h).detach() / 2, 1e-12)


def test_no_grad_steps_aside(x: torch.Tensor) -> None:
    model = Gated()
    calls = []
    composite = lxt.attnlrp | {torch.sigmoid: lambda v: calls.append(1) or torch.sigmoid(v)}
    with composite.context(model):
        with torch.no_grad():
            model(x)
        with torch.inference_mode():
            model(x)
        assert not calls
        model(x)
        assert calls


def test_generation_is_unchanged() -> None:
    model = zoo.build("llama", dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7]])
    options = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    plain = model.generate(ids, **options)
    with lxt.attnlrp.context(model):
        assert torch.equal(model.generate(ids, **options), plain)


def test_registering_twice_is_an_error_that_names_the_first(x: torch.Tensor) -> None:
    model = nn.Sequential(Gated(), Gated())
    handle = lxt.attnlrp.register(model)
    with pytest.raises(AlreadyRegistered, match="attnlrp"):
        lxt.cp_lrp.register(model)
    with pytest.raises(AlreadyRegistered, match="attnlrp"):
        lxt.cp_lrp.register(model[0])
    handle.remove()
    part = lxt.cp_lrp.register(model[0])
    with pytest.raises(AlreadyRegistered, match="'0'.*cp_lrp"):
        lxt.attnlrp.register(model)
    part.remove()
    lxt.attnlrp.register(model).remove()


@pytest.mark.parametrize("wrong", [None, "gpt2", torch.ones(3), Gated])
def test_registering_something_else_is_an_error(wrong: object) -> None:
    with pytest.raises(InvalidModel, match="Module"):
        lxt.attnlrp.register(wrong)  # type: ignore[arg-type]


def test_a_copy_of_a_registered_model_is_a_plain_model(x: torch.Tensor) -> None:
    model = Gated()
    plain = gradient(model, x)
    handle = lxt.attnlrp.register(model)
    twin = copy.deepcopy(model)
    assert torch.equal(gradient(twin, x), plain)
    nn.init.zeros_(twin.gate.weight)
    assert not torch.equal(twin(x), model(x))
    lxt.cp_lrp.register(twin).remove()
    handle.remove()


def test_pickling_a_registered_model_says_what_to_do() -> None:
    model = Gated()
    with lxt.attnlrp.context(model):
        with pytest.raises(AlreadyRegistered, match="remove"):
            pickle.dumps(model)
        torch.save(model.state_dict(), io.BytesIO())
    pickle.dumps(model)


def test_a_registered_model_can_be_collected() -> None:
    model = Gated()
    lxt.attnlrp.register(model)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_another_wrapper_put_on_top_is_left_in_place(x: torch.Tensor) -> None:
    """As accelerate does, which keeps the forward that it found."""
    model = Gated()
    plain = gradient(model, x)
    handle = lxt.attnlrp.register(model)
    inner = model.forward
    model.forward = lambda *args: inner(*args)
    assert not close(gradient(model, x), plain, 1e-3)
    handle.remove()
    assert torch.equal(gradient(model, x), plain)
    del model.forward
    assert torch.equal(gradient(model, x), plain)


def test_an_earlier_instance_forward_is_put_back(x: torch.Tensor) -> None:
    model = Gated()
    earlier = model.forward = lambda v: Gated.forward(model, v) * 2
    with lxt.attnlrp.context(model):
        doubled = model(x)
    assert model.__dict__["forward"] is earlier
    assert torch.equal(doubled, model(x))


def test_an_error_in_the_forward_leaves_nothing_behind(x: torch.Tensor) -> None:
    model = Gated()
    hook = model.gate.register_forward_hook(lambda *_: 1 / 0)
    with lxt.attnlrp.context(model), pytest.raises(ZeroDivisionError):
        model(x)
    hook.remove()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert "forward" not in model.__dict__
    plain = gradient(model, x)
    (expected,) = torch.autograd.grad((x * torch.sigmoid(model.gate(x))).sum(), x)
    assert torch.equal(plain, expected)


class Checkpointed(nn.Module):
    """Checkpoints a function, not a module, and one inside another."""

    def __init__(self, checkpointing: bool) -> None:
        super().__init__()
        self.block = Gated()
        self.checkpointing = checkpointing

    def run(self, function, x: torch.Tensor) -> torch.Tensor:
        if not self.checkpointing:
            return function(x)
        return checkpoint(function, x, use_reentrant=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def outer(v: torch.Tensor) -> torch.Tensor:
            return F.silu(v) * self.run(lambda u: self.block(u) * F.gelu(u), v * 1.5)

        return self.run(outer, x)


def test_checkpointed_functions_and_nested_checkpoints(x: torch.Tensor) -> None:
    plain, checkpointed = Checkpointed(False).double(), Checkpointed(True).double()
    checkpointed.load_state_dict(plain.state_dict())
    for composite in (lxt.attnlrp, lxt.cp_lrp):
        with composite.context(plain), composite.context(checkpointed):
            expected = gradient(plain, x)
            y = checkpointed(x)
        (result,) = torch.autograd.grad(y.sum(), x)
        assert close(result, expected, 1e-12)
    assert all(p.grad is None and p.requires_grad for p in checkpointed.parameters())


def test_module_hooks_are_no_unknown_operations(x: torch.Tensor) -> None:
    """A full backward hook wraps operands in a node of torch's own, which is not an operation."""
    model = Gated()
    with lxt.attnlrp.context(model):
        expected = gradient(model, x)
        seen = []
        model.gate.register_full_backward_hook(lambda m, gi, go: seen.append(go[0]))
        assert torch.equal(gradient(model, x), expected)
    assert len(seen) == 1


def test_batched_backward_passes(x: torch.Tensor) -> None:
    model = zoo.build("llama")
    example = zoo.example("llama", model)
    with lxt.attnlrp.context(model):
        logits = example.run(model)
    seeds = torch.zeros(3, *logits.shape, dtype=logits.dtype)
    for index in range(3):
        seeds[index, 0, -1, index] = 1
    (batched,) = torch.autograd.grad(
        logits, example.leaf, seeds, is_grads_batched=True, retain_graph=True
    )
    for index in range(3):
        (alone,) = torch.autograd.grad(logits, example.leaf, seeds[index], retain_graph=True)
        assert close(batched[index], alone, 1e-12)
