"""Units by name: `model.layers.3.mlp.act_fn[5]`, the end of it, or an `lxt.Unit`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from lxt.atlas.passes import SiteOfAtlas
from lxt.errors import InvalidTap
from lxt.latent.units import Site, Unit

__all__ = ["find", "name_of", "unit_of"]

_NAME = re.compile(r"(?P<site>.+?)(\[(?P<index>-?\d+)\])?")
_RUN = re.compile(r" #\d+$")


def name_of(site: SiteOfAtlas, index: int) -> str:
    """How a unit is called."""
    return site.name if site.kind == "tokens" else f"{site.name}[{index}]"


def unit_of(site: SiteOfAtlas, index: int) -> Unit:
    """The unit, to be explained, steered or tapped."""
    path, _, end = _RUN.sub("", site.name).partition(":")
    place = Site(f"/{path}", "input" if end else "output", site.heads)
    if site.kind == "tokens":
        return Unit(place)
    return Unit(place, head=index) if site.kind == "heads" else Unit(place, neuron=index)


def find(sites: Sequence[SiteOfAtlas], unit: Any) -> tuple[int, int]:
    """The number of a unit's site, and the unit's in it.

    Raises:
        InvalidTap: there is no such site or unit, or the name fits several.

    """
    if isinstance(unit, Unit):
        if unit.direction is not None:
            raise InvalidTap(f"{unit!r}: an atlas is of neurons, heads and channels")
        index = unit.neuron if unit.neuron is not None else unit.head
        wanted = str(unit.place)
    elif isinstance(unit, str) and (match := _NAME.fullmatch(unit)):
        wanted = match["site"]
        index = None if match["index"] is None else int(match["index"])
    else:
        raise InvalidTap(f"{unit!r} is no unit: give an lxt.Unit, or a name such as 'SITE[5]'")
    number = _site(sites, wanted)
    site = sites[number]
    if index is None:
        if site.kind != "tokens":
            raise InvalidTap(f"{unit!r} says not which of {site.units} {site.kind}: add [0], say")
        return number, 0
    if site.kind == "tokens" or not -site.units <= index < site.units:
        raise InvalidTap(f"there is no unit {index}: {site.name} has {site.units} {site.kind}")
    return number, index % site.units


def _site(sites: Sequence[SiteOfAtlas], wanted: str) -> int:
    found = [i for i, site in enumerate(sites) if _fits(site.name, wanted)]
    # Where nothing else is called so, the end of a module need not be said.
    found = found or [
        i for i, site in enumerate(sites) if _fits(site.name.partition(":")[0], wanted)
    ]
    if len(found) == 1:
        return found[0]
    names = [site.name for site in sites]
    if not found:
        near = difflib.get_close_matches(wanted, names, n=1, cutoff=0) or [""]
        raise InvalidTap(f"the atlas has no site {wanted!r}: there is, for instance, {near[0]!r}")
    listed = ", ".join(repr(names[i]) for i in found[:3])
    raise InvalidTap(f"{wanted!r} fits {len(found)} sites, {listed}, …: name one")


def _fits(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.removeprefix("/").split(".")
    if len(parts) < len(wanted) or (pattern.startswith("/") and len(parts) != len(wanted)):
        return False
    return all(map(fnmatchcase, parts[-len(wanted) :], wanted))
