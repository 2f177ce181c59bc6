"""A module's own view of a registry that all models share, with each function wrapped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

__all__ = ["wrap_attention_functions"]


class _Wrapped(MutableMapping[str, Any]):
    """A registry seen through a wrapper: later entries too, and all else as it is."""

    def __init__(self, registry: Any, wrap: Callable[..., Any]) -> None:
        self._registry = registry
        self._wrap = wrap

    def _wrapped(self, function: Any) -> Any:
        if not callable(function) or getattr(function, "wraps_attention", None) is self._wrap:
            return function
        return self._wrap(function)

    def __getitem__(self, name: str) -> Any:
        return self._wrapped(self._registry[name])

    def __setitem__(self, name: str, function: Any) -> None:
        self._registry[name] = function

    def __delitem__(self, name: str) -> None:
        del self._registry[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._registry)

    def __len__(self) -> int:
        return len(self._registry)

    def get_interface(self, *args: Any, **kwargs: Any) -> Any:
        """The function that the registry would hand out, wrapped."""
        return self._wrapped(self._registry.get_interface(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._registry, name)


def wrap_attention_functions(registry: Any, wrap: Callable[..., Any]) -> Any:
    """A view of `registry`, in which `wrap` is around each function."""
    return _Wrapped(registry, wrap)
