"""Language models so small that the effect of every intervention is known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

WIDTH, VOCABULARY = 6, 11


class Linear(nn.Module):
    """A layer without any non-linearity: x + W · the mean of tokens up to here."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[1]
        past = torch.ones(tokens, tokens, dtype=x.dtype).tril()
        return x + self.mix((past / past.sum(-1, keepdim=True)) @ x)


class Gated(nn.Module):
    """A layer that is a product: x + W (up ⊙ gate)."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 8, bias=False)
        self.gate = nn.Linear(WIDTH, 8, bias=False)
        self.down = nn.Linear(8, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x) * self.gate(x))


class TinyLM(nn.Module):
    """Layers between an embedding and a head.

    `stubborn` ones insist on as many rows as there were ids: "view" by an error, "slice" by
    leaving out the others.
    """

    def __init__(self, layers: list[nn.Module], stubborn: str | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.stubborn = stubborn
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator).double()
        self.eval()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids: Tensor, attention_mask: Any = None) -> Tensor:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        if self.stubborn == "view":
            x = x.view(len(input_ids), *x.shape[1:])
        if self.stubborn == "slice":
            x = x[: len(input_ids)]
        return self.head(x)
