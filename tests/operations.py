"""Calls of operations, with operands drawn for a sample, plain or as a model under a composite."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lxt.composite import Composite
from lxt.rules.registry import REGISTRY, Entry, Sample, TensorSpec, operation_name

# Multiples of 1/64 below 3 in size, without 0: exact in bfloat16 too, and all different.
_RANDOM = torch.Generator().manual_seed(0)
GRID = torch.tensor([n for n in range(-191, 192) if n], dtype=torch.float64)[
    torch.randperm(382, generator=_RANDOM)
].div(64)
POSITIVE_GRID = (torch.randperm(63, generator=_RANDOM) + 1).double() / 64


@dataclass(frozen=True)
class Slot:
    """Where the tensor of this number goes in the arguments of a call."""

    index: int


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """`value` with `function` applied to what its tuples, lists and dictionaries hold."""
    if isinstance(value, tuple | list):
        return type(value)(mapped(item, function) for item in value)
    if isinstance(value, dict):
        return {name: mapped(item, function) for name, item in value.items()}
    return function(value)


def floating(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in a result."""
    if isinstance(value, Tensor):
        if value.is_complex():
            yield as_real(value)
        elif value.is_floating_point():
            yield value
    elif not isinstance(value, int | float | str | None):
        for item in value:
            yield from floating(item)


def is_real(x: Tensor) -> bool:
    """Whether a tensor holds numbers that relevance can flow to, real or complex."""
    return x.is_floating_point() or x.is_complex()


def in_precision(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` in `dtype`, or in the complex numbers of that precision."""
    return x.to(dtype.to_complex() if x.is_complex() else dtype)


def as_real(x: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def base_name(operation: Any) -> str:
    """What all spellings of an operation are called: `relu` for torch.nn.functional.relu_."""
    name = operation_name(operation).removesuffix(".__get__").rsplit(".", 1)[-1]
    return name if name.endswith("__") else name.rstrip("_")


def is_in_place(operation: Any) -> bool:
    """Whether the operation writes to its first operand by itself."""
    name = operation_name(operation)
    return name.endswith(("__setitem__", "__ipow__")) or (
        name.endswith("_") and not name.endswith("__")
    )


@dataclass(frozen=True)
class Call:
    """One call of an operation: where its tensors go, their values, and which carry relevance."""

    operation: Callable[..., Any]
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    tensors: tuple[Tensor, ...]
    carries: tuple[bool, ...]

    @classmethod
    def of(cls, operation: Callable[..., Any], sample: Sample) -> Call:
        """A call with the sample's shapes and float64 values."""
        tensors: list[Tensor] = []
        carries: list[bool] = []
        drawn = 0

        def values(spec: TensorSpec) -> Tensor:
            nonlocal drawn
            count = math.prod(spec.shape)
            drawn += count
            places = torch.arange(drawn - count, drawn)
            if spec.integers_below is not None:
                return (places % spec.integers_below).reshape(spec.shape)
            if spec.values is not None:
                return torch.tensor(spec.values, dtype=torch.int32)
            if spec.boolean:
                return (places % 3 != 1).reshape(spec.shape)
            grid = POSITIVE_GRID if spec.positive else GRID
            if spec.complex:
                pairs = torch.stack((grid[places % len(grid)], grid[(places + 77) % len(grid)]), -1)
                return torch.view_as_complex(pairs.reshape(*spec.shape, 2))
            return grid[places % len(grid)].reshape(spec.shape)

        def place(value: Any) -> Any:
            if not isinstance(value, TensorSpec):
                return value
            tensors.append(values(value))
            carries.append(not value.constant)
            return Slot(len(tensors) - 1)

        arguments = mapped((sample.args, sample.kwargs), place)
        return cls(operation, arguments, tuple(tensors), tuple(carries))

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """The floating-point results of the operation on `tensors`."""

        def fill(value: Any) -> Any:
            return tensors[value.index] if isinstance(value, Slot) else value

        args, kwargs = mapped(self.arguments, fill)
        result = self.operation(*args, **kwargs)
        return list(floating(args[0] if result is None else result))

    def copies(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """The operands, floating-point ones in `dtype`; those that carry relevance as leaves."""
        return [
            in_precision(x.clone(), dtype).requires_grad_(carries) if is_real(x) else x.clone()
            for x, carries in zip(self.tensors, self.carries, strict=True)
        ]

    @torch.no_grad()
    def upstream(self, shift: int = 0) -> list[Tensor]:
        """Gradients for the results of `__call__`, in float64, multiples of 1/64 again."""
        outputs = self(*self.copies(self.precise))
        starts = itertools.accumulate((y.numel() for y in outputs), initial=100 + 7 * shift)
        return [
            GRID[torch.arange(start, start + y.numel()) % len(GRID)].reshape(y.shape)
            for start, y in zip(starts, outputs, strict=False)
        ]

    @property
    def precise(self) -> torch.dtype:
        """float64, or float32 for an operation that takes no more (which is exact on the grid)."""
        return torch.float32 if "grouped_mm" in base_name(self.operation) else torch.float64

    def carriers(self) -> list[int]:
        """The numbers of the operands that carry relevance."""
        return [index for index, carries in enumerate(self.carries) if carries]

    def slot(self, position: int) -> int | None:
        """The number of the tensor at an argument's position, if there is one."""
        args, _ = self.arguments
        value = args[position] if position < len(args) else None
        return value.index if isinstance(value, Slot) else None

    def value(self, name: str, position: int, default: Any = None) -> Any:
        """The value of an argument, given by position or name."""
        args, kwargs = self.arguments
        found = args[position] if position < len(args) else kwargs.get(name, default)
        return self.tensors[found.index] if isinstance(found, Slot) else found


class Model(nn.Module):
    """A model that is one call: constants are trainable parameters, as weights are.

    With `in_slice` the first operand is a view of a part of a larger, computed tensor, and the
    output that part, to be called with an operation that writes there.
    """

    def __init__(self, call: Call, dtype: torch.dtype, *, in_slice: bool = False) -> None:
        super().__init__()
        self.call = call
        self.in_slice = in_slice
        self.explained = [x for x in call.copies(dtype) if x.requires_grad]
        self.fixed = nn.ParameterList(
            nn.Parameter(x, requires_grad=is_real(x))
            for x, carries in zip(call.copies(dtype), call.carries, strict=True)
            if not carries
        )

    def forward(self, *explained: Tensor) -> list[Tensor]:
        # Operands are computed, as in a model, so that it is legal to write to them.
        operands, fixed = iter(explained), iter(self.fixed)
        tensors = [
            next(operands).clone() if carries else next(fixed) for carries in self.call.carries
        ]
        if is_in_place(self.call.operation) and not self.call.carries[0]:
            tensors[0] = tensors[0].clone()
        if not self.in_slice:
            return self.call(*tensors)
        whole = torch.stack((tensors[0], tensors[0]), -1)
        self.call(whole[..., 0], *tensors[1:])
        return list(floating(whole[..., 0]))

    def under(self, composite: Composite, **options: Any) -> list[Tensor]:
        """What the call puts out while the model is under a composite."""
        with composite.context(self, **options):
            return self(*self.explained)

    def handed_back(self, outputs: list[Tensor], g: list[Tensor], **options: Any) -> list[Tensor]:
        """What the operands receive for gradients `g` of the outputs: zero, if nothing."""
        live = [(y, g_y.to(y.dtype)) for y, g_y in zip(outputs, g, strict=True) if y.requires_grad]
        if not live:
            return [torch.zeros_like(x) for x in self.explained]
        received = torch.autograd.grad(
            [y for y, _ in live],
            self.explained,
            [g_y for _, g_y in live],
            allow_unused=True,
            retain_graph=True,
            **options,
        )
        return [
            torch.zeros_like(x) if gradient is None else gradient
            for x, gradient in zip(self.explained, received, strict=True)
        ]


def entry_calls(entry: Entry) -> list[Call]:
    """The calls that an entry of the registry is tested with."""
    return [Call.of(entry.operation, sample) for sample in entry.samples]


def all_entries() -> dict[str, Entry]:
    """The entries of the registry by a unique readable name."""
    return {operation_name(operation): entry for operation, entry in REGISTRY.items()}


def assert_close(actual: Tensor, reference: Tensor, relative: float) -> None:
    """Within `relative` of the largest number in the reference."""
    assert actual.shape == reference.shape
    actual, reference = as_real(actual), as_real(reference)
    error = (actual.double() - reference.double()).abs().max()
    assert error <= relative * reference.abs().max(), f"{error:.3g} off\n{actual}\n{reference}"
