"""What steering puts on a model: hooks on modules, and a stand-in for `generate`."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import MethodType
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from lxt.engine.compiled import as_written
from lxt.engine.passages import first_tensor, replaced
from lxt.errors import AlreadyRegistered, InvalidTap

if TYPE_CHECKING:
    from lxt.latent.steering import Placed, Steering

__all__ = ["Begins", "Finishes", "Generate", "Hook", "Input", "Output"]


class Hook:
    """A hook of one instance: a copy of the module has one that does nothing."""

    def __init__(self, steering: Steering) -> None:
        self.steering = steering

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _nothing

    def __reduce__(self) -> Any:
        raise AlreadyRegistered(
            f"{type(self.steering.model).__name__} is steered: call .remove() on the handle, or "
            "leave its context, before pickling it"
        )


def _nothing(*_: object) -> None:
    """In a copy, in place of a hook."""


class Begins(Hook):
    """Tells that a host is called."""

    def __init__(self, steering: Steering, host: nn.Module) -> None:
        super().__init__(steering)
        self.host = host

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before its forward."""
        as_written(self.steering.begins, self.host, args, kwargs)


class Finishes(Begins):
    """Tells that its call is over."""

    def __call__(self, *_: object) -> None:
        """After its forward, or after what it raised."""
        as_written(self.steering.ends, self.host)


class _Edits(Hook):
    def __init__(self, steering: Steering, placed: list[Placed]) -> None:
        super().__init__(steering)
        self.placed = placed

    def edited(self, value: Any) -> Any:
        """`value` with its first tensor edited; None if it stays as it is."""
        x = first_tensor(value)
        if x is None:
            raise InvalidTap(
                f"no tensor of floating-point numbers passes {self.placed[0].unit.place}, but "
                f"a {type(value).__name__}"
            )
        y = self.steering.edited(x, self.placed)
        return None if y is x else replaced(value, x, y)


class Input(_Edits):
    """Edits what a module is called with."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before its forward."""
        return as_written(self.edited, (args, kwargs))


class Output(_Edits):
    """Edits what a module returns."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """After its forward."""
        return as_written(self.edited, output)


_NOT_THE_PROMPT = (
    *("assistant_model", "prompt_lookup_num_tokens", "prefill_chunk_size", "custom_generate"),
)


class Generate:
    """Stands before an instance's `generate`, whose first forward pass holds the prompts."""

    def __init__(self, model: nn.Module, steering: Steering) -> None:
        self.model = model
        self.steering: Steering | None = steering
        self.earlier = model.__dict__.get("generate")
        self.original: Any = model.generate
        model.__dict__["generate"] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Generate, and let the steering know of it."""
        if self.steering is None:
            return self.original(*args, **kwargs)
        configs = [kwargs, *(vars(c) for c in self._configs(args, kwargs))]
        for name in _NOT_THE_PROMPT:
            if any(config.get(name) is not None for config in configs):
                raise InvalidTap(
                    f"with {name}= the first forward pass doesn't hold just the prompt, from whose "
                    "end a negative position counts: give positions from the beginning"
                )
        with self.steering.generating():
            return self.original(*args, **kwargs)

    def _configs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
        for config in (*args, kwargs.get("generation_config"), self.model.generation_config):
            if hasattr(config, "prefill_chunk_size"):
                yield config

    def remove(self) -> None:
        """Put back what was there, or step aside where another is on top."""
        self.steering = None
        if self.model.__dict__.get("generate") is not self:
            return
        if self.earlier is None:
            del self.model.__dict__["generate"]
        else:
            self.model.__dict__["generate"] = self.earlier

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self.earlier is not None:
            return copy.deepcopy(self.earlier, memo)
        return MethodType(cast("Any", type(self.model)).generate, memo[id(self.model)])

    def __reduce__(self) -> Any:
        if self.steering is None:  # taken off, under what others have put on top
            return _itself, (self.original,)
        return Hook(self.steering).__reduce__()


def _itself(generate: Any) -> Any:
    return generate
