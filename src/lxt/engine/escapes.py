"""Notices values that leave torch's sight: memory, numbers, operands that compute by themselves.

A kernel that gets a pointer, numpy, a gate made of Python floats: what they compute carries no
graph, so that relevance would end there in silence. A subclass of tensors with a
`__torch_function__` of its own, or a dispatch mode, decides by itself what an operation computes,
after its rule was chosen. Each is noticed where it begins.

What a model's author detaches is a constant, by their own word, and so are numbers read from it.
But torch gives numpy no memory of a tensor that requires grad, so there `.detach()` says nothing.
Nor does it where a tensor is written to: one that shares memory with it, detached or under
`torch.no_grad()`, changes what relevance flows through, and autograd's graph doesn't know.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import (  # torch's own way to ask
    _get_current_dispatch_mode_stack as dispatch_modes,
)
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from lxt.engine.callsite import describe_callsite
from lxt.engine.opaque import tensors_in
from lxt.entries import target_name
from lxt.errors import UnknownOperation

__all__ = [
    "DESCRIBES",
    "FUNCTION_APPLY",
    "STOPS",
    "Escapes",
    "is_watched",
    "unseen_values",
    "written_by",
]


def _existing(*names: str) -> Iterator[Any]:
    for name in names:
        if hasattr(Tensor, name):
            yield getattr(Tensor, name)


_MEMORY = frozenset(
    _existing(
        *("numpy", "__array__", "__dlpack__", "data_ptr", "const_data_ptr"),
        *("untyped_storage", "storage", "_typed_storage", "apply_", "map_"),
    )
)
_NUMBERS = frozenset(_existing("item", "tolist", "__float__", "__complex__"))
_COPIES = frozenset((torch.tensor, Tensor.new_tensor))
_WAYS_OUT: dict[Any, str] = {
    **dict.fromkeys(
        _MEMORY, "it hands out the memory of a tensor that depends on the explained input"
    ),
    **dict.fromkeys(
        _NUMBERS, "it makes plain numbers of a tensor that depends on the explained input"
    ),
    **dict.fromkeys(
        _COPIES,
        "it copies values that depend on the explained input, and drops where they came from",
    ),
    torch.autograd.grad: "it differentiates what the rules are in force for",
}
STOPS = frozenset((Tensor.detach, torch.detach, Tensor.data.__get__))  # pyright: ignore[reportAttributeAccessIssue]

_DESCRIPTIONS = (
    "shape",
    "dtype",
    "device",
    "ndim",
    "requires_grad",
    "is_leaf",
    "layout",
    "is_cuda",
)
DESCRIBES = frozenset(
    (
        *(getattr(Tensor, name).__get__ for name in _DESCRIPTIONS),
        *_existing("size", "dim", "ndimension", "numel", "nelement", "stride", "__len__"),
        *_existing("is_floating_point", "is_complex", "is_contiguous", "element_size"),
        *(torch.is_floating_point, torch.is_complex, torch.numel),
    )
)
"""What is asked of a tensor without its values."""

_SETS_DATA = Tensor.data.__set__  # pyright: ignore[reportAttributeAccessIssue]
# These end as in-place operations do, and write no value.
_WRITES_NOTHING = frozenset(("requires_grad_", "detach_", "share_memory_", "rename_"))
_UNSEEN_WRITE = (
    "it writes to a tensor that depends on the explained input, where no graph shows that: "
    "write to a copy, .detach().clone(), or compute the value outside torch.no_grad()"
)

# Parts of torch whose subclasses and modes are what they seem; not so torch.nested, torch.masked.
_TRUSTED = (
    *("torch.nn.", "torch.distributed.", "torch._subclasses.", "torch.utils."),
    *("torchvision.tv_tensors.",),
)

# Detached tensors, and what was computed of them, for as long as they live.
_stopped = WeakTensorKeyDictionary()

# Detached tensors that are the very memory of one that carries relevance, with that one.
_shared = WeakTensorKeyDictionary()


class Escapes:
    """Watches one forward pass for values that go where no rule sees them."""

    def __init__(self) -> None:
        self._modes = len(dispatch_modes())

    def before(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
        """Why a call that is about to run hands values out of sight, if it does."""
        if _shared.data and any(map(_is_shared, written_by(func, args, kwargs))):
            return _UNSEEN_WRITE
        if func == _SETS_DATA and args[0].requires_grad:
            return _UNSEEN_WRITE
        if func not in _WAYS_OUT:
            return None
        if func in _MEMORY:
            leaves = args[0].requires_grad or args[0] in _stopped
        elif func in _NUMBERS:
            leaves = args[0].requires_grad
        elif func is Tensor.new_tensor:  # of its own tensor it takes the dtype and device
            leaves = any(x.requires_grad for x in tensors_in((*args[1:], *kwargs.values())))
        else:
            leaves = any(x.requires_grad for x in tensors_in((*args, *kwargs.values())))
        return _WAYS_OUT[func] if leaves and not _in_a_hook() else None

    def before_without_graph(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> str | None:
        """As `before`, where gradients are off: what is written there has no graph at all."""
        written = any(x.requires_grad or _is_shared(x) for x in written_by(func, args, kwargs))
        return _UNSEEN_WRITE if written and not _in_a_function() else None

    def after_without_graph(self, func: Any, args: tuple[Any, ...], result: Any) -> None:
        """Remember what shares its memory, where gradients are off."""
        if func in STOPS:
            _remember_shared(args[0], result)

    def after(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> str | None:
        """Why the result of a call is not what its rule stands for, if it isn't."""
        if func in STOPS:
            if any(x.requires_grad or x in _stopped for x in (*args, *kwargs.values())):
                _stopped[result] = None
            if args:
                _remember_shared(args[0], result)
            return None
        if not _stopped.data and not self._is_foreign_here(args, kwargs):
            return None
        results = list(tensors_in(result))
        if not any(x.requires_grad for x in results):
            if _stopped.data and any(x in _stopped for x in tensors_in((*args, *kwargs.values()))):
                _stopped.update((x, None) for x in results if x.is_floating_point())
            return None
        for operand in (*args, *kwargs.values()):
            for x in operand if isinstance(operand, tuple | list) else (operand,):
                if _is_foreign(x):
                    cls = type(x)
                    return (
                        f"its operand is a {cls.__module__}.{cls.__qualname__}, which decides by "
                        "itself what an operation computes, unseen"
                    )
        for mode in dispatch_modes()[self._modes :]:
            if not _is_trusted(type(mode)):
                return f"the dispatch mode {type(mode).__qualname__} decides what it computes"
        return None

    def must_look(self, args: tuple[Any, ...]) -> bool:
        """Whether `after` may have something to say of a call that isn't watched."""
        return bool(_stopped.data) or self._is_foreign_here(args, _NOTHING)

    def _is_foreign_here(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether something may compute by itself: a first, cheap look."""
        if torch._C._len_torch_dispatch_stack() > self._modes:
            return True
        for operand in (*args, *kwargs.values()) if kwargs else args:
            cls = type(operand)
            if cls in _PLAIN:
                continue
            if cls is tuple or cls is list:
                if any(_is_foreign(x) for x in operand):
                    return True
            elif hasattr(cls, "__torch_function__") and _is_foreign(operand):
                return True
        return False


_NOTHING: Mapping[str, Any] = {}


@functools.cache
def is_watched(func: Any) -> bool:
    """Whether a function may write to its operands, hand their values out of sight, or stop."""
    return func in _WAYS_OUT or func in STOPS or _is_in_place(func)


@functools.cache
def _is_in_place(func: Any) -> bool:
    """Whether a function writes to its first operand, by its name."""
    name = getattr(func, "__name__", "")
    if func == _SETS_DATA or name == "__setitem__":
        return True
    return name.endswith("_") and not name.endswith("__") and name not in _WRITES_NOTHING


def written_by(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """The tensors that a call writes to."""
    if _is_in_place(func) or kwargs.get("inplace"):
        yield from tensors_in(args[:1] or tuple(kwargs.values())[:1])
    if "out" in kwargs:
        yield from tensors_in((kwargs["out"],))


def _owner(x: Tensor) -> Tensor:
    """The tensor that `x` is a view of, or `x` itself."""
    return x if x._base is None else x._base


def _remember_shared(x: Tensor, result: Tensor) -> None:
    """Remember that `result` is `x`, detached, if `x` carries relevance."""
    if x.requires_grad:
        _shared[result] = TensorWeakRef(_owner(x))
    elif _shared.data and x in _shared:
        _shared[result] = _shared[x]


def _is_shared(x: Tensor) -> bool:
    """Whether `x` is the memory of a tensor that carries relevance and is still there."""
    owner = _owner(x)
    return owner in _shared and _shared[owner]() is not None


_PLAIN = frozenset((Tensor, nn.Parameter, int, float, bool, str, slice, type(None), torch.dtype))
_plain_function = Tensor.__torch_function__.__func__  # pyright: ignore[reportFunctionMemberAccess]
_disabled = torch._C._disabled_torch_function_impl


def _is_foreign(x: Any) -> bool:
    """Whether an operand decides by itself what an operation computes.

    A weight that is quantised does, and stands for the tensor that it dequantises to.
    """
    cls = type(x)
    if cls in _PLAIN or not hasattr(cls, "__torch_function__"):
        return False
    function = cls.__torch_function__
    if (
        getattr(function, "__func__", function) in (_plain_function, _disabled)
        and getattr(cls, "__torch_dispatch__", None) in _PLAIN_DISPATCH
    ):
        return False
    if not isinstance(x, Tensor):
        return True
    if not x.requires_grad and cls.dequantize is not Tensor.dequantize:
        return False
    return not _is_trusted(cls)


_PLAIN_DISPATCH = (None, torch._C._disabled_torch_dispatch_impl)  # pyright: ignore[reportAttributeAccessIssue]


def _is_trusted(cls: type) -> bool:
    return f"{cls.__module__}.".startswith(_TRUSTED)


def _in_a_hook() -> bool:
    """Whether a module's hook is running, which looks at values on somebody's behalf."""
    callee = frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename == _MODULE and "hook" in frame.f_code.co_varnames:
            return _code(frame.f_locals.get("hook")) is callee.f_code
        callee, frame = frame, frame.f_back
    return False


def _in_a_function() -> bool:
    """Whether an autograd Function's forward is running, which is noticed by its node."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_code is not FUNCTION_APPLY:
        frame = frame.f_back
    return frame is not None


FUNCTION_APPLY = torch.autograd.Function.apply.__func__.__code__
_MODULE = nn.Module._call_impl.__code__.co_filename


def _code(hook: Any) -> Any:
    """The code that runs when a hook is called."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    function = getattr(hook, "__func__", hook)
    if not hasattr(function, "__code__"):
        function = type(function).__call__
    return getattr(function, "__code__", None)


def unseen_values(model: nn.Module, operation: Any, reason: str) -> UnknownOperation:
    """The error for values that go where no rule sees what becomes of them."""
    return UnknownOperation(
        f"{target_name(operation)} takes values out of sight: {reason}\n"
        f"{describe_callsite(model)}\n"
        "  if that is to be a constant, say so with .detach() and stay in torch, or look at it in\n"
        "  torch.no_grad(); otherwise put the code in a module of its own, and give that a rule:\n"
        "            composite | {MyModule: lxt.rules.unit}          if it is element-wise,\n"
        "            composite | {MyModule: lxt.rules.constant}      if nothing is to flow\n"
        '  or take its plain gradient: on_unknown="gradient"'
    )
