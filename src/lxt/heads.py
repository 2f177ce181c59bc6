"""The head of a language model: its output embeddings, from a hidden state to logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["Head", "output_embeddings"]


def output_embeddings(model: nn.Module) -> nn.Module | None:
    """The module that makes logits [batch, tokens, vocabulary], if the model names one."""
    try:
        head = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return head if isinstance(head, nn.Module) else None


class Head:
    """While entered, what goes into the head of a model is seen, and picked from where asked.

    Attributes:
        input: what the head was called with [batch, tokens, channels], picked; None before, for a
            model without a head, and for one that calls it more than once.
        picked: whether positions were picked.

    """

    def __init__(self, model: nn.Module, keep: Tensor | None, length: int) -> None:
        """`keep`: the positions to pick from those of an input of `length`; None picks none."""
        self._module = output_embeddings(model)
        self._keep = keep
        self._length = length
        self._handles: list[Any] = []
        self._calls = 0
        self._output: Any = None
        self.input: Tensor | None = None
        self.picked = False

    def __enter__(self) -> Head:
        if self._module is not None:
            self._handles = [
                self._module.register_forward_pre_hook(self._before),
                self._module.register_forward_hook(self._after),
            ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def put_out(self, logits: Any) -> bool:
        """Whether `logits` are the head's output as it is: then a position's are its alone."""
        output = self._output
        return (
            isinstance(logits, Tensor)
            and isinstance(output, Tensor)
            and self._calls == 1
            and logits.shape == output.shape
            and logits.stride() == output.stride()
            and logits.data_ptr() == output.data_ptr()
        )

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        self._calls += 1
        self.input = None
        if self._calls > 1 or not args or not isinstance(args[0], Tensor) or args[0].dim() != 3:
            return None
        self.input = args[0]
        if self._keep is None or args[0].shape[1] != self._length:
            return None
        self.picked = True
        self.input = args[0][:, self._keep.to(args[0].device)]
        return (self.input, *args[1:])

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._output = output
