"""A causal language model whose neurons are known: each fires on one token, and speaks for one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

WORDS = ["a", "b", "c", "d", "e", "f", "g", "h"]


class Mlp(nn.Module):
    def __init__(self, width: int, units: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, units, bias=False)
        self.act = nn.ReLU()
        self.down = nn.Linear(units, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


class Layer(nn.Module):
    def __init__(self, width: int, units: int) -> None:
        super().__init__()
        self.mlp = Mlp(width, units)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(x)


class PlantedForCausalLM(nn.Module):
    """Neuron n is `strength[n]` at token n and 0 elsewhere, and raises the logit of token n + 1."""

    def __init__(self, strength: list[float] | None = None) -> None:
        super().__init__()
        size, width = len(WORDS), len(WORDS) + 2
        self.config = SimpleNamespace(vocab_size=size, name_or_path="planted", pad_token_id=None)
        self.embedding = nn.Embedding(size, width)
        self.layers = nn.ModuleList([Layer(width, size)])
        self.head = nn.Linear(width, size, bias=False)
        strengths = torch.tensor(strength or [1.0 + n for n in range(size)])
        with torch.no_grad():
            self.embedding.weight.copy_(torch.eye(size, width))
            self.layers[0].mlp.up.weight.copy_(strengths.diag() @ torch.eye(size, width))
            self.layers[0].mlp.down.weight.copy_(
                torch.eye(width, size) @ (3 * torch.eye(size).roll(1, 0))
            )
            self.head.weight.copy_(torch.eye(size, width))
        self.eval()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = layer(x)
        return CausalLMOutput(logits=self.head(x))


class Words:
    """A tokenizer of words from `WORDS`, put apart by spaces."""

    name_or_path = "words"
    model_max_length = 10**6

    def __init__(self, before: tuple[int, ...] = ()) -> None:
        self.before = before

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [WORDS.index(word) for word in text.split()]
        return {"input_ids": [*self.before, *ids] if add_special_tokens else ids}

    def convert_ids_to_tokens(self, token: int) -> str:
        return f"▁{WORDS[token]}"

    def get_vocab(self) -> dict[str, int]:
        return {f"▁{word}": i for i, word in enumerate(WORDS)}
