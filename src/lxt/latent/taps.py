"""Taps: the latent places whose relevance is read, by structure or by the paths of modules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from lxt.errors import InvalidTap
from lxt.latent.experts import Routed
from lxt.latent.parts import Kind, Parts
from lxt.latent.probes import Lens
from lxt.latent.units import Site, as_site

if TYPE_CHECKING:
    from lxt.latent.anatomy import Anatomy

__all__ = ["Experts", "Heads", "Neurons", "Place", "Residual", "Tap", "as_taps"]


@dataclass(frozen=True)
class Place:
    """One module whose input or output is read, and what is told of it."""

    site: Site
    module: nn.Module
    parts: Parts
    lens: Lens | None = None


@dataclass(frozen=True, kw_only=True)
class AnyTap(ABC):
    """What all taps have.

    Attributes:
        over: `"tokens"` sums relevance, and activation, over all tokens, as it is read.
        top: keeps so many of each layer and row only, those of the largest |relevance|.
        name: the key in `Explanation.latent`; by default the kind's, or the path.

    Raises:
        InvalidTap: these are none.

    """

    over: str | None = None
    top: int | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.over not in (None, "tokens"):
            raise InvalidTap(f'over={self.over!r}: give "tokens" to sum over them, or None')
        top = self.top
        if top is not None and (not isinstance(top, int) or isinstance(top, bool) or top < 1):
            raise InvalidTap(f"top={top!r} is no number of units, from 1")
        if self.name is not None and not isinstance(self.name, str):
            raise InvalidTap(f"name={self.name!r} is no text")

    @property
    @abstractmethod
    def key(self) -> str:
        """What its relevance is called in `Explanation.latent`."""

    @abstractmethod
    def places(self, model: nn.Module, anatomy: Callable[[], Anatomy]) -> list[Place]:
        """The modules that it is about, in the model's order.

        Raises:
            InvalidTap: there are none.

        """

    @property
    def companions(self) -> Sequence[AnyTap]:
        """What is read along with it, under keys of their own."""
        return ()

    def parts(self, kind: Kind, heads: int | None = None) -> Parts:
        """What is told of a kind of units."""
        return Parts(kind, heads, self.over == "tokens", self.top)


@dataclass(frozen=True)
class Tap(AnyTap):
    """What passes one end of a module, or of each module whose path fits.

    >>> lxt.Tap("layers.*.mlp.act_fn")
    >>> lxt.Tap(lxt.Site("layers.*.self_attn.o_proj", end="input", heads=9))

    Attributes:
        site: a `Site`, or the path of modules whose output is read. Of one with heads, these are
            told, else each channel.
        channels: whether each channel is told; else their sum, of each token.

    """

    site: Site | str
    channels: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "site", as_site(self.site))

    @property
    def key(self) -> str:
        """The path."""
        return self.name or str(self.site)

    def places(self, model: nn.Module, anatomy: Callable[[], Anatomy]) -> list[Place]:
        """The modules whose path fits."""
        site = self.site
        assert isinstance(site, Site)
        kind: Kind = "neurons" if self.channels else "tokens"
        if site.heads is not None:
            kind = "heads"
        return [
            Place(Site(f"/{path}", site.end, site.heads), module, self.parts(kind, site.heads))
            for path, module in site.modules(model)
        ]


@dataclass(frozen=True)
class _OfLayers(AnyTap):
    """A tap found by structure, in all layers or some."""

    layer: int | Sequence[int] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = [] if self.layer is None else self._numbers()
        is_empty = self.layer is not None and not numbers
        if is_empty or any(not isinstance(n, int) or isinstance(n, bool) for n in numbers):
            raise InvalidTap(f"layer={self.layer!r} is no number of a layer, nor a list of them")

    def _numbers(self) -> list[Any]:
        layer = self.layer
        if isinstance(layer, Sequence) and not isinstance(layer, str):
            return list(layer)
        return [layer]

    def chosen(self, anatomy: Anatomy) -> list[int]:
        """The numbers of the layers that it is about, in order."""
        count = len(anatomy.layers)
        if self.layer is None:
            return list(range(count))
        for number in self._numbers():
            if not -count <= number < count:
                raise InvalidTap(f"there is no layer {number}: the model has {count}")
        return sorted({number % count for number in self._numbers()})


@dataclass(frozen=True)
class Residual(_OfLayers):
    """The residual stream: what each layer puts out.

    Of each token the sum of relevance over channels, and the norm of the vector; or all channels.
    """

    channels: bool = False

    @property
    def key(self) -> str:
        """By default `"residual"`."""
        return self.name or "residual"

    def places(self, model: nn.Module, anatomy: Callable[[], Anatomy]) -> list[Place]:
        """The layers' outputs."""
        found = anatomy()
        parts = self.parts("neurons" if self.channels else "tokens")
        return [
            _place(Site(f"/{found.layers[number].path}"), model, parts)
            for number in self.chosen(found)
        ]


@dataclass(frozen=True)
class Heads(_OfLayers):
    """The attention heads of each layer, as the output projection reads them.

    Of each head the relevance is the sum over its channels, and the activation their norm. Under
    grouped queries there are as many heads as queries have.
    """

    @property
    def key(self) -> str:
        """By default `"heads"`."""
        return self.name or "heads"

    def places(self, model: nn.Module, anatomy: Callable[[], Anatomy]) -> list[Place]:
        """The inputs of the output projections."""
        found = anatomy()
        sites = [found.layers[number].heads for number in self.chosen(found)]
        places = [_place(s, model, self.parts("heads", s.heads)) for s in sites if s is not None]
        return _some(places, self, "no attention whose heads could be told was found", model)


@dataclass(frozen=True)
class Neurons(_OfLayers):
    """The hidden neurons of each layer's MLP, as its last projection reads them.

    With a gate, a neuron is the product of both. A layer with several MLPs has as many places.
    """

    @property
    def key(self) -> str:
        """By default `"neurons"`."""
        return self.name or "neurons"

    def places(self, model: nn.Module, anatomy: Callable[[], Anatomy]) -> list[Place]:
        """The inputs of the last projections."""
        found = anatomy()
        parts = self.parts("neurons")
        sites = [site for number in self.chosen(found) for site in found.layers[number].neurons]
        places = [_place(site, model, parts) for site in sites]
        return _some(places, self, "no MLP was found", model)


@dataclass(frozen=True)
class Experts(_OfLayers):
    """The routed experts of each layer: the share of its output that each made of a token.

    The activation is the router's weight, 0 where a token was sent elsewhere. What an expert put
    out is computed again in the backward pass.
    """

    @property
    def key(self) -> str:
        """By default `"experts"`."""
        return self.name or "experts"

    def places(self, model: nn.Module, anatomy: Callable[[], Anatomy]) -> list[Place]:
        """The outputs of the modules that run the experts."""
        found = anatomy()
        places = []
        for number in self.chosen(found):
            experts = found.layers[number].experts
            if experts is not None:
                site = Site(f"/{experts.path}")
                module = site.the_module(model)
                places.append(Place(site, module, self.parts("experts"), Routed(module, experts)))
        return _some(places, self, "no routed experts were found", model)


def _place(site: Site, model: nn.Module, parts: Parts) -> Place:
    site = Site(f"/{site.module.removeprefix('/')}", site.end, site.heads)
    return Place(site, site.the_module(model), parts)


def _some(places: list[Place], tap: AnyTap, problem: str, model: nn.Module) -> list[Place]:
    if not places:
        raise InvalidTap(
            f"{tap}: {problem} in {type(model).__name__}: name modules by their paths, lxt.Tap(…)"
        )
    return places


def as_taps(taps: Any, *, companions: bool = True) -> list[AnyTap]:
    """Taps as they are given, with distinct keys; and with `companions` what is read along.

    Raises:
        InvalidTap: something else is among them, or two have one key.

    """
    if isinstance(taps, str | Site | AnyTap):
        taps = [taps]
    if not isinstance(taps, Sequence):
        raise InvalidTap(f"taps={taps!r}: give a list of taps, or of paths of modules")
    found: list[AnyTap] = []
    for tap in taps:
        if isinstance(tap, str | Site):
            tap = Tap(tap)
        if not isinstance(tap, AnyTap):
            raise InvalidTap(
                f"{tap!r} is no tap: give lxt.Residual(), lxt.Heads(), lxt.Neurons(), lxt.Tap(…) "
                "or the path of modules"
            )
        found += [tap, *(tap.companions if companions else ())]
    keys = [tap.key for tap in found]
    for key in keys:
        if keys.count(key) > 1:
            raise InvalidTap(f"two taps are called {key!r}: give one of them another name=…")
    return found
