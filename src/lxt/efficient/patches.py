"""What a patch map is written with: how to patch, and forwards to patch with.

A patch map says for a class, or for a Python module, which function patches it:

>>> patch_map = {
...     MyMLP: partial(patch_method, gated_mlp_forward),
...     MyRMSNorm: partial(patch_method, rms_norm_forward),
...     Dropout: partial(patch_method, dropout_forward),
...     modeling_mine: patch_attention,
... }
>>> monkey_patch(modeling_mine, patch_map)

Under such a map only what it names departs from autograd's own gradient. The rules of
`lxt.attnlrp`, which cover every operation, are a map too: `{modeling_mine: apply(lxt.attnlrp)}`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lxt.composite import Composite
from lxt.efficient.recipe import Recipe
from lxt.efficient.registries import wrap_attention_functions
from lxt.efficient.rules import divide_gradient, identity_rule_implicit, stop_gradient
from lxt.engine.mode import in_force
from lxt.errors import InvalidComposite
from lxt.rules.normalization import layer_norm

__all__ = [
    "apply",
    "check_already_patched",
    "cp_gated_mlp_forward",
    "cp_multi_head_attention_forward",
    "cp_wrap_attention_forward",
    "dropout_forward",
    "gated_mlp_forward",
    "layer_norm_forward",
    "mlp_forward",
    "non_linear_forward",
    "patch_attention",
    "patch_cp_attention",
    "patch_method",
    "replace_module",
    "rms_norm_forward",
    "wrap_attention_forward",
]


# --- how to patch ---------------------------------------------------------------------------------


def apply(composite: Composite) -> Callable[[ModuleType], bool]:
    """A patch for a Python module: every model that it defines runs under `composite`."""

    def patch(module: ModuleType) -> bool:
        recipe = Recipe.being_written()
        if recipe is None or module is not recipe.module:
            raise InvalidComposite(
                f"{composite.name!r} can be applied by monkey_patch, to the Python module that it "
                f"patches, and not to {module!r}"
            )
        recipe.base = composite
        return True

    patch.__name__ = f"apply({composite.name})"
    return patch


def check_already_patched(target_fn: Any, new_fn: Any) -> bool:
    """Whether `target_fn` is `new_fn`, or wraps attention in the same way; warns if so."""
    kind = getattr(new_fn, "wraps_attention", new_fn)
    if getattr(target_fn, "wraps_attention", target_fn) is not kind:
        return False
    warnings.warn(f"{getattr(target_fn, '__name__', target_fn)} is patched already", stacklevel=2)
    return True


def patch_method(
    fn: Callable[..., Any],
    module: type[nn.Module],
    method_name: str = "forward",
    keep_original: bool = False,
) -> bool:
    """Make `fn` a method of a class.

    Within `monkey_patch` a `forward` is replaced only where a model of the patched Python module
    runs it, so that a class of torch stays what it is for all others. Otherwise the class itself
    changes.

    Args:
        fn: the method, whose first argument is the instance.
        module: the class.
        method_name: the name of the method.
        keep_original: whether the instance that `fn` gets has the original one, as
            `original_forward` for a `forward`.

    Returns:
        Whether it was patched; false, with a warning, where it was before.

    """
    recipe = Recipe.being_written()
    if recipe is not None and method_name == "forward":
        recipe.replace_forward(module, fn, keep_original)
        return True
    original = getattr(module, method_name)
    if check_already_patched(original, fn):
        return False
    if recipe is not None:
        recipe.warn_if_foreign(module, method_name)
    if keep_original:
        setattr(module, f"original_{method_name}", original)
    setattr(module, method_name, fn)
    return True


def replace_module(patched_module: Any, original_module: Any) -> bool:
    """Give `original_module` all public attributes of `patched_module`, an edited copy of it."""
    if original_module is patched_module:
        return False
    for name in dir(patched_module):
        if not name.startswith("__"):
            setattr(original_module, name, getattr(patched_module, name))
    return True


def patch_attention(module: ModuleType) -> bool:
    """AttnLRP for all attention functions that a Python module of `transformers` calls.

    The module gets its own view of the registry of attention functions, which itself, shared by all
    models, stays as it is.
    """
    return _patch_attention(module, wrap_attention_forward)


def patch_cp_attention(module: ModuleType) -> bool:
    """CP-LRP for all attention functions that a Python module of `transformers` calls."""
    return _patch_attention(module, cp_wrap_attention_forward)


def _patch_attention(module: Any, wrap: Callable[..., Any]) -> bool:
    eager = getattr(module, "eager_attention_forward", None)
    if eager is None or not hasattr(module, "ALL_ATTENTION_FUNCTIONS"):
        raise InvalidComposite(
            f"{module.__name__} calls no registered attention function that could be patched: "
            "monkey_patch it without a patch_map, or with lxt.efficient.patches.apply(lxt.attnlrp)"
        )
    if check_already_patched(eager, wrap(eager)):
        return False
    module.eager_attention_forward = wrap(eager)
    module.ALL_ATTENTION_FUNCTIONS = wrap_attention_functions(module.ALL_ATTENTION_FUNCTIONS, wrap)
    return True


# --- AttnLRP --------------------------------------------------------------------------------------


def rms_norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    """RMS norm whose root mean square is a constant (Achtibat et al. 2024, Prop. 3.4)."""
    dtype = hidden_states.dtype
    x = hidden_states.to(torch.float32)
    root = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
    return self.weight * (x * stop_gradient(root)).to(dtype)


def layer_norm_forward(self: Any, x: Tensor) -> Tensor:
    """Layer norm whose deviation is a constant (Achtibat et al. 2024, Prop. 3.4)."""
    shape = getattr(self, "normalized_shape", None) or x.shape[-1:]
    weight, bias = (None if p is None else stop_gradient(p) for p in (self.weight, self.bias))
    return layer_norm(x, shape, weight, bias, self.eps)


def gated_mlp_forward(self: Any, x: Tensor) -> Tensor:
    """Gated MLP: the identity rule for its activation, half to gate and to value each."""
    gate = identity_rule_implicit(self.act_fn, self.gate_proj(x))
    return self.down_proj(divide_gradient(gate * self.up_proj(x), 2))


def mlp_forward(self: Any, x: Tensor) -> Tensor:
    """MLP: the identity rule for its activation."""
    return self.down_proj(identity_rule_implicit(self.act_fn, self.up_proj(x)))


def non_linear_forward(self: Any, x: Tensor) -> Tensor:
    """Any element-wise module, patched with `keep_original=True`: the identity rule."""
    return identity_rule_implicit(self.original_forward, x)


def dropout_forward(self: Any, x: Tensor) -> Tensor:
    """No dropout, in training mode either, which gradient checkpointing may need."""
    return x


def wrap_attention_forward(forward_fn: Callable[..., Any]) -> Callable[..., Any]:
    """An attention function that hands a quarter to query and key, and half to the value."""

    def attention_forward(
        module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        query, key, value = (
            divide_gradient(x, factor) for x, factor in ((query, 4), (key, 4), (value, 2))
        )
        return forward_fn(module, query, key, value, *args, **_without_dropout(kwargs))

    attention_forward.wraps_attention = wrap_attention_forward  # pyright: ignore[reportFunctionMemberAccess]
    return attention_forward


# --- CP-LRP ---------------------------------------------------------------------------------------


def cp_wrap_attention_forward(forward_fn: Callable[..., Any]) -> Callable[..., Any]:
    """An attention function whose weights are constants (Ali et al. 2022)."""

    def cp_attention_forward(
        module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        if in_force.mode is not None and in_force.mode.propagation.on_unknown == "error":
            raise InvalidComposite(
                "the attention of this model is patched by patch_cp_attention, and the model under "
                f"{in_force.mode.propagation.composite.name!r}, which has rules for attention too: "
                "take one of the two"
            )
        query, key = stop_gradient(query), stop_gradient(key)
        return forward_fn(module, query, key, value, *args, **_without_dropout(kwargs))

    cp_attention_forward.wraps_attention = cp_wrap_attention_forward  # pyright: ignore[reportFunctionMemberAccess]
    return cp_attention_forward


def cp_multi_head_attention_forward(
    self: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """`torch.nn.MultiheadAttention`, patched with `keep_original=True`: weights are constants."""
    query, key = stop_gradient(query), stop_gradient(key)
    return self.original_forward(query, key, value, *args, **kwargs)


def cp_gated_mlp_forward(self: Any, x: Tensor) -> Tensor:
    """Gated MLP whose gate is a constant."""
    gate = self.act_fn(stop_gradient(self.gate_proj(x)))
    return self.down_proj(gate * self.up_proj(x))


def _without_dropout(kwargs: dict[str, Any]) -> dict[str, Any]:
    return kwargs | {"dropout": 0.0} if "dropout" in kwargs else kwargs
