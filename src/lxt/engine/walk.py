"""Every module of a model, quickly: `nn.Module.modules` spells a path for each of them."""

from __future__ import annotations

from torch import nn

__all__ = ["modules_in"]


def modules_in(model: nn.Module) -> list[nn.Module]:
    """Each distinct module of a model, itself first, in the order of `model.modules()`."""
    found: dict[nn.Module, None] = {}
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if module in found:
            continue
        found[module] = None
        children = module._modules
        if type(children) is not dict:
            children = dict(children)  # those of scripted modules have no `values`
        if children:
            waiting.extend([child for child in reversed(children.values()) if child is not None])
    return list(found)
