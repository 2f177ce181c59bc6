"""A module's call, kept so that it can be made a second time in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from lxt.engine.beside import Enter, beside
from lxt.engine.frames import version_of
from lxt.engine.operands import PLAIN, is_container, mapped, written_later

__all__ = ["Call", "Held", "Placed", "Surroundings"]


@dataclass(frozen=True)
class Placed:
    """In place of an operand: what an earlier call of the same segment returned."""

    call: int
    number: int


@dataclass(frozen=True)
class _Stored:
    """In place of an operand: one that is kept as autograd keeps what it saves."""

    number: int


@dataclass(frozen=True)
class Held:
    """In place of an operand: an object as the calls before have left it."""

    number: int


@dataclass(frozen=True)
class _Constant:
    tensor: Tensor
    version: int


class _Kept(Function):
    """A node that keeps tensors as any node of the graph does, and is never run."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return tensors[0].new_empty(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise AssertionError("nothing depends on it")


class Call:
    """A module's call, to be made again.

    Args:
        module: its forward is what runs.
        name: what it is called in messages.
        args: its arguments, with `kwargs`. None that carries relevance may be younger than the
            segment, lest the graph keep itself alive, but for those that are `placed`.
        placed: where a tensor comes from, if an earlier call of the segment returned it.
        held: where an object is.
        surroundings: what it runs in.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        placed: Callable[[Tensor], Placed | None],
        held: Callable[[Any], Held],
        surroundings: Surroundings,
    ) -> None:
        self._module = module
        self._name = name
        stored: list[Tensor] = []
        self._arguments = _kept((args, kwargs), placed, held, stored)
        self._node: Any = _Kept.apply(*stored).grad_fn if stored else None  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
        self._random = surroundings.random_states()
        self._draws = False
        self._held: list[tuple[Tensor, int]] = []

    def ran(self, surroundings: Surroundings) -> None:
        """It has been made the first time."""
        self._held = _versions(self._module)
        now = surroundings.random_states()
        self._draws = any(
            not torch.equal(before, after) for before, after in zip(self._random, now, strict=True)
        )

    def again(
        self,
        surroundings: Surroundings,
        results: Mapping[Placed, Tensor],
        objects: Sequence[Any],
    ) -> Any:
        """Make it again, with what earlier calls returned this time, and copies of objects.

        Raises:
            CheckpointFailed: what it was given, or holds, has changed since.

        """
        if any(version_of(x) != version for x, version in self._held):
            raise written_later(f"a parameter or buffer of the layer {self._name!r}")
        with torch._C.DisableTorchFunction():
            args, kwargs = self._restored(self._arguments, self._inputs(), results, objects)
        try:
            with surroundings.random(self._random) if self._draws else nullcontext():
                return self._module.forward(*args, **kwargs)
        finally:
            self._held = _versions(self._module)  # it may count its own runs

    def _inputs(self) -> Sequence[Tensor]:
        if self._node is None:
            return ()
        try:
            return self._node.saved_tensors
        except RuntimeError as error:  # autograd's own, of a tensor that was written to
            raise written_later(f"an argument of the layer {self._name!r}") from error

    def _restored(
        self,
        value: Any,
        stored: Sequence[Tensor],
        results: Mapping[Placed, Tensor],
        objects: Sequence[Any],
    ) -> Any:
        if isinstance(value, Placed):
            return results[value]
        if isinstance(value, Held):
            return objects[value.number]
        if isinstance(value, _Stored):
            return stored[value.number]
        if isinstance(value, _Constant):
            if version_of(value.tensor) != value.version:
                raise written_later(f"an argument of the layer {self._name!r}")
            return value.tensor
        if is_container(value):
            return mapped(value, lambda item: self._restored(item, stored, results, objects))
        return value


def _versions(module: nn.Module) -> list[tuple[Tensor, int]]:
    """What a module computes with, and how often each was written to."""
    return [(x, version_of(x)) for x in (*module.parameters(), *module.buffers())]


def _kept(
    value: Any,
    placed: Callable[[Tensor], Placed | None],
    held: Callable[[Any], Held],
    stored: list[Tensor],
) -> Any:
    """What stands for an argument until the call is made again."""
    if isinstance(value, Tensor):
        if (place := placed(value)) is not None:
            return place
        if not value.requires_grad:
            return _Constant(value, version_of(value))
        stored.append(value)
        return _Stored(len(stored) - 1)
    if isinstance(value, PLAIN):
        return value
    if is_container(value):
        return mapped(value, lambda item: _kept(item, placed, held, stored))
    return held(value)


@dataclass(frozen=True)
class Surroundings:
    """Where calls are made: devices, autocast, the device that new tensors are made on, edits."""

    devices: tuple[torch.device, ...]
    autocast: tuple[tuple[str, bool, torch.dtype, bool], ...]
    default_device: torch.device
    beside: tuple[Enter, ...]

    @classmethod
    def now(cls, tensors: Iterable[Tensor]) -> Surroundings:
        """Those of a call that is given `tensors`."""
        devices = {x.device for x in tensors if x.device.type not in ("cpu", "meta")}
        kinds = sorted({"cpu", *(device.type for device in devices)})
        return cls(
            tuple(sorted(devices, key=str)),
            tuple(
                (
                    kind,
                    torch.is_autocast_enabled(kind),
                    torch.get_autocast_dtype(kind),
                    torch.is_autocast_cache_enabled(),
                )
                for kind in kinds
                if torch.amp.is_autocast_available(kind)
            ),
            torch.get_default_device(),
            beside.entered,
        )

    @contextmanager
    def restored(self) -> Iterator[None]:
        """The same autocast, default device and edits again."""
        with ExitStack() as entered:
            for enter in self.beside:
                entered.enter_context(enter())
            for kind, enabled, dtype, cache in self.autocast:
                entered.enter_context(
                    torch.autocast(kind, enabled=enabled, dtype=dtype, cache_enabled=cache)
                )
            if torch.get_default_device() != self.default_device:
                entered.enter_context(self.default_device)
            yield

    def random_states(self) -> list[Tensor]:
        """Of the CPU's generator, and of each device's."""
        others = (
            torch.get_device_module(device).get_rng_state(*_generator(device))
            for device in self.devices
        )
        return [torch.get_rng_state(), *others]

    @contextmanager
    def random(self, states: Sequence[Tensor]) -> Iterator[None]:
        """The generators in these states, and afterwards in those that they are in now."""
        before = self.random_states()
        self._set(states)
        try:
            yield
        finally:
            self._set(before)

    def _set(self, states: Sequence[Tensor]) -> None:
        cpu, *others = states
        torch.set_rng_state(cpu)
        for device, state in zip(self.devices, others, strict=True):
            torch.get_device_module(device).set_rng_state(state, *_generator(device))


def _generator(device: torch.device) -> tuple[torch.device, ...]:
    """Which one, where there are several."""
    return () if device.type == "mps" else (device,)
