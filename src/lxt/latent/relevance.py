"""The result of a tap: relevance and activation of what is inside, with named axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lxt.errors import InvalidInput, InvalidTap
from lxt.latent.units import Site, Unit

__all__ = ["Latent"]


@dataclass(frozen=True, eq=False, repr=False)
class Latent:
    """Relevance of the units of some sites, one for each layer, to each target.

    Axes are those of the explanation, ``"batch"`` and ``"targets"`` as far as it has them, then
    ``"layers"``, ``"tokens"`` unless they were summed, and the units, such as ``"neurons"``. Of the
    strongest, ``"top"`` stands for these; a row of fewer ends with relevance 0 at index -1.

    Raises:
        InvalidInput: shapes do not fit together, or relevance is not finite.

    """

    relevance: Tensor
    """Float32 or float64 on the CPU, in units of the target's value; 0 at padding, and beyond the
    last unit of sites that have fewer than others."""
    activation: Tensor
    """What the model computed there, or the Euclidean norm of a vector; of the same axes but for
    targets, which it does not depend on. Of the strongest it is that of each."""
    axes: tuple[str, ...]
    """The names of the axes of ``relevance``."""
    sites: list[str]
    """What each layer's site is called."""
    units: list[int]
    """How many units of each token each site has."""
    kind: str
    """What they are: ``"tokens"`` as a whole, ``"heads"``, ``"neurons"``, ``"experts"``, …"""
    index: Tensor | None = None
    """Of the strongest, int64 ``[…, top, 2]``: position, counted without padding (-1 where tokens
    were summed), and unit."""

    def __post_init__(self) -> None:
        for name in ("relevance", "activation"):
            x = getattr(self, name)
            if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
                raise InvalidInput(f"{name} is no tensor of float32 or float64")
        if self.index is not None and self.index.dtype != torch.int64:
            raise InvalidInput(f"index is {self.index.dtype}, not int64")
        sizes = dict(zip(self.axes, self.relevance.shape, strict=False))
        if len(sizes) != self.relevance.dim() or sizes.get("layers") != len(self.sites):
            raise InvalidInput(
                f"relevance {list(self.relevance.shape)} has not the axes {', '.join(self.axes)} "
                f"with {len(self.sites)} layers"
            )
        if len(self.units) != len(self.sites):
            raise InvalidInput(f"{len(self.units)} units of {len(self.sites)} sites")
        shape = [size for axis, size in sizes.items() if axis != "targets" or "top" in sizes]
        if list(self.activation.shape) != shape:
            raise InvalidInput(
                f"activation is {list(self.activation.shape)}, and should be {shape}"
            )
        if ("top" in sizes) != (self.index is not None):
            raise InvalidInput("an index is there with the axis top, and with no other")
        if self.index is not None and self.index.shape != (*self.relevance.shape, 2):
            raise InvalidInput(f"index is {list(self.index.shape)}, with two numbers of each")
        if not self.relevance.isfinite().all():
            raise InvalidInput("relevance holds NaN or infinity")

    @property
    def total(self) -> Tensor:
        """The sum of relevance of each layer, ``[…, layers]``, in float64."""
        inner = len(self.axes) - 1 - self.axes.index("layers")
        return self.relevance.flatten(self.relevance.dim() - inner).sum(-1, dtype=torch.float64)

    def strongest(self, k: int) -> list[tuple[str, int, int, float]]:
        """List the ``k`` units of the largest |relevance| as (site, position, unit, relevance).

        Strongest first; of a single row and target. Position is -1 where tokens were summed, unit
        0 where it is of a whole token.

        Raises:
            InvalidInput: there are several rows or targets, or ``k`` is negative.

        """
        if k < 0:
            raise InvalidInput(f"strongest takes a count of units, not {k}")
        if self.axes[0] != "layers":
            raise InvalidInput(
                f"strongest lists the units of one row and target, and the axes are "
                f"{', '.join(self.axes)}: take e[i].latent[…]"
            )
        flat = self.relevance.flatten()
        found = []
        for number in flat.abs().argsort(descending=True, stable=True)[:k].tolist():
            place = [
                int(i) for i in torch.unravel_index(torch.tensor(number), self.relevance.shape)
            ]
            at = dict(zip(self.axes, place, strict=True))
            units = [at[axis] for axis in self.axes if axis not in ("layers", "tokens", "top")]
            position, unit = at.get("tokens", -1), units[0] if units else 0
            if self.index is not None:
                position, unit = self.index[tuple(place)].tolist()
                if unit < 0:
                    continue
            found.append((self.sites[at["layers"]], position, unit, flat[number].item()))
        return found

    def unit(self, site: str, unit: int = 0, position: int | None = None) -> Unit:
        """Return a unit of one of the sites, to explain, steer, or send relevance through.

        >>> site, position, number, _ = e.latent["neurons"].strongest(1)[0]
        >>> lxt.explain(model, text, target=e.latent["neurons"].unit(site, number, position))

        Of what was summed over tokens it is the unit of all tokens, at position -1 too, which is
        what `strongest` says there.

        Raises:
            InvalidTap: there is no such site or unit; or none that is one by itself, as an expert,
                or what passed a module that ran several times.

        """
        if site not in self.sites:
            raise InvalidTap(f"there is no site {site!r} among {', '.join(self.sites)}")
        count = self.units[self.sites.index(site)]
        if not 0 <= unit < count:
            raise InvalidTap(f"there is no unit {unit}: {site} has {count}")
        path, _, end = site.partition(":")
        if self.kind not in ("tokens", "heads", "neurons") or " " in site:
            raise InvalidTap(f"{self.kind} of {site} are no lxt.Unit that its path tells")
        if position == -1 and self._is_summed:
            position = None
        heads = count if self.kind == "heads" else None
        place = Site(path, "input" if end else "output", heads)
        return Unit(
            place,
            unit if self.kind == "neurons" else None,
            head=unit if heads else None,
            position=position,
        )

    @property
    def _is_summed(self) -> bool:
        """Whether no position is told."""
        if self.index is None:
            return "tokens" not in self.axes
        return bool((self.index[..., 0] == -1).all())

    def part(self, index: tuple[int, ...], keep: Tensor, targets: int | None = None) -> Latent:
        """One entry of the first axes, of rows or targets, or all; without padding.

        Args:
            index: of as many axes.
            keep: bool ``[tokens]``.
            targets: so many are there, if there is an axis of them left.

        """
        axes, of_each = self.axes[len(index) :], "top" in self.axes
        relevance, activation, picked = self.relevance[index], self.activation, self.index
        if of_each or "targets" not in self.axes[: len(index)]:
            activation = activation[index]
        picked = None if picked is None else picked[index]
        if "targets" in axes:
            relevance = relevance[:targets]
            activation = activation[:targets] if of_each else activation
            picked = None if picked is None else picked[:targets]
        if "tokens" in axes:
            places = keep.nonzero()[:, 0]
            relevance = relevance.index_select(axes.index("tokens"), places)
            without = tuple(axis for axis in axes if axis != "targets")
            activation = activation.index_select(without.index("tokens"), places)
        return Latent(relevance, activation, axes, self.sites, self.units, self.kind, picked)

    def __repr__(self) -> str:
        sizes = zip(self.axes, self.relevance.shape, strict=True)
        return f"<Latent relevance: {', '.join(f'{axis} {size}' for axis, size in sizes)}>"


def names_of(calls: Sequence[str]) -> list[str]:
    """Sites by name; one that ran several times has numbers."""
    return [
        site if calls.count(site) == 1 else f"{site} #{calls[:i].count(site)}"
        for i, site in enumerate(calls)
    ]
