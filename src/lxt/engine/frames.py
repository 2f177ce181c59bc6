"""Saves nothing for the backward pass in stretches of the forward pass, and runs them again there.

This is non-reentrant checkpointing, like `torch.utils.checkpoint`'s, for stretches that are entered
several times. What a node of the graph would have saved is a place in the order of all that its
frame would have, and the frame's second run fills the places.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.autograd.graph import saved_tensors_hooks

from lxt.errors import CheckpointFailed

__all__ = ["Frame", "version_of"]

_graph_task = torch._C._current_graph_task_id
_running_node = torch._C._current_autograd_node
_transform = torch._C._functorch.peek_interpreter_stack  # pyright: ignore[reportAttributeAccessIssue]
_leave = torch._C._functorch.pop_dynamic_layer_stack  # pyright: ignore[reportAttributeAccessIssue]
_enter = torch._C._functorch.push_dynamic_layer_stack  # pyright: ignore[reportAttributeAccessIssue]


def version_of(x: Tensor) -> int:
    """How often a tensor was written to in place."""
    return 0 if x.is_inference() else x._version


class _Done(BaseException):
    """All that is wanted of a second run is there. No error, and nobody else's to catch."""


class _Place:
    """What a node holds in place of a tensor that it would have saved."""

    def __init__(self, frame: Frame, number: int, x: Tensor) -> None:
        self.frame = frame
        self.number = number
        self.like = x.shape, x.dtype, x.device
        self._tensor = weakref.ref(x)
        self._version = version_of(x)

    def still_alive(self) -> Tensor | None:
        """The tensor itself, if somebody else keeps it as it was, such as a parameter."""
        x = self._tensor()
        return x if x is not None and version_of(x) == self._version else None


def _unpack(place: _Place) -> Tensor:
    with torch._C.DisableTorchFunction():
        x = place.still_alive()
    return place.frame.value(place) if x is None else x


@contextmanager
def _outside_transforms() -> Iterator[None]:
    """Leave torch.func's vmap, under which batched backward passes run, for a second run."""
    left: list[Any] = []
    try:
        while _transform() is not None:
            left.append(_leave())
        yield
    finally:
        while left:
            _enter(left.pop())


class Frame:
    """A stretch of the forward pass whose saved tensors are computed again when they are wanted.

    Args:
        rerun: runs all of it again, as it ran.
        where: what it is called in messages.
        to_the_end: whether a second run must not stop once all that is wanted is there.
    """

    def __init__(self, rerun: Callable[[], None], where: str, *, to_the_end: bool) -> None:
        self.where = where
        self._rerun = rerun
        self.to_the_end = to_the_end
        self._places: list[weakref.ref[_Place]] = []
        self._lock = threading.RLock()
        self._task = -1
        self._values: dict[int, tuple[Tensor, int]] = {}
        self._reader = -1  # the number of the node that runs, and what it has read so far
        self._read: dict[int, Tensor] = {}

    def recording(self) -> saved_tensors_hooks:
        """Save nothing here, where another part of the stretch runs for the first time."""
        return saved_tensors_hooks(self._pack, _unpack)

    def _pack(self, x: Tensor) -> _Place:
        with torch._C.DisableTorchFunction():
            place = _Place(self, len(self._places), x)
        self._places.append(weakref.ref(place))
        return place

    def value(self, place: _Place) -> Tensor:
        """What belongs in a place, of a second run in this backward pass.

        Each is handed out once and then forgotten, lest all be alive where the graph is kept; but a
        node may read its own several times.

        Raises:
            CheckpointFailed: the second run is not like the first, or wrote to it since.

        """
        if _graph_task() == -1:  # somebody looks at the graph, in the forward pass for one
            return self._recompute()[place.number][0]
        with self._lock:  # devices have threads of their own
            return self._value(place)

    def _value(self, place: _Place) -> Tensor:
        task = _graph_task()
        reader = _running_node()._sequence_nr()  # pyright: ignore[reportAttributeAccessIssue]
        if reader != self._reader:
            self._reader = reader
            self._read.clear()
        if (x := self._read.get(place.number)) is not None:
            return x
        if task != self._task or place.number not in self._values:
            self._values = self._recompute()
            self._task = task
            _at_the_end(weakref.WeakMethod(self._forget))
        x, version = self._values.pop(place.number)
        if version_of(x) != version:
            raise CheckpointFailed(
                f"{self.where} writes in place to a tensor that its backward pass needs"
            )
        self._read[place.number] = x
        return x

    def _forget(self) -> None:
        """Keep nothing of the second run."""
        self._task, self._reader, self._values = -1, -1, {}
        self._read.clear()

    def _recompute(self) -> dict[int, tuple[Tensor, int]]:
        places = [place for reference in self._places if (place := reference())]
        wanted = {place.number for place in places}
        last = -1 if self.to_the_end else max(wanted)
        values: dict[int, tuple[Tensor, int]] = {}
        count = 0

        def pack(x: Tensor) -> Tensor:
            nonlocal count
            with torch._C.DisableTorchFunction():
                number, count = count, count + 1
                x = x.detach() if x.requires_grad else x
                if number in wanted:
                    values[number] = x, version_of(x)
                if number == last:
                    raise _Done
                return x

        hooks = saved_tensors_hooks(pack, lambda x: x)
        with suppress(_Done), _outside_transforms(), torch.enable_grad(), hooks:
            self._rerun()
        for place in places:
            x, _ = values.get(place.number, (None, 0))
            if x is None or (x.shape, x.dtype, x.device) != place.like:
                found = "nothing" if x is None else f"{x.dtype} {list(x.shape)} on {x.device}"
                shape, dtype, device = place.like
                raise CheckpointFailed(
                    f"{self.where} is not the same when it runs a second time: it saves {found} "
                    f"where it would have saved {dtype} {list(shape)} on {device}\n"
                    "  leave out checkpoint=, or what changes from run to run"
                )
        return values


def _at_the_end(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    """Have something done at the end of the running backward pass, if it is still there."""

    def call() -> None:
        if (bound := method()) is not None:
            bound()

    Variable._execution_engine.queue_callback(call)  # pyright: ignore[reportAttributeAccessIssue]
