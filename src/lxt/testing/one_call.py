"""A call of one operation as a model, to be run by itself or under its rule."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lxt.engine.opaque import tensors_in
from lxt.errors import InvalidInput
from lxt.passes import Change, Pass
from lxt.rules.registry import Sample

__all__ = ["Arrange", "OneCall", "OneCallCase", "floating", "require_sample", "seed_for"]

Arrange = Callable[[Tensor], Tensor]
"""Lays an operand out in another way in memory."""


@dataclass(frozen=True)
class _Slot:
    """Where the tensor of this number goes; whether it carries relevance."""

    number: int
    carries: bool


class OneCall(nn.Module):
    """A model that calls one operation with the arguments of a sample, in one dtype.

    Attributes:
        operands: the tensors of the sample that carry relevance, as leaves.
        constants: its other tensors.
        given: the copies of both that the operation was last called with.
        arrange: lays the copies of operands out in another way.
    """

    def __init__(self, operation: Callable[..., Any], sample: Sample, dtype: torch.dtype) -> None:
        super().__init__()
        self.operands: list[Tensor] = []
        self.constants: list[Tensor] = []
        self.given: list[Tensor] = []
        self.arrange: Arrange | None = None
        self._before: list[Tensor] = []
        self._args, self._kwargs = _mapped(
            (tuple(sample.args), dict(sample.kwargs)), lambda value: self._placed(value, dtype)
        )
        if isinstance(operation, type):  # called as its forward is, with the module first
            self.module, *rest = self._args
            self._args = tuple(rest)
        self.operation = None if isinstance(operation, type) else operation

    def _placed(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, nn.Module):
            return copy.deepcopy(value).to(dtype)
        if not isinstance(value, Tensor):
            return value
        tensor = value.detach().clone()
        if tensor.is_complex():
            tensor = tensor.to(dtype.to_complex())
        elif tensor.is_floating_point():
            tensor = tensor.to(dtype)
        if not value.requires_grad:
            self.constants.append(tensor)
            return _Slot(len(self.constants) - 1, carries=False)
        self.operands.append(tensor.requires_grad_())
        return _Slot(len(self.operands) - 1, carries=True)

    def forward(self, *operands: Tensor) -> Any:
        """The operation's result on copies of its operands, computed ones as in a model."""
        computed = [x.clone() for x in operands]
        if self.arrange is not None:
            computed = [self.arrange(x) for x in computed]
        constants = [x.clone() for x in self.constants]
        self.given = [*computed, *constants]
        self._before = [x.detach().clone() for x in self.given]

        def filled(value: Any) -> Any:
            if not isinstance(value, _Slot):
                return value
            return (computed if value.carries else constants)[value.number]

        args, kwargs = _mapped((self._args, self._kwargs), filled)
        if self.operation is None:
            result = self.module(*args, **kwargs)
        else:
            result = self.operation(*args, **kwargs)
        return args[0] if result is None else result

    def written(self) -> list[bool]:
        """Which of the `given` tensors have other values than at first."""
        return [not _equal(*pair) for pair in zip(self.given, self._before, strict=True)]


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.detach().nan_to_num(), b.nan_to_num())


@dataclass
class OneCallCase:
    """`OneCall` as a case for a ledger, from gradients that are drawn."""

    model: nn.Module

    def on(self, model: nn.Module) -> OneCallCase:
        """The same case of another instance."""
        return OneCallCase(model)

    def forward(self, change: Change | None = None) -> Pass:
        """Run the call once."""
        assert isinstance(self.model, OneCall)
        operands = self.model.operands
        if change is not None:
            operands = [change(x.detach()).requires_grad_() for x in operands]
        results = [_real(y).flatten() for y in floating(self.model(*operands))]
        output = torch.cat(results) if len(results) > 1 else results[0]
        leaves = {str(number): x for number, x in enumerate(operands)}
        return Pass(output, seed_for(output), leaves)


def seed_for(output: Tensor) -> Tensor:
    """A gradient for an output, drawn once and for all: multiples of 1/64 of both signs."""
    if output.is_complex():
        return torch.view_as_complex(seed_for(torch.view_as_real(output.detach().resolve_conj())))
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(-96, 97, output.shape, generator=generator)
    return (numbers / 64).to(output.device, output.dtype)


def floating(result: Any) -> list[Tensor]:
    """The floating-point tensors in a result, complex ones too."""
    return [y for y in tensors_in(result) if y.is_floating_point() or y.is_complex()]


def _real(y: Tensor) -> Tensor:
    return torch.view_as_real(y.resolve_conj()) if y.is_complex() else y


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """`value` with `function` applied to what its tuples, lists and mappings hold."""
    if type(value) in (tuple, list):
        return type(value)(_mapped(item, function) for item in value)
    if isinstance(value, Mapping):
        return {name: _mapped(item, function) for name, item in value.items()}
    return function(value)


def require_sample(sample: Any, target: Any, name: str) -> None:
    """Refuse what is no call of an operation."""
    if not isinstance(sample, Sample):
        raise InvalidInput(
            f"{_type_of(sample)} is no sample call of {name}: give lxt.sample(x), x a tensor that "
            "requires grad"
        )
    if not sample.args and not sample.kwargs:
        raise InvalidInput(
            f"a sample call of {name} has no arguments: give lxt.sample(x), x a tensor that "
            "requires grad"
        )
    if isinstance(target, type) and not isinstance(next(iter(sample.args), None), target):
        raise InvalidInput(
            f"{name} is a class of modules, and a sample call of it begins with an instance: give "
            f"lxt.sample({name}(…), x)"
        )
    for tensor in tensors_in([*sample.args, *sample.kwargs.values()]):
        if tensor.requires_grad and not tensor.numel():
            raise InvalidInput(
                f"a sample call of {name} has an operand of the shape {list(tensor.shape)}, which "
                "has no elements: there is nothing to check"
            )


def _type_of(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
