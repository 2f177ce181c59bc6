"""What is looked at inside a model while it is explained: taps, units to explain, conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lxt.engine.passages import Probe
from lxt.errors import InvalidTap
from lxt.latent.probes import Capture, Captured, Passage, Reader, Told
from lxt.latent.taps import AnyTap, Place
from lxt.latent.units import Site, Unit

if TYPE_CHECKING:
    from lxt.latent.anatomy import Anatomy

__all__ = ["Inside", "Waypoint", "as_units"]


@dataclass(frozen=True)
class Waypoint:
    """A site that relevance must go through, and what of it counts.

    Attributes:
        captured: the place in the graph.
        units: of which relevance goes on.

    """

    captured: Captured
    units: Sequence[Unit]
    passage: Passage

    def only(self, g: Tensor) -> Tensor:
        """Of a gradient [targets, *shape] what arrives at the units."""
        rows, tokens = self.passage.rows, self.passage.tokens
        flat = g.reshape(len(g), rows, tokens, -1)
        found = torch.zeros_like(flat)
        for unit in self.units:
            at, v = unit.channels(flat.shape[-1]), unit.direction
            places = slice(None) if unit.position is None else self._position(unit.position)
            part = flat[:, :, places, at]
            if v is not None:
                v = (v / v.norm()).to(part)
                part = (part @ v)[..., None] * v
            found[:, :, places, at] = part
        return found.reshape(g.shape)

    def _position(self, position: int) -> slice:
        tokens = self.passage.tokens
        if not -tokens <= position < tokens:
            raise InvalidTap(f"there is no position {position}: there are {tokens} tokens")
        return slice(position % tokens, position % tokens + 1)


def as_units(units: Any, argument: str) -> list[Unit]:
    """Units as they are given: one, or a list of them.

    Raises:
        InvalidTap: something else is among them.

    """
    found = list(units) if isinstance(units, list | tuple) else [] if units is None else [units]
    for unit in found:
        if not isinstance(unit, Unit):
            raise InvalidTap(f"{argument}={unit!r}: give an lxt.Unit, or a list of them")
    return found


@dataclass
class Inside:
    """The probes of one model.

    Attributes:
        model: the instance.
        anatomy: finds the parts of the model.
        taps: whose relevance is read.
        units: what is explained, if it is no output.
        through: the units that relevance must go through.
        explicit: whether backward passes return relevance.

    """

    model: nn.Module
    anatomy: Callable[[], Anatomy]
    taps: Sequence[AnyTap]
    units: Sequence[Unit]
    through: Sequence[Unit]
    explicit: bool

    def __post_init__(self) -> None:
        self.passage = Passage()
        self._readers = {tap.key: [self._reader(p) for p in self._places(tap)] for tap in self.taps}
        self._explained = self._captures(self.units, values=True)
        self._waypoints = self._captures(self.through, values=False)

    def _places(self, tap: AnyTap) -> list[Place]:
        return tap.places(self.model, self.anatomy)

    def _reader(self, place: Place) -> Reader:
        site = place.site
        name = str(site).removeprefix("/")
        return Reader(
            name,
            place.module,
            site.end,
            place.parts,
            self.passage,
            explicit=self.explicit,
            lens=place.lens,
        )

    def _captures(self, units: Sequence[Unit], *, values: bool) -> dict[Site, Capture]:
        sites = dict.fromkeys(unit.place for unit in units)
        found: dict[Site, Capture] = {}
        for site in sites:
            module = site.the_module(self.model)
            name = str(site).removeprefix("/")
            found[site] = Capture(name, module, site.end, self.passage, values=values)
        return found

    @cached_property
    def probes(self) -> list[Probe]:
        """All of them."""
        readers = [reader for readers in self._readers.values() for reader in readers]
        return [*self._explained.values(), *self._waypoints.values(), *readers]

    def expects(self, lengths: Sequence[int], keep: Sequence[int]) -> None:
        """Say how long the rows of the next forward pass are, and where units are explained."""
        rows, tokens = len(lengths), max(lengths)
        self.passage.rows, self.passage.tokens = rows, tokens
        self.passage.mask = torch.arange(tokens) < torch.tensor(lengths)[:, None]
        self.passage.keep = torch.tensor(keep, device="cpu")

    def told(self) -> dict[str, list[Told]]:
        """What each tap was told in the last forward pass, in the order in which it passed.

        Raises:
            InvalidTap: nothing passed.

        """
        found: dict[str, list[Told]] = {}
        for key, readers in self._readers.items():
            told = sorted((one for r in readers for one in r.told), key=lambda one: one.number)
            if not told:
                names = ", ".join(reader.site for reader in readers[:3])
                raise InvalidTap(
                    f"the tap {key!r} saw nothing pass: {names} did not run, or within a module "
                    "that runs as one operation"
                )
            found[key] = told
        return found

    def values(self) -> Tensor:
        """The explained sites' values [rows, kept positions, channels of all], with their graph.

        Raises:
            InvalidTap: one of them did not pass once.

        """
        parts = []
        for site, capture in self._explained.items():
            values = capture.captured.values
            assert values is not None, "positions were kept"
            for unit in self.units:
                if unit.place == site:
                    unit.require_in(values.shape[-1])
            parts.append(values)
        return torch.cat(parts, -1)

    def channels(self, unit: Unit) -> slice:
        """Where a unit's site is in `values`."""
        start = 0
        for site, capture in self._explained.items():
            values: Any = capture.captured.values
            if site == unit.place:
                return slice(start, start + values.shape[-1])
            start += values.shape[-1]
        raise KeyError(unit)

    def waypoints(self) -> Iterator[Waypoint]:
        """What relevance must go through, from the output on.

        Raises:
            InvalidTap: a site did not pass once, or has no such unit.

        """
        found = []
        for site, capture in self._waypoints.items():
            captured = capture.captured
            units = [unit for unit in self.through if unit.place == site]
            width = captured.shape.numel() // (self.passage.rows * self.passage.tokens)
            for unit in units:
                unit.require_in(width)
            found.append(Waypoint(captured, units, self.passage))
        yield from sorted(found, key=lambda one: -one.captured.number)
