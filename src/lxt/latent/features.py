"""Features of a sparse autoencoder at a site: their relevance, and what it leaves to other parts.

Nothing is spliced into the forward pass. What passes is x = decode(f) + error with f = encode(x),
and a decoder's output is J f + constant, of its derivative J at f (for a linear one W_dec and
b_dec). So the relevance x · g of x, with the gradient g that arrives there, is

    Σ f_i (Jᵀg)_i + constant · g + error · g.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from lxt.engine.opaque import next_number
from lxt.engine.passages import Passing
from lxt.errors import InvalidTap
from lxt.latent.probes import Capture, Captured, Passage
from lxt.latent.sae import SAE, as_sae
from lxt.latent.taps import AnyTap, Place
from lxt.latent.units import End, Site, Unit, as_site
from lxt.latent.waypoints import Waypoint

if TYPE_CHECKING:
    from lxt.latent.anatomy import Anatomy

__all__ = ["FeatureCapture", "FeatureWaypoint", "Features"]

Part = Literal["features", "error", "bias"]


@dataclass(frozen=True)
class Features(AnyTap):
    """The features of a sparse autoencoder at one site.

    >>> e = lxt.explain(model, text, taps=lxt.Features(sae, "layers.15", top=20))
    >>> e.latent["features"].strongest(5)
    >>> e.latent["features.error"].total

    There are three entries in `Explanation.latent`: `"features"`, and of each token what is left in
    the reconstruction error, `"features.error"`, and in what the decoder adds to features,
    `"features.bias"`; of these the activation is the length of the vector. Together they are the
    relevance of what passes the site. With `top=` the first keeps so many only.

    Attributes:
        sae: an `SAE`, or what one is made from.
        site: a `Site`, or the path of a module whose output the features are of.

    Raises:
        InvalidTap: the one or the other is none.

    """

    sae: Any
    site: Site | str
    part: Part = field(default="features", init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sae", as_sae(self.sae))
        object.__setattr__(self, "site", as_site(self.site))

    @property
    def key(self) -> str:
        """By default `"features"`."""
        return self.name or "features"

    @property
    def companions(self) -> list[AnyTap]:
        """The error and the bias."""
        return [_Rest(self, "error"), _Rest(self, "bias")]

    def places(self, model: nn.Module, anatomy: Callable[[], Anatomy]) -> list[Place]:
        """The one module that the autoencoder is for."""
        return [self.place_in(model, "features")]

    def place_in(self, model: nn.Module, part: Part) -> Place:
        """Where a part is read.

        Raises:
            InvalidTap: there is no such module, or there are several.

        """
        site = self.site
        assert isinstance(site, Site)
        module = site.the_module(model)
        path = next(name for name, one in model.named_modules() if one is module)
        kind = "features" if part == "features" else "tokens"
        return Place(Site(f"/{path}", site.end), module, self.parts(kind), _LENSES[part](self.sae))


@dataclass(frozen=True)
class _Rest(AnyTap):
    """What a decoder does not make of features."""

    features: Features = field(kw_only=False)
    part: Part = field(kw_only=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "over", self.features.over)

    @property
    def key(self) -> str:
        """That of the features, and which part it is."""
        return f"{self.features.key}.{self.part}"

    def places(self, model: nn.Module, anatomy: Callable[[], Anatomy]) -> list[Place]:
        """The same module."""
        place = self.features.place_in(model, self.part)
        return [Place(place.site, place.module, self.parts("tokens"), place.lens)]


class _OfFeatures:
    """Each feature: f, and f · (Jᵀg). A `Lens`."""

    def __init__(self, sae: SAE) -> None:
        self._sae = sae

    def kept(self, passing: Passing) -> Sequence[Tensor]:
        """Nothing: features are computed again."""
        return ()

    def values(self, x: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """The features."""
        return self._sae.encode(x).to(x)

    def read(self, g: Tensor, x: Tensor, kept: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Relevance of features, and features."""
        features, pulled = self._sae.pulled(x, g)
        features = features.to(x)
        return features * pulled.to(x), features


class _OfError(_OfFeatures):
    """What the features leave out: x − decode(f). A `Lens`."""

    def values(self, x: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """The error."""
        return x - self._sae.coded(x)[1].to(x)

    def read(self, g: Tensor, x: Tensor, kept: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Relevance of the error, and the error."""
        values = self.values(x, kept)
        return g * values, values


class _OfBias(_OfError):
    """What is decoded whatever the features are. A `Lens`."""

    def values(self, x: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """The bias."""
        return self._sae.constant(x).to(x)


_LENSES = {"features": _OfFeatures, "error": _OfError, "bias": _OfBias}


@dataclass(frozen=True)
class CapturedFeatures(Captured):
    """Features of a tensor that passed.

    Attributes:
        passed: a copy of the tensor [rows, tokens, channels], in float32 or more.
        features: those asked for [rows, tokens, some], with their graph.

    """

    passed: Tensor
    features: Tensor


class FeatureCapture(Capture):
    """Encodes what passes one site under the rules, to explain features of it. A `Probe`."""

    in_the_open = True

    def __init__(
        self,
        site: str,
        module: nn.Module,
        end: End,
        passage: Passage,
        sae: SAE,
        numbers: Sequence[int],
        *,
        values: bool,
    ) -> None:
        """`numbers`: of the features wanted."""
        super().__init__(site, module, end, passage, values=values)
        self.sae = sae
        self.numbers = numbers

    def __call__(self, passing: Passing) -> Tensor:
        """Keep its features. A second run encodes too, for the same graph."""
        value = passing.value
        x = self._passage.by_tokens(value, self.site)
        with self.sae.as_constants():
            features = self.sae.encode(x)
        count = features.shape[-1]
        for number in self.numbers:
            self.sae.require(number, count)
        if value.requires_grad and not features.requires_grad:
            raise InvalidTap(
                f"encode of {self.sae.name} runs without gradients, as in torch.no_grad(), so "
                "nothing tells what a feature comes from"
            )
        columns = torch.tensor([n % count for n in self.numbers], device=features.device)
        features = features.index_select(-1, columns)
        values = None
        if self._has_values:
            values = features.index_select(1, self._passage.keep.to(features.device))
        if not passing.is_rerun:
            edge = get_gradient_edge(value) if value.requires_grad else None
            passed = x.detach().clone()
            number = next_number()
            self._captured.append(
                CapturedFeatures(edge, values, value.shape, number, passed, features)
            )
        return value

    def channels(self, unit: Unit, width: int) -> slice:
        """Which of the features wanted it is."""
        assert unit.feature is not None
        at = self.numbers.index(unit.feature)
        return slice(at, at + 1)


@dataclass(frozen=True)
class FeatureWaypoint(Waypoint):
    """Features that relevance must go through: by the decoder to them, by the encoder onward.

    Attributes:
        capture: of the features.

    """

    capture: FeatureCapture

    def onward(self, g: Tensor) -> tuple[Any, Tensor]:
        """The features, and their gradients, for those of what passed."""
        captured = self.captured
        assert isinstance(captured, CapturedFeatures)
        x, features = captured.passed, captured.features
        flat = g.reshape(len(g), *x.shape).to(x)
        if self.explicit:  # relevance arrives
            flat = (flat / x).where(x != 0, 0)
        numbers = list(self.capture.numbers)
        pulled = [self.capture.sae.pulled(x, one)[1][..., numbers] for one in flat]
        arrived = torch.stack(pulled).to(features)
        if self.explicit:
            arrived = arrived * features.detach()
        found = torch.zeros_like(arrived)
        for unit in self.units:
            assert unit.feature is not None
            at = numbers.index(unit.feature)
            here = self.tokens(unit, found.device)[..., 0]
            found[..., at] = arrived[..., at].where(here, found[..., at])
        return features, found
