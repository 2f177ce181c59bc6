"""What a module's call is given, and what becomes of it: whether the call can be made once more."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from lxt.engine.frames import version_of
from lxt.errors import CheckpointFailed

__all__ = [
    "PLAIN",
    "Mutable",
    "Operands",
    "Snapshot",
    "is_container",
    "mapped",
    "written_later",
]

# What is what it is: nothing within changes, or nothing within is an operand.
PLAIN = (
    *(int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device, torch.Size),
    *(nn.Module, FunctionType, MethodType, BuiltinFunctionType),
)


class _Look:
    """What a value holds at a time: its make, and how often its tensors were written to."""

    def __init__(self, value: Any, *, within_objects: bool = False) -> None:
        self.tensors: list[Tensor] = []
        self.objects: list[Any] = []
        """What can't be looked into but by its attributes, and wasn't."""
        self._within_objects = within_objects
        self._seen: set[int] = set()
        self._make = self._of(value)
        self._versions = [version_of(x) for x in self.tensors]

    @classmethod
    def inside(cls, value: Any) -> _Look:
        """At an object's attributes, and all that they hold."""
        return cls(value, within_objects=True)

    def _of(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            self.tensors.append(value)
            return id(value)
        if isinstance(value, PLAIN):
            return value if isinstance(value, int | float | str) else id(value)
        if id(value) in self._seen:
            return id(value)
        self._seen.add(id(value))
        if not is_container(value) and not self._within_objects:
            self.objects.append(value)
            return id(value)
        items: list[Any] = [id(value)]
        if isinstance(value, Mapping):
            items += [(self._of(key), self._of(item)) for key, item in value.items()]
        elif isinstance(value, list | tuple | set | frozenset):
            items += map(self._of, value)
        if not is_container(value):
            items.append(self._of(getattr(value, "__dict__", None)))
        return items

    def is_written_to(self, repeated: Callable[[Tensor], Any] = lambda _: None) -> bool:
        """Whether a tensor was since, but for those where a second run repeats it."""
        pairs = zip(self.tensors, self._versions, strict=True)
        return any(version_of(x) != version and repeated(x) is None for x, version in pairs)

    def is_of_the_same_make(self, other: _Look) -> bool:
        """Whether the same tensors are in the same places."""
        return self._make == other._make


@dataclass
class Mutable:
    """An object among the operands, such as a cache: calls may put other tensors into it."""

    value: Any
    look: _Look

    @classmethod
    def now(cls, value: Any) -> Mutable:
        """As it is."""
        return cls(value, _Look.inside(value))

    def is_as_it_was(self) -> bool:
        """Whether nobody has changed it since."""
        return not self.look.is_written_to() and self.look.is_of_the_same_make(
            _Look.inside(self.value)
        )

    def has_survived(self) -> bool:
        """Whether a call that changed it can be made again with a copy of it as it was."""
        return self.is_as_it_was() or (_can_be_copied(self.value) and not self.look.is_written_to())


class Operands:
    """All that a module's call is given, and the module's own buffers."""

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any], buffers: Any) -> None:
        self._given: dict[int | str, Any] = {**dict(enumerate(args)), **kwargs}
        self._looks = {name: _Look(value) for name, value in self._given.items()}
        self._own = _Look(buffers)
        self.tensors = [x for look in self._looks.values() for x in look.tensors]
        self._objects = {
            name: [Mutable.now(value) for value in look.objects]
            for name, look in self._looks.items()
        }

    @property
    def objects(self) -> list[Mutable]:
        """Those among them."""
        return [one for objects in self._objects.values() for one in objects]

    def require_repeatable(
        self, module: nn.Module, name: str, repeated: Callable[[Tensor], Any]
    ) -> None:
        """Make sure, after a call, that it can be made a second time with what it was given.

        Raises:
            CheckpointFailed: it wrote to something but to what is `repeated`, not None.
        """
        where = f"the layer {name!r} ({type(module).__name__})"
        if self._own.is_written_to():
            raise CheckpointFailed(
                f"{where} writes to its buffers, which a second run in the backward pass would do "
                "once more: call model.eval() first, or leave out checkpoint="
            )
        for key, value in self._given.items():
            look = self._looks[key]
            if (
                look.is_of_the_same_make(_Look(value))
                and not look.is_written_to(repeated)
                and all(one.has_survived() for one in self._objects[key])
            ):
                continue
            argument = f"argument {key}" if isinstance(key, int) else f"argument {key!r}"
            remedy = "leave out checkpoint=, or explain a model that does not"
            if not isinstance(value, Tensor):
                remedy = "if it is a cache, call the model with use_cache=False"
            raise CheckpointFailed(
                f"{where} writes to its {argument} (a {type(value).__name__}), so that it can't "
                f"run a second time in the backward pass as it ran the first\n  {remedy}"
            )


def _can_be_copied(value: Any) -> bool:
    """Whether an object's attributes are all that it holds."""
    return hasattr(value, "__dict__") and not isinstance(value, Mapping | list | tuple | set)


def _copied(value: Any, memo: dict[int, Any] | None = None) -> Any:
    """An object with all that it holds, but for tensors and modules, which stay the same."""
    memo = {} if memo is None else memo
    if isinstance(value, (Tensor, *PLAIN)):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if is_container(value):
        memo[id(value)] = result = mapped(value, lambda item: _copied(item, memo))
        return result
    if not _can_be_copied(value):
        return value
    memo[id(value)] = result = copy.copy(value)
    for name, item in vars(value).items():
        result.__dict__[name] = _copied(item, memo)
    return result


class Snapshot:
    """An object as it is now."""

    def __init__(self, value: Any) -> None:
        self._copy = _copied(value)
        self._look = _Look.inside(self._copy)
        self._where = f"a {type(value).__name__} that a layer was given"

    def again(self) -> Any:
        """As it was.

        Raises:
            CheckpointFailed: its tensors aren't.
        """
        if self._look.is_written_to():
            raise written_later(self._where)
        return _copied(self._copy)


def written_later(what: str) -> CheckpointFailed:
    """The error for operands that are no longer what they were in the forward pass."""
    return CheckpointFailed(
        f"{what} was written to in place after the layer ran, so that it can't run a second time "
        "in the backward pass as it ran the first: if it is a cache, call the model with "
        "use_cache=False"
    )


def is_container(value: Any) -> bool:
    """Whether it is one of Python's own, which can be made anew."""
    return type(value) in (dict, list, tuple) or (
        isinstance(value, tuple) and hasattr(value, "_fields")
    )


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """Such a container with a function of each of its items."""
    if type(value) is dict:
        return {key: function(item) for key, item in value.items()}
    items = map(function, value)
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
