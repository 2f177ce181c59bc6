"""Dropout is off while relevance is propagated, in training mode too."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lxt.rules.registry import Operation, family, register, sample, spelled, t

__all__ = ["DROPOUTS", "off"]


@family
def off(operation: Operation, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The operand as it is, which is what dropout returns in evaluation mode."""
    return x


DROPOUTS = (
    *spelled("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"),
    *(F.dropout1d, F.dropout2d, F.dropout3d),
    *spelled("dropout_", "alpha_dropout_", "feature_dropout_", "feature_alpha_dropout_"),
)
for _operation in DROPOUTS:
    _shape = {F.dropout2d: (2, 3, 2, 2), F.dropout3d: (2, 3, 1, 2, 2)}.get(_operation, (2, 3, 4))
    register([_operation], off, source="dropout is off", samples=[sample(t(*_shape), 0.5, False)])
