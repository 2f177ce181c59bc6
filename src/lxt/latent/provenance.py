"""Where the values of a forward pass come from, as far as heads and neurons go.

A dispatch mode sees each operation as torch's kernels do, whatever function or module called it.
From what each does it follows what a tensor holds: what a linear map put out, what an element-wise
function made of that, attention weights, what they were multiplied with.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lxt.engine.opaque import tensors_in
from lxt.latent.operators import Operation, Role, operation_of

__all__ = ["Kind", "Provenance", "Value"]


class Kind(enum.Enum):
    """What a tensor holds that depends on a layer's input."""

    LINEAR = "what a linear map puts out, shifted and scaled"
    HIDDEN = "an element-wise non-linear function of such, or a product of them"
    EXPONENTIAL = "an exponential of anything else, such as the scores in a softmax written out"
    WEIGHTS = "what a softmax puts out"
    ATTENTION = "a product of such weights and a matrix, perhaps with a gate"
    STATISTIC = "a number for each row, such as a norm's scale"
    OTHER = "anything else, such as the residual stream"


@dataclass(frozen=True)
class Value:
    """What a tensor holds.

    Attributes:
        kind: what it is.
        sources: the numbers of the operations that it is an element-wise function of.
        number: the same for tensors that hold the same numbers in other shapes or types.
        heads: of attention, how many heads stand side by side in the last axis; None until there
            is an axis of heads.
        gathered: whether rows of it were picked by an index, as those for one expert.

    """

    kind: Kind
    sources: frozenset[int]
    number: int
    heads: int | None = None
    gathered: bool = False


_HAS_STATISTICS = frozenset(Kind) - {Kind.OTHER}


class Provenance(TorchDispatchMode):
    """Follows the values of a layer while it runs; `running` are the modules that do, as a stack.

    Attributes:
        is_on: whether it looks.
        consumers: by the number of a value of heads or neurons, the modules that ran at each
            operation that computed anything of it.
        mixed: how many operations there were that may be a matrix product.
        bent: how many there were that no linear map is made of.

    """

    supports_higher_order_operators = True  # flex attention is one

    def __init__(self, running: Sequence[nn.Module]) -> None:
        super().__init__()
        self.is_on = False
        self.consumers: dict[int, list[tuple[nn.Module, ...]]] = {}
        self.mixed = 0
        self.bent = 0
        self._running = running
        self._numbers = itertools.count()
        # By storage and by place in it: a view is another object each time that torch returns it.
        self._values: dict[int, dict[Any, Value]] = {}
        self._alive: list[Tensor] = []  # so that no storage is another's anew

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.is_on:
            self._follow(operation_of(func), args, kwargs, result)
        return result

    def forget(self) -> None:
        """Begin anew, as with another layer."""
        self.consumers.clear()
        self._values.clear()
        self._alive.clear()

    def value(self, tensor: Tensor) -> Value | None:
        """What a tensor holds; None if it is a constant to the layer."""
        places = self._values.get(_storage(tensor))
        return None if places is None else places.get(_place(tensor), places.get(None))

    def declare(self, tensor: Tensor, kind: Kind, *, gathered: bool = False) -> None:
        """Say what a tensor holds, whatever made it."""
        self._set(tensor, self._made(kind, gathered=gathered))

    def _made(self, kind: Kind, *, heads: int | None = None, gathered: bool = False) -> Value:
        number = next(self._numbers)
        return Value(kind, frozenset((number,)), number, heads, gathered)

    def _set(self, tensor: Tensor, value: Value) -> None:
        self._values.setdefault(_storage(tensor), {})[_place(tensor)] = value
        self._alive.append(tensor)

    def _follow(self, op: Operation, args: Any, kwargs: Any, result: Any) -> None:
        operands = [*tensors_in(args), *tensors_in(kwargs)]
        values = [self.value(x) for x in operands]
        known = [value for value in values if value is not None]
        role = op.role
        self.mixed += role in (Role.MATMUL, Role.OPAQUE, Role.EMPTY)
        if role is Role.EMPTY:
            # What fills it may be a kernel that is not to be seen.
            for x in tensors_in(result):
                self.declare(x, Kind.OTHER)
            return
        if role is Role.FILL:
            if _is_whole(args[0]):
                self._values.pop(_storage(args[0]), None)
            return
        if not known or role is Role.FACTORY:
            return
        self.bent += op.bends
        if role in (Role.MOVE, Role.VIEW):
            if values[0] is not None:
                for y in tensors_in(result):
                    self._set(y, _moved(values[0], operands[0], y, is_view=role is Role.VIEW))
            return
        for value in known:
            if value.kind in (Kind.ATTENTION, Kind.HIDDEN):
                self.consumers.setdefault(value.number, []).append(tuple(self._running))
        if role is Role.WRITE:
            self._write(args[0], self._last_value(args))
            return
        outputs = list(tensors_in(result))
        for number, y in enumerate(outputs):
            value = self._result(op, args, operands, values, y, first=number == 0)
            if any(y is x for x in operands) and not _is_whole(y):
                self._values[_storage(y)] = {None: self._made(Kind.OTHER)}
            self._set(y, value)

    def _last_value(self, args: Sequence[Any]) -> Value | None:
        sources = [x for x in args[1:] if isinstance(x, Tensor)]
        return self.value(sources[-1]) if sources else None

    def _write(self, target: Tensor, value: Value | None) -> None:
        """Follow what is written to a tensor, or to a part of one."""
        storage = _storage(target)
        if _is_whole(target):
            self._values.pop(storage, None)
            if value is not None:
                self._set(target, replace(value, number=next(self._numbers)))
        elif value is not None:
            before = self._values.get(storage, {}).values()
            kinds = {value.kind, *(v.kind for v in before)}
            if kinds != {Kind.ATTENTION} or len({value.heads, *(v.heads for v in before)}) > 1:
                value = self._made(Kind.OTHER)
            self._values[storage] = {None: replace(value, number=next(self._numbers))}
            self._alive.append(target)

    def _result(
        self,
        op: Operation,
        args: Sequence[Any],
        operands: Sequence[Tensor],
        values: Sequence[Value | None],
        y: Tensor,
        *,
        first: bool,
    ) -> Value:
        known = [value for value in values if value is not None]
        gathered = any(value.gathered for value in known)
        kinds = {value.kind for value in known}
        match op.role:
            case Role.SUM | Role.PRODUCT:
                return self._combined(known, is_product=op.role is Role.PRODUCT)
            case Role.FUNCTION:
                return self._bent(op.name, known)
            case Role.SOFTMAX:
                return self._made(Kind.WEIGHTS)
            case Role.ATTENTION:
                if first:
                    return self._made(Kind.ATTENTION, heads=1 if y.dim() > 3 else None)
            case Role.MATMUL:
                if Kind.WEIGHTS in kinds:
                    return self._made(Kind.ATTENTION, heads=1 if y.dim() > 3 else None)
                if len(known) == 1:
                    return self._made(Kind.LINEAR, gathered=gathered)
            case Role.NORM | Role.REDUCTION:
                value = values[0]
                if value is not None and value.kind in _HAS_STATISTICS:
                    if op.role is Role.NORM and first:
                        return self._renewed(value)
                    if y.dim() == operands[0].dim() and y.shape[-1] == 1:
                        return replace(self._renewed(value), kind=Kind.STATISTIC, heads=None)
            case Role.JOIN:
                return self._joined(op.name, args, operands, values, y)
            case Role.PICK:
                value = values[0]
                if value is not None:
                    return replace(self._renewed(value), gathered=True)
            case _:
                pass
        return self._made(Kind.OTHER)

    def _renewed(self, value: Value) -> Value:
        return replace(value, number=next(self._numbers))

    def _bent(self, name: str, values: Sequence[Value]) -> Value:
        """An element-wise function of some values."""
        result = self._combined(values, is_product=False)
        if name.rstrip("_") == "exp" and result.kind is Kind.OTHER:
            return self._made(Kind.EXPONENTIAL)
        return replace(result, kind=Kind.HIDDEN) if result.kind is Kind.LINEAR else result

    def _combined(self, values: Sequence[Value], *, is_product: bool) -> Value:
        """An element-wise sum or product."""
        result = values[0]
        for value in values[1:]:
            kind = _combination(result, value, is_product=is_product)
            heads = {v.heads for v in (result, value) if v.kind is Kind.ATTENTION}
            result = Value(
                kind,
                result.sources | value.sources,
                0,
                heads.pop() if len(heads) == 1 and kind is Kind.ATTENTION else None,
                result.gathered or value.gathered,
            )
        return self._renewed(result)

    def _joined(
        self,
        name: str,
        args: Sequence[Any],
        operands: Sequence[Tensor],
        values: Sequence[Value | None],
        y: Tensor,
    ) -> Value:
        """Tensors side by side: heads or neurons stay what they are if nothing else is with them.

        Along another than the last axis they could be steps of a recurrence, unless heads.
        """
        axis = args[1] if len(args) > 1 else 0
        is_last = name == "cat" and axis % y.dim() == y.dim() - 1
        known = [value for value in values if value is not None]
        (kind,) = kinds if len(kinds := {value.kind for value in known}) == 1 else (Kind.OTHER,)
        if kind is not Kind.ATTENTION and not is_last:
            kind = Kind.OTHER
        if kind is Kind.OTHER or (is_last and len(known) < len(values)):
            return self._made(Kind.OTHER)
        heads = known[0].heads if len({value.heads for value in known}) == 1 else None
        if kind is Kind.ATTENTION and is_last:
            alike = (
                len({x.shape[-1] // (v.heads or 1) for x, v in zip(operands, known, strict=True)})
                == 1
            )
            heads = sum(value.heads or 1 for value in known) if alike else None
        sources = frozenset().union(*(value.sources for value in known))
        gathered = any(value.gathered for value in known)
        return Value(kind, sources, next(self._numbers), heads, gathered)


def _combination(a: Value, b: Value, *, is_product: bool) -> Kind:
    """What a sum or product of two values is."""
    kinds = {a.kind, b.kind}
    if Kind.ATTENTION in kinds and (
        kinds <= {Kind.ATTENTION, Kind.LINEAR, Kind.HIDDEN}
        or (is_product and Kind.WEIGHTS not in kinds)
    ):
        return Kind.ATTENTION  # with a gate, a norm's scale, or something added for each channel
    if Kind.OTHER in kinds:
        return Kind.OTHER
    if Kind.STATISTIC in kinds:
        scale, value = (a, b) if a.kind is Kind.STATISTIC else (b, a)
        if not scale.sources <= value.sources:
            return Kind.OTHER
        return Kind.WEIGHTS if value.kind is Kind.EXPONENTIAL else value.kind
    if len(kinds) == 1 and kinds <= {Kind.ATTENTION, Kind.WEIGHTS}:
        return a.kind
    if kinds <= {Kind.LINEAR, Kind.HIDDEN}:
        if Kind.HIDDEN in kinds:
            return Kind.HIDDEN
        if not is_product:
            return Kind.LINEAR
        # A square, as in a GELU written out; queries times keys are no neurons.
        return Kind.HIDDEN if a.sources == b.sources else Kind.OTHER
    return Kind.OTHER


def _moved(value: Value, x: Tensor, y: Tensor, *, is_view: bool) -> Value:
    """The same in another shape."""
    if value.kind is not Kind.ATTENTION or not x.dim() or not y.dim():
        return value
    heads, before, after = value.heads, _last(x), _last(y)
    if before != after:
        if is_view and before and (heads is not None or after > before):
            blocks = (heads or 1) * after
            heads = blocks // before if blocks % before == 0 else None
        elif heads != 1:
            heads = None
    if heads is None and y.dim() > 3:
        heads = 1
    return value if heads == value.heads else replace(value, heads=heads)


def _last(x: Tensor) -> int:
    """The size of the last axis, but for axes of 1 that einsum adds for a while."""
    return next((size for size in reversed(x.shape) if size != 1), 1)


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse, or a subclass that holds others
        return id(tensor)


def _place(tensor: Tensor) -> Any:
    try:
        return tensor.storage_offset(), tensor.shape, tensor.stride()
    except (NotImplementedError, RuntimeError):
        return tuple(tensor.shape)


def _is_whole(tensor: Tensor) -> bool:
    """Whether nothing else is in its storage."""
    try:
        return tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    except (NotImplementedError, RuntimeError):
        return True
