"""Targets that are no object: names that need no import, and structure that needs no name.

A class has a name, and its copies in other packages have others. What makes a layer a selective
state space is that it holds `A_log`, and what makes a function its recurrence is that it takes Δ,
A, B and C: so an architecture that nobody has seen yet is found too.
"""

from __future__ import annotations

import difflib
import inspect
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import FunctionType, MappingProxyType
from typing import Any

from torch import nn

from lxt.errors import InvalidComposite
from lxt.rules.registry import Family

__all__ = [
    "ClassPath",
    "Having",
    "InTheOpen",
    "OperatorName",
    "Signature",
    "Within",
    "matches",
    "parameter_names",
    "require_names",
]


@dataclass(frozen=True)
class ClassPath:
    """A module class by its qualified name, so that its package need not be imported to name it."""

    path: str

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class OperatorName:
    """An operator of `torch.ops` by its qualified name, `"library::operator"`."""

    name: str

    def __str__(self) -> str:
        return self.name


class _Names:
    """A target given by names; each may have alternatives, as in "dt|delta"."""

    def __init__(self, *names: str) -> None:
        if not names:
            raise InvalidComposite(f"lxt.{type(self).__name__}() fits everything: give it names")
        self.names = names
        self._alternatives = tuple(tuple(name.split("|")) for name in names)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.names == self.names

    def __hash__(self) -> int:
        return hash((type(self), self.names))

    def __repr__(self) -> str:
        return f"lxt.{type(self).__name__}({', '.join(map(repr, self.names))})"


class Having(_Names):
    """Any module that holds parameters, buffers or modules of these names itself.

    >>> lxt.Having("A_log", "D")    # a selective state space, whatever its class is called
    """

    @property
    def first(self) -> tuple[str, ...]:
        """Names of which any module must have one."""
        return self._alternatives[0]

    def fits(self, module: nn.Module) -> bool:
        """Whether a module is such a one."""
        parameters, buffers, modules = module._parameters, module._buffers, module._modules
        for names in self._alternatives:
            for name in names:
                if name in parameters or name in buffers or name in modules:
                    break
            else:
                return False
        return True


class Signature(_Names):
    """Any function written in Python, called by a module, that takes arguments of these names.

    The module itself, if it is its `forward` that takes them.

    >>> lxt.Signature("A", "B", "C", "dt|delta")
    """

    def fits(self, function: Callable[..., Any]) -> bool:
        """Whether a function is such a one."""
        taken = parameter_names(function)
        return all(any(name in taken for name in names) for names in self._alternatives)


# Weak: a function may hold a model.
_parameters = weakref.WeakKeyDictionary[Callable[..., Any], tuple[str, ...]]()


def _names_of(function: Callable[..., Any]) -> tuple[str, ...]:
    try:
        return _parameters[function]
    except (KeyError, TypeError):  # not seen yet, or no weak reference to it
        pass
    try:
        names = tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # compiled code that tells nothing
        names = ()
    if isinstance(function, FunctionType):
        _parameters[function] = names
    return names


def parameter_names(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a function's parameters in order, without the `self` of a bound method.

    Of a module they are its forward's: the package `kernels` makes modules of functions.
    """
    if isinstance(function, nn.Module):
        return _names_of(type(function).forward)[1:]
    unbound = getattr(function, "__func__", None)
    return _names_of(function) if unbound is None else _names_of(unbound)[1:]


class InTheOpen(Family):
    """A rule for functions written in Python, while which the operations within have theirs.

    Other rules of such functions stand for all that happens within, as those of torch's do.
    """


class Within:
    """A rule for a module: run its own forward, with other rules for some functions within.

    Args:
        table: the torch functions that have another rule while the module runs.
        recurrence: what its recurrence may take. The module is refused should its output carry
            relevance without a function with a rule having been called; empty, it never is.

    """

    def __init__(self, table: Mapping[Any, Any], *, recurrence: tuple[Signature, ...] = ()) -> None:
        self.table: Mapping[Any, Any] = MappingProxyType(dict(table))
        self.recurrence = recurrence

    def __repr__(self) -> str:
        return f"lxt.Within({len(self.table)} functions)"


def require_names(model: nn.Module, patterns: Iterable[str]) -> None:
    """Make sure that each pattern fits the path of some module.

    Raises:
        InvalidComposite: one doesn't; the message shows names that there are.
    """
    patterns = list(patterns)
    if not patterns:
        return
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0)
            raise InvalidComposite(
                f"no module of {type(model).__name__} matches {pattern!r}: there is, "
                f"for instance, {(near or names)[0]!r}"
            )


def matches(name: str, pattern: str) -> bool:
    """Whether a module's path fits a pattern, all of it or its end."""
    if pattern.startswith("/"):
        return name == pattern[1:]
    parts = name.split(".")
    length = pattern.count(".") + 1
    return fnmatchcase(name, pattern) or fnmatchcase(".".join(parts[-length:]), pattern)
