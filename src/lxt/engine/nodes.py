"""Nodes of autograd's graph whose meaning is known, though no torch function made them."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

__all__ = ["TRANSPARENT", "Formulation", "formulation_of", "hands_on", "kind_of"]

Formulation = Literal["gradient", "relevance"]
"""What backward passes take and return."""

# Nodes that hand on a value, or a part of it: looking through them finds where it was made.
_TRANSPARENT_NAMES = """
    View UnsafeView ReshapeAlias Transpose T Permute Unsqueeze Squeeze Expand ToCopy Clone
    Slice Select Index Split SplitWithSizes Unbind Alias AsStrided IndexSelect Repeat
    MaskedFill Cat
"""
TRANSPARENT = frozenset(
    f"{name}Backward{number}" for name in _TRANSPARENT_NAMES.split() for number in range(3)
) | {"torch::autograd::CopyBackwards"}

# Module hooks' and non-reentrant checkpointing's.
_NODES = frozenset({"BackwardHookFunctionBackward", "_NoopSaveInputsBackward"})

# The Function by which Zennit's hooks take hold.
_ZENNIT = "zennit.core.Identity"


def _function(node: Any) -> str:
    """The qualified name of the autograd Function that made a node; "" if none did."""
    function = getattr(node, "_forward_cls", None)
    return f"{function.__module__}.{function.__qualname__}" if function else ""


def hands_on(node: Any) -> bool:
    """Whether each output of a node is an operand as it is: the one of the same number."""
    if getattr(getattr(node, "_forward_cls", None), "hands_on", False):
        return True
    return node.name() in _NODES or _function(node) == _ZENNIT


def formulation_of(node: Any) -> Formulation | None:
    """What the backward pass of a node deals in, if it is an LRP rule by itself."""
    return "relevance" if _function(node).startswith("lxt.explicit.") else None


def kind_of(node: Any) -> str:
    """The name of a node, or of the operation that an explicit rule stands for."""
    inner = getattr(node, "output", None)
    if isinstance(inner, Tensor) and inner.grad_fn is not None:
        return _made_by(inner.grad_fn).name()
    if getattr(getattr(node, "_forward_cls", None), "is_product", False):
        return "MulBackward0"
    return node.name()


def _made_by(node: Any) -> Any:
    """The node that made the value which `node` may only reshape; `node` if nothing did.

    A linear layer of three dimensions, for one, reshapes the product of two matrices.
    """
    maker = node
    while maker.name() in TRANSPARENT:
        maker = maker.next_functions[0][0]
        if maker is None:
            return node
    return node if maker.name() == "torch::autograd::AccumulateGrad" else maker
