"""Checkpointing of segments of consecutive layers: memory in the square root of the depth.

Which modules are layers is read off a model's structure; which of them follow on one another shows
when they run. A layer continues a segment if it takes what the one before returned, and whatever
else it takes is older than the segment. While a layer runs nothing is saved for the backward pass;
what the model does between two layers is saved as ever.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from lxt.engine.frames import Frame, version_of
from lxt.engine.opaque import next_number, tensors_in
from lxt.engine.operands import Mutable, Operands, Snapshot
from lxt.engine.rerun import Call, Held, Placed, Surroundings
from lxt.engine.standins import StandIn
from lxt.engine.walk import modules_in
from lxt.errors import InvalidComposite, InvalidModel

if TYPE_CHECKING:
    from lxt.propagation import Propagation

__all__ = ["Checkpoint", "Checkpointing", "layers_of", "running"]

Checkpoint = bool | Literal["sqrt"] | int | None
"""How many layers make a segment; `"sqrt"`, or True, is about the root of how many there are."""


class Checkpointing:
    """What `checkpoint=` asks for, on one model.

    Raises:
        InvalidComposite: `checkpoint` says nothing.
        InvalidModel: the model has no stack of layers.
    """

    def __init__(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        self.length = _length(checkpoint)
        self._layers: list[tuple[nn.Module, str, int, int]] = []
        if not any(layers_of(model)):
            raise InvalidModel(
                f"checkpoint={checkpoint!r} is for models with layers, and {type(model).__name__} "
                "has none that can be told: no nn.ModuleList or nn.Sequential of modules made of "
                "others, and no such modules of one class side by side: leave out checkpoint="
            )

    @classmethod
    def of(cls, model: nn.Module, checkpoint: Checkpoint) -> Checkpointing | None:
        """The same, or None where there is to be no checkpointing."""
        return None if checkpoint is None or checkpoint is False else cls(model, checkpoint)

    def install(self, propagation: Propagation, *, again: bool = False) -> Callable[[], None]:
        """Put stand-ins before the forwards of all layers, for `propagation` alone.

        Those of the last time, with `again`; a model may have changed since.

        Returns:
            What takes them off.
        """
        if not again:
            names = {module: name for name, module in propagation.model.named_modules()}
            self._layers = [
                (module, names[module], number, len(stack))
                for number, stack in enumerate(layers_of(propagation.model))
                for module in stack
            ]
        with ExitStack() as undo:
            for module, name, stack, size in self._layers:
                undo.callback(_Layer(module, name, propagation, stack, size).remove)
            return undo.pop_all().close


def running(
    checkpointing: Checkpointing | None, propagation: Propagation
) -> AbstractContextManager[None]:
    """A forward pass, or a part of it, that `propagation` is in force for in this thread."""
    run = None if checkpointing is None else _Run(propagation, checkpointing.length)
    return _in_force(run)


def _length(checkpoint: Any) -> int | None:
    """Layers to a segment; None for the root of how many there are."""
    if checkpoint is True or checkpoint == "sqrt":
        return None
    if isinstance(checkpoint, int) and checkpoint >= 1:
        return checkpoint
    raise InvalidComposite(
        'checkpoint is True or "sqrt" (segments of about √layers layers), or how many layers make '
        f"a segment, 1 or more, not {checkpoint!r}"
    )


# --- layers --------------------------------------------------------------------------------------


def layers_of(model: nn.Module) -> list[list[nn.Module]]:
    """The stacks of layers of a model, the outermost ones, by structure.

    An `nn.ModuleList` of modules that are more than one of torch's own, or an `nn.Sequential` with
    several such of one class; failing these, such modules of one class that a module has side by
    side. Of stages that are stacks themselves, of different depths, their layers.
    """
    found = list(_stacks(model, _listed)) or list(_stacks(model, _alike))
    seen: set[nn.Module] = set()
    distinct = ([m for m in stack if not (m in seen or seen.add(m))] for stack in found)
    return [stack for stack in distinct if stack]


def _stacks(
    module: nn.Module, layers_in: Callable[[nn.Module], list[nn.Module]]
) -> Iterator[list[nn.Module]]:
    layers = layers_in(module)
    within = {layer: list(_stacks(layer, layers_in)) for layer in layers}
    depths = {max(map(len, stacks)) for stacks in within.values() if stacks}
    if layers and len(depths) <= 1:
        yield layers
        layers_taken = set(layers)
    else:
        layers_taken = set()
    for child in module.children():
        if child not in layers_taken:
            yield from within[child] if child in within else _stacks(child, layers_in)


def _listed(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, nn.ModuleList):
        return [child for child in module if child is not None and _is_compound(child)]
    return _alike(module) if isinstance(module, nn.Sequential) else []


def _alike(module: nn.Module) -> list[nn.Module]:
    children = (child for child in module._modules.values() if child is not None)
    compound = [child for child in children if _is_compound(child)]
    kinds = Counter(map(type, compound))
    return compound if kinds and max(kinds.values()) > 1 else []


def _is_compound(module: nn.Module) -> bool:
    """Whether a module can be a layer: it is called, and is more than a linear layer or a norm."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return False
    return any(module.children()) or not type(module).__module__.startswith("torch.nn.")


class _Layer(StandIn):
    """Stands before the forward of a layer, and of a unit that the layer may be."""

    def __init__(
        self, module: nn.Module, name: str, propagation: Propagation, stack: int, size: int
    ) -> None:
        self.inner = module.forward
        super().__init__(module)
        self.name = name
        self.propagation = propagation
        self.stack = stack
        self.size = size

    @property
    def is_offloaded(self) -> bool:
        """Whether accelerate loads weights for it, and takes them off again at its end."""
        return any(hasattr(part, "_hf_hook") for part in modules_in(self.module))

    @property
    def buffers(self) -> list[Tensor]:
        """Its own, and those of its parts."""
        parts = (dict(part._buffers).values() for part in modules_in(self.module))
        return [buffer for buffers in parts for buffer in buffers if buffer is not None]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer as part of a segment, in the open between two layers and nowhere else."""
        run = _local.run
        if (
            run is None
            or run.propagation is not self.propagation
            or run.layer is not None
            or not torch.is_grad_enabled()
        ):
            return self.inner(*args, **kwargs)
        return run.call(self, args, kwargs)

    def remove(self) -> None:
        """Take it off, from beneath what others have put on top of it too."""
        above = self.module.__dict__.get("forward")
        while isinstance(above, StandIn) and above.earlier is not self:
            above = above.earlier
        if isinstance(above, StandIn):
            above.earlier = self.earlier
        super().remove()


# --- segments ------------------------------------------------------------------------------------


class _Local(threading.local):
    run: _Run | None = None


_local = _Local()


@contextmanager
def _in_force(run: _Run | None) -> Iterator[None]:
    outer = _local.run
    _local.run = run
    try:
        yield
    finally:
        _local.run = outer


class _Run:
    """A forward pass in which layers are called."""

    def __init__(self, propagation: Propagation, length: int | None) -> None:
        self.propagation = propagation
        self.layer: _Layer | None = None
        """The one that runs now."""
        self._length = length
        self._calls: Counter[int] = Counter()
        self._segment: _Segment | None = None

    def call(self, layer: _Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a layer whose saved tensors are to be computed again."""
        with torch._C.DisableTorchFunction():
            operands = Operands(args, kwargs, layer.buffers)
            segment = self._segment_for(layer, operands)
            call = None if segment is None else segment.call(layer, args, kwargs)
        self._segment = None  # unless all goes well
        if segment is None or call is None:
            return layer.inner(*args, **kwargs)
        self.layer = layer
        try:
            with segment.frame.recording():
                result = layer.inner(*args, **kwargs)
        finally:
            self.layer = None
        with torch._C.DisableTorchFunction():
            operands.require_repeatable(layer.module, layer.name, segment.place_of)
            call.ran(segment.surroundings)
            segment.returned(result, operands.objects)
        self._segment = segment
        return result

    def _segment_for(self, layer: _Layer, operands: Operands) -> _Segment | None:
        """The segment that a call belongs to; none if nothing in it depends on the input."""
        tensors = operands.tensors
        if not any(x.requires_grad for x in tensors):
            return None
        self._calls[layer.stack] += 1
        length = self._length
        if length is None:  # a stack may be run through several times, as ALBERT's is
            length = max(round(layer.size**0.5), math.isqrt(self._calls[layer.stack]))
        surroundings = Surroundings.now(tensors)
        segment = self._segment
        if (
            segment is not None
            and segment.size < length
            and segment.surroundings == surroundings
            and segment.leads_to(operands)
        ):
            segment.frame.to_the_end |= layer.is_offloaded
            return segment
        return _Segment(self.propagation, surroundings, layer)


class _Segment:
    """Consecutive calls of layers, while they run for the first time."""

    def __init__(self, propagation: Propagation, surroundings: Surroundings, layer: _Layer) -> None:
        self.surroundings = surroundings
        self._second = _SecondRun(propagation, surroundings)
        self.frame = Frame(
            self._second,
            f"a segment of layers from {layer.name!r} ({type(layer.module).__name__}) on",
            to_the_end=layer.is_offloaded,
        )
        self._start = next_number()
        self._returned: dict[int, tuple[weakref.ref[Tensor], int, Placed]] = {}
        self._objects: dict[int, tuple[Held, Mutable]] = {}

    @property
    def size(self) -> int:
        """How many calls there are."""
        return len(self._second.calls)

    def place_of(self, x: Tensor) -> Placed | None:
        """Where a tensor comes from, if one of the calls returned it."""
        reference, _, place = self._returned.get(id(x), (None, 0, None))
        return place if reference is not None and reference() is x else None

    def leads_to(self, operands: Operands) -> bool:
        """Whether a call that is given `operands` goes on where the last one left off.

        What was computed in between is younger than the segment. It would keep the graph that it
        came out of alive, and that graph the segment.
        """
        for one in operands.objects:
            _, known = self._objects.get(id(one.value), (None, None))
            if known is None:
                if any(map(self._is_younger, one.look.tensors)):
                    return False
            elif not known.is_as_it_was():
                return False
        placed = [x for x in operands.tensors if self._is_placed(x)]
        others = [x for x in operands.tensors if not self._is_placed(x)]
        return any(x.requires_grad for x in placed) and not any(map(self._is_younger, others))

    def _is_placed(self, x: Tensor) -> bool:
        """Whether a tensor is what one of the calls returned, and nobody wrote to it since."""
        return self.place_of(x) is not None and self._returned[id(x)][1] == version_of(x)

    def _is_younger(self, x: Tensor) -> bool:
        return x.grad_fn is not None and x.grad_fn._sequence_nr() >= self._start

    def call(self, layer: _Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Take down one more."""
        call = Call(
            layer.module, layer.name, args, kwargs, self._placed, self._held, self.surroundings
        )
        self._second.calls.append(call)
        return call

    def _placed(self, x: Tensor) -> Placed | None:
        place = self.place_of(x)
        if place is not None:
            self._second.wanted.add(place)
        return place

    def _held(self, value: Any) -> Held:
        if id(value) in self._objects:
            return self._objects[id(value)][0]
        snapshots = self._second.snapshots
        snapshots.append(Snapshot(value))
        held = Held(len(snapshots) - 1)
        self._objects[id(value)] = held, Mutable.now(value)
        return held

    def returned(self, result: Any, objects: list[Mutable]) -> None:
        """Remember what the last one returned, as long as somebody else does, and left behind."""
        for one in objects:
            held, _ = self._objects[id(one.value)]
            self._objects[id(one.value)] = held, Mutable.now(one.value)
        for number, x in enumerate(tensors_in(result)):
            self._returned[id(x)] = weakref.ref(x), version_of(x), Placed(self.size - 1, number)


class _SecondRun:
    """Runs the layers of a segment again, under the same rules."""

    def __init__(self, propagation: Propagation, surroundings: Surroundings) -> None:
        self.calls: list[Call] = []
        self.snapshots: list[Snapshot] = []
        self.wanted: set[Placed] = set()
        """What later calls take of what earlier ones return."""
        self._propagation = propagation
        self._targets = propagation.targets
        self._surroundings = surroundings

    def __call__(self) -> None:
        results: dict[Placed, Tensor] = {}
        with torch._C.DisableTorchFunction():
            objects = [snapshot.again() for snapshot in self.snapshots]
        with (
            self._surroundings.restored(),
            self._propagation.reenter(self._targets),
            _in_force(None),
        ):
            for index, call in enumerate(self.calls):
                result = call.again(self._surroundings, results, objects)
                for number, x in enumerate(tensors_in(result)):
                    if (place := Placed(index, number)) in self.wanted:
                        results[place] = x
