"""Finds the functions written in Python that a module's forward calls, and puts rules before them.

A function mode sees torch's functions only. A recurrence (`selective_scan`, `chunk_delta_rule`) is
a function of a model's own file, or of a package of kernels, that the forward finds among its
globals or on the module. To change either would change it for everybody. So the forward runs from a
copy that has globals of its own, in which such functions are replaced; and where they are found on
the module, the copy gets a stand-in for the module to look at.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

from lxt.engine.mode import in_force

__all__ = ["rewired"]

Wanted = Callable[[Callable[..., Any]], bool]

# Attributes through which a forward would come back to itself.
_ITSELF = frozenset({"forward", "__call__", "_call_impl", "_wrapped_call_impl"})


def rewired(
    module: nn.Module, forward: Callable[..., Any], wanted: Wanted
) -> Callable[..., Any] | None:
    """A module's forward that hands the functions it calls to the rules in force.

    Args:
        module: the module.
        forward: its forward, as it is called now.
        wanted: says which functions are to be handed over.

    Returns:
        The forward to run instead, or None if it calls none of these functions.

    """
    return _Rewiring(module, wanted).replacement(forward, home=None)


class _Dispatch:
    """Stands before a function: the rules in force, if any, take its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        functools.update_wrapper(self, function, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if in_force.mode is None:
            return self.function(*args, **kwargs)
        return in_force.mode.run_call(self.function, args, kwargs)


class _Rewiring:
    """The copies made for one module."""

    def __init__(self, module: nn.Module, wanted: Wanted) -> None:
        self.module = module
        self.wanted = wanted
        self.attributes: dict[str, Any] = {}
        self.copies: dict[FunctionType, FunctionType | None] = {}
        self.stand_in = _StandIn(module, self.attributes)

    def replacement(self, value: Any, home: str | None) -> Any:
        """What to put in the place of a value that a function refers to, or None for nothing.

        Functions of other files than `home` are not looked into.
        """
        if isinstance(value, functools.partial):
            return self._partial(value, home)
        if not isinstance(value, FunctionType | MethodType | nn.Module):
            return None
        if value is not self.module and self.wanted(value):
            return _Dispatch(value)
        if isinstance(value, nn.Module):  # the package `kernels` makes modules of functions
            return None
        if isinstance(value, MethodType):
            if value.__self__ is not self.module or not isinstance(value.__func__, FunctionType):
                return None
            copied = self._copy(value.__func__)
            return None if copied is None else MethodType(copied, self.stand_in)
        return self._copy(value) if home in (None, value.__module__) else None

    def _partial(self, value: functools.partial[Any], home: str | None) -> Any:
        function = self.replacement(value.func, home)
        if function is None:
            return None
        args = [self.stand_in if arg is self.module else arg for arg in value.args]
        return functools.partial(function, *args, **value.keywords)

    def _copy(self, function: FunctionType) -> FunctionType | None:
        """A copy of a function that refers to replacements, or None where there are none."""
        if function in self.copies:
            return self.copies[function]
        self.copies[function] = None  # while it is being looked at: it may call itself
        names = frozenset(_names(function.__code__))
        found: dict[str, Any] = {}
        for name in names & function.__globals__.keys():
            value = function.__globals__[name]
            if isinstance(value, ModuleType):
                new = self._namespace(value, names)
            else:
                new = self.replacement(value, function.__module__)
            if new is not None:
                found[name] = new
        cells = [self._cell(cell) for cell in function.__closure__ or ()]
        attributes = self._replaced_attributes(names - _ITSELF, function.__module__)
        self.attributes.update(attributes)
        if not (found or attributes or any(cells)):
            return None
        copied = FunctionType(
            function.__code__,
            {**function.__globals__, **found},
            function.__name__,
            function.__defaults__,
            tuple(new or old for new, old in zip(cells, function.__closure__ or (), strict=True)),
        )
        copied.__kwdefaults__ = function.__kwdefaults__
        functools.update_wrapper(copied, function)
        self.copies[function] = copied
        return copied

    def _namespace(self, module: ModuleType, names: frozenset[str]) -> _Namespace | None:
        """What stands for a Python module, some of whose functions are called by these names."""
        held = {name: module.__dict__[name] for name in names & module.__dict__.keys()}
        found = {
            name: _Dispatch(value)
            for name, value in held.items()
            if isinstance(value, FunctionType) and self.wanted(value)
        }
        return _Namespace(module, found) if found else None

    def _cell(self, cell: CellType) -> CellType | None:
        try:
            new = self.replacement(cell.cell_contents, None)  # a decorator's, from another file
        except ValueError:  # an empty cell
            return None
        return None if new is None else CellType(new)

    def _replaced_attributes(self, names: frozenset[str], home: str | None) -> dict[str, Any]:
        """The module's own methods and functions of these names that are to be replaced."""
        found = {}
        for name in names:
            value = self.module.__dict__.get(name)
            if value is None:
                value = _method(type(self.module), name)
                value = value and value.__get__(self.module)
            new = self.replacement(value, home if isinstance(value, FunctionType) else None)
            if isinstance(new, MethodType) and new.__self__ is self.stand_in:
                new = _Method(new.__func__)
            if new is not None:
                found[name] = new
        return found


def _method(cls: type, name: str) -> FunctionType | staticmethod[Any, Any] | None:
    """What a module's class, and not torch's, has under this name, if it is a function."""
    for base in cls.__mro__:
        if base is nn.Module:
            return None
        if name in base.__dict__:
            value = base.__dict__[name]
            return value if isinstance(value, FunctionType | staticmethod) else None
    return None


def _names(code: CodeType) -> Iterator[str]:
    """Every name that a function refers to, in its inner functions too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


class _Namespace:
    """A Python module, but for some of its functions."""

    def __init__(self, module: ModuleType, found: dict[str, Any]) -> None:
        self.__dict__.update(found)
        self._lxt_stands_for = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lxt_stands_for, name)


class _Method:
    """A method's copy, which the stand-in binds when asked: held bound, it would hold itself."""

    def __init__(self, function: FunctionType) -> None:
        self.function = function


class _StandIn:
    """What a method takes for its module: the module, but for some of its attributes."""

    def __init__(self, module: nn.Module, attributes: dict[str, Any]) -> None:
        object.__setattr__(self, "_lxt_stands_for", (module, attributes))

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        return type(self._lxt_stands_for[0])

    def __getattr__(self, name: str) -> Any:
        module, attributes = self._lxt_stands_for
        if name not in attributes:
            return getattr(module, name)
        new = attributes[name]
        return MethodType(new.function, self) if isinstance(new, _Method) else new

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._lxt_stands_for[0], name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._lxt_stands_for[0], name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._lxt_stands_for[0](*args, **kwargs)
