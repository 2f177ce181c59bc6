"""Whether one module can take another's place, and what it takes over besides the parameters."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lxt.errors import InvalidRule

__all__ = ["require_same_value", "with_state"]

M = TypeVar("M", bound=nn.Module)

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


def with_state(original: nn.Module, module: M) -> M:
    """`module` in the mode of `original`, and with its hooks.

    The dictionaries are shared: a hook is put on both, and taken off both.
    """
    for name in _HOOKS:
        module.__dict__[name] = original.__dict__[name]
    return module.train(original.training)


def require_same_value(
    original: nn.Module, module: nn.Module, stands_for: dict[type[nn.Module], type[nn.Module]]
) -> None:
    """Raise if `module` would compute something else than `original`.

    Args:
        original: any module.
        module: what is to take its place; if it has a `forward` of its own, nothing is checked.
        stands_for: classes whose forward `module` may have, and those that they stand for.

    Raises:
        InvalidRule: the forward of `original` is not torch's, and it has parameters besides weight
            and bias or gives something else for random numbers.

    """
    ours = next((cls for cls in stands_for if type(module).forward is cls.forward), None)
    if ours is None:
        return
    torchs = stands_for[ours]
    given = {name for name, _ in original.named_parameters()}
    missing = {name for name, p in module.named_parameters() if p.is_meta} - given
    known = type(original).forward in (ours.forward, torchs.forward)
    if known and "forward" not in vars(original) and not missing:
        return
    # parameters that the replacement has no use for may make no difference for the moment only
    if missing or given - {"weight", "bias"} or not _agree(original, module):
        cls = type(original)
        raise InvalidRule(
            f"{cls.__module__}.{cls.__qualname__} does not compute what {torchs.__name__} does, "
            f"and {ours.__name__} in its place would change the model's value: map it to a rule "
            "such as EpsilonRule, or its functions to theirs"
        )


def _agree(original: nn.Module, module: nn.Module) -> bool:
    """Whether two modules give the same for numbers such as activations, and for small ones."""
    weight: Any = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.is_meta:
        return True  # for all that can be told without numbers
    if isinstance(module, nn.Linear):
        shape = [module.in_features]
    elif isinstance(module, nn.LayerNorm):
        shape = module.normalized_shape
    else:
        shape = [4, 8] if weight is None else weight.shape
    sample = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    sample = torch.cat([sample, 0.03 * sample])  # small enough for a norm's `eps` to matter
    sample = sample.to(weight) if isinstance(weight, Tensor) else sample
    try:
        with torch.no_grad():
            theirs, ours = (m.forward(sample.clone()).double() for m in (original, module))
    except Exception:
        return False  # it takes other arguments, or returns something else than a tensor
    tolerance = 16 * torch.finfo(sample.dtype).eps * float(ours.abs().max())
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=0, atol=tolerance)
