"""Modules in the place of torch's whose backward pass is a rule of LRP, and how they are made.

They share the parameters and hooks of what they replace. `x.grad` is the relevance; the rules are
those of `lxt.explicit.functional`. With a hook of Zennit on it, a module has Zennit's rule alone.
"""

# ruff: noqa: D102 - `forward` is described by its class

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lxt.engine.zennit import has_zennits_hook
from lxt.errors import InvalidInput, InvalidRule, UnknownOperation
from lxt.explicit import functional
from lxt.explicit.functions import layer_norm_grad_fn, rms_norm
from lxt.explicit.replacing import require_same_value, with_state
from lxt.explicit.rules import epsilon_lrp
from lxt.explicit.special import multi_head_attention_cp
from lxt.gradients import compute_dtype

__all__ = [
    "INIT_MODULE_MAPPING",
    "LayerNormEpsilon",
    "LinearEpsilon",
    "LinearInProjection",
    "LinearOutProjection",
    "MultiheadAttention_CP",
    "RMSNormIdentity",
    "SoftmaxDT",
    "copy_parameters_and_buffers_",
    "initialize_MHA",
    "initialize_bias",
    "initialize_generic",
]

M = TypeVar("M", bound=nn.Module)


class SoftmaxDT(nn.Softmax):
    """`nn.Softmax` by its Taylor expansion: see `functional.softmax`."""

    def __init__(
        self,
        dim: int | None,
        dtype: torch.dtype | None = None,
        temperature: float = 1.0,
        inplace: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(dim)
        self.dtype = dtype
        self.temperature = temperature
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        # what torch takes for a dimension that is not given
        dim = int(input.dim() not in (0, 1, 3)) if self.dim is None else self.dim
        if has_zennits_hook(self):
            input = input if self.dtype is None else input.to(self.dtype)
            return F.softmax(input / self.temperature, dim)
        return functional.softmax(input, dim, self.dtype, self.temperature, self.inplace)


class LinearEpsilon(nn.Linear):
    """`nn.Linear` by the ε-rule: see `functional.linear_epsilon`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        epsilon: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.epsilon = epsilon

    def forward(self, input: Tensor) -> Tensor:
        if has_zennits_hook(self):
            return super().forward(input)
        return functional.linear_epsilon(input, self.weight, self.bias, self.epsilon)


class RMSNormIdentity(nn.Module):
    """RMS norm over the last dimension by the identity rule: see `functional.rms_norm_identity`.

    Args:
        hidden_size: the size of that dimension.
        eps: under the root; None is what it is to `nn.RMSNorm`.

    """

    def __init__(self, hidden_size: int | Sequence[int], eps: float | None = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        eps = self.variance_epsilon
        eps = torch.finfo(compute_dtype(hidden_states.dtype)).eps if eps is None else eps
        norm = rms_norm if has_zennits_hook(self) else functional.rms_norm_identity
        return norm(hidden_states, self.weight, eps)


class LayerNormEpsilon(nn.LayerNorm):
    """`nn.LayerNorm` with a constant deviation and the ε-rule: see `functional.layer_norm`."""

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = normalized_shape if isinstance(normalized_shape, int) else list(normalized_shape)
        super().__init__(shape, eps, elementwise_affine, bias, device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        if has_zennits_hook(self):
            return super().forward(input)
        return layer_norm_grad_fn.apply(
            input, self.weight, self.bias, self.eps, 1e-6, self.normalized_shape
        )  # pyright: ignore[reportReturnType]


class LinearInProjection(nn.Module):
    """The projection of the values in attention: a class of its own, for rules to be put on."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: Tensor | None, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        return F.linear(x, self.weight, self.bias)


class LinearOutProjection(LinearInProjection):
    """The projection out of attention: a class of its own, for rules to be put on."""


class MultiheadAttention_CP(nn.Module):  # noqa: N801 - LXT's name
    """`nn.MultiheadAttention` by CP-LRP: see `special.multi_head_attention_cp`; no dropout.

    Made by `initialize_MHA`. `v_proj` and `out_proj` have the ε-rule, ε = 10⁻⁶, unless there is
    another on them: they were replaced by another module, or have hooks of Zennit.
    """

    q_proj_weight: Tensor | None
    k_proj_weight: Tensor | None
    bias_q: Tensor | None
    bias_k: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.in_proj_weight: nn.Parameter | None = None
        self.in_proj_bias: nn.Parameter | None = None
        self.q_proj_weight = self.k_proj_weight = None
        self.bias_q = self.bias_k = None
        self.v_proj = LinearInProjection(None, None)
        self.out_proj = LinearOutProjection(None, None)
        self.embed_dim: Any = None
        self.num_heads: Any = None
        self.head_dim: Any = None
        self.batch_first: Any = None
        self.register_load_state_dict_post_hook(_share_again)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if self.q_proj_weight is None or self.k_proj_weight is None:
            raise InvalidRule(
                "this MultiheadAttention_CP has no weights: make it by initialize_MHA"
            )
        if is_causal and attn_mask is None:
            raise InvalidInput("is_causal=True only says what attn_mask is: give attn_mask, too")
        return multi_head_attention_cp(
            query,
            key,
            value,
            self.batch_first,
            self.num_heads,
            self.head_dim,
            self.q_proj_weight,
            self.bias_q,
            self.k_proj_weight,
            self.bias_k,
            _with_rule(self.v_proj),
            _with_rule(self.out_proj),
            key_padding_mask,
            need_weights,
            attn_mask,
            average_attn_weights,
        )

    def share_projections(self) -> None:
        """Make query, key and value projections the parts of the joint parameters, if there are."""
        value = _innermost(self.v_proj)
        if self.in_proj_weight is not None:
            self.q_proj_weight, self.k_proj_weight, v = self.in_proj_weight.detach().chunk(3)
            if isinstance(value, LinearInProjection):
                value.weight = v
        if self.in_proj_bias is not None:
            self.bias_q, self.bias_k, v = self.in_proj_bias.detach().chunk(3)
            if isinstance(value, LinearInProjection):
                value.bias = v

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self.share_projections()  # pickle made tensors of their own of the parts

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # .to(...) makes new parameters, of which the parts would be the old ones'
        super()._apply(fn, recurse)
        self.share_projections()
        return self


def _share_again(module: Any, _: Any) -> None:
    module.share_projections()


def _innermost(module: Any) -> Any:
    """What is wrapped by rules."""
    while not isinstance(module, LinearInProjection) and isinstance(
        getattr(module, "module", None), nn.Module
    ):
        module = module.module
    return module


def _with_rule(projection: nn.Module) -> Callable[[Tensor], Tensor]:
    """`projection` by the ε-rule, unless it has a rule."""
    plain = type(projection) in (LinearInProjection, LinearOutProjection)
    if not plain or has_zennits_hook(projection):
        return projection
    return partial(epsilon_lrp, projection, 1e-6)


def copy_parameters_and_buffers_(original: nn.Module, replacement: nn.Module) -> None:
    """Make the parameters and buffers of `original` those of `replacement` too, under their names.

    They are shared, not copied: the same objects.
    """
    for path, module in original.named_modules():
        target = replacement.get_submodule(path)
        for name, parameter in module._parameters.items():
            target.register_parameter(name, parameter)
        for name, buffer in module._buffers.items():
            persistent = name not in module._non_persistent_buffers_set
            target.register_buffer(name, buffer, persistent)


def initialize_generic(original: nn.Module, replacement: type[M]) -> M:
    """A `replacement` with the settings, parameters, buffers and hooks of `original`.

    Its arguments are the attributes of those names that `original` has. Norms name theirs in many
    ways: `variance_epsilon` serves as `eps`, and the weight's size as `hidden_size`.

    Raises:
        InvalidRule: an argument that must be given is no attribute of `original`, or a module of
            this file would compute something else than it.

    """
    return _initialize(original, replacement, {})


def initialize_bias(original: nn.Module, replacement: type[M]) -> M:
    """`initialize_generic`, for classes whose argument `bias` says whether there is one."""
    return _initialize(original, replacement, {"bias": getattr(original, "bias", None) is not None})


def _initialize(original: nn.Module, replacement: type[M], given: dict[str, Any]) -> M:
    arguments = dict(given)
    for name, parameter in inspect.signature(replacement).parameters.items():
        if name in given or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if hasattr(original, name):
            arguments[name] = getattr(original, name)
        elif name == "eps" and hasattr(original, "variance_epsilon"):
            arguments[name] = original.variance_epsilon
        elif name == "hidden_size" and (shape := _normalized_shape(original)):
            arguments[name] = shape[0]
        elif parameter.default is parameter.empty:
            raise InvalidRule(
                f"{replacement.__name__} needs {name!r}, and {type(original).__name__} has no "
                "attribute of that name"
            )
    with torch.device("meta"):  # what it makes for itself is replaced at once
        module = replacement(**arguments)
    copy_parameters_and_buffers_(original, module)
    require_same_value(original, module, _STANDS_FOR)
    return with_state(original, module)


def _normalized_shape(original: Any) -> Sequence[int]:
    """What a norm normalises, empty if it does not show that."""
    weight = getattr(original, "weight", None)
    shape = getattr(original, "normalized_shape", () if weight is None else weight.shape)
    if len(shape) > 1:
        raise InvalidRule(
            f"{type(original).__name__} normalises {list(shape)}; RMSNormIdentity the last "
            "dimension only"
        )
    return shape


def initialize_MHA(  # noqa: N802 - LXT's name
    original: nn.MultiheadAttention, replacement: type[MultiheadAttention_CP]
) -> MultiheadAttention_CP:
    """A `MultiheadAttention_CP` that shares the parameters of an `nn.MultiheadAttention`.

    Raises:
        UnknownOperation: it has `add_bias_kv` or `add_zero_attn`.
        InvalidRule: it is of a class with a `forward` of its own.

    """
    if original.bias_k is not None or original.bias_v is not None:
        raise UnknownOperation("MultiheadAttention with add_bias_kv=True has no CP-LRP rule")
    if original.add_zero_attn:
        raise UnknownOperation("MultiheadAttention with add_zero_attn=True has no CP-LRP rule")
    module = replacement()
    module.in_proj_weight = original.in_proj_weight
    module.in_proj_bias = original.in_proj_bias
    if original.in_proj_weight is None:
        module.q_proj_weight = original.q_proj_weight
        module.k_proj_weight = original.k_proj_weight
        module.v_proj.weight = original.v_proj_weight
    module.share_projections()
    module.out_proj.weight = original.out_proj.weight
    module.out_proj.bias = original.out_proj.bias
    for name in ("embed_dim", "num_heads", "head_dim", "batch_first"):
        setattr(module, name, getattr(original, name))
    require_same_value(original, module, _STANDS_FOR)
    return with_state(original, module)


_STANDS_FOR: dict[type[nn.Module], type[nn.Module]] = {
    SoftmaxDT: nn.Softmax,
    LinearEpsilon: nn.Linear,
    RMSNormIdentity: nn.RMSNorm,
    LayerNormEpsilon: nn.LayerNorm,
    MultiheadAttention_CP: nn.MultiheadAttention,
}

INIT_MODULE_MAPPING: dict[type[nn.Module], Callable[..., nn.Module]] = {
    SoftmaxDT: initialize_generic,
    LinearEpsilon: initialize_bias,
    RMSNormIdentity: initialize_generic,
    LayerNormEpsilon: initialize_bias,
    MultiheadAttention_CP: initialize_MHA,
}
