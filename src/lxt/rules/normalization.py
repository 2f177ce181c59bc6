"""Normalisation: the statistics that scale are constants, centring and the affine part are linear.

    y = (x − μ(x)) · r · w + b,   r = 1/√(σ² + ε) constant      Achtibat et al. 2024, Prop. 3.4

Only r (one number a group) and the weight are kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lxt.gradients import compute_dtype, stop, substitute
from lxt.rules.registry import (
    Operation,
    Refusal,
    constant_t,
    family,
    require_constant,
    rule,
    sample,
    t,
)
from lxt.rules.written import refuse_exponential

SOURCE = "AttnLRP Prop. 3.4"


def inverse_deviation(x: Tensor, dims: tuple[int, ...], eps: float, centred: bool) -> Tensor:
    """The factor r = 1/√(σ² + ε) over `dims`, kept as 1; uncentred, σ² is the mean square."""
    x = x.to(compute_dtype(x.dtype))
    if centred:
        x = x - x.mean(dims, keepdim=True)
    return torch.rsqrt(x.square().mean(dims, keepdim=True) + eps)


def kept(r: Tensor, weight: Tensor | None) -> tuple[Tensor, ...]:
    """What the backward pass needs; kept by autograd, which notices if it is written to."""
    return (r,) if weight is None else (r, weight)


def normalized_gradient(
    g: Tensor, r: Tensor, weight: Tensor | None, dims: tuple[int, ...], centred: bool
) -> Tensor:
    """The gradient of (x − μ(x)) · r · w with a constant r, in the precision of r."""
    upstream = g.to(r.dtype)
    upstream = upstream * r if weight is None else (upstream * weight).mul_(r)
    if centred:  # r is one number for all that are centred together
        upstream = upstream.sub_(upstream.mean(dims, keepdim=True))
    return upstream.to(g.dtype)


@rule(
    F.layer_norm,
    torch.layer_norm,
    source=SOURCE,
    samples=[
        sample(t(2, 3, 4), (4,), constant_t(4), constant_t(4)),
        sample(t(2, 3, 4), (3, 4), constant_t(3, 4)),
        sample(t(2, 4), (4,), eps=0.1),
    ],
)
def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """Layer norm, over the last `len(normalized_shape)` dimensions."""
    require_constant(weight=weight, bias=bias)
    dims = tuple(range(-len(normalized_shape), 0))

    def forward(x: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        if torch.is_autocast_enabled(x.device.type):  # which the fused kernel would escape
            y = F.layer_norm(x, normalized_shape, weight, bias, eps)
            return y, kept(inverse_deviation(x, dims, eps, centred=True), weight)
        y, _, r = torch.native_layer_norm(x, normalized_shape, weight, bias, eps)
        return y, kept(r, weight)

    def backward(g: Tensor, r: Tensor, weight: Tensor | None = None) -> Tensor:
        return normalized_gradient(g, r, weight, dims, centred=True)

    if not input.requires_grad:
        return F.layer_norm(input, normalized_shape, weight, bias, eps)
    return substitute(input, forward, backward)


@rule(
    F.rms_norm,
    torch.rms_norm,
    source=SOURCE,
    samples=[sample(t(2, 3, 4), (4,), constant_t(4)), sample(t(2, 4), (4,), eps=0.1)],
)
def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """RMS norm, over the last `len(normalized_shape)` dimensions."""
    require_constant(weight=weight)
    dims = tuple(range(-len(normalized_shape), 0))

    def forward(x: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        y = F.rms_norm(x, normalized_shape, weight, eps)
        # torch computes in float32 or more, and takes that precision's epsilon by default
        floor = torch.finfo(compute_dtype(x.dtype)).eps if eps is None else eps
        return y, kept(inverse_deviation(x, dims, floor, centred=False), weight)

    def backward(g: Tensor, r: Tensor, weight: Tensor | None = None) -> Tensor:
        return normalized_gradient(g, r, weight, dims, centred=False)

    if not input.requires_grad:
        return F.rms_norm(input, normalized_shape, weight, eps)
    return substitute(input, forward, backward)


def grouped(
    operation: Any, input: Tensor, groups: int, weight: Tensor | None, eps: float
) -> Tensor:
    """Normalisation of `groups` groups of channels of an input [batch, channels, …]."""
    shape = input.shape
    affine_shape = (1, shape[1], *[1] * (input.dim() - 2))

    def forward(x: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        r = inverse_deviation(x.reshape(shape[0], groups, -1), (-1,), eps, centred=True)
        return operation(x), kept(r, weight)

    def backward(g: Tensor, r: Tensor, weight: Tensor | None = None) -> Tensor:
        upstream = g if weight is None else g * weight.reshape(affine_shape)
        upstream = upstream.reshape(shape[0], groups, -1)
        return normalized_gradient(upstream, r, None, (-1,), centred=True).reshape(shape)

    return substitute(input, forward, backward) if input.requires_grad else operation(input)


@rule(
    F.group_norm,
    torch.group_norm,
    source=SOURCE,
    samples=[
        sample(t(2, 4, 3), 2, constant_t(4), constant_t(4)),
        sample(t(2, 4, 3, 3), 2),
    ],
)
def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """Group norm of an input [batch, channels, …]."""
    require_constant(weight=weight, bias=bias)
    return grouped(
        lambda x: F.group_norm(x, num_groups, weight, bias, eps), input, num_groups, weight, eps
    )


@rule(
    F.instance_norm,
    source=SOURCE,
    samples=[
        sample(t(2, 3, 4), weight=constant_t(3), bias=constant_t(3)),
        sample(
            t(2, 3, 4),
            running_mean=constant_t(3),
            running_var=constant_t(3, positive=True),
            use_input_stats=False,
        ),
    ],
)
def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Instance norm of an input [batch, channels, …]; linear where it uses running statistics."""
    require_constant(weight=weight, bias=bias)

    def operation(x: Tensor) -> Tensor:
        return F.instance_norm(
            x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        )

    if not use_input_stats:
        return operation(input)
    return grouped(operation, input, input.shape[1], weight, eps)


@rule(
    F.batch_norm,
    source=SOURCE,
    samples=[
        sample(
            t(2, 3, 4),
            constant_t(3),
            constant_t(3, positive=True),
            constant_t(3),
            constant_t(3),
        )
    ],
)
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch norm with running statistics is linear. With those of the batch, rows would mix."""
    require_constant(weight=weight, bias=bias)
    if training and input.requires_grad:
        raise Refusal("in training mode it mixes the rows of a batch; call model.eval() first")
    return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def check_norm(input: Any, p: float = 2.0, *_: Any, **__: Any) -> None:
    """Refuse what sums exponentials up, as in a softmax that is written out."""
    if p == 1:
        refuse_exponential(input, "e / e.sum(dim, keepdim=True)")


@rule(
    F.normalize,
    source=SOURCE,
    samples=[sample(t(2, 3)), sample(t(2, 3), 1.0, 0)],
)
def normalize(
    input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None
) -> Tensor:
    """X / max(‖x‖, ε) with a constant norm."""
    check_norm(input, p)
    return input / stop(input).norm(p, dim, keepdim=True).clamp_min(eps).expand_as(input)


@rule(F.local_response_norm, source=SOURCE, samples=[sample(t(2, 4, 3), 2)])
def local_response_norm(
    input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """X over a power of the energy of its neighbours, which is a constant."""

    def forward(x: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        # The denominator by itself: that of a channel alone is what the operation divides it by.
        y = F.local_response_norm(x, size, alpha, beta, k)
        energy = x.square().unsqueeze(1).flatten(3)
        padded = F.pad(energy, (0, 0, size // 2, (size - 1) // 2))
        mean = F.avg_pool2d(padded, (size, 1), stride=1).squeeze(1).reshape(x.shape)
        return y, ((mean * alpha + k) ** beta,)

    def backward(g: Tensor, denominator: Tensor) -> Tensor:
        return g / denominator

    if not input.requires_grad:
        return F.local_response_norm(input, size, alpha, beta, k)
    return substitute(input, forward, backward)


@rule(
    *(torch.var_mean, torch.std_mean),
    source=SOURCE,
    samples=[sample(t(2, 3), -1), sample(t(2, 3), dim=0, keepdim=True, correction=0)],
)
@family
def spread_and_mean(operation: Operation, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The variance or deviation is a constant, the mean is linear."""
    spread, mean = operation(x, *args, **kwargs)
    return stop(spread), mean
