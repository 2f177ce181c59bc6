"""MLPs: a non-linearity between linear layers, with a gate or without.

With u = up(x), v = gate(x), f the element-wise function and s its secant slope, y = down(f(v) · u):

    h = Wdᵀ g,   ∂u = a · h · f(v),   ∂v = b · h · u · s(v),   ∂x = Wuᵀ ∂u + Wgᵀ ∂v

with a = b = ½ by the rule of products (Achtibat et al. 2024, Eq. 9 and Prop. 3.3), and a = 1, b = 0
where a gate is a constant (Ali et al. 2022). What is kept is u and v; a thrifty unit keeps x,
which is several times smaller, and computes both from it again: two products of matrices more.
Where the gate is constant it is f(v) alone. Without a gate it is v.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from lxt.fusion.affine import Affine, is_bare, is_plain_tensor, kind_of_affine
from lxt.fusion.proof import Run
from lxt.fusion.rows import on_live_rows
from lxt.gradients import compute_dtype, differentiable_once, remember
from lxt.pieces import in_pieces

__all__ = ["Activation", "mlp_candidates", "mlp_widths", "parts_are_bare"]


@dataclass(frozen=True)
class Activation:
    """The element-wise function of an MLP, as its recorded call tells.

    Attributes:
        call: computes it from a module (the MLP) and the operand; never in place.
        slope: its secant slope, in float32 or more.
        through_origin: whether f(0) = 0, so that f(v) = v · s(v).
        pointwise: whether the slope is the same for a value wherever it stands.

    """

    call: Callable[[nn.Module, Tensor], Tensor]
    slope: Callable[[nn.Module, Tensor], Tensor]
    through_origin: bool
    pointwise: bool

    def scale(self, module: nn.Module, h: Tensor, x: Tensor) -> Tensor:
        """Multiply `h` by the slope at `x`, in place."""

        def write(h: Tensor, x: Tensor) -> None:
            h.mul_(self._slope(module, x, h.dtype))

        self._write(write, h, x)
        return h

    def scale_gated(
        self, module: nn.Module, h: Tensor, gate: Tensor, up: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The gradients of the gate and of what is gated; the former is written over `h`."""
        to_up = torch.empty_like(h)

        def write(h: Tensor, to_up: Tensor, gate: Tensor, up: Tensor) -> None:
            slope = self._slope(module, gate, h.dtype)
            if self.through_origin:
                to_up.copy_(h.mul_(slope)).mul_(gate)
            else:
                to_up.copy_(h).mul_(self.call(module, gate))
                h.mul_(slope)
            h.mul_(up)

        self._write(write, h, to_up, gate, up)
        return h, to_up

    def _slope(self, module: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
        return self.slope(module, x.to(compute_dtype(x.dtype))).to(dtype)

    def _write(self, write: Callable[..., None], *tensors: Tensor) -> None:
        in_pieces(write, *tensors) if self.pointwise else write(*tensors)


Split = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Takes what one layer puts out for gate and up apart, along the last dimension."""


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    first, second = x.chunk(2, -1)
    return first, second


def _swapped(x: Tensor) -> tuple[Tensor, Tensor]:
    first, second = x.chunk(2, -1)
    return second, first


def _interleaved(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., ::2], x[..., 1::2]


_SPLITS: tuple[Split, ...] = (_halves, _swapped, _interleaved)


@dataclass(frozen=True)
class _Gated:
    """The parts of one gated MLP; `both` where one layer computes gate and up."""

    module: nn.Module
    activation: Activation
    gate: Affine
    up: Affine
    down: Affine
    both: Affine | None
    split: Split
    shares: tuple[float, float]

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (self.gate(x), self.up(x)) if self.both is None else self.split(self.both(x))


class _GatedMLP(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: _Gated, thrifty: bool) -> Tensor:
        with torch._C.DisableTorchFunction():
            gate, up = parts.project(x)
            activated = parts.activation.call(parts.module, gate)
            weights = (*parts.gate.tensors, *parts.up.tensors, parts.down.weight)
            ctx.activation, ctx.module, ctx.shares = parts.activation, parts.module, parts.shares
            ctx.weights = None
            if not parts.shares[1]:
                ctx.save_for_backward(activated, None, *weights)
                return parts.down(activated * up)
            if thrifty:
                ctx.save_for_backward(x, None, *weights)
                remember(ctx, x)  # others may write to it, as they may to no other that is kept
                ctx.weights = [(w, None if w is None else w._version) for w in weights]
            else:
                ctx.save_for_backward(gate, up, *weights)
            return parts.down(activated.mul_(up))

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *gradients: Any) -> Any:
        kept, other, *weights = _saved(ctx)
        with torch._C.DisableTorchFunction():
            found = on_live_rows(
                lambda *rows: _gated_gradient(ctx, weights, *rows), *gradients, kept, other
            )
        return found, None, None


def _saved(ctx: Any) -> tuple[Any, ...]:
    """What was saved for the backward pass; of an operand that was written to since, its copy."""
    if ctx.weights is None or ctx.kept is None:
        return ctx.saved_tensors
    if any(w is not None and w._version != version for w, version in ctx.weights):
        raise RuntimeError("a weight of an MLP was written to between its passes")
    return ctx.kept, None, *(w for w, _ in ctx.weights)


def _gated_gradient(
    ctx: Any, weights: list[Any], g: Tensor, kept: Tensor, other: Tensor | None
) -> Tensor:
    gate_weight, gate_bias, up_weight, up_bias, down_weight = weights
    if not ctx.shares[1]:
        return torch.matmul(g, down_weight).mul_(kept) @ up_weight
    if other is None:
        x, kept = kept, F.linear(kept, gate_weight, gate_bias)
        up = F.linear(x, up_weight, up_bias)
    else:
        up = other
    h = torch.matmul(g * ctx.shares[0], down_weight)
    to_gate, to_up = ctx.activation.scale_gated(ctx.module, h, kept, up)
    found = torch.matmul(to_up, up_weight)
    return found.add_(torch.matmul(to_gate, gate_weight))


class _PlainMLP(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, module: nn.Module, activation: Activation, into: Affine, out: Affine
    ) -> Tensor:
        with torch._C.DisableTorchFunction():
            hidden = into(x)
            ctx.activation, ctx.module = activation, module
            ctx.save_for_backward(hidden, into.weight, out.weight)
            return out(activation.call(module, hidden))

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        hidden, into, out = ctx.saved_tensors

        def compute(g: Tensor, hidden: Tensor) -> Tensor:
            h = ctx.activation.scale(ctx.module, torch.matmul(g, out), hidden)
            return torch.matmul(h, into)

        with torch._C.DisableTorchFunction():
            return on_live_rows(compute, g, hidden), None, None, None, None


def affine_names(module: nn.Module) -> list[str]:
    """The names of the linear layers among a module's children."""
    return [name for name, child in module._modules.items() if child and kind_of_affine(child)]


def _affine(module: nn.Module, name: str) -> Affine:
    return Affine.of(module._modules[name])  # pyright: ignore[reportArgumentType]


def mlp_widths(module: nn.Module) -> list[int]:
    """The numbers of channels that a module may be the MLP of: it holds two or three layers."""
    children = module._modules
    if not 2 <= len(children) <= 6 or module._parameters or module._buffers:
        return []
    names = affine_names(module)
    if not 2 <= len(names) <= 3:
        return []
    for name, child in children.items():
        if child is None or child._modules:
            return []
        held = [p for p in child._parameters.values() if p is not None]
        if not all(map(is_plain_tensor, held)):
            return []
        if held and name not in names:
            return []
        if any(p.dtype is not _affine(module, names[0]).held.dtype for p in held):
            return []
    return list(dict.fromkeys(_affine(module, name).weight.shape[1] for name in names))


def parts_are_bare(module: nn.Module) -> bool:
    """Whether nobody looks at what goes through the parts of an MLP."""
    return all(child is not None and is_bare(child) for child in module._modules.values())


def mlp_candidates(
    module: nn.Module, activation: Activation, width: int
) -> Iterator[tuple[str, Run]]:
    """What a module of this structure may compute of `width` channels, with names."""
    names = affine_names(module)
    if len(names) == 3:
        for gate in names:
            for up in names:
                down = [name for name in names if name not in (gate, up)]
                if len(down) == 1 and _fit(module, gate, up, down[0], width):
                    for shares in _SHARES:
                        yield "gated MLP", _gated(activation, gate, up, down[0], shares)
        return
    for into, out in (names, names[::-1]):
        first, last = (_affine(module, name).weight.shape for name in (into, out))
        if first[1] != width:
            continue
        if first[0] == last[1]:
            yield "MLP", _plain(activation, into, out)
        if first[0] == 2 * last[1]:
            for split in _SPLITS:
                for shares in _SHARES:
                    yield "gated MLP", _joined(activation, into, out, split, shares)


_SHARES = ((0.5, 0.5), (1.0, 0.0))


def _fit(module: nn.Module, gate: str, up: str, down: str, width: int) -> bool:
    first, second, last = (_affine(module, name).weight.shape for name in (gate, up, down))
    return first == second and first[1] == width and first[0] == last[1]


def _gated(
    activation: Activation, gate: str, up: str, down: str, shares: tuple[float, float]
) -> Run:
    def run(module: nn.Module, x: Tensor, thrifty: bool) -> Tensor:
        first, second, last = (_affine(module, name) for name in (gate, up, down))
        parts = _Gated(module, activation, first, second, last, None, _halves, shares)
        return _GatedMLP.apply(x, parts, thrifty)  # pyright: ignore[reportReturnType]

    return run


def _joined(
    activation: Activation, into: str, out: str, split: Split, shares: tuple[float, float]
) -> Run:
    def run(module: nn.Module, x: Tensor, thrifty: bool) -> Tensor:
        both = _affine(module, into)
        gate, up = both.split(split)
        parts = _Gated(module, activation, gate, up, _affine(module, out), both, split, shares)
        return _GatedMLP.apply(x, parts, thrifty)  # pyright: ignore[reportReturnType]

    return run


def _plain(activation: Activation, into: str, out: str) -> Run:
    def run(module: nn.Module, x: Tensor, thrifty: bool) -> Tensor:
        layers = [_affine(module, name) for name in (into, out)]
        return _PlainMLP.apply(x, module, activation, *layers)  # pyright: ignore[reportReturnType]

    return run
