"""Probes: what reads relevance where a tensor passes, and what keeps its place in the graph.

The relevance of all units of a site is the gradient of a leaf, as large as what is told of them. So
it comes out of the one backward pass, with autograd's batches of targets, out of layers that a
checkpoint runs again, and takes no more memory than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.graph import GradientEdge, get_gradient_edge

from lxt.engine.opaque import next_number
from lxt.engine.passages import Passing, same_memory
from lxt.errors import InvalidTap
from lxt.gradients import compute_dtype, remember
from lxt.latent.parts import Parts, by_tokens
from lxt.latent.units import End, Unit

__all__ = ["Capture", "Captured", "Channels", "Lens", "Passage", "Reader", "Told"]


@dataclass
class Passage:
    """What passes in a forward pass; told before it.

    Attributes:
        rows: how many.
        tokens: how many each of them has, padding included.
        mask: [rows, tokens], false at padding.
        keep: the positions at which units are explained.

    """

    rows: int = 0
    tokens: int = 0
    mask: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    keep: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def by_tokens(self, x: Tensor, site: str) -> Tensor:
        """A tensor as [rows, tokens, channels]."""
        return by_tokens(x, self.rows, self.tokens, site)


@dataclass(frozen=True)
class Told:
    """What a reader was told when a tensor passed.

    Attributes:
        site: what it is called.
        parts: what is told.
        leaf: its gradient is the relevance of the parts; None if nothing that passed depends on
            the input.
        activation: of the same shape; None of the strongest, which come with theirs.
        shape: of what is told.
        units: how many there are of each token.
        dtype: of relevance and activation.
        number: autograd's at that time.

    """

    site: str
    parts: Parts
    leaf: Tensor | None
    activation: Tensor | None
    shape: tuple[int, ...]
    units: int
    dtype: torch.dtype
    number: int


class Lens(Protocol):
    """What is read of a tensor that passes: values, and how relevance at it is theirs."""

    def kept(self, passing: Passing) -> Sequence[Tensor]:
        """What it takes to tell, beside the tensor; kept for the backward pass."""
        ...

    def values(self, x: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """What is told of x [rows, tokens, channels]: [rows, tokens, units]."""
        ...

    def read(self, g: Tensor, x: Tensor, kept: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Their relevance, for the gradient g at x, and the values."""
        ...


class Channels:
    """Each channel by itself: x, and x · g. A `Lens`."""

    def kept(self, passing: Passing) -> Sequence[Tensor]:
        """Nothing more."""
        return ()

    def values(self, x: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """The channels."""
        return x

    def read(self, g: Tensor, x: Tensor, kept: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Their relevance, and the channels."""
        return g * x, x


@dataclass(frozen=True)
class _Read:
    """How a tensor is read."""

    lens: Lens
    parts: Parts
    shape: torch.Size
    mask: Tensor
    explicit: bool

    def __call__(self, g: Tensor, x: Tensor, kept: Sequence[Tensor]) -> Tensor:
        wide = compute_dtype(x.dtype)
        x, g = x.to(wide).reshape(self.shape), g.to(wide).reshape(self.shape)
        if not self.explicit:
            r, values = self.lens.read(g, x, kept)
        elif isinstance(self.lens, Channels):
            r, values = g, x
        else:  # what arrives is relevance itself
            r, values = self.lens.read((g / x).where(x != 0, 0), x, kept)
        return self.parts.told(r, values, self.mask)


class Reader:
    """Reads relevance and activation of the parts of one site. A `Probe`.

    Attributes:
        told: in the last forward pass, once for each time that the module ran.

    """

    in_the_open = False

    def __init__(
        self,
        site: str,
        module: nn.Module,
        end: End,
        parts: Parts,
        passage: Passage,
        *,
        explicit: bool,
        lens: Lens | None = None,
    ) -> None:
        self.site = site
        self.module = module
        self.end: End = end
        self.told: list[Told] = []
        self._lens = lens or Channels()
        self._parts = parts
        self._passage = passage
        self._explicit = explicit

    def starts(self) -> None:
        """The model's forward begins."""
        self.told = []

    def __call__(self, passing: Passing) -> Tensor:
        """Hand on the tensor, through a node that reads its relevance."""
        value, parts, lens = passing.value, self._parts, self._lens
        x = self._passage.by_tokens(value.detach(), self.site)
        mask = self._passage.mask.to(x.device)
        wide = compute_dtype(x.dtype)
        with torch.no_grad():
            kept = lens.kept(passing)
            values = lens.values(x.to(wide), kept)
            activation = None
            if not passing.is_rerun and parts.top is None:
                activation = parts.activation(values, mask)
                if activation.data_ptr() == x.data_ptr():
                    activation = activation.clone()  # others may write to what passed
        shape, leaf = parts.shape(values), None
        if value.requires_grad:
            dtype = torch.float64 if parts.top else wide
            leaf = torch.zeros((), dtype=dtype, device=x.device).expand(shape).requires_grad_()
        if not passing.is_rerun:
            units = parts.units(values)
            told = Told(self.site, parts, leaf, activation, shape, units, wide, next_number())
            self.told.append(told)
        if leaf is None:
            return value
        read = _Read(lens, parts, x.shape, mask, self._explicit)
        return _Tap.apply(value, leaf, read, *kept)  # pyright: ignore[reportReturnType]


class _Tap(Function):
    hands_on = True

    @staticmethod
    def forward(ctx: Any, x: Tensor, leaf: Tensor, read: _Read, *kept: Tensor) -> Tensor:
        ctx.read, ctx.others = read, len(kept)
        ctx.save_for_backward(x, *kept)
        remember(ctx, x)  # others may write to it
        return same_memory(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        x, kept = ctx.kept, ()
        if x is None or ctx.others:
            before, *kept = ctx.saved_tensors
            x = before if x is None else x
        with torch.no_grad():
            return g, ctx.read(g, x, kept), None, *(None for _ in kept)


@dataclass(frozen=True)
class Captured:
    """A tensor that passed, as a place in the graph.

    Attributes:
        edge: where its gradient arrives; None if it depends on nothing.
        values: [rows, kept positions, channels] of it, with their graph; None if none are kept.
        shape: of the tensor.
        number: autograd's at that time.

    """

    edge: GradientEdge | None
    values: Tensor | None
    shape: torch.Size
    number: int


class Capture:
    """Keeps what passes one site, to start a backward pass there, or to look at one. A `Probe`.

    With `values`, what passes at the positions that are explained.
    """

    in_the_open = False

    def __init__(
        self, site: str, module: nn.Module, end: End, passage: Passage, *, values: bool
    ) -> None:
        self.site = site
        self.module = module
        self.end: End = end
        self._passage = passage
        self._has_values = values
        self._captured: list[Captured] = []

    def starts(self) -> None:
        """The model's forward begins."""
        self._captured = []

    def __call__(self, passing: Passing) -> Tensor:
        """Keep it."""
        x = passing.value
        tokens, values = self._passage.by_tokens(x, self.site), None
        if self._has_values:  # a second run has to save for its backward pass what the first did
            values = tokens.index_select(1, self._passage.keep.to(x.device))
        if not passing.is_rerun:
            edge = get_gradient_edge(x) if x.requires_grad else None
            self._captured.append(Captured(edge, values, x.shape, next_number()))
        return x

    def channels(self, unit: Unit, width: int) -> slice:
        """Where a unit is in values of so many channels."""
        return unit.channels(width)

    @property
    def captured(self) -> Captured:
        """What passed.

        Raises:
            InvalidTap: nothing did, or something did several times.

        """
        if len(self._captured) != 1:
            often = f"{len(self._captured)} times" if self._captured else "not at all"
            raise InvalidTap(
                f"{self.site} ran {often} in a forward pass, and a unit is of a module that runs "
                "once"
            )
        return self._captured[0]
