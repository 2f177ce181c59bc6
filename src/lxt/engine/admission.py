"""What must hold of a model before a composite is put on it, and which models have one."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.parameter import is_lazy

from lxt.engine.walk import modules_in
from lxt.errors import AlreadyRegistered, InvalidModel

if TYPE_CHECKING:
    from lxt.propagation import Propagation

__all__ = ["claim", "release", "require_free", "require_module", "require_ready"]

# Every module of a registered model → its propagation. Weak on both sides: it keeps nothing alive.
_registered: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Propagation]] = (
    weakref.WeakKeyDictionary()
)


def require_module(model: Any) -> None:
    """Make sure that relevance can flow through a model at all.

    Raises:
        InvalidModel: it is no module, or a class of modules.
    """
    if not isinstance(model, nn.Module):
        text = repr(model)
        text = text if len(text) <= 60 else f"a {type(model).__name__}"
        raise InvalidModel(
            f"{text} is no torch.nn.Module instance: relevance can't flow through it"
        )


def claim(model: nn.Module, propagation: Propagation) -> None:
    """Note that a model and all modules within are under a propagation."""
    reference = weakref.ref(propagation)
    for module in modules_in(model):
        _registered[module] = reference


def release(model: nn.Module, propagation: Propagation) -> None:
    """Take that back."""
    for module in modules_in(model):
        if _propagation_of(module) is propagation:
            del _registered[module]


def require_free(model: nn.Module) -> None:
    """Make sure that no other propagation has the model, or a module within.

    Raises:
        AlreadyRegistered: one has.
    """
    for module in modules_in(model):
        if (other := _propagation_of(module)) is not None:
            name = _name_of(module, model)
            part = f"its module {name!r}" if name else "this model"
            raise AlreadyRegistered(
                f"{part} ({type(module).__name__}) is under {other.composite.name!r} already: "
                "call .remove() on that handle, or leave its context, first"
            )


def _name_of(module: nn.Module, model: nn.Module) -> str:
    return next(name for name, part in model.named_modules() if part is module)


def require_ready(model: nn.Module) -> None:
    """Make sure that a model can run, and shows which operations it runs.

    Raises:
        InvalidModel: its weights aren't loaded or have no shape yet, or it is compiled.
    """
    modules = modules_in(model)
    if not any("_hf_hook" in m.__dict__ or m._forward_pre_hooks for m in modules):
        for module in modules:
            for held, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None and tensor.is_meta:
                    path = _name_of(module, model)
                    raise InvalidModel(
                        f"{f'{path}.{held}'.lstrip('.')} of {type(model).__name__} is on the "
                        "device meta, without values, and nothing is there to load it: load the "
                        "weights, or use accelerate's dispatch_model, whose hooks do"
                    )
    for module in modules:
        compiled = type(module).__name__ == "OptimizedModule"
        lazy = any(p is not None and is_lazy(p) for p in module._parameters.values())
        if not (compiled or lazy or module._compiled_call_impl is not None):
            continue
        name = _name_of(module, model)
        where = f"its module {name!r}" if name else "this model"
        if lazy:
            raise InvalidModel(
                f"{where} ({type(module).__name__}) has parameters without a shape yet: run the "
                "model once first"
            )
        raise InvalidModel(
            f"{where} is compiled, so nothing shows which operations it runs: give the model "
            "as it was before torch.compile"
        )


def _propagation_of(module: nn.Module) -> Propagation | None:
    reference = _registered.get(module)
    return reference() if reference else None
