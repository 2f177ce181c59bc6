"""Makes non-reentrant gradient checkpointing recompute under the same rules.

A checkpoint runs its function again in the backward pass, when no model's forward is running and
its rules are no longer in force. So its second run is wrapped to put them in force again. It works
for every use of `torch.utils.checkpoint.checkpoint(..., use_reentrant=False)`, wherever it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils import checkpoint as torch_checkpoint

if TYPE_CHECKING:
    from lxt.propagation import Propagation

__all__ = ["reenter_checkpoint"]

_top_hooks = torch._C._autograd._top_saved_tensors_default_hooks  # pyright: ignore[reportAttributeAccessIssue]

# The hook under which a checkpoint's first run saves nothing; its closure holds the checkpoint's
# frame, whose `recompute_fn` is the second run.
_PACK_HOOK = f"{torch_checkpoint._checkpoint_hook.__qualname__}.__init__.<locals>.pack_hook"


class _Recompute:
    """A checkpoint's second run, under the rules of its first."""

    def __init__(self, propagation: Propagation, recompute: Any) -> None:
        self.propagation = propagation
        self.recompute = recompute

    def __call__(self, *args: Any) -> None:
        if self.propagation.is_active():
            self.recompute(*args)
        else:
            with self.propagation.active():
                self.recompute(*args)


def reenter_checkpoint(propagation: Propagation) -> None:
    """If the running operation is within a checkpoint's first run, prepare its second one."""
    hooks = _top_hooks(False)
    if hooks is None or getattr(hooks[0], "__qualname__", None) != _PACK_HOOK:
        return
    pack = hooks[0]
    frame = pack.__closure__[pack.__code__.co_freevars.index("frame")].cell_contents
    if not isinstance(frame.recompute_fn, _Recompute):
        frame.recompute_fn = _Recompute(propagation, frame.recompute_fn)
