"""Probes: whoever wants to see what goes into a module, or comes out of it, under the rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from lxt.engine.mode import in_force
from lxt.engine.opaque import tensors_in
from lxt.engine.standins import StandIn

if TYPE_CHECKING:
    from collections.abc import Callable

    from lxt.propagation import Propagation

__all__ = ["Passing", "Probe", "first_tensor", "install", "probed", "replaced", "same_memory"]


@dataclass(frozen=True)
class Passing:
    """A tensor that passes a site.

    Attributes:
        value: the tensor.
        args: what the module was called with.
        kwargs: the same, by name.
        is_rerun: whether a checkpoint runs the module again, as part of a backward pass.

    """

    value: Tensor
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    is_rerun: bool


class Probe(Protocol):
    """Sees a tensor each time that one passes, and hands on what is to be in its place."""

    @property
    def module(self) -> nn.Module:
        """Whose input or output it is."""
        ...

    @property
    def end(self) -> Literal["input", "output"]:
        """Which of both."""
        ...

    @property
    def in_the_open(self) -> bool:
        """Whether what it computes runs under the rules, and not as it is."""
        ...

    def starts(self) -> None:
        """The model's forward begins."""

    def __call__(self, passing: Passing) -> Tensor:
        """A tensor with the value of the one that passes."""
        ...


def probed(probes: Sequence[Probe]) -> set[nn.Module]:
    """The modules that are looked at."""
    return {probe.module for probe in probes}


def install(probes: Sequence[Probe], propagation: Propagation) -> Callable[[], None]:
    """Put stand-ins before the forwards of the modules that are looked at.

    Returns:
        What takes them off.

    """
    with ExitStack() as undo:
        for module in dict.fromkeys(probe.module for probe in probes):
            at = [probe for probe in probes if probe.module is module]
            undo.callback(_Passage(module, at, propagation).remove)
        return undo.pop_all().close


class _Passage(StandIn):
    """Stands before the forward of a module, and of the unit that it may be."""

    def __init__(
        self, module: nn.Module, probes: Sequence[Probe], propagation: Propagation
    ) -> None:
        self.inner = module.forward
        super().__init__(module)
        self.probes = probes
        self.propagation = propagation

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mode = in_force.mode
        if mode is None or mode.propagation is not self.propagation or not torch.is_grad_enabled():
            return self.inner(*args, **kwargs)
        given = args, kwargs
        for probe in self.probes:
            if probe.end == "input":
                given = self._shown(probe, given, *given)
        args, kwargs = given
        result = self.inner(*args, **kwargs)
        for probe in self.probes:
            if probe.end == "output":
                result = self._shown(probe, result, args, kwargs)
        return result

    def _shown(self, probe: Probe, value: Any, args: Any, kwargs: Any) -> Any:
        """`value` with its first tensor as the probe hands it on."""
        x = first_tensor(value)
        if x is None:
            return value
        mode = in_force.mode
        assert mode is not None, "it runs under the rules"
        with nullcontext() if probe.in_the_open else mode.suspended():
            y = probe(Passing(x, args, kwargs, mode.is_rerun))
        return value if y is x else replaced(value, x, y)


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor of floating-point numbers in a result, or among arguments."""
    return next((x for x in tensors_in(value) if x.is_floating_point()), None)


def replaced(value: Any, old: Tensor, new: Tensor) -> Any:
    """`value` with another tensor in the place of one in it; containers are made anew."""
    if value is old:
        return new
    if isinstance(value, tuple | list):
        items = [replaced(item, old, new) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, Mapping):
        changed = {key: replaced(item, old, new) for key, item in value.items()}
        return changed if type(value) is dict else type(value)(**changed)
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value) if field.init]
        return replace(value, **{n: replaced(getattr(value, n), old, new) for n in names})
    return value


def same_memory(x: Tensor) -> Tensor:
    """Another tensor of the same memory, for an autograd Function to return.

    What a Function returns of its operand as a view can't be written to in place, as some models
    do; and a copy would take as much memory again.
    """
    here = torch.empty(0, dtype=x.dtype, device=x.device)
    return here.set_(x.untyped_storage(), x.storage_offset(), x.shape, x.stride())
