"""Hooks of the registered model itself run after its forward, when no rule is in force any more.

Those of its parts run within, like any of its code, under the rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from lxt.engine.nodes import hands_on
from lxt.engine.opaque import tensors_in
from lxt.errors import UnknownOperation

__all__ = ["OutputGuard", "changed_output"]


class OutputGuard:
    """A hook after all others of a model, for one call, that looks whether they changed its output.

    `tell` is called with the model if they did.
    """

    def __init__(self, model: nn.Module, output: Any, tell: Callable[[], None]) -> None:
        self._nodes = [tensor.grad_fn for tensor in tensors_in(output)]
        self._tell = tell
        self._handle = model.register_forward_hook(self)

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Compare what all other hooks made of the output with what the forward returned."""
        self.remove()
        for tensor in tensors_in(output):
            node, number = tensor.grad_fn, tensor.output_nr
            while node is not None and hands_on(node):
                node, number = node.next_functions[number]
            if node is not None and not any(node is known for known in self._nodes):
                self._tell()
                return

    def remove(self) -> None:
        """Take it off, if it was never called because another hook raised."""
        self._handle.remove()


def changed_output(model: nn.Module, composite: str) -> UnknownOperation:
    """The error for a hook that computes something of the output."""
    return UnknownOperation(
        f"a forward hook of {type(model).__name__} itself changes its output after its forward, "
        f"when no rule of composite {composite!r} is in force\n"
        "  put the hook on a part of the model, or explain a module that calls both\n"
        '  or take its plain gradient: on_unknown="gradient"'
    )
