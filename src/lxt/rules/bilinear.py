"""Products, quotients and powers of operands that depend on the explained input.

A product of N such factors hands 1/N of its relevance to each (Achtibat et al. 2024, Prop. 3.2 and
3.3): autograd's gradient of every factor is scaled by 1/N. Constant factors, like weights, count
for nothing. A denominator is a constant (Prop. 3.4).

In CP-LRP a gate is a constant too (Ali et al. 2022): the factor that came out of a non-linearity
hands its share to the other one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lxt.gradients import (
    carries_relevance,
    compute_dtype,
    curve_of,
    is_gate,
    multiply,
    scale,
    stop,
    substitute,
)
from lxt.rules.elementary import constant
from lxt.rules.registry import (
    Operation,
    Refusal,
    complex_t,
    constant_t,
    family,
    in_place,
    offsets_t,
    require_constant,
    require_own,
    rule,
    sample,
    spelled,
    t,
)
from lxt.rules.written import softmax_quotient_gradient, written_softmax

__all__ = ["GATED_PRODUCTS", "gated_product", "product", "quotient"]

PRODUCT = "AttnLRP Prop. 3.3"
QUOTIENT = "AttnLRP Prop. 3.4"


def share(factors: Sequence[Any]) -> list[Any]:
    """The factors, each of those that carry relevance scaled by 1/N in the backward pass."""
    carrying = [factor for factor in factors if carries_relevance(factor)]
    n = len(carrying)
    if n < 2:
        return list(factors)
    for factor in carrying:
        require_own(factor)
    return [scale(f, 1 / n) if carries_relevance(f) else f for f in factors]


def stop_gates(factors: Sequence[Any]) -> list[Any]:
    """CP-LRP: the factors, those that a non-linearity put out as constants (Ali et al. 2022).

    Where all of them are such, none is the others' gate.
    """
    carrying = sum(map(carries_relevance, factors))
    gates = [carries_relevance(factor) and is_gate(factor) for factor in factors]
    if carrying > 1 and sum(gates) < carrying:
        return [stop(f) if gate else f for f, gate in zip(factors, gates, strict=True)]
    return list(factors)


def share_without_gates(factors: Sequence[Any]) -> list[Any]:
    """CP-LRP: as `share`, with gates as constants."""
    return share(stop_gates(factors))


def constant_if_carrying(x: Any) -> Any:
    """An operand as a constant."""
    return stop(x) if carries_relevance(x) else x


# What torch calls the operands of products and quotients, where they are given by name.
SECOND = ("other", "mat2", "vec", "vec2", "weight", "tensor")
FACTORS = ("mat1", "mat2", "batch1", "batch2", "mat", "vec", "vec1", "vec2", "tensor1", "tensor2")


def replace_operands(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    first: int,
    names: Sequence[str],
    change: Callable[[list[Any]], list[Any]],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments with two operands changed, from position `first` on or by name."""
    by_name = [name for name in names if name in kwargs]
    last = min(len(args), first + 2 - len(by_name))
    changed = change([*args[first:last], *(kwargs[name] for name in by_name)])
    places = last - first
    named = dict(zip(by_name, changed[places:], strict=True))
    return (*args[:first], *changed[:places], *args[last:]), kwargs | named


ELEMENTWISE = tuple(spelled("mul", "multiply"))


@family
def product(operation: Operation, *args: Any, **kwargs: Any) -> Any:
    """A product in any sense (element-wise, matrix, outer): half to each, R_a = a · g_a / 2."""
    if len(args) == 2 and not kwargs:
        if not (carries_relevance(args[0]) and carries_relevance(args[1])):
            return operation(*args)  # linear, as most products are
        if operation in ELEMENTWISE and _has_activation(*args):
            for factor in args:
                require_own(factor)
            return multiply(*args, (0.5, 0.5))
    args, kwargs = replace_operands(args, kwargs, 0, SECOND, share)
    return operation(*args, **kwargs)


def _has_activation(a: Tensor, b: Tensor) -> bool:
    """Whether one of two factors, alike in shape, came out of a non-linearity and is as it was."""
    alike = a.shape == b.shape and a.dtype is b.dtype and a.device == b.device
    return alike and any(curve_of(x.grad_fn) is not None for x in (a, b))


@family
def weighted(operation: Operation, *args: Any, **kwargs: Any) -> Any:
    """A product with a weight, which is a constant if it is a parameter of the model.

    A parameter of another model would pass for a factor that carries relevance.
    """
    weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
    if isinstance(weight, Tensor) and not weight.requires_grad:
        return operation(*args, **kwargs)
    require_own(weight)
    return product.function(operation, *args, **kwargs)


@family
def gated_product(operation: Operation, *args: Any, **kwargs: Any) -> Any:
    """CP-LRP: a factor that a non-linearity put out is a gate, hence constant (Ali et al. 2022)."""
    args, kwargs = replace_operands(args, kwargs, 0, SECOND, share_without_gates)
    return operation(*args, **kwargs)


x, y, weight = t(2, 3), t(2, 3), constant_t(2, 3)
matrix, other, constant_matrix = t(2, 3), t(3, 4), constant_t(3, 4)
batch, other_batch = t(2, 2, 3), t(2, 3, 4)

IN_PLACE = tuple(spelled("mul_", "multiply_"))
_products = [
    *(sample(x, y), sample(x, t(3)), sample(x, weight)),
    sample(complex_t(2, 3), complex_t(2, 3, constant=True)),  # rotary embeddings
    *(sample(complex_t(2, 3), complex_t(3)), sample(complex_t(2, 3), y)),
]
rule(*ELEMENTWISE, source=PRODUCT, samples=_products)(product)
rule(*IN_PLACE, source=PRODUCT, samples=_products)(in_place(product, torch.mul))
_matrix_products = [sample(matrix, other), sample(matrix, constant_matrix)]
_complex_matrices = sample(complex_t(2, 3), complex_t(3, 4))
MATRIX_PRODUCTS = (*spelled("matmul", "mm", "bmm"), torch.Tensor.__rmatmul__)
rule(*spelled("matmul", "mm"), source=PRODUCT, samples=[*_matrix_products, _complex_matrices])(
    product
)
rule(
    *spelled("bmm"),
    source=PRODUCT,
    samples=[sample(batch, other_batch), sample(batch, constant_t(2, 3, 4))],
)(product)
rule(torch.Tensor.__rmatmul__, source=PRODUCT, samples=[sample(other, matrix)])(product)
rule(*spelled("mv"), source=PRODUCT, samples=[sample(matrix, t(3))])(product)
rule(*spelled("dot", "inner", "outer", "ger"), source=PRODUCT, samples=[sample(t(3), t(3))])(
    product
)
rule(torch.tensordot, source=PRODUCT, samples=[sample(matrix, other, 1)])(product)
rule(*spelled("kron"), source=PRODUCT, samples=[sample(matrix, other)])(product)
rule(*spelled("linear"), source=PRODUCT, samples=[
    sample(t(2, 3), constant_t(4, 3), constant_t(4)),
    sample(t(2, 3), t(4, 3)),
])(weighted)  # fmt: skip
for _n, _conv in enumerate((torch.conv1d, torch.conv2d, torch.conv3d), start=1):
    rule(
        _conv,
        source=PRODUCT,
        samples=[
            sample(t(1, 2, *[4] * _n), constant_t(3, 2, *[2] * _n), constant_t(3), padding=1),
            sample(t(1, 2, *[4] * _n), t(3, 2, *[2] * _n)),
        ],
    )(weighted)
for _n, _conv in enumerate(
    (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), start=1
):
    rule(
        _conv,
        source=PRODUCT,
        samples=[sample(t(1, 2, *[3] * _n), constant_t(2, 3, *[2] * _n), constant_t(3))],
    )(weighted)


def listed(operands: Sequence[Any]) -> Sequence[Any]:
    """The operands of an Einstein sum, which may be given as one list."""
    (first, *rest) = operands
    return first if not rest and isinstance(first, list | tuple) else operands


@rule(
    torch.einsum,
    source=PRODUCT,
    samples=[
        sample("ij,jk->ik", matrix, other),
        sample("ij,jk->ik", matrix, constant_matrix),
        sample("i,ij,j->", t(2), matrix, t(3)),
        sample("ij->i", matrix),
    ],
)
def einsum(equation: str, *operands: Any) -> Tensor:
    """An Einstein sum is a product of its operands: each of N gets 1/N."""
    return torch.einsum(equation, *share(listed(operands)))


def gated_einsum(equation: str, *operands: Any) -> Tensor:
    """CP-LRP: as `gated_product`, for an Einstein sum."""
    return torch.einsum(equation, *share_without_gates(listed(operands)))


@family
def sum_with_product(operation: Operation, *args: Any, **kwargs: Any) -> Any:
    """Sum: β · total + α · (a · b): the sum is linear, the factors share what the product gets."""
    return _sum_with_product(operation, share, args, kwargs)


@family
def sum_with_gated_product(operation: Operation, *args: Any, **kwargs: Any) -> Any:
    """CP-LRP: as `gated_product`, in a sum."""
    return _sum_with_product(operation, share_without_gates, args, kwargs)


def _sum_with_product(
    operation: Operation,
    change: Callable[[list[Any]], list[Any]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    if len(args) > 3 or not all(isinstance(x, Tensor) for x in args):
        raise Refusal("it has numbers between its operands: give beta, alpha and value by name")
    args, kwargs = replace_operands(args, kwargs, 1, FACTORS, change)
    return operation(*args, **kwargs)


addmm_samples = [
    sample(t(2, 4), matrix, other, beta=0.5),
    sample(constant_t(2, 4), matrix, constant_matrix),
    sample(t(2, 4), mat1=matrix, mat2=other),
]
rule(*spelled("addmm"), source=PRODUCT, samples=[
    *addmm_samples, sample(constant_t(4), matrix, constant_matrix)
])(sum_with_product)  # fmt: skip
rule(*spelled("addmm_"), source=PRODUCT, samples=addmm_samples)(sum_with_product)
rule(
    *spelled("baddbmm", "baddbmm_"),
    source=PRODUCT,
    samples=[sample(t(2, 2, 4), batch, other_batch, alpha=0.5)],
)(sum_with_product)
rule(*spelled("addbmm"), source=PRODUCT, samples=[sample(t(2, 4), batch, other_batch)])(
    sum_with_product
)
rule(*spelled("addmv"), source=PRODUCT, samples=[sample(t(2), matrix, t(3))])(sum_with_product)
rule(*spelled("addr"), source=PRODUCT, samples=[sample(t(2, 3), t(2), t(3))])(sum_with_product)
rule(*spelled("addcmul", "addcmul_"), source=PRODUCT, samples=[sample(t(2, 3), x, y, value=0.5)])(
    sum_with_product
)


SUMS_WITH_PRODUCTS = tuple(
    spelled("addcmul", "addcmul_", "addmm", "addmm_", "baddbmm", "baddbmm_", "addbmm")
)
GATED_PRODUCTS: dict[Operation, Any] = {
    **dict.fromkeys(ELEMENTWISE, gated_product),
    **dict.fromkeys(IN_PLACE, in_place(gated_product, torch.mul)),
    **dict.fromkeys(MATRIX_PRODUCTS, gated_product),
    **dict.fromkeys(SUMS_WITH_PRODUCTS, sum_with_gated_product),
    torch.einsum: gated_einsum,
}
"""The products in which CP-LRP takes a gate as a constant."""


def _divided(
    operation: Operation, a: Any, other: Any, *, softmax_is_constant: bool, **kwargs: Any
) -> Any:
    if kwargs.get("rounding_mode") is not None and carries_relevance(a):
        raise Refusal("it rounds, and a step has no secant that relevance could follow")
    softmax = written_softmax(a, other)
    if softmax is None:
        return operation(a, constant_if_carrying(other), **kwargs)
    if softmax_is_constant:
        return constant.function(operation, a, other, **kwargs)
    return substitute(
        a,
        lambda x: (operation(x, other, **kwargs), (x, other.detach(), *softmax.tensors())),
        lambda g, x, d, *kept: softmax_quotient_gradient(g, x, d, softmax.log_base, *kept),
        rest="softmax",
    )


@family
def quotient(operation: Operation, a: Any, *args: Any, **kwargs: Any) -> Any:
    """The quotient a / b, with the denominator as a constant: R_a = R_y.

    But exponentials over their sum are a softmax, which has the rule of one.
    """
    return _divided(operation, a, *args, **kwargs, softmax_is_constant=False)


@family
def quotient_without_softmax(operation: Operation, a: Any, *args: Any, **kwargs: Any) -> Any:
    """CP-LRP: as `quotient`, with a softmax as a constant."""
    return _divided(operation, a, *args, **kwargs, softmax_is_constant=True)


DIVISIONS = tuple(spelled("div", "divide", "true_divide"))
IN_PLACE_DIVISIONS = tuple(spelled("div_", "divide_", "true_divide_"))
_divisions = [sample(x, y), sample(x, 2.0), sample(constant_t(2, 3), y), sample(x, weight)]
rule(*DIVISIONS, source=QUOTIENT, samples=_divisions)(quotient)
rule(*IN_PLACE_DIVISIONS, source=QUOTIENT, samples=_divisions)(in_place(quotient, torch.div))

QUOTIENTS_WITHOUT_SOFTMAX: dict[Operation, Any] = {
    **dict.fromkeys(DIVISIONS, quotient_without_softmax),
    **dict.fromkeys(IN_PLACE_DIVISIONS, in_place(quotient_without_softmax, torch.div)),
}
"""The divisions in CP-LRP."""


def check_no_softmax(total: Any, tensor1: Any, tensor2: Any, **_: Any) -> None:
    """Refuse a sum with a quotient that is a softmax, written out."""
    if written_softmax(tensor1, tensor2) is not None:
        raise Refusal("it adds a softmax, written out, to something: write the sum by itself")


@rule(*spelled("addcdiv", "addcdiv_"), source=QUOTIENT, samples=[sample(t(2, 3), x, y, value=0.5)])
@family
def sum_with_quotient(
    operation: Operation, total: Any, tensor1: Any, tensor2: Any, **kwargs: Any
) -> Any:
    """The sum total + value · a / b, with the denominator as a constant."""
    check_no_softmax(total, tensor1, tensor2)
    return operation(total, tensor1, constant_if_carrying(tensor2), **kwargs)


def glu(gate_is_constant: bool) -> Callable[..., Tensor]:
    """The rule of a gated linear unit, y = a · σ(b) with (a, b) the halves of the operand.

    AttnLRP: half to each factor, and the secant of σ for the gate, whose σ(0) = ½ absorbs.
    CP-LRP: the gate is a constant, all goes to a.
    """

    def gated_linear_unit(input: Tensor, dim: int = -1) -> Tensor:
        def forward(x: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
            return F.glu(x, dim), (x,)

        def backward(g: Tensor, x: Tensor) -> Tensor:
            a, b = x.to(compute_dtype(x.dtype)).chunk(2, dim)
            if gate_is_constant:
                return torch.cat((g * b.sigmoid(), torch.zeros_like(a)), dim).to(g.dtype)
            slope = torch.where(b == 0, 0.25, (b / 2).tanh() / (2 * b))
            return torch.cat((g * b.sigmoid() / 2, g * a * slope / 2), dim).to(g.dtype)

        return substitute(input, forward, backward) if input.requires_grad else F.glu(input, dim)

    return gated_linear_unit


rule(F.glu, source=PRODUCT, samples=[sample(t(2, 6)), sample(t(4, 3), 0)])(
    glu(gate_is_constant=False)
)


@rule(F.bilinear, source=PRODUCT, samples=[sample(t(2, 3), t(2, 4), constant_t(5, 3, 4))])
def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y_k = x₁ᵀ W_k x₂ + b_k: half to each input."""
    require_constant(weight=weight)
    a, b = share((input1, input2))
    return F.bilinear(a, b, weight, bias)


# Experts of a mixture in one call: rows of the input, grouped by `offs`, times a matrix each.
rule(
    *spelled("_grouped_mm", "grouped_mm"),
    source=PRODUCT,
    samples=[sample(t(4, 8), constant_t(2, 8, 8), offs=offsets_t(1, 4))],
)(product)
