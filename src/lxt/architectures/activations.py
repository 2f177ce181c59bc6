"""Activation functions composed of several operations, or Functions of their own: one unit each."""

from __future__ import annotations

import torch
from torch import Tensor

from lxt.rules.activation import gelu_slope, tanh_gelu_slope
from lxt.rules.registry import Family
from lxt.rules.secants import elementwise, unit
from lxt.structure import ClassPath

__all__ = ["UNITS"]


def quick_gelu_slope(x: Tensor) -> Tensor:
    """QuickGELU = x · σ(1.702 x)."""
    return torch.sigmoid(1.702 * x)


def relu_squared_slope(x: Tensor) -> Tensor:
    """ReLU(x)² = x · ReLU(x)."""
    return x.relu()


# SiLUActivation, MishActivation, LinearActivation are one torch function or none: no entry.
_IN_TRANSFORMERS_ACTIVATIONS: dict[str, Family] = {
    "NewGELUActivation": elementwise(tanh_gelu_slope),
    "FastGELUActivation": elementwise(tanh_gelu_slope),
    "AccurateGELUActivation": elementwise(tanh_gelu_slope),
    "GELUTanh": elementwise(tanh_gelu_slope),
    "QuickGELUActivation": elementwise(quick_gelu_slope),
    "ReLUSquaredActivation": elementwise(relu_squared_slope),
    "GELUActivation": elementwise(gelu_slope),
    "ClippedGELUActivation": unit,
    "LaplaceActivation": unit,
    "SqrtSoftplusActivation": unit,
    "XIELUActivation": unit,
}

_TIMM = ("Swish", "Mish", "HardSwish", "HardMish")
_TIMM_ME = ("SwishMe", "MishMe", "HardSwishMe", "HardSigmoidMe", "HardMishMe")

_ELSEWHERE: dict[str, Family] = {
    "transformers.models.bloom.modeling_bloom.BloomGelu": elementwise(tanh_gelu_slope),
    "open_clip.transformer.QuickGELU": elementwise(quick_gelu_slope),
    "timm.layers.activations.QuickGELU": elementwise(quick_gelu_slope),
    **{f"timm.layers.activations.{name}": unit for name in _TIMM},
    **{f"timm.layers.activations_me.{name}": unit for name in _TIMM_ME},
}

UNITS: dict[ClassPath, Family] = {
    ClassPath(f"transformers.activations.{name}"): rule
    for name, rule in _IN_TRANSFORMERS_ACTIVATIONS.items()
} | {ClassPath(path): rule for path, rule in _ELSEWHERE.items()}
