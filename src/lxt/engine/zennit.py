"""What Zennit's hooks on a module deal in; Zennit itself need not be there."""

from __future__ import annotations

from torch import nn

from lxt.engine.nodes import Formulation
from lxt.errors import InvalidComposite

__all__ = ["has_zennits_hook", "require_zennit_speaks", "zennit_speaks"]

# Its other hooks deal in gradients of their own.
_RULES = frozenset({"zennit.core.BasicHook", "zennit.rules.Pass"})


def has_zennits_hook(module: nn.Module) -> bool:
    """Whether any hook of Zennit is on a module, a rule or not: its gradient is Zennit's affair."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    owners = {type(getattr(hook, "__self__", None)) for hook in hooks}
    return any(base.__module__.startswith("zennit.") for cls in owners for base in cls.__mro__)


def zennit_speaks(module: nn.Module) -> Formulation | None:
    """What the rules of Zennit on a module take and return; None if there are none.

    They keep the form in which they were registered: relevance by themselves, gradients under
    `monkey_patch_zennit`.
    """
    for hook in module._forward_pre_hooks.values():
        owner = getattr(hook, "__self__", None)
        if _RULES & {f"{cls.__module__}.{cls.__qualname__}" for cls in type(owner).__mro__}:
            method = getattr(hook, "__func__", hook)
            return "gradient" if method.__module__.startswith("lxt.") else "relevance"
    return None


def require_zennit_speaks(model: nn.Module, formulation: Formulation) -> None:
    """Make sure that Zennit's rules on a model deal in what the rules around them do.

    Raises:
        InvalidComposite: they don't.
    """
    for name, module in model.named_modules():
        spoken = zennit_speaks(module) if module._forward_pre_hooks else None
        if spoken is not None and spoken != formulation:
            advice = "after" if spoken == "relevance" else "without"
            raise InvalidComposite(
                f"Zennit's rule on {name or type(model).__name__!r} hands back {spoken}, and the "
                f"rules around it {formulation}: register Zennit's composite {advice} "
                "lxt.efficient.monkey_patch_zennit()"
            )
