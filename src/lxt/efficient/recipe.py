"""A patch map, carried out: what is to change, written down so that it can be undone and scoped."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any, NamedTuple

from torch import nn

from lxt.composite import Composite

__all__ = ["Recipe"]

_missing = object()
_current: ContextVar[Recipe | None] = ContextVar("lxt_recipe", default=None)


class Recipe:
    """What a patch map makes of a Python module: rules for its models, and attributes to restore.

    Attributes:
        module: the Python module whose models are patched.
        base: the composite that all of them run under; None for autograd's own gradient.

    """

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.base: Composite | None = None
        self._forwards: dict[type[nn.Module], Callable[..., Any]] = {}
        self._changes: list[_Change] = []

    @classmethod
    def being_written(cls) -> Recipe | None:
        """The recipe that the running `monkey_patch` writes."""
        return _current.get()

    @contextmanager
    def writing(self, targets: Iterable[Any]) -> Iterator[None]:
        """Note what happens to attributes of `targets`; on an error nothing of it is left."""
        before = [(target, dict(vars(target))) for target in targets]
        token = _current.set(self)
        try:
            yield
        except BaseException:
            self._changes = list(_changes_since(before))
            self.undo()
            raise
        finally:
            _current.reset(token)
        self._changes = list(_changes_since(before))

    def replace_forward(
        self, cls: type[nn.Module], fn: Callable[..., Any], keep_original: bool
    ) -> None:
        """Have `fn` run in place of the forward of `cls`, in models of the patched module."""

        def patched(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if not keep_original:
                return fn(module, *args, **kwargs)
            # A shallow twin gets the attribute: the instance itself is shared by threads.
            twin = copy.copy(module)
            twin.__dict__["original_forward"] = module.forward
            before = dict(twin.__dict__)
            output = fn(twin, *args, **kwargs)
            for name, value in twin.__dict__.items():
                if before.get(name) is not value:  # what the forward left on it
                    module.__dict__[name] = value
            return output

        self._forwards[cls] = functools.wraps(fn, assigned=("__name__", "__doc__"))(patched)

    def warn_if_foreign(self, cls: Any, method_name: str) -> None:
        """Warn of a change that reaches beyond the patched module."""
        if getattr(cls, "__module__", None) != self.module.__name__:
            warnings.warn(
                f"{cls.__name__}.{method_name} is patched for every model that uses it, not only "
                f"for those of {self.module.__name__}, until the patch is removed",
                stacklevel=4,
            )

    def composite(self) -> Composite:
        """The rules of the recipe."""
        if self.base is None:
            return Composite(self._forwards, name="patch map", on_unknown="gradient")
        return self.base | self._forwards if self._forwards else self.base

    @property
    def changed(self) -> list[str]:
        """The attributes that were changed on the spot, by name."""
        return [f"{getattr(c.target, '__name__', c.target)}.{c.name}" for c in self._changes]

    def undo(self) -> None:
        """Put the attributes back as they were, but for those that others changed since."""
        for target, name, before, after in self._changes:
            if vars(target).get(name, _missing) is not after:
                continue
            if before is _missing:
                delattr(target, name)
            else:
                setattr(target, name, before)
        self._changes = []


class _Change(NamedTuple):
    target: Any
    name: str
    before: Any
    after: Any


def _changes_since(earlier: list[tuple[Any, dict[str, Any]]]) -> Iterator[_Change]:
    for target, attributes in earlier:
        now = vars(target)
        for name in {**attributes, **now}:
            before, after = attributes.get(name, _missing), now.get(name, _missing)
            if after is not before:
                yield _Change(target, name, before, after)
