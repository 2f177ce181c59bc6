"""Where in a model something is, and which part of it: sites and units."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import Tensor, nn

from lxt.errors import InvalidTap
from lxt.latent.sae import as_sae

__all__ = ["End", "Site", "Unit", "as_site", "fits"]

_PARTS = ("neuron", "head", "direction", "feature")

End = Literal["input", "output"]


@dataclass(frozen=True)
class Site:
    """A tensor [batch, tokens, …] that goes into a module or comes out of it.

    Attributes:
        module: the module's path, all of it or its end. In it `*` stands for anything between two
            dots, and then it is the site of each module that fits: `"layers.*.mlp"`. A path that
            begins with a slash is all of it.
        end: the first tensor that the module is called with, or the first that it returns.
        heads: how many heads the last axis is divided into, if it is.

    """

    module: str
    end: End = "output"
    heads: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.module, str) or not self.module:
            raise InvalidTap(f"{self.module!r} is no path of a module, such as 'layers.*.mlp'")
        if self.end not in ("input", "output"):
            raise InvalidTap(f"end={self.end!r} is neither 'input' nor 'output'")
        heads = self.heads
        if heads is not None and (
            not isinstance(heads, int) or isinstance(heads, bool) or heads < 1
        ):
            raise InvalidTap(f"heads={heads!r} is no number of heads")

    def __str__(self) -> str:
        return self.module if self.end == "output" else f"{self.module}:{self.end}"

    def modules(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """The modules whose path fits, in the model's order; the first path of one that has many.

        Raises:
            InvalidTap: there are none; the message shows paths that there are.

        """
        found = [(name, part) for name, part in model.named_modules() if fits(name, self.module)]
        if not found:
            raise InvalidTap(
                f"no module of {type(model).__name__} matches {self.module!r}: there is, for "
                f"instance, {_nearest(self.module, model)!r}"
            )
        return found

    def the_module(self, model: nn.Module) -> nn.Module:
        """The one module whose path fits.

        Raises:
            InvalidTap: there is none, or there are several.

        """
        found = self.modules(model)
        if len(found) > 1:
            names = ", ".join(repr(name) for name, _ in found[:3])
            raise InvalidTap(f"{self.module!r} fits {len(found)} modules, {names}, …: name one")
        return found[0][1]


def as_site(site: Any) -> Site:
    """A site, or the path of a module whose output it is.

    Raises:
        InvalidTap: it is neither.

    """
    if isinstance(site, str):
        return Site(site)
    if not isinstance(site, Site):
        raise InvalidTap(f"{site!r} is no lxt.Site, nor the path of a module")
    return site


@dataclass(frozen=True, eq=False)
class Unit:
    """A part of what goes through a site: a neuron, head, direction or feature; or all of it.

    >>> lxt.Unit("layers.17.mlp.act_fn", neuron=5687, position=-1)
    >>> lxt.Unit(lxt.Site("layers.3.self_attn.o_proj", end="input", heads=9), head=5)
    >>> lxt.Unit("layers.12", direction=v)
    >>> lxt.Unit("layers.15", feature=123, sae=sae)

    Attributes:
        site: a `Site`, or the path of a module whose output it is.
        neuron: an index into the last axis; negative ones count from the end.
        head: an index of a head, where the site tells how many there are.
        direction: a vector as long as the last axis; the unit is the projection onto it.
        feature: an index of a feature of a sparse autoencoder of what goes through the site, which
            is not 0 where it fires.
        sae: the autoencoder: an `SAE`, or what one is made from.
        position: of which token, counted without padding, negative ones from the end; None for the
            last one where a single one is asked for, and for all where many may be.

    Raises:
        InvalidTap: more than one part, or none of this kind.

    """

    site: Site | str
    neuron: int | None = None
    head: int | None = field(default=None, kw_only=True)
    direction: Tensor | None = field(default=None, kw_only=True)
    feature: int | None = field(default=None, kw_only=True)
    sae: Any = field(default=None, kw_only=True)
    position: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "site", as_site(self.site))
        for name in ("neuron", "head", "feature", "position"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise InvalidTap(f"{name}={value!r} is no integer")
        if self.direction is not None:
            v = self.direction
            if not isinstance(v, Tensor) or v.dim() != 1 or not v.is_floating_point():
                raise InvalidTap("direction is no vector: give a tensor of one axis")
            if not v.isfinite().all() or not v.any():
                raise InvalidTap("direction is zero, or not finite")
        if (self.feature is None) != (self.sae is None):
            raise InvalidTap("a feature is one of an autoencoder: give feature=… and sae=…")
        if self.sae is not None:
            object.__setattr__(self, "sae", as_sae(self.sae))
        parts = [n for n in _PARTS if getattr(self, n) is not None]
        if len(parts) > 1:
            raise InvalidTap(f"a unit is one of {' and '.join(parts)}, not both")
        if self.head is not None and self.place.heads is None:
            raise InvalidTap(
                f"head={self.head}: {self.place} doesn't say how many heads there are: give "
                "lxt.Site(…, heads=…)"
            )

    @property
    def place(self) -> Site:
        """The site."""
        assert isinstance(self.site, Site)
        return self.site

    @property
    def name(self) -> str:
        """How a person reads it: `layers.17.mlp.act_fn[5687]`."""
        if self.neuron is not None:
            return f"{self.place}[{self.neuron}]"
        if self.head is not None:
            return f"{self.place} head {self.head}"
        if self.feature is not None:
            return f"{self.place} feature {self.feature}"
        return f"{self.place} · direction" if self.direction is not None else str(self.place)

    def __repr__(self) -> str:
        return f"<Unit {self.name}>"

    def at(self, position: int | None) -> Unit:
        """The same part of another token."""
        return replace(self, position=position)

    def require_in(self, width: int) -> None:
        """Make sure that a last axis of `width` has this part.

        Raises:
            InvalidTap: it hasn't.

        """
        heads = self.place.heads
        if self.neuron is not None and not -width <= self.neuron < width:
            raise InvalidTap(f"there is no neuron {self.neuron}: {self.place} has {width}")
        if heads is not None and width % heads:
            raise InvalidTap(f"{self.place} has {width} channels, which {heads} heads can't share")
        if self.head is not None and heads is not None and not -heads <= self.head < heads:
            raise InvalidTap(f"there is no head {self.head}: {self.place} has {heads}")
        if self.direction is not None and len(self.direction) != width:
            raise InvalidTap(
                f"direction has {len(self.direction)} numbers, and {self.place} {width}"
            )

    def channels(self, width: int) -> slice:
        """Which of the last axis it is; all for a direction.

        Raises:
            InvalidTap: it is a feature, which an autoencoder makes of all of them.

        """
        if self.feature is not None:
            raise InvalidTap(f"{self.name} is no channel: it is read by an encoder")
        if self.neuron is not None:
            return slice(self.neuron % width, self.neuron % width + 1)
        if self.head is not None and self.place.heads is not None:
            size, head = width // self.place.heads, self.head % self.place.heads
            return slice(head * size, (head + 1) * size)
        return slice(0, width)


def fits(name: str, pattern: str) -> bool:
    """Whether a path fits a pattern, see `Site.module`."""
    parts, wanted = name.split("."), pattern.removeprefix("/").split(".")
    if pattern.startswith("/") and len(parts) != len(wanted):
        return False
    if len(parts) < len(wanted):
        return False
    return all(map(fnmatchcase, parts[-len(wanted) :], wanted))


def _nearest(pattern: str, model: nn.Module) -> str:
    names = [name for name, _ in model.named_modules() if name]
    return (difflib.get_close_matches(pattern, names, n=1, cutoff=0) or names or [""])[0]
