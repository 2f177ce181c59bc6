"""Units of tiny models, and hooks written by hand that edit them, for the tests of steering."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from lxt.latent.edits import Add, Edit, Scale, Set
from lxt.latent.units import Site, Unit

V = torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def naive(x: Tensor, unit: Unit, edit: Edit, row: int, column: int) -> None:
    """One token of `x` [batch, tokens, channels] edited, written out number by number."""
    token, width = x[row, column], x.shape[-1]
    values = torch.as_tensor(edit.value, dtype=x.dtype).flatten().tolist()

    def new(old: float, value: float) -> float:
        if isinstance(edit, Scale):
            return old * value
        return value if isinstance(edit, Set) else old + value

    if unit.direction is not None:
        v = (unit.direction.double() / unit.direction.double().norm()).tolist()
        old = sum(float(a) * b for a, b in zip(token, v, strict=True))
        for i in range(width):
            token[i] += (new(old, values[0]) - old) * v[i]
        return
    channels = range(width)
    if unit.neuron is not None:
        channels = [unit.neuron % width]
    if unit.head is not None:
        size = width // (unit.place.heads or 1)
        channels = range(unit.head * size, (unit.head + 1) * size)
    for number, i in enumerate(channels):
        token[i] = new(float(token[i]), values[number % len(values)])


@contextmanager
def by_hand(model: nn.Module, unit: Unit, edit: Edit, columns: list[list[int]]):
    """A hook that edits the tokens in `columns` of each row."""

    def edited(x: Tensor) -> Tensor:
        y = x.detach().clone()
        for row, of_row in enumerate(columns):
            for column in of_row:
                naive(y, unit, edit, row, column)
        return y

    module = unit.place.the_module(model)
    if unit.place.end == "input":
        handle = module.register_forward_pre_hook(lambda _, args: (edited(args[0]), *args[1:]))
    else:
        handle = module.register_forward_hook(
            lambda _, args, out: (
                (edited(out[0]), *out[1:]) if isinstance(out, tuple) else edited(out)
            )
        )
    try:
        yield
    finally:
        handle.remove()


UNITS: dict[str, dict[str, Callable[..., Unit]]] = {
    "llama": {
        "neuron": lambda **p: Unit("layers.0.mlp.act_fn", neuron=-3, **p),
        "head": lambda **p: Unit(Site("layers.1.self_attn.o_proj", "input", 4), head=2, **p),
        "direction": lambda **p: Unit("layers.0", direction=V, **p),
        "site": lambda **p: Unit("layers.1.mlp", **p),
    },
    "gpt2": {
        "neuron": lambda **p: Unit("h.0.mlp.act", neuron=7, **p),
        "attention": lambda **p: Unit("h.1.attn", neuron=7, **p),
        "direction": lambda **p: Unit("h.0", direction=V, **p),
    },
    "bert": {
        "neuron": lambda **p: Unit("layer.0.intermediate", neuron=7, **p),
        "direction": lambda **p: Unit("embeddings", direction=V, **p),
    },
    "qwen3_moe": {
        "mixture": lambda **p: Unit("layers.0.mlp", neuron=5, **p),
        "direction": lambda **p: Unit("layers.0", direction=V, **p),
    },
}
CASES = [(model, unit) for model, units in UNITS.items() for unit in units]
EDITS: dict[str, Edit] = {"scale": Scale(-0.5), "set": Set(3.0), "add": Add(1.5)}


def logits(model: Any, example: zoo.Example) -> Tensor:
    with torch.no_grad():
        return example.run(model)


def generated(model: Any, ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None} | options
    return model.generate(input_ids=ids, attention_mask=mask.long(), pad_token_id=0, **options)


class Planted(nn.Module):
    """Two neurons; the output is their difference."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2, bias=False)
        self.inner.weight.data = torch.eye(2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        return h[..., 0] - h[..., 1]
