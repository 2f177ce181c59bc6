"""The autograd Functions behind `lxt.explicit.functional`, which says what each one computes.

They take their arguments by position, under LXT's names.
"""

# ruff: noqa: D102, N801 - the classes have LXT's names, and the two methods of any Function

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lxt.explicit.check import conservation_check_wrap
from lxt.gradients import compute_dtype
from lxt.rules.normalization import inverse_deviation, normalized_gradient

Dim = int | Sequence[int] | None


def _stabilize(input: Tensor, epsilon: float = 1e-6, inplace: bool = False) -> Tensor:
    """`input + epsilon`.

    It does not look at the sign, so a denominator between −ε and 0 changes its own. It stays since
    relevances that LXT computed are reproduced to rounding only with the same stabiliser.
    """
    return input.add_(epsilon) if inplace else input + epsilon


def precision(*tensors: Any) -> torch.dtype:
    """In which the relevance of these operands is computed: the widest, and float32 at least."""
    dtype = torch.float32
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _wide(dtype: torch.dtype, *operands: Any) -> tuple[Any, ...]:
    return tuple(x.to(dtype) if isinstance(x, Tensor) else x for x in operands)


def _owned(output: Tensor) -> Tensor:
    """`output`, which a model can write to in place: not a view, as some operations return."""
    return output.clone() if isinstance(output, Tensor) and output._is_view() else output


def _of_first_operand(ctx: Any, output: Tensor) -> Tensor:
    """`output`, a constant if the first operand is one: its weights may require grad in vain."""
    output = _owned(output)
    if not ctx.needs_input_grad[0]:
        ctx.mark_non_differentiable(output)
    return output


class add2_tensors_fn(Function):
    """`add2`, by position."""

    @staticmethod
    def forward(
        ctx: Any, input_a: Any, input_b: Any, inplace: bool = False, epsilon: float = 1e-6
    ) -> Tensor:
        tensors = [x if isinstance(x, Tensor) else None for x in (input_a, input_b)]
        ctx.save_for_backward(*tensors)
        ctx.numbers = [None if isinstance(x, Tensor) else x for x in (input_a, input_b)]
        ctx.epsilon = epsilon
        return _owned(input_a + input_b)

    @staticmethod
    @once_differentiable
    @conservation_check_wrap
    def backward(ctx: Any, *out_relevance: Tensor) -> Any:
        (r,) = out_relevance
        saved = ctx.saved_tensors
        operands = (n if x is None else x for x, n in zip(saved, ctx.numbers, strict=True))
        a, b = _wide(precision(r, *saved), *operands)
        ratio = r / _stabilize(a + b, ctx.epsilon)
        return *_summed(ctx, saved, a * ratio, b * ratio), None, None


def _summed(ctx: Any, operands: Any, *relevances: Tensor) -> tuple[Tensor | None, ...]:
    """`relevances` of the first, second, … operand, each summed to the operand's own shape."""
    return tuple(
        r.sum_to_size(x.shape).to(x.dtype) if needed else None
        for r, x, needed in zip(relevances, operands, ctx.needs_input_grad, strict=False)
    )


class mul2_fn(Function):
    """`mul2`, by position."""

    @staticmethod
    def forward(ctx: Any, input_a: Any, input_b: Any, inplace: bool = False) -> Tensor:
        ctx.shapes = [getattr(x, "shape", None) for x in (input_a, input_b)]
        return _owned(input_a * input_b)

    @staticmethod
    @once_differentiable
    @conservation_check_wrap
    def backward(ctx: Any, *out_relevance: Tensor) -> Any:
        (r,) = out_relevance
        r = r / sum(ctx.needs_input_grad)
        shares = zip(ctx.shapes, ctx.needs_input_grad, strict=False)
        return *(r.sum_to_size(shape) if needed else None for shape, needed in shares), None


class matmul_fn(Function):
    """`matmul`, by position."""

    @staticmethod
    def forward(
        ctx: Any, input_a: Tensor, input_b: Tensor, inplace: bool = False, epsilon: float = 1e-6
    ) -> Tensor:
        ctx.save_for_backward(input_a, input_b)
        ctx.epsilon = epsilon
        return _owned(torch.matmul(input_a, input_b))

    @staticmethod
    @once_differentiable
    @conservation_check_wrap
    def backward(ctx: Any, *out_relevance: Tensor) -> Any:
        (r,) = out_relevance
        kept_a, kept_b = ctx.saved_tensors  # read once, as checkpointing asks for
        a, b = _wide(precision(r, kept_a, kept_b), kept_a, kept_b)
        ratio = r / _stabilize(torch.matmul(a, b) * sum(ctx.needs_input_grad), ctx.epsilon)
        if b.dim() == 1:
            b, ratio = b.unsqueeze(-1), ratio.unsqueeze(-1)
        if a.dim() == 1:
            a, ratio = a.unsqueeze(0), ratio.unsqueeze(-2)
        relevance_a = relevance_b = None
        if ctx.needs_input_grad[0]:
            relevance_a = (a * (ratio @ b.mT)).sum_to_size(a.shape).reshape(kept_a.shape)
        if ctx.needs_input_grad[1]:
            relevance_b = (b * (a.mT @ ratio)).sum_to_size(b.shape).reshape(kept_b.shape)
        return relevance_a, relevance_b, None, None


class linear_epsilon_fn(Function):
    """`linear_epsilon`, by position."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        epsilon: float = 1e-6,
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight, bias)
        ctx.epsilon = epsilon
        return _of_first_operand(ctx, F.linear(inputs, weight, bias))

    @staticmethod
    @once_differentiable
    @conservation_check_wrap
    def backward(ctx: Any, *out_relevance: Tensor) -> Any:
        (r,) = out_relevance
        saved = ctx.saved_tensors
        x, weight, bias = _wide(precision(r, *saved), *saved)
        ratio = r / _stabilize(F.linear(x, weight, bias), ctx.epsilon)
        g = ratio.unsqueeze(-1) * weight if weight.dim() == 1 else ratio @ weight
        return *_summed(ctx, saved, x * g), None, None, None


class conv2d_epsilon_fn(Function):
    """`conv2d_epsilon`, by position."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None = None, *settings: Any
    ) -> Tensor:
        *geometry, epsilon = settings
        ctx.save_for_backward(inputs, weight, bias)
        ctx.geometry, ctx.epsilon = geometry, epsilon
        return _of_first_operand(ctx, F.conv2d(inputs, weight, bias, *geometry))

    @staticmethod
    @once_differentiable
    @conservation_check_wrap
    def backward(ctx: Any, *out_relevance: Tensor) -> Any:
        (r,) = out_relevance
        saved = ctx.saved_tensors
        x, weight, bias = _wide(precision(r, *saved), *saved)
        x, weight, bias = x.detach().requires_grad_(), weight.detach(), _detached(bias)
        with torch.enable_grad():
            y = F.conv2d(x, weight, bias, *ctx.geometry)
        (g,) = torch.autograd.grad(y, x, r / _stabilize(y.detach(), ctx.epsilon))
        return *_summed(ctx, saved, x.detach() * g), *[None] * 7


def _detached(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach()


class mean_fn(Function):
    """`mean`, by position."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: Dim, keepdim: bool, epsilon: float = 1e-6) -> Tensor:
        ctx.save_for_backward(x)
        dims = (dim,) if isinstance(dim, int) else tuple(dim or range(x.dim()))
        ctx.dims = sorted(d % x.dim() for d in dims) if x.dim() else []
        ctx.keepdim, ctx.epsilon = keepdim, epsilon
        return _owned(torch.mean(x, dim, keepdim))  # pyright: ignore[reportCallIssue, reportArgumentType]

    @staticmethod
    @once_differentiable
    @conservation_check_wrap
    def backward(ctx: Any, *out_relevance: Tensor) -> Any:
        (r,) = out_relevance
        saved = ctx.saved_tensors
        (x,) = _wide(precision(r, *saved), *saved)
        for d in () if ctx.keepdim else ctx.dims:
            r = r.unsqueeze(d)
        total = x.sum(ctx.dims, keepdim=True) if ctx.dims else x
        return *_summed(ctx, saved, x * (r / _stabilize(total, ctx.epsilon))), None, None, None


class softmax_fn(Function):
    """`softmax`, by position."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        dim: int,
        dtype: torch.dtype | None = None,
        temperature: float = 1.0,
        inplace: bool = False,
    ) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.dim, ctx.temperature = dim, temperature
        if temperature == 1:
            return _owned(F.softmax(inputs, dim, dtype=dtype))
        inputs = inputs if dtype is None else inputs.to(dtype)
        return _owned(F.softmax(inputs / temperature, dim))

    @staticmethod
    @once_differentiable
    @conservation_check_wrap
    def backward(ctx: Any, *out_relevance: Tensor) -> Any:
        (r,) = out_relevance
        saved = ctx.saved_tensors
        (x,) = _wide(precision(r, *saved), *saved)
        z = x / ctx.temperature
        relevance = z * (r - F.softmax(z, ctx.dim) * r.to(z.dtype).sum(ctx.dim, keepdim=True))
        relevance = relevance.masked_fill(z.isneginf(), 0)
        return *_summed(ctx, saved, relevance), None, None, None, None


def rms_norm(hidden_states: Tensor, weight: Tensor | None, variance_epsilon: float) -> Tensor:
    """What `rms_norm_identity` computes, without its rule."""
    x = hidden_states.to(compute_dtype(hidden_states.dtype))
    y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + variance_epsilon)
    y = y.to(hidden_states.dtype)
    return y if weight is None else weight * y


class rms_norm_identity_fn(Function):
    """`rms_norm_identity`, by position."""

    @staticmethod
    def forward(
        ctx: Any, hidden_states: Tensor, weight: Tensor | None, variance_epsilon: float
    ) -> Tensor:
        return _of_first_operand(ctx, rms_norm(hidden_states, weight, variance_epsilon))

    @staticmethod
    @once_differentiable
    @conservation_check_wrap
    def backward(ctx: Any, *out_relevance: Tensor) -> Any:
        return *out_relevance, None, None


class layer_norm_grad_fn(Function):
    """`layer_norm`, by position; `normalized_shape` is that of the weight unless given."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        variance_epsilon: float,
        epsilon: float = 1e-6,
        normalized_shape: Sequence[int] | None = None,
    ) -> Tensor:
        if normalized_shape is None:
            affine = weight if weight is not None else bias
            normalized_shape = x.shape[-1:] if affine is None else affine.shape
        ctx.save_for_backward(x, weight, bias)
        ctx.shape, ctx.variance_epsilon, ctx.epsilon = normalized_shape, variance_epsilon, epsilon
        y = F.layer_norm(x, list(normalized_shape), weight, bias, variance_epsilon)
        return _of_first_operand(ctx, y)

    @staticmethod
    @once_differentiable
    @conservation_check_wrap
    def backward(ctx: Any, *out_relevance: Tensor) -> Any:
        (r,) = out_relevance
        saved = ctx.saved_tensors
        x, weight, bias = _wide(precision(r, *saved), *saved)
        dims = tuple(range(-len(ctx.shape), 0))
        y = F.layer_norm(x, list(ctx.shape), weight, bias, ctx.variance_epsilon)
        scale = inverse_deviation(x, dims, ctx.variance_epsilon, centred=True)
        ratio = r / _stabilize(y, ctx.epsilon)
        g = normalized_gradient(ratio, scale, weight, dims, centred=True)
        return *_summed(ctx, saved, x * g), *[None] * 5


class normalize_identity_fn(Function):
    """`normalize`, by position."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, p: float, dim: int, eps: float) -> Tensor:
        return _owned(F.normalize(input, p=p, dim=dim, eps=eps))

    @staticmethod
    @once_differentiable
    @conservation_check_wrap
    def backward(ctx: Any, *out_relevance: Tensor) -> Any:
        return *out_relevance, None, None, None
