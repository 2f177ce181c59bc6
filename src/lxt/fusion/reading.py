"""What the code of a forward reads, and whether any of it may change unseen."""

from __future__ import annotations

import dis
import weakref
from collections.abc import Iterable, Iterator, Mapping, Set
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import nn

__all__ = ["Reading", "are_settings", "reading_of"]

_Found = tuple[Mapping[str, Any], str, Any]

_SETTINGS = frozenset((int, float, str, bool, type(None), torch.dtype, torch.device))


def are_settings(*values: Any) -> bool:
    """Whether values are what they are for good, and can be compared."""
    return all(type(value) in _SETTINGS for value in values)


class Reading:
    """What some code reads.

    Attributes:
        fixed: whether it writes nothing, and reads nothing that may change unseen.
        names: every name in it.
        found: where it was told to look for methods, functions and classes, and what was there.
        key: what was there, to be compared; nothing if it isn't `fixed`.
    """

    def __init__(self, names: Set[str] | None, found: Iterable[_Found] = ()) -> None:
        self.fixed = names is not None
        self.names = frozenset(names or ())
        self.found = tuple(found)
        self.key = tuple(_as_written(value) for _, _, value in self.found) if self.fixed else ()

    def holds(self) -> bool:
        """Whether the same would be found there now."""
        return all(there.get(name) is value for there, name, value in self.found)


# Weak, since classes and functions come and go.
_readings: weakref.WeakKeyDictionary[Any, Reading] = weakref.WeakKeyDictionary()


def reading_of(code: type[nn.Module] | FunctionType) -> Reading | None:
    """What a function, or a class's forward and the methods it calls, read; None if it can't tell.

    They must write nothing but their own variables, and read no global but functions that do no
    more, and torch's functions and classes.
    """
    known = _readings.get(code)
    if known is None or not known.holds():
        known = _read_methods(code) if isinstance(code, type) else _read(code)
        _readings[code] = known
    return known if known.fixed else None


def _as_written(method: Any) -> Any:
    """A method as its class has it, which the way in of a patched class may stand before."""
    return getattr(method, "_lxt_stands_before", method)


def _read_methods(cls: type[nn.Module]) -> Reading:
    own = [base.__dict__ for base in cls.__mro__[: cls.__mro__.index(nn.Module)]]
    names: set[str] = set()
    found: list[_Found] = []
    waiting, seen = ["forward"], {"forward"}
    while waiting:
        name = waiting.pop()
        there = next((base for base in own if name in base), None)
        if there is None:
            continue
        found.append((there, name, there[name]))
        reading = _read(_as_written(there[name]))
        found += reading.found
        if not reading.fixed:
            return Reading(None, found)
        names |= reading.names
        waiting += sorted(reading.names - seen)
        seen |= reading.names
    return Reading(names, found)


_BY_OTHER_WAYS = frozenset(
    ("getattr", "setattr", "delattr", "vars", "globals", "locals", "eval", "exec", "__dict__")
)
_WRITES = frozenset(
    ("STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL", "DELETE_GLOBAL", "STORE_SUBSCR", "STORE_DEREF")
)


def _read(function: Any, callers: Set[Any] = frozenset()) -> Reading:
    """What a function reads. `callers` are looked at already, and may be called back."""
    if not isinstance(function, FunctionType):
        return Reading(None)
    if _is_torchs(function.__module__):
        return Reading(set(function.__code__.co_names))
    if function.__closure__ or not are_settings(*(function.__defaults__ or ())):
        return Reading(None)
    names: set[str] = set()
    read: set[str] = set()
    writes = False
    for code in _codes(function.__code__):
        names.update(code.co_names)
        for instruction in dis.get_instructions(code):
            writes = writes or instruction.opname in _WRITES
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                read.add(instruction.argval)
    if writes or names & _BY_OTHER_WAYS:
        return Reading(None)
    looked_at = callers | {function}
    found: list[_Found] = []
    for name in sorted(read & function.__globals__.keys()):
        value = function.__globals__[name]
        found.append((function.__globals__, name, value))
        if not isinstance(value, FunctionType):
            if not _is_fixed(value):
                return Reading(None, found)
        elif value not in looked_at:
            within = _read(value, looked_at)
            found += within.found
            if not within.fixed:
                return Reading(None, found)
    return Reading(names, found)


def _is_fixed(value: Any) -> bool:
    if isinstance(value, ModuleType):
        return _is_torchs(value.__name__) or value.__name__ == "math"
    if isinstance(value, type):
        return _is_torchs(value.__module__) or value.__module__ == "builtins"
    return isinstance(value, BuiltinFunctionType)


def _is_torchs(module: str) -> bool:
    return module.partition(".")[0] == "torch"


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
