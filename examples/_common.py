"""What several examples share: where results go, a prompt, and a toy task with a known answer."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PROMPT = """\
Context: The lighthouse on Gull Point was built in 1874 by the engineer Ada Brandt. Its lamp \
burned whale oil until 1911, when it was replaced by an electric light. The tower is 41 metres \
high and is painted red and white. Since 1986 it has been a museum, which about 9,000 people visit \
every year.
Question: Who built the lighthouse on Gull Point? According to the text, it was built by the \
engineer"""
"""A passage and a question whose answer, Ada, stands in the passage once."""


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A command line with `--out`, described by the first line of a script's docstring."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for pictures, if any")
    return parser


# --- a toy task: look a word up ---
# "red ant green fox blue bee | green" is to be continued by "fox". A model that does it right must
# have read that pair, so here, unlike in a real text, we know what a good explanation shows.

COLOURS = ["red", "green", "blue"]
ANIMALS = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen"]
WORDS = COLOURS + ANIMALS
PAIRS = len(COLOURS)


def lookup_texts(count: int, seed: int, questions: int = 4) -> Tensor:
    """Token ids [count, 2 · PAIRS + 2 · questions]: three pairs, then some of them again."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.rand(count, len(COLOURS), generator=generator).argsort(1)
    animals = torch.rand(count, len(ANIMALS), generator=generator).argsort(1)[:, :PAIRS]
    pairs = torch.stack([colours, animals + len(COLOURS)], dim=2)
    asked = torch.randint(PAIRS, (count, questions), generator=generator)
    again = pairs.gather(1, asked[:, :, None].expand(-1, -1, 2))
    return torch.cat([pairs, again], dim=1).flatten(1)


def train_to_look_up(model: nn.Module, steps: int = 200) -> None:
    """Train a small causal language model on the task; a few seconds."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        texts = lookup_texts(64, seed=step)
        logits = model(texts).logits
        asked = torch.arange(2 * PAIRS, texts.shape[1], 2)
        loss = F.cross_entropy(logits[:, asked].flatten(0, 1), texts[:, asked + 1].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().requires_grad_(False)


def asked_pair(texts: Tensor) -> Tensor:
    """Where in the pairs the colour stands that each text [count, 2 · PAIRS + 1] ends with."""
    return (texts[:, : 2 * PAIRS] == texts[:, -1:]).int().argmax(1)
