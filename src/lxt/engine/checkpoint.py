"""Makes non-reentrant gradient checkpointing recompute under the same rules.

A checkpoint runs its function again in the backward pass, when no model's forward is running and
its rules are no longer in force. So its second run is wrapped to put them in force again. It works
for every use of `torch.utils.checkpoint.checkpoint(..., use_reentrant=False)`, wherever it is.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils import checkpoint as torch_checkpoint

__all__ = ["reenter_checkpoint"]

Enter = Callable[[], AbstractContextManager[Any]]

_top_hooks = torch._C._autograd._top_saved_tensors_default_hooks  # pyright: ignore[reportAttributeAccessIssue]

# The hook under which a checkpoint's first run saves nothing; its closure holds the checkpoint's
# frame, whose `recompute_fn` is the second run.
_PACK_HOOK = next(
    code
    for code in torch_checkpoint._checkpoint_hook.__init__.__code__.co_consts
    if "frame" in getattr(code, "co_freevars", ()) and code.co_name == "pack_hook"
)


class _Recompute:
    """A checkpoint's second run, under the rules of its first."""

    def __init__(self, enter: Enter, recompute: Callable[..., None]) -> None:
        self.enter = enter
        self.recompute = recompute

    def __call__(self, *args: Any) -> None:
        with self.enter():
            self.recompute(*args)


def reenter_checkpoint(enter: Enter) -> None:
    """If the running operation is within a checkpoint's first run, prepare its second one.

    Args:
        enter: makes the context that puts the rules in force again.
    """
    hooks = _top_hooks(False)
    if hooks is None or getattr(hooks[0], "__code__", None) is not _PACK_HOOK:
        return
    frame = hooks[0].__closure__[_PACK_HOOK.co_freevars.index("frame")].cell_contents
    if not isinstance(frame.recompute_fn, _Recompute):
        frame.recompute_fn = _Recompute(enter, frame.recompute_fn)
