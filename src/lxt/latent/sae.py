"""Sparse autoencoders: features of what passes a site, and what decodes to it again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lxt.engine.parameters import ConstantParameters
from lxt.errors import InvalidTap, LxtError
from lxt.latent.sae_weights import Activation, Normalisation, Weights, weights_of

if TYPE_CHECKING:
    from lxt.latent.units import Site, Unit

__all__ = ["SAE", "as_sae"]


class SAE:
    """A sparse autoencoder: features f = encode(x) ≥ 0 of a vector x, and decode(f) ≈ x.

    Made from an `SAE` of SAELens, from any other object with `encode` and `decode`, or by `load`
    from a file of weights. It computes where its own weights are, in their type: put it on another
    device with `.coder.to(…)`.

    >>> sae = lxt.SAE.load("sae_layer_15")
    >>> lxt.explain(model, text, taps=lxt.Features(sae, "layers.15"))
    >>> lxt.explain(model, text, target=sae.feature("layers.15", 123))

    Args:
        coder: has `encode`, which maps [batch, tokens, channels] to [batch, tokens, features], and
            `decode`, which maps that back.

    Raises:
        InvalidTap: it lacks these; it is a transcoder, whose output is another site's; it splits
            channels into heads; or tensors of an object that is no module require grad.

    """

    def __init__(self, coder: Any) -> None:
        for name in ("encode", "decode"):
            if isinstance(coder, type) or not callable(getattr(coder, name, None)):
                raise InvalidTap(
                    f"{coder!r} has no method {name}: a sparse autoencoder has encode and decode"
                )
        cfg = getattr(coder, "cfg", None)
        architecture = getattr(cfg, "architecture", None)
        kind = architecture() if callable(architecture) else architecture
        if "transcoder" in str(kind):
            raise InvalidTap(
                f"{type(coder).__name__} is a transcoder: it decodes to what another site puts out"
            )
        if getattr(coder, "hook_z_reshaping_mode", False):
            raise InvalidTap(
                f"{type(coder).__name__} takes [..., heads, channels], and what passes a module "
                "has both in one axis: call its turn_off_forward_pass_hook_z_reshaping()"
            )
        if not isinstance(coder, nn.Module):
            for name, value in vars(coder).items() if hasattr(coder, "__dict__") else ():
                if isinstance(value, Tensor) and value.requires_grad:
                    raise InvalidTap(
                        f"{name} of {type(coder).__name__} requires grad, and so would pass for "
                        "what is explained: call requires_grad_(False) on it"
                    )
        self.coder: Any = coder

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        activation: Activation | None = None,
        k: int | None = None,
        apply_b_dec_to_input: bool | None = None,
        normalisation: Normalisation | None = None,
    ) -> SAE:
        """Read an autoencoder from a safetensors file, as SAELens writes it, or from its folder.

        The file holds W_enc [channels, features], b_enc, W_dec [features, channels] and b_dec, and
        perhaps threshold [features]; matrices may be the other way round. What else there is to
        know is in `cfg.json` beside it, or is said here: f = a((x − b) W_enc + b_enc), where b is
        b_dec or nothing. Weights are kept in float32, or float64.

        Args:
            path: the file, or the folder with `sae_weights.safetensors`.
            activation: `"relu"`; `"jumprelu"`, 0 up to the threshold; or `"topk"`, the k largest.
                Without a `cfg.json`, by default what the tensors and k say.
            k: how many features of a token are not 0.
            apply_b_dec_to_input: whether b is b_dec.
            normalisation: of x before encoding, taken back after decoding: `"none"`,
                `"layer_norm"`, or `"constant_norm_rescale"`, to the length √channels.

        Raises:
            InvalidFile: it can't be read; shapes don't fit, or don't tell which way round matrices
                are; something isn't said, or not known.

        """
        return cls(
            weights_of(
                path,
                activation=activation,
                k=k,
                apply_b_dec_to_input=apply_b_dec_to_input,
                normalisation=normalisation,
            )
        )

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return str(self.coder) if isinstance(self.coder, Weights) else type(self.coder).__name__

    def feature(self, site: Site | str, number: int, *, position: int | None = None) -> Unit:
        """A feature at a site as a `Unit`: to explain what made it fire, or relevance through it.

        Raises:
            InvalidTap: there is no such site.

        """
        from lxt.latent.units import Unit

        return Unit(site, feature=number, sae=self, position=position)

    def encode(self, x: Tensor) -> Tensor:
        """The features [batch, tokens, features] of x [batch, tokens, channels], in the SAE's type.

        Raises:
            InvalidTap: it doesn't take them, or returns something else.

        """
        with self._as_it_was():
            return self._encode(x)

    def coded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features, and what they decode to [batch, tokens, channels].

        Raises:
            InvalidTap: as of `encode`.

        """
        with self._as_it_was():  # a decoder may take back what its encoder has done
            features = self._encode(x)
            return features, self._decode(features, x)

    def pulled(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Features of x, and the gradient at them for the gradient g at what they decode to.

        For a linear decoder that is W_dec g. Statistics of x that the decoder takes up are
        constants.
        """
        features, decoded = self._linked(x)
        g = g.to(decoded.device, decoded.dtype)
        (found,) = torch.autograd.grad(decoded, features, g)
        return features.detach(), found

    def constant(self, x: Tensor) -> Tensor:
        """What of the decoded does not come from features: b_dec of a linear decoder.

        It is decode(f) − J f, of the decoder's derivative J at f.
        """
        if isinstance(self.coder, Weights) and self.coder.normalisation == "none":
            return self.coder.b_dec.expand(x.shape)
        features, decoded = self._linked(x)
        with torch.enable_grad():  # J f is the derivative, by u, of the product of Jᵀu and f
            u = torch.zeros_like(decoded, requires_grad=True)
            (pulled,) = torch.autograd.grad(decoded, features, u, create_graph=True)
        (linear,) = torch.autograd.grad(pulled, u, features.detach())
        return (decoded - linear).detach()

    def direction(self, number: int) -> Tensor:
        """What the decoder writes for one feature, [channels]: a row of W_dec, of a linear one.

        Raises:
            InvalidTap: there is no such feature; or what is written depends on x, for the SAE
                takes back a normalisation.

        """
        weight = getattr(self.coder, "W_dec", None)
        normalised = getattr(getattr(self.coder, "cfg", None), "normalize_activations", "none")
        if isinstance(self.coder, Weights):
            normalised = self.coder.normalisation
        if not isinstance(weight, Tensor) or normalised not in _NOT_AT_RUN_TIME:
            raise InvalidTap(
                f"{self.name} has no direction for a feature, which takes a W_dec [features, "
                "channels] and no normalisation of its input"
            )
        self.require(number, len(weight))
        with torch.no_grad():
            one = weight.new_zeros(2, 1, len(weight))
            one[0, 0, number] = 1
            decoded = self.coder.decode(one)[:, 0]
        return (decoded[0] - decoded[1]).detach()

    def rewritten(self, x: Tensor, number: int, change: Callable[[Tensor], Tensor]) -> Tensor:
        """x [batch, …, channels] with one feature changed: x + decode(f + Δ) − decode(f).

        The reconstruction error stays as it is.

        Args:
            x: what passes.
            number: of the feature.
            change: maps the feature [batch, …, 1] to Δ.

        Raises:
            InvalidTap: there is no such feature.

        """
        twice = torch.cat((x, x))  # a decoder may take back what is of its own input only
        with self.as_constants(), self._as_it_was():
            features = self._encode(twice)
            self.require(number, features.shape[-1])
            one = features[len(x) :, ..., [number]]
            at = torch.zeros_like(features[:1].detach())
            at[..., number] = 1
            delta = change(one) * at
            changed = torch.cat((features[: len(x)], features[len(x) :] + delta))
            before, after = self._decode(changed, twice).split(len(x))
        return x + (after - before).to(x)

    def require(self, number: int, count: int) -> None:
        """Make sure that there is a feature of this number among so many.

        Raises:
            InvalidTap: there isn't.

        """
        if not -count <= number < count:
            raise InvalidTap(f"there is no feature {number}: {self.name} has {count}")

    @contextmanager
    def as_constants(self) -> Iterator[None]:
        """Its parameters as constants, as those of a model are while it is explained."""
        modules = self.coder.modules() if isinstance(self.coder, nn.Module) else ()
        constants = ConstantParameters(modules)
        try:
            yield
        finally:
            constants.release()

    def __repr__(self) -> str:
        return f"<SAE {self.name}>"

    def _encode(self, x: Tensor) -> Tensor:
        like = self._tensor()
        given = x if like is None else x.to(like.device, like.dtype)
        features = self._call("encode", given)
        if isinstance(features, Tensor) and features.layout is not torch.strided:
            features = features.to_dense()
        fine = isinstance(features, Tensor) and features.is_floating_point()
        if not fine or features.shape[:-1] != x.shape[:-1]:
            raise InvalidTap(
                f"encode of {self.name} returned {_told(features)} for {_told(x)}: "
                "[batch, tokens, features] was expected"
            )
        return features

    def _decode(self, features: Tensor, x: Tensor) -> Tensor:
        decoded = self._call("decode", features)
        if not isinstance(decoded, Tensor) or decoded.shape != x.shape:
            raise InvalidTap(
                f"decode of {self.name} returned {_told(decoded)} for features of {_told(x)}, "
                "which it should be like"
            )
        return decoded

    def _linked(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features as a leaf, and what they decode to."""
        with self._as_it_was():
            with torch.no_grad():
                features = self._encode(x)
            features = features.detach().requires_grad_()
            with torch.enable_grad():
                decoded = self._decode(features, x)
        if not decoded.requires_grad:
            raise InvalidTap(f"decode of {self.name} runs without gradients, as in torch.no_grad()")
        return features, decoded

    def _call(self, name: str, x: Tensor) -> Any:
        try:
            return getattr(self.coder, name)(x)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if isinstance(error, torch.OutOfMemoryError | LxtError):
                raise
            raise InvalidTap(f"{name} of {self.name} can't take {_told(x)}: {error}") from error

    def _tensor(self) -> Tensor | None:
        """One of the tensors that it computes with."""
        coder = self.coder
        held: Any = vars(coder).values() if hasattr(coder, "__dict__") else ()
        if isinstance(coder, nn.Module):
            held = (*coder.parameters(), *coder.buffers())
        return next((x for x in held if isinstance(x, Tensor) and x.is_floating_point()), None)

    @contextmanager
    def _as_it_was(self) -> Iterator[None]:
        """Forget what an encoder has left for the decoder, which may hold a whole graph."""
        with ExitStack() as undo:
            if hasattr(self.coder, "__dict__"):
                held, before = self.coder.__dict__, dict(self.coder.__dict__)
                undo.callback(held.update, before)
                undo.callback(lambda: [held.pop(name) for name in set(held) - set(before)])
            yield


_NOT_AT_RUN_TIME = (None, "none", "expected_average_only_in", "covariance_whitening")
"""Normalisations of SAELens that are none, or in the weights."""


def as_sae(sae: Any) -> SAE:
    """An `SAE`, of an object that may be one already.

    Raises:
        InvalidTap: it can't be one.

    """
    return sae if isinstance(sae, SAE) else SAE(sae)


def _told(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__
