"""Nodes of autograd's graph that hand on their operands as they are."""

from __future__ import annotations

from typing import Any

__all__ = ["hands_on"]

# Module hooks', non-reentrant checkpointing's, and that of Zennit's hooks, whose rule is the user's
# choice; by the name of the node, or of the autograd Function.
_NODES = frozenset({"BackwardHookFunctionBackward", "_NoopSaveInputsBackward"})
_FUNCTIONS = frozenset({"zennit.core.Identity"})


def hands_on(node: Any) -> bool:
    """Whether each output of a node is an operand as it is: the one of the same number."""
    if node.name() in _NODES:
        return True
    function = getattr(node, "_forward_cls", None)
    return function is not None and f"{function.__module__}.{function.__qualname__}" in _FUNCTIONS
