"""Routed experts: how much of what they put out together each of them made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lxt.engine.passages import Passing, first_tensor

if TYPE_CHECKING:
    from lxt.latent.anatomy import Experts

__all__ = ["Routed"]


class Routed:
    """The experts of one module as units. A `Lens`.

    The output is y = Σ w_k · f_k(x) over the experts k of a token. So the relevance of expert k is
    g · w_k f_k(x), whatever the rules are for what is within, and experts' sum is the output's.
    """

    def __init__(self, module: nn.Module, experts: Experts) -> None:
        self._module = module
        self._experts = experts

    def kept(self, passing: Passing) -> Sequence[Tensor]:
        """What the module was called with: hidden states, indices and weights."""
        hidden, indices, weights = self._experts.of(passing.args, passing.kwargs)
        return hidden.detach(), indices, weights.detach()

    def values(self, x: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """The router's weight for each expert, [rows, tokens, experts]."""
        _, indices, weights = kept
        return self._by_expert(weights, indices).reshape(*x.shape[:2], -1).to(x.dtype)

    def read(self, g: Tensor, x: Tensor, kept: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The same of relevance, and the weights."""
        hidden, indices, weights = kept
        received = g.reshape(-1, g.shape[-1])
        parts = zip(indices.split(1, -1), weights.split(1, -1), strict=True)
        each = [(received * self._output(hidden, *part)).sum(-1) for part in parts]
        found = self._by_expert(torch.stack(each, -1), indices)
        return found.reshape(*g.shape[:2], -1), self.values(x, kept)

    def _output(self, hidden: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """What one expert of each token makes, with its weight: [tokens, channels]."""
        experts = self._experts
        at = {experts.hidden: hidden, experts.indices: indices, experts.weights: weights}
        args = [at[place] for place in sorted(key for key in at if isinstance(key, int))]
        named = {key: value for key, value in at.items() if isinstance(key, str)}
        output = first_tensor(self._module(*args, **named))
        assert output is not None, "it put out a tensor before"
        return output.reshape(-1, output.shape[-1])

    def _by_expert(self, values: Tensor, indices: Tensor) -> Tensor:
        """Values [tokens, k] as [tokens, experts]."""
        chosen = F.one_hot(indices.reshape(-1, indices.shape[-1]), self._experts.count)
        return (values.reshape(*chosen.shape[:2], 1) * chosen).sum(1)
