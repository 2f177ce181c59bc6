"""Notices operations that no torch function shows: autograd Functions, scripted code, extensions.

A function mode sees each call of a torch function. What it doesn't see is code that makes a graph
behind its back, and that would pass on a plain gradient in silence. But autograd numbers its nodes:
a number that was given out between two calls belongs to such an operation, and an operand whose
node has that number came out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lxt.errors import ReentrantCheckpoint

__all__ = ["OpaqueOperations", "tensors_in"]

_next_number = torch._C._autograd._get_sequence_nr  # pyright: ignore[reportAttributeAccessIssue]

# Nodes that hand on their operands: module hooks' and non-reentrant checkpointing's.
_TRANSPARENT = frozenset({"BackwardHookFunctionBackward", "_NoopSaveInputsBackward"})


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a result: itself, or those within tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)


class OpaqueOperations:
    """Watches one forward pass for operations that were not seen.

    Args:
        report: is called with the name of the graph node of each that relevance runs through.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._next = _next_number()
        self._gaps: list[range] = []

    def before(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Look at the operands of a call that was seen.

        Raises:
            ReentrantCheckpoint: one of them came out of a reentrant checkpoint.

        """
        number = _next_number()
        if number != self._next:
            self._gaps.append(range(self._next, number))
            self._next = number
        if self._gaps:
            for tensor in (*tensors_in(args), *tensors_in(kwargs)):
                if tensor.grad_fn is not None:
                    self._check(tensor.grad_fn)

    def carries(self, result: Any) -> bool:
        """Whether the running call handed relevance on: in its result, or where no one sees it.

        A call that returns nothing, or an iterator, may have written to an operand or hold what it
        made. It has handed something on if it made a node.
        """
        if isinstance(result, Tensor | list | tuple | Mapping):
            return any(tensor.grad_fn is not None for tensor in tensors_in(result))
        return not isinstance(result, int | float | complex | str) and _next_number() != self._next

    def after(self) -> None:
        """The nodes made up to now belong to a call that was seen."""
        self._next = _next_number()

    def _check(self, node: Any) -> None:
        number = node._sequence_nr()
        if not any(number in gap for gap in self._gaps):
            return
        name = node.name()
        if name in _TRANSPARENT:
            for earlier, _ in node.next_functions:
                if earlier is not None:
                    self._check(earlier)
        elif name == "CheckpointFunctionBackward":
            raise ReentrantCheckpoint(
                "reentrant gradient checkpointing hides the operations within: call "
                'model.gradient_checkpointing_enable({"use_reentrant": False}), or '
                "torch.utils.checkpoint.checkpoint(…, use_reentrant=False)"
            )
        else:
            self._report(name)
