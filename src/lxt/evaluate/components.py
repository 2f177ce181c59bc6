"""Components: the parts of a model that are intervened on, one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lxt.errors import InvalidInput, InvalidTap
from lxt.latent.units import Site

if TYPE_CHECKING:
    from lxt.latent.anatomy import Anatomy, Layer

__all__ = ["KINDS", "Component", "Groups", "components_of"]

KINDS = ("residual", "attention", "heads", "mlp", "neurons")

Groups = int | Sequence[Sequence[int]]
"""How the neurons of an MLP are put together: in so many runs of neighbours, or which ones."""


@dataclass(frozen=True)
class Component:
    """What passes one site, in one piece or in parts.

    Attributes:
        kind: what it is called among the results.
        site: with the whole path of its module.
        layer: its number among those of its kind.
        groups: of neurons; None for the whole vector, or heads where the site has them.

    """

    kind: str
    site: Site
    layer: int
    groups: Groups | None = None

    @property
    def name(self) -> str:
        """The site's."""
        return str(self.site).removeprefix("/")

    def parts(self, width: int) -> list[tuple[int, Tensor]]:
        """The number of each part, and its channels among `width`.

        Raises:
            InvalidTap: they can't be divided so, or aren't there.

        """
        channels = torch.arange(width)
        if self.groups is None and self.site.heads is None:
            return [(-1, channels)]
        if self.groups is None or isinstance(self.groups, int):
            count, even = self.site.heads or self.groups, self.groups is None
            assert isinstance(count, int)
            if count > width or (even and width % count):
                raise InvalidTap(f"{self.name} has {width} channels: no {count} parts of that")
            return list(enumerate(channels.tensor_split(count)))
        found = [torch.tensor(list(group)) for group in self.groups]
        for number, group in enumerate(found):
            if (group >= width).any():
                raise InvalidTap(
                    f"group {number} has neuron {int(group.max())}: {self.name} has {width}"
                )
        return list(enumerate(found))


def components_of(wanted: Any, model: nn.Module, anatomy: Any, groups: Any) -> list[Component]:
    """The components of these kinds, or at these sites, in the model's order.

    Args:
        wanted: names among `KINDS`, sites, or paths of modules.
        model: the instance.
        anatomy: finds the parts of the model; called if names need it.
        groups: see `Groups`.

    Raises:
        InvalidTap: there are none of a kind, or at a path.
        InvalidInput: that is none of these, or nothing at all; or there are no such groups.

    """
    wanted = [wanted] if isinstance(wanted, str | Site) else wanted
    if not isinstance(wanted, Sequence) or not wanted:
        raise InvalidInput(f"components={wanted!r}: give some of {_named()}, or lxt.Site(…)")
    groups = _as_groups(groups)
    found: dict[str, list[Component]] = {}
    for one in wanted:
        if not isinstance(one, str | Site):
            raise InvalidInput(f"component {one!r} is none of {_named()}, no path and no lxt.Site")
        if one in KINDS:
            key, sites = str(one), list(_sites(str(one), anatomy()))
        else:
            site = one if isinstance(one, Site) else Site(one)
            key = str(site)
            sites = [replace(site, module=f"/{path}") for path, _ in _modules(site, model)]
        if not sites:
            raise InvalidTap(
                f"no {key} found in {type(model).__name__}: name modules by their paths, "
                "lxt.Site(…)"
            )
        if key in found:
            raise InvalidInput(f"{key!r} is among the components twice")
        found[key] = [
            Component(key, site, layer, groups if key == "neurons" else None)
            for layer, site in enumerate(sites)
        ]
    return [component for of_kind in found.values() for component in of_kind]


def _modules(site: Site, model: nn.Module) -> list[tuple[str, nn.Module]]:
    try:
        return site.modules(model)
    except InvalidTap as error:
        raise InvalidTap(f"{error}; or give one of {_named()}") from None


def _sites(kind: str, anatomy: Anatomy) -> Iterator[Site]:
    for layer in anatomy.layers:
        yield from (_whole(site) for site in _sites_of_layer(kind, layer))


def _sites_of_layer(kind: str, layer: Layer) -> Iterator[Site]:
    if kind == "residual":
        yield Site(layer.path)
    elif kind == "heads":
        yield from layer.attentions
    elif kind == "neurons":
        yield from layer.neurons
    elif kind == "attention":
        yield from (Site(site.module) for site in layer.attentions)
    else:
        yield from (Site(site.module) for site in layer.neurons)
        if layer.experts is not None:
            yield Site(layer.experts.path)


def _whole(site: Site) -> Site:
    return replace(site, module=f"/{site.module.removeprefix('/')}")


def _as_groups(groups: Any) -> Groups:
    if isinstance(groups, int) and not isinstance(groups, bool) and groups > 0:
        return groups
    if (
        isinstance(groups, Sequence)
        and groups
        and all(isinstance(group, Sequence) and group and _all_indices(group) for group in groups)
    ):
        return groups
    raise InvalidInput(
        f"groups={groups!r}: give how many there are of each MLP, or lists of neurons, from 0"
    )


def _all_indices(group: Sequence[Any]) -> bool:
    return all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in group)


def _named() -> str:
    return ", ".join(map(repr, KINDS))
