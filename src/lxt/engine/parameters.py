"""Parameters count as constants while a forward runs under a composite, and are handed back after.

Whether a tensor carries relevance is whether it requires grad, so parameters must not. Models may
share parameters, and forwards may overlap in several threads: each parameter is frozen by the first
that needs it so and handed back by the last.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from lxt.errors import InvalidModel

__all__ = ["ConstantParameters"]


@dataclass
class _Frozen:
    parameter: nn.Parameter
    holders: int


_frozen: dict[int, _Frozen] = {}
_lock = threading.Lock()


class ConstantParameters:
    """The parameters of some modules as constants, until `release`."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._places: list[tuple[nn.Module, str, _Frozen]] = []
        holding = [module for module in modules if _holds_parameters(module)]
        for module in holding:
            _require_leaves(module)
        with _lock:
            for module in holding:
                for name, parameter in module._parameters.items():
                    if parameter is not None:
                        self._freeze(module, name, parameter)

    def _freeze(self, module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        frozen = _frozen.get(id(parameter))
        if frozen is None:
            if not parameter.requires_grad:
                return
            parameter.requires_grad_(False)
            frozen = _frozen[id(parameter)] = _Frozen(parameter, 0)
        frozen.holders += 1
        self._places.append((module, name, frozen))

    def release(self) -> None:
        """Hand them back as they were, and those that took their place, as offloading does."""
        with _lock:
            for module, name, frozen in self._places:
                frozen.holders -= 1
                if frozen.holders == 0:
                    del _frozen[id(frozen.parameter)]
                    frozen.parameter.requires_grad_(True)
                current = dict(module._parameters).get(name)  # scripted ones have no `get`
                if current is None or current is frozen.parameter or id(current) in _frozen:
                    continue
                if current.is_floating_point():
                    current.requires_grad_(True)
            self._places.clear()


def _holds_parameters(module: nn.Module) -> bool:
    return bool(module._parameters) or "_former_parameters" in module.__dict__


def _require_leaves(module: nn.Module) -> None:
    """Refuse parameters that are computed: they would pass for carriers of relevance."""
    held: dict[str, Tensor | None] = dict(module._parameters)
    held |= module.__dict__.get("_former_parameters", {})
    for name, parameter in held.items():
        if parameter is not None and parameter.requires_grad and not parameter.is_leaf:
            raise InvalidModel(
                f"the parameter {name!r} of a {type(module).__name__} is computed from another "
                "(by DataParallel or torch.func.functional_call), so nothing tells it from what is "
                "explained: call model.requires_grad_(False) first"
            )
