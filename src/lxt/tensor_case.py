"""Tensors to explain: any model, called with whatever its forward takes.

Relevance flows to each floating-point tensor that it is called with; where there is none, to its
embedded tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lxt.engine.admission import require_module
from lxt.engine.opaque import tensors_in
from lxt.errors import InvalidInput, InvalidModel, InvalidTarget
from lxt.inputs import EmbeddingLeaf
from lxt.passes import Change, Pass

__all__ = ["TensorCase"]

TensorTarget = int | Callable[[Any], Tensor] | None

# Arguments that say how to read the others, and aren't explained.
_DESCRIPTIONS = ("mask", "position", "bias", "scale", "sigma", "time", "weight")


class TensorCase:
    """A model, the arguments of its forward, and what is explained.

    Args:
        model: any module.
        inputs: one tensor, a tuple of arguments, or a mapping of keyword arguments. Those that are
            tensors of floating-point numbers are leaves, but for masks and the like.
        target: an index into the last axis of the output (of its last position), or a function from
            the output to the tensor to explain; by default the largest number that the model puts
            out for each row.

    Raises:
        InvalidModel: it is no module, or its output holds no tensor of floating-point numbers.
        InvalidInput: nothing to explain is among the inputs.
        InvalidTarget: the output has no such index.

    """

    def __init__(self, model: nn.Module, inputs: Any, *, target: TensorTarget = None) -> None:
        require_module(model)
        self.model = model
        if isinstance(inputs, list):
            raise InvalidInput(
                f"{_short(inputs)} is a list: give what the forward of {type(model).__name__} "
                "takes, a tensor, a tuple of arguments or a mapping; an argument that is a list "
                "goes in a tuple, ([x, y],)"
            )
        self.target = target
        if isinstance(inputs, Mapping):
            self.arguments: dict[str | int, Any] = dict(inputs)
        else:
            given = inputs if isinstance(inputs, tuple) else (inputs,)
            self.arguments = dict(enumerate(given))
        if not any(True for value in self.arguments.values() for _ in tensors_in(value)):
            raise InvalidInput(
                f"there is no tensor in {_short(inputs)}: give what the forward of "
                f"{type(model).__name__} takes, a tensor, a tuple or a mapping"
            )
        self._require_elements()

    def on(self, model: nn.Module) -> TensorCase:
        """The same case of another instance, its floating-point tensors in that one's dtype."""
        case = copy.copy(self)
        case.model = model
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
        case.arguments = {
            name: value.to(dtype)
            if dtype and isinstance(value, Tensor) and value.is_floating_point()
            else value
            for name, value in self.arguments.items()
        }
        return case

    def _require_elements(self) -> None:
        leaves = [value for name, value in self.arguments.items() if self._is_leaf(name)]
        for tensor in leaves or tensors_in(list(self.arguments.values())):
            if not tensor.numel():
                raise InvalidInput(
                    f"a tensor of the shape {list(tensor.shape)} has no elements: there is nothing "
                    "to explain"
                )

    def _is_leaf(self, name: str | int) -> bool:
        value = self.arguments[name]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return False
        return not (isinstance(name, str) and any(part in name for part in _DESCRIPTIONS))

    def _embedded(self, change: Change | None) -> EmbeddingLeaf:
        try:
            return EmbeddingLeaf(self.model, change)
        except InvalidModel:
            kinds = ", ".join(
                f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
                for value in self.arguments.values()
                for x in tensors_in(value)
            )
            raise InvalidInput(
                f"{type(self.model).__name__} embeds no tokens (get_input_embeddings), and none of "
                f"its arguments ({kinds}) is a floating-point tensor to explain: give one, alone, "
                "in a tuple or in a mapping"
            ) from None

    def forward(self, change: Change | None = None) -> Pass:
        """Run the model once, under whatever composite is on it."""
        leaves: dict[str, Tensor] = {}
        arguments = dict(self.arguments)
        for name, value in arguments.items():
            if not self._is_leaf(name):
                continue
            value = value.detach().clone()
            leaf = (change(value) if change else value).requires_grad_()
            leaves[str(name)] = arguments[name] = leaf
        with ExitStack() as stack:
            embedded = None
            if not leaves:
                embedded = stack.enter_context(self._embedded(change))
            positional = [value for name, value in arguments.items() if isinstance(name, int)]
            named = {name: value for name, value in arguments.items() if isinstance(name, str)}
            output = self.model(*positional, **named)
        if embedded is not None:
            if embedded.value is None:
                raise InvalidModel(
                    f"{type(self.model).__name__} was called with no floating-point tensor and did "
                    "not embed tokens: there is nothing that relevance could flow to"
                )
            leaves["embedded tokens"] = embedded.value
        explained, seed = self._explained(output)
        return Pass(explained, seed, leaves)

    def _explained(self, output: Any) -> tuple[Tensor, Tensor]:
        """The explained tensor of the output, and the gradient that its backward starts from."""
        if callable(self.target):
            explained = self.target(output)
            if not isinstance(explained, Tensor) or not explained.is_floating_point():
                raise InvalidTarget(
                    f"the target returned {_short(explained)}: it takes the model's output and "
                    "returns the floating-point tensor to explain"
                )
            return explained, torch.ones_like(explained)
        explained = _main_tensor(output, type(self.model).__name__)
        values = explained.detach()
        rows = values.flatten(1) if values.dim() > 1 else values.reshape(1, -1)
        if self.target is None:
            places = rows.argmax(-1, keepdim=True)
        else:
            size = explained.shape[-1] if explained.dim() else 1
            is_index = isinstance(self.target, int) and not isinstance(self.target, bool)
            if not is_index or not -size <= self.target < size:
                raise InvalidTarget(
                    f"there is no output {self.target!r}: the last axis of "
                    f"{list(explained.shape)} goes from 0 to {size - 1}"
                )
            place = rows.shape[1] - size + self.target % size
            places = torch.full((len(rows), 1), place, device=rows.device)
        seed = torch.zeros_like(rows).scatter_(1, places, 1.0)
        return explained, seed.view_as(explained)


def _main_tensor(output: Any, name: str) -> Tensor:
    logits = getattr(output, "logits", None)
    for tensor in (logits, *tensors_in(output)):
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            return tensor
    raise InvalidModel(
        f"{name} put out {_short(output)}, with no floating-point tensor in it: give a "
        "target=…, a function from the output to the tensor to explain"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
