"""What torch's operators do with the values that they are given, in a dozen families."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Operation", "Role", "operation_of"]


class Role(enum.Enum):
    """What an operator does with what its operands hold."""

    MOVE, VIEW, SUM, PRODUCT, FUNCTION, MATMUL, SOFTMAX, ATTENTION, NORM, REDUCTION = range(10)
    JOIN, PICK, WRITE, FILL, EMPTY, FACTORY, OPAQUE = range(10, 17)


def _roles() -> dict[str, Role]:
    names = {
        Role.MOVE: "_to_copy clone native_dropout dropout lift_fresh repeat constant_pad_nd flip "
        "roll contiguous",
        Role.VIEW: "view _unsafe_view reshape _reshape_alias view_copy _reshape_copy",
        Role.SUM: "add sub rsub neg where masked_fill lerp",
        Role.PRODUCT: "mul div addcmul addcdiv",
        Role.FUNCTION: "hardswish _prelu_kernel log_sigmoid_forward rrelu_with_noise glu",
        Role.MATMUL: "mm bmm addmm baddbmm addbmm matmul linear mv addmv convolution _int_mm "
        "_scaled_mm _grouped_mm _addmm_activation",
        Role.SOFTMAX: "_softmax _safe_softmax softmax",
        Role.NORM: "native_layer_norm _fused_rms_norm rms_norm native_group_norm "
        "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training",
        Role.REDUCTION: "mean sum amax amin max min var var_mean std std_mean "
        "linalg_vector_norm norm",
        Role.JOIN: "cat stack",
        Role.PICK: "index index_select gather masked_select take",
        Role.WRITE: "copy_ index_put_",
        Role.FILL: "fill_ zero_ bernoulli_ normal_ uniform_ exponential_ random_",
        Role.FACTORY: "zeros_like ones_like full_like new_zeros new_ones new_full rand_like",
        Role.EMPTY: "empty empty_like new_empty empty_strided new_empty_strided",
    }
    return {name: role for role, listed in names.items() for name in listed.split()}


_ROLES = _roles()

# Element-wise functions by which a linear layer may make integers of its operand.
_ROUNDING = frozenset(
    (
        *("round", "floor", "trunc", "clamp", "clamp_min", "clamp_max", "maximum", "minimum"),
        *("abs", "sign", "reciprocal"),
    )
)


@dataclass(frozen=True)
class Operation:
    """What is known of an operator: its name without namespace and overload, and its role."""

    name: str
    role: Role

    @property
    def bends(self) -> bool:
        """Whether no linear map is made of it, nor of a quantised one."""
        if self.role is Role.FUNCTION:
            return self.name.rstrip("_") not in _ROUNDING
        return self.role in (Role.SOFTMAX, Role.ATTENTION)


_operations: dict[Any, Operation] = {}


def operation_of(func: Any) -> Operation:
    """What is known of an operator as a dispatch mode gets it."""
    found = _operations.get(func)
    if found is None:
        packet = getattr(func, "overloadpacket", func)
        name = getattr(packet, "__name__", None) or str(packet)
        found = _operations[func] = Operation(name, _role(func, name))
    return found


def _role(func: Any, name: str) -> Role:
    if "attention" in name or "attn" in name:
        return Role.ATTENTION
    if name in _ROLES:
        return _ROLES[name]
    schema = getattr(func, "_schema", None)
    if schema is not None:
        aliases = [r.alias_info for r in schema.returns if r.alias_info is not None]
        if aliases and not any(alias.is_write for alias in aliases):
            return Role.MOVE
    base = name.rstrip("_")
    if base in _ROLES and _ROLES[base] in (Role.SUM, Role.PRODUCT, Role.FUNCTION):
        return _ROLES[base]
    return Role.FUNCTION if torch.Tag.pointwise in getattr(func, "tags", ()) else Role.OPAQUE
