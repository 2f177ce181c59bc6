"""`trace`: how relevance moves from token to token, layer after layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lxt.errors import InvalidTap
from lxt.explain import explain
from lxt.explanation import Explanation
from lxt.latent.taps import Residual

__all__ = ["trace"]

_KEY = "residual stream"


def trace(model: nn.Module, inputs: Any, **options: Any) -> Explanation:
    """Say how much each token's residual stream contributes at every layer.

    At each layer's output the relevance of a token is Σ x · ∂z/∂x over the channels of x, its
    vector there. One forward and one backward pass give all layers; the plot is
    `trace(…).to_image("trace.png")`.

    Args:
        model: as for `explain`.
        inputs: as for `explain`.
        options: as for `explain`, but for taps: `tokenizer`, `target`, `through`, `composite`, …

    Returns:
        An explanation with an axis of layers before that of tokens: the first is `"input"`, the
        embedded tokens, and the others are called by the layers' paths.

    Raises:
        LxtError: see `explain`.
        InvalidTap: there are taps in `options`.

    """
    if "taps" in options:
        raise InvalidTap("trace taps the residual stream: give other taps to lxt.explain")
    found = explain(model, inputs, taps=Residual(name=_KEY), **options)
    stream = found.latent[_KEY]
    relevance = torch.cat([found.relevance.unsqueeze(-2), stream.relevance], -2)
    return replace(found, relevance=relevance, layers=["input", *stream.sites], latent={})
