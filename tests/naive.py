"""The rules a second time: slow, plain and obviously correct, in float64.

What a rule hands to the operands of y = f(x₁ … xₙ), given the gradient g of y, is written from the
equations in the files `naive_*.py`, one for each kind of operation; this is the table of them.

>>> call = Call.of(torch.mul, sample(t(2, 3), t(3)))
>>> gradients(call, call.upstream())  # what each operand that carries relevance must receive
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import naive_attention as attention
import naive_functions as functions
import naive_losses as losses
import naive_norms as norms
import naive_products as products
import naive_recurrent
from operations import Call, base_name

Reference = Callable[[Call, list[Tensor]], products.Gradients]

_NAMES: dict[Reference, str] = {
    products.linear: """
        add sub subtract rsub __rsub__ neg negative positive
        sum nansum mean nanmean cumsum diff trace embedding embedding_bag
        avg_pool1d avg_pool2d avg_pool3d
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d interpolate upsample
        view reshape view_as reshape_as expand_as flatten ravel contiguous clone cpu cuda
        unflatten transpose swapaxes swapdims permute movedim moveaxis t adjoint squeeze
        unsqueeze expand broadcast_to broadcast_tensors repeat tile repeat_interleave narrow
        select diagonal chunk tensor_split split split_with_sizes unbind hsplit cat concat
        concatenate stack hstack vstack dstack atleast_2d block_diag diag diag_embed tril triu
        pad constant_pad_nd unfold fold as_strided pixel_shuffle pixel_unshuffle to type_as
        float double half bfloat16 type copy resolve_conj resolve_neg T mT H mH
        __getitem__ __setitem__ gather take_along_dim take index_select masked_select
        masked_fill where roll flip rot90 fliplr flipud scatter scatter_add index_add index_copy
        index_fill masked_scatter index_put fill zero
        dropout alpha_dropout feature_dropout feature_alpha_dropout
        dropout1d dropout2d dropout3d
        rad2deg deg2rad sum_to_size atleast_1d atleast_3d meshgrid column_stack dsplit vsplit
        unsafe_chunk unsafe_split channel_shuffle select_scatter slice_scatter nan_to_num
        fft ifft rfft irfft hfft ihfft fft2 ifft2 rfft2 irfft2 fftn ifftn rfftn irfftn
        fftshift ifftshift stft istft view_as_complex view_as_real complex conj conj_physical
        real imag solve_triangular lerp pad_sequence nll_loss
    """,
    products.picks: """
        topk sort msort max min amax amin maximum minimum fmax fmin cummax cummin kthvalue
        max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d
        median nanmedian quantile nanquantile aminmax scatter_reduce
    """,
    products.product: """
        mul multiply matmul mm spmm bmm __rmatmul__ mv dot inner outer ger tensordot kron linear
        conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d einsum bilinear
        _grouped_mm grouped_mm cross vdot multi_dot chain_matmul
    """,
    products.sum_with_product: "addmm baddbmm addbmm addmv addr addcmul",
    products.quotient: "div divide true_divide",
    products.sum_with_quotient: "addcdiv",
    products.nothing: """
        rsqrt sqrt reciprocal __rdiv__ __rtruediv__ __rfloordiv__ var std norm vector_norm
        hypot cdist pairwise_distance
    """,
    functions.power: "pow __pow__ __ipow__",
    functions.prelu: "prelu",
    functions.polar: "polar",
    attention.softmax: "softmax log_softmax softmin",
    attention.attention: "scaled_dot_product_attention",
    attention.multi_head: "multi_head_attention_forward",
    attention.glu: "glu",
    products.places_are_constant: "grid_sample",
    products.product_over: "prod",
    products.cumulative_product: "cumprod",
    products.cosine_similarity: "cosine_similarity",
    functions.logarithm: "log log2 log10 logit",
    attention.logsumexp: "logsumexp",
    attention.logcumsumexp: "logcumsumexp",
    norms.spread_and_mean: "var_mean std_mean",
    norms.layer_norm: "layer_norm",
    norms.rms_norm: "rms_norm",
    norms.group_norm: "group_norm",
    norms.instance_norm: "instance_norm",
    norms.running_norm: "batch_norm",
    norms.normalize: "normalize",
    norms.local_response_norm: "local_response_norm",
    losses.mse_loss: "mse_loss",
    losses.l1_loss: "l1_loss",
    losses.cross_entropy: "cross_entropy",
}

REFERENCES: dict[str, Reference] = {
    **{name: reference for reference, names in _NAMES.items() for name in names.split()},
    **dict.fromkeys(functions.FUNCTIONS, functions.elementwise),
    **dict.fromkeys(naive_recurrent.NETWORKS, naive_recurrent.recurrent),
}

# Where the operand stands that a rule takes as a constant.
_WITH_A_CONSTANT: dict[Reference, int] = {
    products.quotient: 1,
    products.sum_with_quotient: 2,
    products.places_are_constant: 1,
}

_AS_AUTOGRAD: frozenset[Reference] = frozenset(
    {
        *(products.linear, products.picks, functions.prelu, norms.running_norm),
        *(attention.softmax, attention.logsumexp, attention.logcumsumexp),
        *(losses.l1_loss, losses.cross_entropy),
    }
)


@torch.no_grad()
def gradients(call: Call, g: list[Tensor]) -> list[Tensor]:
    """What each operand of the call that carries relevance must receive, by its rule."""
    result = REFERENCES[base_name(call.operation)](call, g)
    return [result[index] for index in call.carriers()]


def departs(call: Call) -> bool:
    """Whether the rule of this call differs from autograd's gradient."""
    name = base_name(call.operation)
    reference = REFERENCES[name]
    if reference is products.product:
        return len(call.carriers()) > 1
    if reference is products.sum_with_product:
        return len([i for i in call.carriers() if i != call.slot(0)]) > 1
    if reference in _WITH_A_CONSTANT:
        constant = call.slot(_WITH_A_CONSTANT[reference])
        return constant is not None and call.carries[constant]
    if reference is attention.attention:
        return len(call.carriers()) > 1
    if reference is norms.instance_norm:
        return call.value("use_input_stats", 5, True)
    return reference not in _AS_AUTOGRAD and name not in functions.SECANT_IS_DERIVATIVE
