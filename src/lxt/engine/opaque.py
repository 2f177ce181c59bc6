"""Notices operations that no torch function shows: autograd Functions, scripted code, extensions.

A function mode sees each call of a torch function. What it doesn't see is code that makes a graph
behind its back, and that would pass on a plain gradient in silence. But autograd numbers its nodes:
a number that was given out between two calls belongs to such an operation, and an operand whose
node has that number came out of it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from lxt.engine.nodes import Formulation, formulation_of, hands_on
from lxt.errors import ReentrantCheckpoint, UnknownOperation

__all__ = [
    "OpaqueOperations",
    "is_seen_through",
    "is_transforming",
    "next_number",
    "refuse_transforms",
    "tensors_in",
]

next_number = torch._C._autograd._get_sequence_nr  # pyright: ignore[reportAttributeAccessIssue]

_functorch_depth = torch._C._functorch.peek_interpreter_stack  # pyright: ignore[reportAttributeAccessIssue]
_is_transformed = torch._C._functorch.is_functorch_wrapped_tensor  # pyright: ignore[reportAttributeAccessIssue]
_untransformed = torch._C._functorch.get_unwrapped  # pyright: ignore[reportAttributeAccessIssue]

# What torch makes anew for a view whose base was written to, and for a tensor as a subclass's.
_VIEWS = ("AsStridedBackward0", "AliasBackward0")


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a result: itself, or those within tuples, lists, mappings and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))


def is_transforming() -> bool:
    """Whether a transformation of torch.func is at work."""
    return _functorch_depth() is not None


def refuse_transforms() -> None:
    """Refuse to run within a transformation of torch.func.

    Raises:
        UnknownOperation: one is at work.
    """
    if is_transforming():
        raise _transformed()


def _transformed() -> UnknownOperation:
    return UnknownOperation(
        "torch.func (vmap, grad, …) hides which operations relevance runs through: "
        "call the model in a plain loop or with a batch instead"
    )


def _refuse_transformed(operands: Iterable[Tensor]) -> None:
    """Refuse tensors of torch.func that carry relevance: their own gradients are not to be seen."""
    for tensor in operands:
        while _is_transformed(tensor):
            tensor = _untransformed(tensor)
            if tensor.requires_grad:
                raise _transformed()


def is_seen_through(node: Any) -> bool:
    """Whether a node that no torch function made only hands on what it gets."""
    return node.name() in _VIEWS or hands_on(node)


class OpaqueOperations:
    """Watches one forward pass for operations that were not seen."""

    def __init__(self, formulation: Formulation) -> None:
        self._formulation = formulation
        self._next = next_number()
        self._starts: list[int] = []  # of the ranges of numbers that no seen call made, in order,
        self._ends: list[int] = []  # and where each ends
        self._looked_through: set[int] = set()

    def must_look(self) -> bool:
        """Whether `before` may have something to say: the shorter way for most calls."""
        return bool(self._starts) or next_number() != self._next or is_transforming()

    def before(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
        """Look at the operands of a call that was seen.

        Returns:
            The name of the graph node of an operand that came out of an operation that was not.

        Raises:
            UnknownOperation: one of them is a tensor of torch.func.
            ReentrantCheckpoint: one of them came out of a reentrant checkpoint.

        """
        if is_transforming():
            _refuse_transformed((*tensors_in(args), *tensors_in(kwargs)))
        number = next_number()
        if number != self._next:
            self._starts.append(self._next)
            self._ends.append(number)
            self._next = number
        if not self._starts:
            return None
        nodes = [tensor.grad_fn for tensor in (*tensors_in(args), *tensors_in(kwargs))]
        return self._unseen(nodes)

    def carries(self, result: Any) -> bool:
        """Whether the running call handed relevance on: in its result, or where no one sees it.

        A call that returns nothing, or an iterator, may have written to an operand or hold what it
        made. It has handed something on if it made a node.
        """
        if isinstance(result, Tensor | list | tuple | Mapping):
            return any(tensor.grad_fn is not None for tensor in tensors_in(result))
        return not isinstance(result, int | float | complex | str) and next_number() != self._next

    def after(self) -> None:
        """The nodes made up to now belong to a call that was seen."""
        self._next = next_number()

    def _unseen(self, nodes: list[Any]) -> str | None:
        """The name of one of `nodes` that no seen call made, looking through transparent ones."""
        while nodes:
            node = nodes.pop()
            if node is None or not self._in_gap(number := node._sequence_nr()):
                continue
            name = node.name()
            if name == "CheckpointFunctionBackward":
                raise ReentrantCheckpoint(
                    "reentrant gradient checkpointing hides the operations within: call "
                    'model.gradient_checkpointing_enable({"use_reentrant": False}), or '
                    "torch.utils.checkpoint.checkpoint(…, use_reentrant=False)"
                )
            if formulation_of(node) == self._formulation:
                continue  # a rule by itself
            if not is_seen_through(node):
                return name
            if number not in self._looked_through:
                self._looked_through.add(number)
                nodes.extend(source for source, _ in node.next_functions)
        return None

    def _in_gap(self, number: int) -> bool:
        place = bisect_right(self._starts, number) - 1
        return place >= 0 and number < self._ends[place]
