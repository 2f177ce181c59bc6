"""The proof that a unit is the same as a module: forwards to the bit, backwards as by the rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lxt.engine.mode import Observer
from lxt.engine.standins import StandIn
from lxt.entries import Rule

if TYPE_CHECKING:
    from lxt.composite import Composite

__all__ = ["Reference", "Run", "agrees", "reference"]

Run = Callable[[nn.Module, Tensor, bool], Tensor]
"""Computes a module's output from the module, its operand, and whether to be thrifty."""

# How far gradients may be apart, relative to the largest: a wrong order of parts is off by its
# all, and rounding by a few units in the last place of sums over some hundred channels.
_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}


@dataclass(frozen=True)
class Recorded:
    """An operation that ran within a module, as an `Observer` is told of it."""

    target: Any
    operation: Callable[..., Any]
    rule: Rule | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass
class _Calls(Observer):
    """Writes down what runs."""

    found: list[Recorded] = field(default_factory=list)

    def begins(
        self,
        target: Any,
        operation: Callable[..., Any],
        rule: Rule | None,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        self.found.append(Recorded(target, operation, rule, tuple(args), kwargs))


@dataclass(frozen=True)
class Reference:
    """What a module makes of a probe under the rules of the operations within.

    Attributes:
        probe: its operand [2, tokens, channels], with rows of many sizes.
        upstream: the gradient that its backward pass started from.
        output: of the forward pass.
        gradient: of the probe.
        calls: what ran.

    """

    probe: Tensor
    upstream: Tensor
    output: Tensor
    gradient: Tensor
    calls: list[Recorded]


# Usual rows, and such as tell where a clamp shows, or which ε is added to what.
_SIZES = (20.0, 1.0, 1e-2, 1e-3, 1.0, 0.0, 1e-4, 1.0, 1e-5, 1.0)


def _probe(width: int, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 5, width, generator=generator)
    values *= torch.tensor(_SIZES).view(2, 5, 1)
    return values.to(like.dtype).to(like.device)


def _upstream(like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(like.shape, generator=generator).to(like.dtype).to(like.device)


def reference(module: nn.Module, composite: Composite, width: int, like: Tensor) -> Reference:
    """Run a module's own forward on a probe under the rules of the operations within.

    Raises:
        RuntimeError: the module doesn't take this; whatever its forward raises.
        UnknownOperation: an operation has no rule.
    """
    from lxt.propagation import Propagation  # which finds units

    calls = _Calls()
    probe = _probe(width, like).requires_grad_()
    propagation = Propagation(module, composite, "error", registered=False, fuse=False)
    propagation.observer = calls
    forward = module.forward
    if isinstance(forward, StandIn):  # that of whoever asks, who is not to be asked in turn
        forward = forward.original
    with torch.enable_grad():
        output = propagation.run(forward, (probe,), {}, is_call=True)  # whatever hooks it has
    if not isinstance(output, Tensor) or output.shape[:-1] != probe.shape[:-1]:
        raise TypeError("its output is no tensor of the operand's layout")
    upstream = _upstream(output.detach())
    (gradient,) = torch.autograd.grad(output, probe, upstream)
    return Reference(probe.detach(), upstream, output.detach(), gradient, calls.found)


def agrees(module: nn.Module, run: Run, known: Reference) -> bool:
    """Whether a unit computes what a module does, and hands back what the rules within do."""
    if not all(_is_ours(call.rule) for call in known.calls):
        return False
    return all(_agrees(module, run, known, thrifty) for thrifty in (False, True))


def _agrees(module: nn.Module, run: Run, known: Reference, thrifty: bool) -> bool:
    probe = known.probe.clone().requires_grad_()
    with torch.enable_grad():
        output = run(module, probe, thrifty)
    if output.dtype is not known.output.dtype or not torch.equal(output, known.output):
        return False
    (gradient,) = torch.autograd.grad(output, probe, known.upstream)
    if not torch.equal(probe, known.probe):
        return False
    expected = known.gradient.double()
    distance = (gradient.double() - expected).abs().amax(-1)
    # Of each row by itself, for small ones have large gradients in norms and small ones in MLPs.
    size = expected.abs().amax(-1)
    room = _TOLERANCE.get(probe.dtype, 0.0) * torch.maximum(size, size.median())
    return bool((distance <= room).all())


def _is_ours(rule: Any) -> bool:
    """Whether a rule is one of this library's: whoever writes their own means it to run."""
    function = getattr(rule, "function", rule)
    module = getattr(function, "__module__", None) or ""
    return rule is None or module.partition(".")[0] == "lxt"
