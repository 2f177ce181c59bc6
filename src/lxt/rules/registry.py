"""The table from operations to rules: what each file of this folder adds to, and everyone reads.

A rule is a function with the signature of the operation that it stands for; it returns the same
value and has another backward pass. A rule that serves many operations is written once, with the
operation as its first argument, and is a `Family`. Sample calls stand beside each rule: the tests
run every rule on its samples.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Operation = Callable[..., Any]

Absorbs = Literal["nothing", "values at 0", "anything"]
"""What a rule may keep of the relevance that it receives: none of it; that of what the operation
puts out for operands 0, such as a bias; or whatever it likes, as the remainder of a Taylor
expansion."""


class Refusal(Exception):
    """Raised by a rule for a call that it can't stand for; the propagation adds where it was."""


@dataclass(frozen=True)
class TensorSpec:
    """A random tensor argument of a sample; `constant` where it carries no relevance."""

    shape: tuple[int, ...]
    constant: bool = False
    positive: bool = False
    integers_below: int | None = None
    boolean: bool = False
    values: tuple[int, ...] | None = None
    complex: bool = False


def t(*shape: int) -> TensorSpec:
    """A sample tensor that carries relevance."""
    return TensorSpec(shape)


def positive_t(*shape: int) -> TensorSpec:
    """A sample tensor of values in (0, 1) that carries relevance."""
    return TensorSpec(shape, positive=True)


def constant_t(*shape: int, positive: bool = False) -> TensorSpec:
    """A sample tensor that is a constant, like a weight."""
    return TensorSpec(shape, constant=True, positive=positive)


def complex_t(*shape: int, constant: bool = False) -> TensorSpec:
    """A sample tensor of complex numbers, that carries relevance unless it is a constant."""
    return TensorSpec(shape, constant=constant, complex=True)


def index_t(*shape: int, below: int) -> TensorSpec:
    """A sample tensor of indices in [0, below)."""
    return TensorSpec(shape, constant=True, integers_below=below)


def offsets_t(*ends: int) -> TensorSpec:
    """A sample tensor of the ends of groups of rows."""
    return TensorSpec((len(ends),), constant=True, values=ends)


def mask_t(*shape: int) -> TensorSpec:
    """A sample tensor of booleans."""
    return TensorSpec(shape, constant=True, boolean=True)


@dataclass(frozen=True)
class Sample:
    """One call of an operation, with `TensorSpec`s where tensors go."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


def sample(*args: Any, **kwargs: Any) -> Sample:
    """Write a sample as the call it is: `sample(t(2, 3), dim=-1)`."""
    return Sample(args, kwargs)


@dataclass(frozen=True)
class Family:
    """A rule shared by many operations: `function(operation, *args, **kwargs)`."""

    function: Callable[..., Any]
    name: str

    def bind(self, operation: Operation) -> Callable[..., Any]:
        """The rule for one operation."""
        return partial(self.function, operation)

    def __repr__(self) -> str:
        return f"lxt.rules.{self.name}"


def family(function: Callable[..., Any]) -> Family:
    """Make a rule of a function whose first argument is the operation it stands for."""
    rule = Family(function, function.__name__)
    object.__setattr__(rule, "__doc__", function.__doc__)
    return rule


@dataclass(frozen=True)
class Entry:
    """An operation, its rule in AttnLRP, the source of the rule, and sample calls."""

    operation: Operation
    rule: Family | Callable[..., Any]
    source: str
    samples: tuple[Sample, ...]
    family: str
    """The file of rules that it stands in: "linear", "normalization", …"""
    absorbs: Absorbs = "values at 0"
    """The relevance that the rule may keep."""


REGISTRY: dict[Operation, Entry] = {}


def register(
    operations: Iterable[Operation],
    rule: Family | Callable[..., Any],
    *,
    source: str,
    samples: Iterable[Sample],
) -> None:
    """Give `operations` a rule. An operation that has one already is an error."""
    samples = tuple(samples)
    family = _file_of_rules()
    for operation in operations:
        if operation in REGISTRY:
            raise ValueError(f"{operation_name(operation)} already has a rule")
        REGISTRY[operation] = Entry(operation, rule, source, samples, family)


def _file_of_rules() -> str:
    """The name of the module whose code is adding to the table."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"] == __name__:
        frame = frame.f_back
    return frame.f_globals["__name__"].rpartition(".")[2]


def family_of(target: Any, rule: Any) -> str:
    """The file of rules that a target's rule stands in; "" if it is none of this library's."""
    function = rule.function if isinstance(rule, Family) else rule
    module = getattr(function, "__module__", None) or ""
    file = module.rpartition(".")[2]
    if rule is not None and module.partition(".")[0] != "lxt":
        return ""
    entry = REGISTRY.get(target)
    if entry is None or (module.startswith("lxt.rules.") and rule is not entry.rule):
        return file
    return entry.family


def rule(*operations: Operation, source: str, samples: Iterable[Sample]):
    """Decorate a function (or a `Family`) to make it the rule of `operations`."""

    def decorate(function: Any) -> Any:
        register(operations, function, source=source, samples=samples)
        return function

    return decorate


OPERATORS: dict[Operation, str] = {
    operator.add: "add",
    operator.sub: "sub",
    operator.mul: "mul",
    operator.matmul: "matmul",
    operator.truediv: "div",
    operator.pow: "pow",
    operator.neg: "neg",
    operator.abs: "abs",
    operator.iadd: "add_",
    operator.isub: "sub_",
    operator.imul: "mul_",
    operator.itruediv: "div_",
}
"""Python's operators, by the name of torch's operation."""

_NAMESPACES = (torch, torch.Tensor, F, torch.special, torch.linalg)


def spelled(*names: str) -> Iterator[Operation]:
    """Every spelling of an operation: `spelled("relu")` is torch.relu, Tensor.relu and F.relu."""
    seen: list[Operation] = []
    for name in names:
        for namespace in _NAMESPACES:
            operation = getattr(namespace, name, None)
            if callable(operation) and operation not in seen:
                seen.append(operation)
                yield operation


def as_family(rule: Family | Callable[..., Any]) -> Family:
    """A rule of one operation in the form of those of many."""
    if isinstance(rule, Family):
        return rule
    name = getattr(rule, "__name__", "rule")
    return Family(lambda _, *args, **kwargs: rule(*args, **kwargs), name)


def in_place(rule: Family, operation: Operation) -> Family:
    """The rule of `operation` for its in-place twin: computed beside, then written back.

    Writing by `copy_` is right for views too, and what the rule keeps for the backward pass is a
    copy that later writes can't change.
    """

    def write_back(_: Operation, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = rule.function(operation, copied(x), *args, **kwargs)
        x.copy_(y)
        return x if y.requires_grad else made_constant(x)

    return Family(write_back, rule.name)


def copied(x: Tensor) -> Tensor:
    """A copy in the same layout: for another, a kernel may round another way."""
    if x.is_contiguous():
        return x.clone()
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x)


def made_constant(x: Tensor) -> Tensor:
    """`x`, all of which was overwritten with constants, as one.

    Raises:
        Refusal: `x` is a view, and the tensor that it is a part of may carry relevance still.
    """
    if x.grad_fn is None:
        return x
    if x._is_view():
        raise Refusal("it writes constants into a view; write to a tensor of its own instead")
    return x.detach_()


def operation_name(operation: Any) -> str:
    """The name that a person would write: `torch.Tensor.add`, `torch.nn.functional.silu`."""
    if getattr(torch, getattr(operation, "__name__", ""), None) is operation:
        return f"torch.{operation.__name__}"
    resolved = torch.overrides.resolve_name(operation)
    if resolved:
        return resolved
    module = getattr(operation, "__module__", None) or "torch"
    return f"{module}.{getattr(operation, '__qualname__', repr(operation))}"


def require_constant(**operands: Any) -> None:
    """Refuse a call in which one of these operands carries relevance."""
    for name, operand in operands.items():
        if isinstance(operand, Tensor) and operand.requires_grad:
            raise Refusal(f"its operand {name!r} depends on the explained input")


def require_real(x: Tensor) -> None:
    """Refuse complex numbers: a secant says nothing of how their parts share relevance."""
    if x.is_complex():
        raise Refusal("its operand is complex: write it with real and imaginary parts")


def require_own(weight: Any) -> None:
    """Refuse a weight that is a parameter of another model: it would pass for relevance's carrier.

    While a model's forward runs, its own parameters are constants.
    """
    if not isinstance(weight, Tensor) or not weight.requires_grad:
        return
    source, node = weight, weight.grad_fn
    for _ in range(16):  # a part, a cast, a transpose of a parameter is one still
        if node is None:
            break
        sources = [n for n, _ in node.next_functions if n is not None]
        source = getattr(node, "variable", None)
        node = sources[0] if len(sources) == 1 else None
    if type(source) is nn.Parameter and source.requires_grad:
        raise Refusal(
            f"its weight {list(weight.shape)} is a parameter that requires grad and is not the "
            "registered model's: freeze it, or register the model that it belongs to"
        )
