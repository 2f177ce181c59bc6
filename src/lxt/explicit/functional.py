"""Operations whose backward pass is a rule of LRP: what arrives as `x.grad` *is* the relevance.

Each has the value of the torch operation that it stands for, to the bit. Operands that carry no
relevance, those without `requires_grad`, get none; weights and biases never do. Where an operand
is broadcast, its relevance is summed to its own shape. Sums and quotients are computed in float32
or more. ε is added to a denominator as it is: see `_stabilize`.

Nothing is kept of an output: denominators are computed again in the backward pass, so a model may
write to what it gets in place. That leaves no memory to reuse: `inplace` is accepted, and ignored.

Equations and propositions: Achtibat et al. 2024, "AttnLRP". ε-rule: Bach et al. 2015.
"""

from __future__ import annotations

import torch
import torch.fx
from torch import Tensor

from lxt.errors import UnknownOperation
from lxt.explicit.check import conservation_check_wrap
from lxt.explicit.functions import (
    Dim,
    _stabilize,
    add2_tensors_fn,
    conv2d_epsilon_fn,
    layer_norm_grad_fn,
    linear_epsilon_fn,
    matmul_fn,
    mean_fn,
    mul2_fn,
    normalize_identity_fn,
    rms_norm_identity_fn,
    softmax_fn,
)
from lxt.rules.normalization import inverse_deviation

__all__ = [
    "_stabilize",
    "add2",
    "add2_tensors_fn",
    "conservation_check_wrap",
    "conv2d_epsilon",
    "conv2d_epsilon_fn",
    "layer_norm",
    "layer_norm_grad_fn",
    "linear_epsilon",
    "linear_epsilon_fn",
    "matmul",
    "matmul_fn",
    "mean",
    "mean_fn",
    "mul2",
    "mul2_fn",
    "normalize",
    "normalize_identity_fn",
    "rms_norm_identity",
    "rms_norm_identity_fn",
    "softmax",
    "softmax_fn",
]

Pair = int | tuple[int, int]


def add2(
    input_a: Tensor | float, input_b: Tensor | float, inplace: bool = False, epsilon: float = 1e-8
) -> Tensor:
    """a + b by the ε-rule (Eq. 8): R_a = a · R / (a + b + ε), and so for b.

    Args:
        input_a: a tensor or a number.
        input_b: a tensor or a number; the two are broadcast. A constant absorbs its share.
        inplace: ignored.
        epsilon: added to the denominator.

    """
    return add2_tensors_fn.apply(input_a, input_b, inplace, epsilon)  # pyright: ignore[reportReturnType]


def mul2(input_a: Tensor | float, input_b: Tensor | float, inplace: bool = False) -> Tensor:
    """a · b by the uniform rule (Prop. 3.2): half of R to each; all to one if the other's constant.

    Args:
        input_a: a tensor or a number.
        input_b: a tensor or a number; the two are broadcast.
        inplace: ignored.

    """
    return mul2_fn.apply(input_a, input_b, inplace)  # pyright: ignore[reportReturnType]


def matmul(
    input_a: Tensor, input_b: Tensor, inplace: bool = False, epsilon: float = 1e-8
) -> Tensor:
    """A · B by the uniform and the ε-rule: R_A = A ⊙ (R / (2y + ε)) Bᵀ (Prop. 3.3), and so for B.

    If one of the two is a constant, the other gets all: A ⊙ (R / (y + ε)) Bᵀ.

    Args:
        input_a: of shape [..., n, k] or [k].
        input_b: of shape [..., k, m] or [k]; leading dimensions are broadcast.
        inplace: ignored.
        epsilon: added to the denominator.

    """
    return matmul_fn.apply(input_a, input_b, inplace, epsilon)  # pyright: ignore[reportReturnType]


def linear_epsilon(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, epsilon: float = 1e-6
) -> Tensor:
    """`F.linear` by the ε-rule (Eq. 8): R_x = x ⊙ (R / (y + ε)) W. The bias absorbs its share.

    Args:
        input: of shape [..., in].
        weight: of shape [out, in] or [in].
        bias: of shape [out] or [].
        epsilon: added to the denominator.

    """
    return linear_epsilon_fn.apply(input, weight, bias, epsilon)  # pyright: ignore[reportReturnType]


def conv2d_epsilon(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    epsilon: float = 1e-6,
) -> Tensor:
    """`F.conv2d` by the ε-rule (Eq. 8); arguments and shapes are those of `F.conv2d`."""
    return conv2d_epsilon_fn.apply(input, weight, bias, stride, padding, dilation, groups, epsilon)  # pyright: ignore[reportReturnType]


def mean(x: Tensor, dim: Dim, keep_dim: bool, epsilon: float = 1e-6) -> Tensor:
    """The mean by the ε-rule (Eq. 8): R_x = x · R / (Σ x + ε).

    Args:
        x: of any shape.
        dim: the dimension or dimensions; all if None or empty.
        keep_dim: whether they stay, with size 1.
        epsilon: added to the sum.

    """
    return mean_fn.apply(x, dim, keep_dim, epsilon)  # pyright: ignore[reportReturnType]


def softmax(
    input: Tensor,
    dim: int,
    dtype: torch.dtype | None = None,
    temperature: float = 1.0,
    inplace: bool = False,
) -> Tensor:
    """Softmax of z = x/T by its Taylor expansion at z: R_i = z_i · (R_i − s_i Σ R) (Prop. 3.1).

    The bias of the expansion absorbs the rest. A logit of −∞ gets 0.

    Args:
        input: logits, of any shape.
        dim: the dimension that sums to one.
        dtype: to which the logits are converted first.
        temperature: T.
        inplace: ignored.

    """
    return softmax_fn.apply(input, dim, dtype, temperature, inplace)  # pyright: ignore[reportReturnType]


def rms_norm_identity(
    hidden_states: Tensor, weight: Tensor | None, variance_epsilon: float
) -> Tensor:
    """w · x / √(mean(x²) + ε) over the last dimension by the identity rule: R_x = R (Prop. 3.4).

    Args:
        hidden_states: of shape [..., n]; normalised in float32 or more.
        weight: of shape [n], or None.
        variance_epsilon: under the root.

    """
    return rms_norm_identity_fn.apply(hidden_states, weight, variance_epsilon)  # pyright: ignore[reportReturnType]


def layer_norm(
    hidden_states: Tensor, weight: Tensor | None, bias: Tensor | None, variance_epsilon: float
) -> Tensor:
    """Layer norm with a constant deviation σ (Prop. 3.4), and the ε-rule (Eq. 8) for the rest.

    R_x = x ⊙ Jᵀ (R / (y + 10⁻⁶)), where J is the Jacobian of (x − mean(x)) / σ · w with σ fixed.
    The bias absorbs its share.

    Args:
        hidden_states: of shape [..., *normalized].
        weight: of shape [*normalized], or None.
        bias: of the same shape, or None. Without either, the last dimension is normalised.
        variance_epsilon: σ² = var(x) + this.

    """
    return layer_norm_grad_fn.apply(hidden_states, weight, bias, variance_epsilon)  # pyright: ignore[reportReturnType]


def _layer_norm_slower(
    hidden_states: Tensor, weight: Tensor | None, bias: Tensor | None, variance_epsilon: float
) -> Tensor:
    """`layer_norm` over the last dimension, composed of the other functions; for comparison."""
    tiny = torch.finfo(hidden_states.dtype).tiny  # so that only the last sum adds an ε, as there
    centre = mean(hidden_states, -1, True, epsilon=tiny)
    y = add2(hidden_states, mul2(centre, -1), epsilon=tiny)
    with torch.no_grad():
        scale = inverse_deviation(hidden_states, (-1,), variance_epsilon, centred=True)
    y = mul2(y, scale.to(y.dtype))
    y = y if weight is None else mul2(y, weight.detach())
    return add2(y, 0 if bias is None else bias.detach(), epsilon=1e-6)


def normalize(
    input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None
) -> Tensor:
    """`F.normalize` by the identity rule: R_x = R (Prop. 3.4).

    Raises:
        UnknownOperation: `out` is given.

    """
    if out is not None:
        raise UnknownOperation("normalize(out=...) has no rule: leave `out` away")
    return normalize_identity_fn.apply(input, p, dim, eps)  # pyright: ignore[reportReturnType]


# A symbolic trace by torch.fx records these as calls, and does not look into them.
for _name in (
    "add2",
    "conv2d_epsilon",
    "layer_norm",
    "linear_epsilon",
    "matmul",
    "mean",
    "mul2",
    "normalize",
    "rms_norm_identity",
    "softmax",
    "_layer_norm_slower",
):
    torch.fx.wrap(_name)
