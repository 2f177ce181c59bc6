"""Makes non-reentrant gradient checkpointing recompute under the same rules.

A checkpoint runs its function again in the backward pass, when no model's forward is running and
its rules are no longer in force. So its second run is wrapped to put them in force again. It works
for every use of `torch.utils.checkpoint.checkpoint(..., use_reentrant=False)`, wherever it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import CodeType
from typing import Any

import torch
from torch.utils import checkpoint as torch_checkpoint

__all__ = ["is_recomputing", "reenter_checkpoint"]

Enter = Callable[[], AbstractContextManager[Any]]

_top_hooks = torch._C._autograd._top_saved_tensors_default_hooks  # pyright: ignore[reportAttributeAccessIssue]


def _pack_hook(hooks: type) -> CodeType:
    return next(
        code
        for code in hooks.__init__.__code__.co_consts
        if isinstance(code, CodeType) and code.co_name == "pack_hook"
    )


# The hook under which a checkpoint's first run saves nothing; its closure holds the checkpoint's
# frame, whose `recompute_fn` is the second run. And the hook of the second run.
_PACK_HOOK = _pack_hook(torch_checkpoint._checkpoint_hook)
_SECOND_PACK_HOOK = _pack_hook(torch_checkpoint._recomputation_hook)


class _Recompute:
    """A checkpoint's second run, under the rules of its first."""

    def __init__(self, enter: Enter, recompute: Callable[..., None], whose: Any) -> None:
        self.enter = enter
        self.recompute = recompute
        self.whose = whose

    def __call__(self, *args: Any) -> None:
        with self.enter():
            self.recompute(*args)


def reenter_checkpoint(enter: Enter, whose: Any = None) -> None:
    """If the running operation is within a checkpoint's first run, prepare its second one.

    Args:
        enter: makes the context that puts in force again what is in force now; the first that is
            given for a checkpoint is taken.
        whose: those who are not the rules of a composite come beside them, once each.
    """
    hooks = _top_hooks(False)
    if hooks is None or getattr(hooks[0], "__code__", None) is not _PACK_HOOK:
        return
    frame = hooks[0].__closure__[_PACK_HOOK.co_freevars.index("frame")].cell_contents
    outer, run = None, frame.recompute_fn
    while isinstance(run, _Recompute):
        if run.whose is whose:
            return
        outer, run = run, run.recompute
    if outer is not None and whose is None:  # rules come last: they look at what there is
        outer.recompute = _Recompute(enter, run, whose)
    else:
        frame.recompute_fn = _Recompute(enter, frame.recompute_fn, whose)


def is_recomputing() -> bool:
    """Whether the running operation is within a checkpoint's second run."""
    hooks = _top_hooks(False)
    if hooks is None:
        return False
    return getattr(inspect.unwrap(hooks[0]), "__code__", None) is _SECOND_PACK_HOOK
