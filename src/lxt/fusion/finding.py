"""Finds the modules of a model that may run as one operation, and proves which they are.

A proof is of a structure, not of an instance: modules of one class with parts of the same classes
and sizes and the same settings share it. It lasts as long as the composite that it was made under,
and holds under the same function modes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._device import DeviceContext

from lxt.engine.mode import RuleMode
from lxt.engine.standins import StandIn
from lxt.errors import LxtError
from lxt.fusion.mlp import Activation, mlp_candidates, mlp_widths, parts_are_bare
from lxt.fusion.norm import NAME as NORM, norm_candidates, norm_width
from lxt.fusion.proof import Reference, Run, agrees, reference
from lxt.fusion.unit import FusedUnit
from lxt.rules.activation import Elementwise, out_of_place

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
        structure = _surroundings(), _structure(module)
        if structure not in self._units:
            self._units[structure] = self._prove(module, widths)
        return self._units[structure]

    def _prove(self, module: nn.Module, widths: list[int]) -> FusedUnit | None:
        parameter = next(module.parameters())
        for width in widths:
            try:
                known = reference(module, self._composite, width, parameter)
            except (RuntimeError, LxtError, TypeError, ValueError, IndexError, AttributeError):
                continue  # not a module of one operand, or of another width
            for name, run in _candidates(module, known):
                if agrees(module, run, known):
                    return FusedUnit(name, run, parameter.dtype)
        return None


def _candidates(module: nn.Module, known: Reference) -> Iterator[tuple[str, Run]]:
    if not module._modules:
        for run in norm_candidates(module):
            yield NORM, run
        return
    activation = _activation(module, known)
    if activation is not None:
        yield from mlp_candidates(module, activation, known.probe.shape[-1])


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


def _surroundings() -> tuple[type, ...]:
    """The function modes of others that change what operations compute."""
    depth = torch._C._len_torch_function_stack()
    modes = (type(torch._C._get_function_stack_at(i)) for i in range(depth))
    return tuple(mode for mode in modes if mode not in (RuleMode, DeviceContext))


_SETTINGS = frozenset((int, float, str, bool, type(None), torch.dtype))

# What every module has; whether it is in training matters.
_STANDARD = frozenset(nn.Module().__dict__) - {"training"} | {"forward"}


def _structure(module: nn.Module) -> tuple[Any, ...]:
    """What two modules must have in common for the proof of one to hold for the other."""
    found: list[Any] = []
    _describe(module, found)
    for name, child in module._modules.items():
        if child is not None:
            found.append(name)
            _describe(child, found)
    return tuple(found)


def _describe(module: nn.Module, found: list[Any]) -> None:
    found.append(type(module))
    for name, value in module.__dict__.items():
        if name in _STANDARD:
            continue
        if type(value) in _SETTINGS:
            found += name, value
        elif not name.startswith("_"):
            # Functions and configurations are what they are by identity; held, so that it stays.
            found += name, _Same(value)
    for name, p in module._parameters.items():
        found += (name,) if p is None else (name, p.shape, p.dtype, p.device.type)


class _Same:
    """An object as a key that equals itself alone."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)
