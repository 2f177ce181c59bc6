"""Units by name: `model.layers.3.mlp.act_fn[5]`, the end of it, or an `lxt.Unit`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from lxt.atlas.identity import identity_of_sae
from lxt.atlas.passes import SiteOfAtlas
from lxt.errors import InvalidTap
from lxt.latent.sae import SAE, as_sae
from lxt.latent.units import Site, Unit, fits

__all__ = ["find", "name_of", "unit_of"]

_NAME = re.compile(r"(?P<site>.+?)(\[(?P<index>-?\d+)\])?")
_RUN = re.compile(r" #\d+$")


def name_of(site: SiteOfAtlas, index: int) -> str:
    """How a unit is called."""
    return site.name if site.kind == "tokens" else f"{site.name}[{index}]"


def unit_of(site: SiteOfAtlas, index: int, sae: Any = None) -> Unit:
    """The unit, to be explained, steered or tapped.

    Args:
        site: where it is.
        index: its number there.
        sae: of a feature, the autoencoder; or several, to be chosen from.

    Raises:
        InvalidTap: it is an expert; or a feature, and the autoencoder is missing or another.

    """
    if site.kind == "experts":
        raise InvalidTap(
            f"{name_of(site, index)} is no lxt.Unit: an expert is a module of its own, whose "
            "weight comes from the router"
        )
    path, *ends = _RUN.sub("", site.name).split(":")
    if site.kind == "features":  # the tap's key is the last of the ends
        place = Site(f"/{path}", "input" if len(ends) > 1 else "output")
        return Unit(place, feature=index, sae=_sae_of(site, sae))
    place = Site(f"/{path}", "input" if ends else "output", site.heads)
    if site.kind == "tokens":
        return Unit(place)
    return Unit(place, head=index) if site.kind == "heads" else Unit(place, neuron=index)


def _sae_of(site: SiteOfAtlas, sae: Any) -> SAE:
    if sae is None:
        raise InvalidTap(
            f"{site.name} has features of an autoencoder, which the atlas doesn't hold: give "
            "sae=…, the one that it was built with"
        )
    given = [as_sae(one) for one in (sae if isinstance(sae, list | tuple) else [sae])]
    for one in given:
        if identity_of_sae(one) == site.sae:
            return one
    names = ", ".join(one.name for one in given) or "none"
    raise InvalidTap(
        f"{site.name} has features of another autoencoder than sae=… is ({names}): give the one "
        "that the atlas was built with"
    )


def find(sites: Sequence[SiteOfAtlas], unit: Any) -> tuple[int, int]:
    """The number of a unit's site, and the unit's in it.

    Raises:
        InvalidTap: there is no such site or unit, or the name fits several.

    """
    fitting = range(len(sites))
    if isinstance(unit, Unit):
        if unit.direction is not None:
            raise InvalidTap(f"{unit!r}: an atlas is of neurons, heads and channels, or features")
        parts = [unit.neuron, unit.head, unit.feature]
        index = next((part for part in parts if part is not None), None)
        wanted = str(unit.place)
        sae = None if unit.sae is None else identity_of_sae(unit.sae)
        fitting = [i for i in fitting if sites[i].sae == sae and sites[i].kind != "experts"]
        if not fitting:
            raise InvalidTap(
                f"{unit!r}: the atlas has none such, but {sites[0].kind} of {sites[0].name}, for "
                "instance" + ("" if sae is None else ", or features of another autoencoder")
            )
    elif isinstance(unit, str) and (match := _NAME.fullmatch(unit)):
        wanted = match["site"]
        index = None if match["index"] is None else int(match["index"])
    else:
        raise InvalidTap(f"{unit!r} is no unit: give an lxt.Unit, or a name such as 'SITE[5]'")
    number = fitting[_site([sites[i] for i in fitting], wanted)]
    site = sites[number]
    if index is None:
        if site.kind != "tokens":
            raise InvalidTap(f"{unit!r} says not which of {site.units} {site.kind}: add [0], say")
        return number, 0
    if site.kind == "tokens" or not -site.units <= index < site.units:
        raise InvalidTap(f"there is no unit {index}: {site.name} has {site.units} {site.kind}")
    return number, index % site.units


def _site(sites: Sequence[SiteOfAtlas], wanted: str) -> int:
    found: list[int] = []
    # Where nothing else is called so, what is behind a colon need not be said: of features the
    # tap's key, and the end of a module.
    for called in (str, lambda name: name.rpartition(":")[0], lambda name: name.partition(":")[0]):
        found = found or [i for i, site in enumerate(sites) if fits(called(site.name), wanted)]
    if len(found) == 1:
        return found[0]
    names = [site.name for site in sites]
    if not found:
        near = difflib.get_close_matches(wanted, names, n=1, cutoff=0) or [""]
        raise InvalidTap(f"the atlas has no site {wanted!r}: there is, for instance, {near[0]!r}")
    listed = ", ".join(repr(names[i]) for i in found[:3])
    raise InvalidTap(f"{wanted!r} fits {len(found)} sites, {listed}, …: name one")
