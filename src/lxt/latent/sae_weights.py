"""Sparse autoencoders as files: their weights, what SAELens says of them, and how they compute."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lxt.errors import InvalidFile
from lxt.gradients import compute_dtype

__all__ = ["Activation", "Normalisation", "Weights", "weights_of"]

Activation = Literal["relu", "jumprelu", "topk"]
Normalisation = Literal["none", "layer_norm", "constant_norm_rescale"]

FILE, CONFIG = "sae_weights.safetensors", "cfg.json"
_NEEDED = ("W_enc", "b_enc", "W_dec", "b_dec")
_ARCHITECTURES = {"standard": "relu", "jumprelu": "jumprelu", "topk": "topk"}
_EPSILON = 1e-5
"""What SAELens adds to a standard deviation that it divides by."""


class Weights(nn.Module):
    """An autoencoder f = a((n(x) − b) W_enc + b_enc), decoded to n⁻¹(f W_dec + b_dec).

    Attributes:
        W_enc: [channels, features].
        b_enc: [features].
        W_dec: [features, channels].
        b_dec: [channels].
        threshold: [features], of JumpReLU.
        activation: a.
        k: how many features of a token are kept, of TopK.
        apply_b_dec_to_input: whether b is b_dec; else it is 0.
        normalisation: n.
        by_norm: whether features are picked by what they write: a feature is measured in lengths
            of its row of W_dec.

    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        activation: Activation,
        *,
        k: int = 0,
        apply_b_dec_to_input: bool,
        normalisation: Normalisation,
        by_norm: bool,
    ) -> None:
        super().__init__()
        for name, x in tensors.items():
            self.register_buffer(name, x.detach().to(compute_dtype(x.dtype)))
        self.activation: Activation = activation
        self.k = k
        self.apply_b_dec_to_input = apply_b_dec_to_input
        self.normalisation: Normalisation = normalisation
        self.by_norm = by_norm
        self._statistics: tuple[Tensor, Tensor] | None = None

    def encode(self, x: Tensor) -> Tensor:
        """Features [..., features] of x [..., channels]."""
        x = self._normalised(x)
        if self.apply_b_dec_to_input:
            x = x - self.b_dec
        before = x @ self.W_enc + self.b_enc
        if self.by_norm:
            before = before * self._lengths()
        if self.activation == "jumprelu":
            return F.relu(before) * (before.detach() > self.threshold)
        if self.activation == "topk":
            # Which are the largest is a constant, as a ReLU's gate is.
            largest = before.detach().topk(self.k, dim=-1).indices
            kept = torch.zeros_like(before.detach()).scatter(-1, largest, 1)
            return F.relu(before) * kept
        return F.relu(before)

    def decode(self, features: Tensor) -> Tensor:
        """What features [..., features] stand for, [..., channels]."""
        if self.by_norm:
            features = features / self._lengths()
        decoded = features @ self.W_dec + self.b_dec
        if self._statistics is None:
            return decoded
        scale, shift = self._statistics
        self._statistics = None
        return decoded * scale + shift

    def _normalised(self, x: Tensor) -> Tensor:
        """x as the encoder takes it; the decoder takes that back."""
        if self.normalisation == "layer_norm":
            mean = x.mean(-1, keepdim=True)
            x = x - mean
            std = x.std(-1, keepdim=True)
            self._statistics = std.detach(), mean.detach()
            return x / (std + _EPSILON)
        if self.normalisation == "constant_norm_rescale":
            length = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
            self._statistics = length.detach(), torch.zeros_like(length.detach())
            return x / length
        return x

    def _lengths(self) -> Tensor:
        return self.W_dec.norm(dim=-1)

    def __str__(self) -> str:
        channels, features = self.W_enc.shape
        return f"the {self.activation} autoencoder of {channels} channels and {features} features"


def weights_of(
    path: str | os.PathLike[str],
    *,
    activation: Activation | None,
    k: int | None,
    apply_b_dec_to_input: bool | None,
    normalisation: Normalisation | None,
) -> Weights:
    """Read an autoencoder's weights; for the arguments see `SAE.load`.

    Raises:
        InvalidFile: quotes the path, and what is wrong.

    """
    file = Path(path)
    if file.is_dir():
        file = file / FILE
    try:
        tensors = load_file(file)
        beside = file.parent / CONFIG
        config = json.loads(beside.read_text("utf-8")) if beside.exists() else None
        if config is not None and not isinstance(config, dict):
            raise InvalidFile(f"{CONFIG} beside it holds no object")
        said = {} if config is None else _said_by(config)
        for name, value in {
            "activation": activation,
            "k": k,
            "apply_b_dec_to_input": apply_b_dec_to_input,
            "normalisation": normalisation,
        }.items():
            if value is None:
                continue
            if said.get(name, value) != value:
                raise InvalidFile(f"{name} is {value!r} here, and {said[name]!r} in {CONFIG}")
            said[name] = value
        return _made_of(tensors, said, is_saelens=config is not None)
    except (OSError, ValueError, SafetensorError, RecursionError) as error:
        raise InvalidFile(
            f"{os.fspath(file)!r} is not the weights of an autoencoder: {error}"
        ) from error


def _said_by(config: Mapping[str, Any]) -> dict[str, Any]:
    """What SAELens writes beside weights, as far as it matters for what they compute."""
    architecture = config.get("architecture", "standard")
    function = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    said: dict[str, Any] = {}
    if architecture == "standard" and function == "topk":  # as before SAELens 6
        architecture = "topk"
    if architecture not in list(_ARCHITECTURES):
        raise InvalidFile(
            f"the architecture {architecture!r} in {CONFIG} is none of "
            f"{', '.join(_ARCHITECTURES)}: load it by its own library, and give that to lxt.SAE"
        )
    if function not in ("relu", "topk"):
        raise InvalidFile(f"the activation_fn {function!r} in {CONFIG} is not relu or topk")
    said["activation"] = _ARCHITECTURES[architecture]
    if architecture == "topk":
        kwargs = config.get("activation_fn_kwargs") or {}
        found = config.get("k", kwargs.get("k") if isinstance(kwargs, dict) else None)
        if found is not None:
            said["k"] = found
    said["apply_b_dec_to_input"] = config.get("apply_b_dec_to_input", True)
    said["normalisation"] = config.get("normalize_activations") or "none"
    said["by_norm"] = config.get("rescale_acts_by_decoder_norm", False)
    if config.get("finetuning_scaling_factor"):
        raise InvalidFile(f"finetuning_scaling_factor in {CONFIG} is not known here")
    for name in ("d_in", "d_sae"):
        if name in config:
            said[name] = config[name]
    return said


def _made_of(tensors: dict[str, Tensor], said: dict[str, Any], *, is_saelens: bool) -> Weights:
    missing = [name for name in _NEEDED if name not in tensors]
    if missing:
        there = ", ".join(sorted(tensors)) or "nothing"
        raise InvalidFile(f"it lacks {', '.join(missing)}: there is {there}")
    unknown = set(tensors) - {*_NEEDED, "threshold"}
    if unknown:
        raise InvalidFile(f"it holds {', '.join(sorted(unknown))}, which has no place in one")
    for name, x in tensors.items():
        if not x.is_floating_point():
            raise InvalidFile(f"{name} is {x.dtype}, not of floating-point numbers")
        if not x.isfinite().all():
            raise InvalidFile(f"{name} holds NaN or infinity")
    placed = _placed(tensors, is_saelens=is_saelens)
    channels, features = placed["W_enc"].shape
    for name, size in (("d_in", channels), ("d_sae", features)):
        if said.get(name, size) != size:
            raise InvalidFile(f"{name} is {said[name]!r} in {CONFIG}, and {size} of the tensors")
    k = said.get("k")
    default = "jumprelu" if "threshold" in tensors else "relu" if k is None else "topk"
    activation = _one_of(Activation, said.get("activation", default), "activation")
    if (activation == "jumprelu") != ("threshold" in tensors):
        raise InvalidFile(
            f"activation is {activation!r}, and a threshold is "
            f"{'there' if 'threshold' in tensors else 'missing'}"
        )
    if (activation == "topk") != (k is not None):
        raise InvalidFile(f"activation is {activation!r}, and k is {k!r}")
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or not 0 < k <= features):
        raise InvalidFile(f"k is {k!r}, and there are {features} features")
    if "apply_b_dec_to_input" not in said and placed["b_dec"].any():
        raise InvalidFile(
            "nothing says whether the encoder takes b_dec from its input: give "
            "apply_b_dec_to_input=True or False"
        )
    normalisation = said.get("normalisation", "none")
    if normalisation in ("expected_average_only_in", "covariance_whitening"):
        raise InvalidFile(
            f"normalize_activations is {normalisation!r}, which takes statistics that are not in "
            "the file: fold it into the weights with SAELens"
        )
    return Weights(
        placed,
        activation,
        k=k or 0,
        apply_b_dec_to_input=_flag(said.get("apply_b_dec_to_input", False), "apply_b_dec_to_input"),
        normalisation=_one_of(Normalisation, normalisation, "normalisation"),
        by_norm=_flag(said.get("by_norm", False), "rescale_acts_by_decoder_norm"),
    )


def _placed(tensors: Mapping[str, Tensor], *, is_saelens: bool) -> dict[str, Tensor]:
    """The tensors with matrices the right way round, of shapes that fit."""
    shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in tensors.items())
    b_enc, b_dec = tensors["b_enc"], tensors["b_dec"]
    if b_enc.dim() != 1 or b_dec.dim() != 1:
        raise InvalidFile(f"b_enc is [features] and b_dec [channels], and there is {shapes}")
    features, channels = len(b_enc), len(b_dec)
    if features == 0 or channels == 0:
        raise InvalidFile(f"there are no features, or no channels: {shapes}")
    placed = dict(tensors)
    for name, wanted in (("W_enc", (channels, features)), ("W_dec", (features, channels))):
        x = tensors[name]
        if tuple(x.shape) == wanted[::-1] and wanted[0] != wanted[1]:
            placed[name] = x.T.contiguous()
        elif tuple(x.shape) != wanted:
            raise InvalidFile(f"{name} should be {list(wanted)} by the biases: {shapes}")
    if features == channels and not is_saelens:
        raise InvalidFile(
            f"with {channels} channels and as many features nothing says which way round matrices "
            f"are: put SAELens's {CONFIG} beside it, in which W_enc is [d_in, d_sae]"
        )
    if "threshold" in tensors and tuple(tensors["threshold"].shape) != (features,):
        raise InvalidFile(f"threshold should be [{features}]: {shapes}")
    return placed


def _one_of(kinds: Any, value: Any, name: str) -> Any:
    if value not in get_args(kinds):
        raise InvalidFile(f"{name} is {value!r}, and is one of {', '.join(get_args(kinds))}")
    return value


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidFile(f"{name} is {value!r}, neither true nor false")
    return value
