"""What is looked at inside a model while it is explained: taps, units to explain, conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import InitVar, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lxt.engine.passages import Probe
from lxt.errors import InvalidTap
from lxt.inputs import input_embeddings
from lxt.latent.features import FeatureCapture, FeatureWaypoint
from lxt.latent.probes import Capture, Passage, Reader, Told
from lxt.latent.sae import SAE
from lxt.latent.taps import AnyTap, Place
from lxt.latent.units import End, Site, Unit
from lxt.latent.waypoints import Waypoint

if TYPE_CHECKING:
    from lxt.latent.anatomy import Anatomy

__all__ = ["Inside", "as_units"]

Source = tuple[nn.Module, End, SAE | None]
"""What units are read from, however their sites are written: features are not the site itself."""


def as_units(units: Any, argument: str) -> list[Unit]:
    """Units as they are given: one, or a list of them.

    Raises:
        InvalidTap: something else is among them, or the list is empty.

    """
    if isinstance(units, list | tuple) and not units:
        raise InvalidTap(f"{argument}={units!r} names no unit: give one, or None for no condition")
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
        places: the modules that each tap is about, by its key.

    """

    model: nn.Module
    anatomy: InitVar[Callable[[], Anatomy]]
    taps: Sequence[AnyTap]
    units: Sequence[Unit]
    through: Sequence[Unit]
    explicit: bool

    def __post_init__(self, anatomy: Callable[[], Anatomy]) -> None:
        # It is not kept: it holds the case, which holds what is looked at.
        self.passage = Passage()
        self.places = {tap.key: tap.places(self.model, anatomy) for tap in self.taps}
        for places in self.places.values():
            for place in places:
                self._require_within(place.module, place.site)
        self._readers = {
            key: [self._reader(place) for place in places] for key, places in self.places.items()
        }
        self._sources = {unit: self._source(unit) for unit in (*self.units, *self.through)}
        self._explained = self._captures(self.units, values=True)
        self._waypoints = self._captures(self.through, values=False)

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

    def _source(self, unit: Unit) -> Source:
        site = unit.place
        module = site.the_module(self.model)
        self._require_within(module, site)
        return module, site.end, unit.sae

    def _require_within(self, module: nn.Module, site: Site) -> None:
        """Make sure that it is not what the leaf is made of, which relevance ends at."""
        if site.end == "output" and module is input_embeddings(self.model):
            raise InvalidTap(
                f"{str(site).removeprefix('/')} puts out the input itself, whose relevance is that "
                "of the explanation: name what comes after it"
            )

    def _captures(self, units: Sequence[Unit], *, values: bool) -> dict[Source, Capture]:
        found: dict[Source, Capture] = {}
        for unit in units:
            source = module, end, sae = self._sources[unit]
            if source in found:
                continue
            given = str(unit.place).removeprefix("/"), module, end, self.passage
            if sae is None:
                found[source] = Capture(*given, values=values)
                continue
            same = [one for one in units if self._sources[one] == source]
            numbers = [one.feature for one in same if one.feature is not None]
            wanted = list(dict.fromkeys(numbers))
            found[source] = FeatureCapture(*given, sae, wanted, values=values)
        return found

    @cached_property
    def probes(self) -> list[Probe]:
        """All of them."""
        readers = [reader for readers in self._readers.values() for reader in readers]
        # What is read at the site of an explained unit is read before it: it is what explains it.
        return [*self._waypoints.values(), *readers, *self._explained.values()]

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
        for source, capture in self._explained.items():
            values = capture.captured.values
            assert values is not None, "positions were kept"
            for unit in self.units:
                if self._sources[unit] == source and unit.feature is None:
                    unit.require_in(values.shape[-1])
            parts.append(values)
        return torch.cat(parts, -1)

    def channels(self, unit: Unit) -> slice:
        """Where a unit is in `values`."""
        start = 0
        for source, capture in self._explained.items():
            values: Any = capture.captured.values
            if source == self._sources[unit]:
                at = capture.channels(unit, values.shape[-1])
                return slice(start + at.start, start + at.stop)
            start += values.shape[-1]
        raise KeyError(unit)

    def waypoints(self) -> Iterator[Waypoint]:
        """What relevance must go through, from the output on.

        Raises:
            InvalidTap: a site did not pass once, or has no such unit.

        """
        found = []
        for source, capture in self._waypoints.items():
            captured = capture.captured
            units = [unit for unit in self.through if self._sources[unit] == source]
            if isinstance(capture, FeatureCapture):
                given = captured, units, self.passage, self.explicit
                found.append(FeatureWaypoint(*given, capture))
                continue
            width = captured.shape.numel() // (self.passage.rows * self.passage.tokens)
            for unit in units:
                unit.require_in(width)
            if len(units) > 1 and any(unit.direction is not None for unit in units):
                raise InvalidTap(
                    f"relevance goes through one direction of {units[0].place}, or any of several "
                    "neurons or heads: directions share channels with others"
                )
            found.append(Waypoint(captured, units, self.passage, self.explicit))
        yield from sorted(found, key=lambda one: -one.captured.number)
