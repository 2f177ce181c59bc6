"""What must not be taken for a unit, or for one that was proved: the same with and without."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.overrides import TorchFunctionMode

import lxt
from lxt.errors import CheckpointFailed, NotDifferentiable, UnknownOperation

WIDTH, INNER = 6, 10


def layers() -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    return nn.Linear(WIDTH, INNER), nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = layers()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x) * F.silu(self.gate(x)))


class PrivateActivation(Gated):
    def __init__(self, act: Any = F.silu) -> None:
        super().__init__()
        self._act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x) * self._act(self.gate(x)))


class Scale(nn.Module):
    def __init__(self, size: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((WIDTH,), size))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x


class Scaled(Gated):
    def __init__(self, size: float) -> None:
        super().__init__()
        self.scale = Scale(size)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(super().forward(x))


class Masked(Gated):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(INNER))
        self.config = {"size": 1.0}

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x) * F.silu(self.gate(x)) * self.mask)


class Configured(Masked):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x) * F.silu(self.gate(x))) * self.config["size"]


class Capped(Gated):
    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        return self.down(self.up(x) * F.silu(torch.where(gate > 500, 500.0, gate)))


class Remembering(Gated):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.stat = y.detach().mean()
        return y


class Counting(Gated):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.shape)
        return self.down(self.up(x) * F.silu(self.gate(x)))


class Asserting(Gated):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[0] == 1, "one row only"
        return self.down(self.up(x) * F.silu(self.gate(x)))


class Norm(nn.Module):
    def __init__(self, invert: Callable[[Tensor, float], Tensor]) -> None:
        super().__init__()
        self.weight, self.eps, self.invert = nn.Parameter(torch.ones(WIDTH)), 1e-8, invert

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * self.invert(x.pow(2).mean(-1, keepdim=True), self.eps))


def clamped(square: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(square.clamp(min=eps))


def added_to_root(square: Tensor, eps: float) -> Tensor:
    return 1 / (square.sqrt() + eps)


class Model(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = x + part(x)
        return x


def found(model: nn.Module, x: Tensor, fuse: bool, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    with lxt.attnlrp.context(model, fuse=fuse, **options):
        y = model(leaf)
    return y.detach(), torch.autograd.grad(y.sum(), leaf)[0]


def assert_same(model: nn.Module, x: Tensor | None = None) -> None:
    x = torch.randn(1, 3, WIDTH) if x is None else x
    plain = model.requires_grad_(False)(x)
    y, gradient = found(model, x, fuse=True)
    assert torch.equal(y, plain)
    torch.testing.assert_close(gradient, found(model, x, fuse=False)[1], rtol=1e-4, atol=1e-6)


def test_functions_in_private_attributes() -> None:
    assert_same(Model(PrivateActivation(F.gelu), PrivateActivation(F.silu)))


def test_parameters_of_parts_that_are_no_layers() -> None:
    assert_same(Model(Scaled(1.0), Scaled(0.1)))


@pytest.mark.parametrize("make", [Masked, Configured])
def test_what_changes_after_a_proof(make: Callable[[], Masked]) -> None:
    model = Model(make())
    assert_same(model)
    model.parts[0].mask[:4] = 0
    model.parts[0].config["size"] = 3.0
    assert_same(model)


def test_weights_that_tell_nothing() -> None:
    """All 0 when looked at, or tied: no order of the layers is right by that."""
    model = Model(Gated())
    nn.init.zeros_(model.parts[0].down.weight)
    assert_same(model)
    nn.init.normal_(model.parts[0].down.weight)
    assert_same(model)
    first, second = Gated(), Gated()
    first.gate.weight = first.up.weight
    first.gate.bias = first.up.bias
    assert_same(Model(first, second))


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("invert", [clamped, added_to_root])
def test_norms_that_take_epsilon_for_something_else(
    invert: Callable[[Tensor, float], Tensor], size: float
) -> None:
    assert_same(Model(Norm(invert)), size * torch.randn(1, 3, WIDTH))


def test_operations_that_no_probe_reaches() -> None:
    assert_same(Model(Capped()), 1e4 * torch.randn(1, 3, WIDTH))


@pytest.mark.parametrize("make", [Remembering, Counting])
def test_a_forward_that_leaves_something_behind(make: Callable[[], Gated]) -> None:
    model = Model(make()).requires_grad_(False)
    x = torch.randn(1, 3, WIDTH)
    found(model, x, fuse=True)
    part = model.parts[0]
    if isinstance(part, Counting):
        assert part.seen == [x.shape]
    else:
        left, known = part.stat, Gated.forward(part, x).mean()
        torch.testing.assert_close(left, known)


def down_by_one(x: Tensor, times: int) -> Tensor:
    return up_by_one(x, times - 1) if times else x


def up_by_one(x: Tensor, times: int) -> Tensor:
    return down_by_one(x, times)


def test_helpers_that_call_each_other() -> None:
    class Helped(Gated):
        def forward(self, x: Tensor) -> Tensor:
            return self.down(down_by_one(self.up(x), 2) * F.silu(self.gate(x)))

    assert_same(Model(Helped()))


def test_a_forward_that_refuses_probes() -> None:
    assert_same(Model(Asserting()))


def test_classes_and_hooks_that_change_after_a_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(Gated())
    assert_same(model)

    def doubled(self: Gated, x: Tensor) -> Tensor:
        return 2 * self.down(self.up(x) * F.silu(self.gate(x)))

    with monkeypatch.context() as patch:
        patch.setattr(Gated, "forward", doubled)
        assert_same(model)

    def halved(self: nn.Linear, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) / 2

    with monkeypatch.context() as patch:
        patch.setattr(nn.Linear, "forward", halved)
        assert_same(model)

    def tripled(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        return 3 * output if isinstance(module, nn.Linear) else None

    handle = nn.modules.module.register_module_forward_hook(tripled)
    try:
        assert_same(model)
    finally:
        handle.remove()


def helper(gate: Tensor, up: Tensor) -> Tensor:
    return outer_helper(gate) * up


def outer_helper(gate: Tensor) -> Tensor:
    return F.silu(gate)


class Helped(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.within(x))

    def within(self, x: Tensor) -> Tensor:
        return helper(self.gate(x), self.up(x))


def test_helpers_and_methods_that_change_after_a_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Model(Helped(), Helped()), torch.randn(1, 3, WIDTH)
    assert_same(model, x)
    for where, name, new in (
        (sys.modules[__name__], "outer_helper", lambda gate: F.silu(gate) + 0.5 * gate),
        (sys.modules[__name__], "helper", lambda gate, up: F.silu(up) * gate),
        (Helped, "within", lambda self, x: F.silu(self.up(x)) * self.gate(x) ** 2),
    ):
        monkeypatch.setattr(where, name, new)
        assert_same(model, x)
    monkeypatch.undo()
    assert_same(model, x)
    propagation = lxt.attnlrp.register(model)
    assert set(propagation.fused) == {"parts.0", "parts.1"}
    propagation.remove()


tools = ModuleType("tools")
tools.activation = F.silu


def test_a_function_of_a_module_that_changes_after_a_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tooled(Gated):
        def forward(self, x: Tensor) -> Tensor:
            return self.down(tools.activation(self.gate(x)) * self.up(x))

    model = Model(Tooled())
    assert_same(model)
    monkeypatch.setattr(tools, "activation", lambda gate: gate**2)
    assert_same(model)


def test_another_mode_sees_every_operation() -> None:
    class Halving(TorchFunctionMode):
        factor = 1.0

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            result = func(*args, **(kwargs or {}))
            return result * self.factor if func is F.silu else result

    model = Model(Gated())
    for factor in (1.0, 0.5):
        Halving.factor = factor
        with Halving():
            assert_same(model)


def pruned() -> nn.Module:
    part = Gated()
    prune.l1_unstructured(part.up, "weight", 0.5)
    return part


def of_two_precisions() -> nn.Module:
    class Mixed(Gated):
        def forward(self, x: Tensor) -> Tensor:
            return self.down((self.up(x) * F.silu(self.gate(x))).double()).float()

    part = Mixed()
    part.down.double()
    return part


@pytest.mark.parametrize("make", [pruned, of_two_precisions])
def test_layers_of_another_kind(make: Callable[[], nn.Module]) -> None:
    assert_same(Model(make()))


def test_an_operand_that_is_written_to_later() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(Gated() for _ in range(8))

        def forward(self, x: Tensor) -> Tensor:
            x = x * 1.5
            for part in self.parts:
                x += part(x)
            return x

    assert_same(InPlace())


@pytest.mark.parametrize("fuse", [False, True])
def test_weights_written_to_before_a_second_run(fuse: bool) -> None:
    model = nn.Sequential(*(Gated() for _ in range(4))).requires_grad_(False)
    leaf = torch.randn(1, 3, WIDTH, requires_grad=True)
    with lxt.attnlrp.context(model, fuse=fuse, checkpoint=1):
        y = model(leaf)
    model[1].up.weight.mul_(1.5)
    with pytest.raises(CheckpointFailed, match="parameter or buffer"):
        y.sum().backward()


@pytest.mark.parametrize("fuse", [False, True])
def test_a_graph_of_relevance_is_refused(fuse: bool) -> None:
    model = Model(Gated(), Gated()).requires_grad_(False)
    leaf = torch.randn(1, 3, WIDTH, requires_grad=True)
    with lxt.attnlrp.context(model, fuse=fuse):
        y = model(leaf)
    with pytest.raises(NotDifferentiable, match="create_graph"):
        torch.autograd.grad(y.sum(), leaf, create_graph=True)


def test_transformations_around_a_model_are_refused() -> None:
    model = Model(Gated()).requires_grad_(False)
    handle = lxt.attnlrp.register(model)
    with pytest.raises(UnknownOperation, match=r"torch\.func"):
        torch.func.grad(lambda x: model(x).sum())(torch.randn(1, 3, WIDTH))
    handle.remove()


def test_proofs_keep_no_model() -> None:
    class Own(Gated):
        def __init__(self) -> None:
            super().__init__()
            self.function = self.activate
            self.parent = [self]

        def activate(self, x: Tensor) -> Tensor:
            return F.silu(x)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(x) * self.function(self.gate(x)))

    part = Own()
    assert_same(Model(part))
    kept = weakref.ref(part)
    del part
    gc.collect()
    assert kept() is None


def test_autocast_is_no_reason_for_later() -> None:
    class Fresh(Gated):
        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(x) * F.silu(self.gate(x)))

    model = Model(Fresh())
    with torch.autocast("cpu"), lxt.attnlrp.context(model) as propagation:
        model(torch.randn(1, 3, WIDTH, requires_grad=True))
        assert propagation.fused == {}
    with lxt.attnlrp.context(model) as propagation:
        model(torch.randn(1, 3, WIDTH, requires_grad=True))
        assert propagation.fused == {"parts.0": "gated MLP"}
