"""What is done to a unit's activation: scaled, set, or added to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import Protocol

import torch
from torch import Tensor

from lxt.engine.mode import in_force
from lxt.errors import InvalidTap
from lxt.latent.sae import SAE
from lxt.latent.units import Unit

__all__ = ["Add", "Edit", "Part", "Scale", "Set", "part_of", "require_fits"]


@dataclass(frozen=True, eq=False)
class Edit(ABC):
    """What is done to an activation.

    Attributes:
        value: a number, or a tensor with one for each channel of the unit.

    Raises:
        InvalidTap: it is neither, or not finite.

    """

    value: float | Tensor
    _held_by: set[torch.dtype] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        value, name = self.value, type(self).__name__
        if isinstance(value, Tensor):
            if value.is_complex() or value.dtype is torch.bool or value.dim() > 1:
                raise InvalidTap(
                    f"lxt.{name}: a tensor {list(value.shape)} of {value.dtype}: give a number, "
                    "or real numbers [channels]"
                )
            if not value.isfinite().all():
                raise InvalidTap(f"lxt.{name}: a tensor that holds NaN or infinity")
        elif not isinstance(value, Real) or isinstance(value, bool):
            raise InvalidTap(f"lxt.{name}({value!r}): give a number, or a tensor of numbers")
        elif not abs(float(value)) < float("inf"):
            raise InvalidTap(f"lxt.{name}({value!r}): give a finite number")

    @property
    def is_idle(self) -> bool:
        """Whether every activation stays what it is."""
        return False

    @abstractmethod
    def edited(self, old: Tensor, value: Tensor) -> Tensor:
        """The activation in place of `old`; never the same memory."""

    @abstractmethod
    def change(self, read: Callable[[], Tensor], value: Tensor) -> Tensor:
        """By how much the activation that `read` returns is changed; read if it matters."""

    def require_finite_in(self, dtype: torch.dtype) -> None:
        """Make sure that a type of a narrower range than the value's own holds it.

        Raises:
            InvalidTap: it doesn't.

        """
        value = self.value
        if dtype in self._held_by:
            return
        largest = float(value.detach().abs().max()) if isinstance(value, Tensor) else abs(value)
        if largest > torch.finfo(dtype).max:
            raise InvalidTap(f"lxt.{type(self).__name__}: {largest:g} is infinite in {dtype}")
        self._held_by.add(dtype)

    def value_like(self, x: Tensor) -> Tensor:
        """The value, in the type and on the device of `x`."""
        value = self.value
        if not isinstance(value, Tensor):
            return torch.tensor(float(value), dtype=x.dtype, device=x.device)
        if in_force.mode is not None:  # what is added is a constant
            value = value.detach()
        return value.to(x.device, x.dtype)


class Scale(Edit):
    """Multiply a unit's activation, 0 to switch it off.

    >>> lxt.steer(model, {lxt.Unit("layers.17.mlp.act_fn", neuron=5687): lxt.Scale(0)})
    """

    @property
    def is_idle(self) -> bool:
        """Whether the factor is 1."""
        return _is_all(self.value, 1)

    def edited(self, old: Tensor, value: Tensor) -> Tensor:
        """s · a."""
        return old * value

    def change(self, read: Callable[[], Tensor], value: Tensor) -> Tensor:
        """(s − 1) · a."""
        return (value - 1) * read()


class Set(Edit):
    """Put a value in place of a unit's activation, whatever that was."""

    def edited(self, old: Tensor, value: Tensor) -> Tensor:
        """The value."""
        return value.expand(old.shape).clone()

    def change(self, read: Callable[[], Tensor], value: Tensor) -> Tensor:
        """c − a."""
        return value - read()


class Add(Edit):
    """Add to a unit's activation."""

    @property
    def is_idle(self) -> bool:
        """Whether it is 0."""
        return _is_all(self.value, 0)

    def edited(self, old: Tensor, value: Tensor) -> Tensor:
        """a + v."""
        return old + value

    def change(self, read: Callable[[], Tensor], value: Tensor) -> Tensor:
        """It is the value."""
        return value


def _is_all(value: float | Tensor, number: float) -> bool:
    if not isinstance(value, Tensor):
        return value == number
    return not value.requires_grad and bool((value == number).all())


class Part(Protocol):
    """How a unit is read off a tensor [..., channels], and written back."""

    @property
    def size(self) -> int:
        """How many numbers its activation has, for each token."""
        ...

    def applied(self, edit: Edit, x: Tensor) -> Tensor:
        """`x` with the unit's activation edited, as a new tensor."""
        ...


@dataclass(frozen=True)
class _Channels:
    """Some of the last axis, one after another."""

    at: slice
    width: int

    @property
    def size(self) -> int:
        """How many."""
        return self.at.stop - self.at.start

    def applied(self, edit: Edit, x: Tensor) -> Tensor:
        """The channels edited, beside the others as they are."""
        new = edit.edited(x[..., self.at], edit.value_like(x))
        if self.size == self.width:
            return new
        return torch.cat((x[..., : self.at.start], new, x[..., self.at.stop :]), -1)


@dataclass(frozen=True)
class _Projection:
    """The component along a direction v̂ of length 1: x · v̂ is read, and written along v̂."""

    direction: Tensor
    size: int = field(default=1, init=False)

    def applied(self, edit: Edit, x: Tensor) -> Tensor:
        """x + (new − old) v̂."""
        v = self.direction.to(x.device, x.dtype)
        change = edit.change(lambda: torch.matmul(x, v[:, None]), edit.value_like(x))
        return x + change * v


@dataclass(frozen=True)
class _Feature:
    """A feature of an autoencoder: read by its encoder, written by its decoder."""

    sae: SAE
    number: int
    size: int = field(default=1, init=False)

    def applied(self, edit: Edit, x: Tensor) -> Tensor:
        """x + decode(f with it edited) − decode(f)."""

        def change(feature: Tensor) -> Tensor:
            return edit.change(lambda: feature, edit.value_like(feature))

        return self.sae.rewritten(x, self.number, change)


def part_of(unit: Unit, width: int) -> Part:
    """How a unit is read and written, where the last axis has `width` channels.

    Raises:
        InvalidTap: it isn't there.

    """
    unit.require_in(width)
    if unit.feature is not None:
        return _Feature(unit.sae, unit.feature)
    if unit.direction is None:
        return _Channels(unit.channels(width), width)
    with torch.inference_mode(False):  # it is used again where gradients are wanted
        v = unit.direction.detach().clone().double()
        return _Projection(v / v.norm())


def require_fits(unit: Unit, edit: Edit, size: int) -> None:
    """Make sure that an edit's value is one number, or `size` numbers.

    Raises:
        InvalidTap: it is something else.

    """
    value = edit.value
    if isinstance(value, Tensor) and value.numel() not in (1, size):
        has = "is a single number" if size == 1 else f"has {size} numbers"
        raise InvalidTap(
            f"lxt.{type(edit).__name__} with {value.numel()} numbers: {unit.name} {has}, of each "
            "token"
        )
