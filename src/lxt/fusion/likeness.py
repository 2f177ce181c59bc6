"""What two modules must have in common for the proof of one to hold for the other.

A proof runs a module's forward once. It holds for another time and another module if all that the
forward reads is either the same or stands for any value, as parameters do. So what the code reads
is looked up, and a module whose forward reads anything that may change unseen, or that writes
anything, is not put to the proof.
"""

from __future__ import annotations

import functools
from types import BuiltinFunctionType, FunctionType, MethodType, WrapperDescriptorType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all
from torch.utils._device import DeviceContext

from lxt.engine.mode import RuleMode
from lxt.fusion.reading import are_settings, reading_of

__all__ = ["likeness", "replica", "surroundings"]

# What every module has; whether it is in training matters.
_STANDARD = frozenset(nn.Module().__dict__) - {"training"} | {"forward"}

_GLOBAL_HOOKS = (
    hooks_of_all._global_forward_hooks,
    hooks_of_all._global_forward_pre_hooks,
    hooks_of_all._global_backward_hooks,
    hooks_of_all._global_backward_pre_hooks,
)


def surroundings(device: torch.device) -> tuple[type, ...] | None:
    """What changes the operations of this thread, or None if nothing tells how it does so."""
    if any(_GLOBAL_HOOKS) or torch.is_autocast_enabled(device.type):
        return None
    depth = torch._C._len_torch_function_stack()
    modes = (type(torch._C._get_function_stack_at(i)) for i in range(depth))
    others = tuple(mode for mode in modes if mode not in (RuleMode, DeviceContext))
    ours = all(mode.__module__.partition(".")[0] == "lxt" for mode in others)
    return others if ours else None


def likeness(module: nn.Module) -> tuple[Any, ...] | None:
    """A key that modules share for which one proof holds, or None where none would."""
    found: list[Any] = []
    if not _describe(module, found):
        return None
    for name, child in module._modules.items():
        if child is not None:
            found.append(name)
            if not _describe(child, found):
                return None
    return tuple(found)


def _describe(module: nn.Module, found: list[Any]) -> bool:
    """Add what a module is; whether that can be told."""
    reading = reading_of(type(module))
    if reading is None or module._buffers:
        return False
    found += type(module), reading.key
    for name, value in module.__dict__.items():
        if name in _STANDARD:
            continue
        if are_settings(value):
            found += name, value
        elif name in reading.names:
            fixed = _fixed(value, module)
            if fixed is None:
                return False
            found += name, fixed
    for name, p in module._parameters.items():
        found += (name,) if p is None else (name, p.shape, p.dtype, p.device.type)
    return True


def _fixed(value: Any, module: nn.Module) -> Any:
    """A function that is what it is for good, or None for anything else."""
    if isinstance(value, functools.partial):
        function, given = _fixed(value.func, module), (*value.args, *value.keywords.values())
        if function is None or not are_settings(*given):
            return None
        return function, tuple(value.keywords), given
    if isinstance(value, MethodType) and value.__self__ is module:
        value = value.__func__
    if isinstance(value, FunctionType):
        reading = reading_of(value)
        return None if reading is None else (value, reading.key)
    return value if isinstance(value, BuiltinFunctionType | WrapperDescriptorType) else None


def replica(module: nn.Module, seed: int = 0) -> nn.Module:
    """A module like this one with parameters of its own, in which no two are alike.

    By the real ones a proof could mistake one order for another, of parameters that are tied, or
    all 0, or all 1. And what its forward does to it, it does to nobody's module.
    """
    new = object.__new__(type(module))
    state = dict(module.__dict__)
    state.pop("forward", None)
    for name, value in state.items():
        if name in _STANDARD and isinstance(value, dict):
            state[name] = {}
        elif isinstance(value, MethodType) and value.__self__ is module:
            state[name] = MethodType(value.__func__, new)
    state["_parameters"] = {
        name: None if p is None else _values_like(p, seed + i)
        for i, (name, p) in enumerate(module._parameters.items())
    }
    state["_modules"] = {
        name: None if child is None else replica(child, seed + 10 * i)
        for i, (name, child) in enumerate(module._modules.items(), start=1)
    }
    new.__dict__.update(state)
    return new


def _values_like(parameter: Tensor, seed: int) -> nn.Parameter:
    generator = torch.Generator(parameter.device).manual_seed(seed)
    values = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
    if values.dim() < 2:
        values.uniform_(0.25, 1.5, generator=generator)
    else:
        reach = (3 / values.shape[-1]) ** 0.5
        values.uniform_(-reach, reach, generator=generator)
    return nn.Parameter(values, requires_grad=False)
