"""The error for an operation without a rule: what it is, where it is, and the line to write."""

from __future__ import annotations

import linecache
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lxt.errors import UnknownOperation
from lxt.rules.registry import operation_name

if TYPE_CHECKING:
    from lxt.propagation import Propagation

__all__ = ["unknown_node", "unknown_operation"]

_LIBRARIES = (str(Path(__file__).parent), str(Path(torch.__file__).parent))


def unknown_operation(
    propagation: Propagation, operation: Any, reason: str | None = None
) -> UnknownOperation:
    """The error for a torch function on the path of relevance that has no rule, or refuses a call."""
    name = operation_name(operation)
    composite = propagation.composite.name
    what = (
        f"the rule of {name} in {composite!r} does not cover this call: {reason}"
        if reason
        else f"{name} has no rule in composite {composite!r}"
    )
    return UnknownOperation(
        f"{what}\n{_place(propagation.model)}\n"
        f"  add one:  composite | {{{name}: lxt.rules.passthrough}}   if it is linear in its input,\n"
        f"            composite | {{{name}: lxt.rules.unit}}          if it is element-wise,\n"
        f"            composite | {{{name}: lxt.rules.constant}}      if no relevance is to flow\n"
        f'  or take its plain gradient: on_unknown="gradient"'
    )


def unknown_node(propagation: Propagation, node: str) -> UnknownOperation:
    """The error for a graph node that was made by something else than a torch function."""
    _, module = _innermost_module(propagation.model)
    target = type(module).__name__ if module is not None else "ItsModule"
    return UnknownOperation(
        f"{node.removesuffix('Backward')} (an autograd Function, scripted code or an extension) is "
        f"no torch function, so no rule of composite {propagation.composite.name!r} covers it\n"
        f"{_place(propagation.model)} or just before\n"
        f"  give a rule to the module that calls it:  composite | {{{target}: lxt.rules.unit}}\n"
        f"  (unit: element-wise; passthrough: linear; or a function of your own)\n"
        f'  or take its plain gradient: on_unknown="gradient"'
    )


def _place(model: nn.Module) -> str:
    name, module = _innermost_module(model)
    kind = f" ({type(module).__name__})" if module is not None else ""
    frame = _innermost_frame()
    file, line = frame.f_code.co_filename, frame.f_lineno
    code = linecache.getline(file, line).strip()
    return f"  in module {name or 'model'!r}{kind}\n  at {file}:{line}: {code}"


def _frames() -> list[FrameType]:
    frames, frame = [], sys._getframe(1)
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def _innermost_frame() -> FrameType:
    """The call as its author wrote it: the innermost frame outside torch and this library."""
    frames = _frames()
    outside = (f for f in frames if not f.f_code.co_filename.startswith(_LIBRARIES))
    return next(outside, frames[-1])


def _innermost_module(model: nn.Module) -> tuple[str, nn.Module | None]:
    names = {id(module): name for name, module in model.named_modules()}
    for frame in _frames():
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and id(module) in names:
            return names[id(module)], module
    return "", None
