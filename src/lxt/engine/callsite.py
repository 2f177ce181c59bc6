"""Where in a model's code the running operation was called."""

from __future__ import annotations

import linecache
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import nn

__all__ = [
    "Callsite",
    "caller",
    "callsite",
    "describe_callsite",
    "enclosing_module",
    "innermost_module",
    "module_names",
    "warn_caller",
]

_LIBRARIES = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parent))


def _frames() -> Iterator[FrameType]:
    frame = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _running() -> Iterator[nn.Module]:
    """The modules in whose methods we are, innermost first."""
    for frame in _frames():
        # Looking at a frame's locals keeps them alive for as long as it runs: at methods' only.
        if frame.f_code.co_varnames[:1] == ("self",):
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module):
                yield module


def caller() -> FrameType:
    """The call as its author wrote it: the innermost frame outside torch and this library."""
    frame = sys._getframe(1)
    for frame in _frames():
        if not frame.f_code.co_filename.startswith(_LIBRARIES):
            break
    return frame


def warn_caller(message: str, category: type[Warning]) -> None:
    """Warn at the line that its author wrote, however deep in this library we are."""
    frame = caller()
    warnings.warn_explicit(message, category, frame.f_code.co_filename, frame.f_lineno)


def module_names(model: nn.Module) -> dict[int, str]:
    """The path of each module of `model`, by its id."""
    return {id(module): name for name, module in model.named_modules()}


def innermost_module(
    model: nn.Module, names: dict[int, str] | None = None
) -> tuple[str, nn.Module]:
    """The innermost module of `model` whose forward is running, with its path in the model.

    `names` are its `module_names`, if they are known.
    """
    names = module_names(model) if names is None else names
    for module in _running():
        if id(module) in names:
            return names[id(module)], module
    return "", model


def enclosing_module(model: nn.Module) -> nn.Module | None:
    """The innermost module whose forward is running and that `model` is a part of, if any."""
    for module in _running():
        if module is not model and any(part is model for part in module.modules()):
            return module
    return None


@dataclass(frozen=True)
class Callsite:
    """Where an operation was called: the path and class of the module, file, line and its text."""

    module: str
    module_class: str
    file: str
    line: int

    @property
    def text(self) -> str:
        """The line of code."""
        return linecache.getline(self.file, self.line).strip()


def callsite(model: nn.Module, names: dict[int, str] | None = None) -> Callsite:
    """Where the running operation of `model` was called; `names` are its `module_names`."""
    name, module = innermost_module(model, names)
    frame = caller()
    return Callsite(name, type(module).__name__, frame.f_code.co_filename, frame.f_lineno)


def describe_callsite(model: nn.Module) -> str:
    """Two lines for a message: the module, and file, line and text of the call."""
    site = callsite(model)
    return (
        f"  in module {site.module or 'model'!r} ({site.module_class})\n"
        f"  at {site.file}:{site.line}: {site.text}"
    )
