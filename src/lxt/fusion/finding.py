"""Finds the modules of a model that may run as one operation, and proves which they are.

A proof is of a structure, not of an instance: modules of one class with parts of the same classes
and sizes and the same settings share it (`lxt.fusion.likeness`). It lasts as long as the composite
that it was made under.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lxt.engine.standins import StandIn
from lxt.fusion.likeness import likeness, replica, surroundings
from lxt.fusion.mlp import Activation, mlp_candidates, mlp_widths, parts_are_bare
from lxt.fusion.norm import NAME as NORM, norm_candidates, norm_width
from lxt.fusion.proof import Reference, Run, agrees, reference
from lxt.fusion.unit import FusedUnit
from lxt.rules.registry import operation_name
from lxt.rules.secants import Elementwise, out_of_place

if TYPE_CHECKING:
    from lxt.composite import Composite

__all__ = ["Fusions"]


class Fusions:
    """The fused units under one composite, by the structure of modules."""

    def __init__(self, composite: Composite) -> None:
        self._composite = composite
        self._units: dict[Any, FusedUnit | None] = {}

    def resembles(self, module: nn.Module) -> bool:
        """Whether a module is made like one that may run as one operation."""
        return norm_width(module) is not None or bool(mlp_widths(module))

    def unit_for(self, module: nn.Module) -> FusedUnit | None:
        """The unit that stands for a module's forward, if there is one and nobody looks within."""
        width = norm_width(module)
        widths = mlp_widths(module) if width is None else [width]
        if not widths or not parts_are_bare(module):
            return None
        if not isinstance(module.__dict__.get("forward"), StandIn | None):
            return None  # somebody else has put a forward of theirs on it
        parameter = next(module.parameters())
        around, like = surroundings(parameter.device), likeness(module)
        if around is None or like is None:
            return None
        structure = around, like
        if structure not in self._units:
            self._units[structure] = self._prove(module, widths, parameter)
        return self._units[structure]

    def _prove(self, module: nn.Module, widths: list[int], parameter: Tensor) -> FusedUnit | None:
        for width in widths:
            try:
                found = self._proven(replica(module), width, parameter)
            except Exception:  # whatever its forward makes of a probe that it wasn't made for
                continue
            if found is not None:
                return found
        return None

    def _proven(self, module: nn.Module, width: int, like: Tensor) -> FusedUnit | None:
        known = reference(module, self._composite, width, like)
        for name, run in _candidates(module, known):
            if agrees(module, run, known):
                return FusedUnit(name, run, like.dtype)
        return None


def _candidates(module: nn.Module, known: Reference) -> Iterator[tuple[str, Run]]:
    if not module._modules:
        if _runs_only(known, _OF_NORMS):
            for run in norm_candidates(module):
                yield NORM, run
        return
    activation = _activation(module, known)
    if activation is not None and _runs_only(known, _OF_MLPS):
        yield from mlp_candidates(module, activation, known.probe.shape[-1])


# What may run within beside the one element-wise function: no probe could tell all others.
_OF_NORMS = frozenset(
    (
        *("to", "float", "type", "type_as", "pow", "square", "mean", "add", "mul", "div"),
        *("rsqrt", "sqrt", "reciprocal", "__rdiv__"),
    )
)
_OF_MLPS = frozenset(
    (
        *("linear", "addmm", "mul", "dropout", "to", "view", "reshape"),
        *("chunk", "split", "__getitem__", "narrow", "unbind"),
    )
)


def _runs_only(known: Reference, names: frozenset[str]) -> bool:
    return all(
        isinstance(call.rule, Elementwise)
        or operation_name(call.operation).rpartition(".")[2] in names
        for call in known.calls
    )


def _activation(module: nn.Module, known: Reference) -> Activation | None:
    """The one element-wise function among the calls within, if there is just one."""
    calls = [call for call in known.calls if isinstance(call.rule, Elementwise)]
    if len(calls) != 1:
        return None
    (call,) = calls
    rule: Any = call.rule
    if rule.slope_of is None:
        return None
    args, kwargs, _ = out_of_place(call.operation, call.args[1:], dict(call.kwargs))
    if any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
        return None
    dtype = known.probe.dtype
    if not isinstance(call.target, type):
        operation = call.operation
        slope = rule.slope_of(operation, dtype)
        of = lambda module: (operation, slope)  # noqa: E731 - one of two
    else:
        name = next((n for n, m in module._modules.items() if type(m) is call.target), None)
        if name is None:
            return None

        def of(module: nn.Module) -> tuple[Callable[..., Any], Callable[..., Any]]:
            forward = module._modules[name].forward  # pyright: ignore[reportOptionalMemberAccess]
            return forward, rule.slope_of(forward, dtype)

    zero = torch.zeros(1, dtype=dtype, device=known.probe.device)
    with torch.no_grad():
        through_origin = not of(module)[0](zero, *args, **kwargs).any()
    return Activation(
        lambda module, x: of(module)[0](x, *args, **kwargs),
        lambda module, x: of(module)[1](x, *args, **kwargs),
        through_origin,
        rule.pointwise,
    )
