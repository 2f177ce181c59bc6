"""Which modules and functions of a model have a rule, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lxt.composite import Composite
from lxt.engine.callsite import innermost_module
from lxt.engine.opaque import tensors_in
from lxt.entries import rule_name, target_name
from lxt.errors import InvalidInput
from lxt.explicit.composites import moves
from lxt.explicit.registration import Registration
from lxt.gradients import carries_relevance
from lxt.rules.elementary import passthrough
from lxt.rules.registry import REGISTRY

__all__ = ["print_table"]

YES, NO, UNKNOWN, VOID = "[green]✓[/]", "[red]✗[/]", "[yellow]?[/]", "-"


def print_table(registration: Registration, dummy_inputs: Mapping[str, Any] | None) -> None:
    """Print what of a model has a rule, what needs none, and what lacks one.

    Args:
        registration: the rules on the model.
        dummy_inputs: arguments of the model by name, to run it with; without them the table holds
            modules only.

    Raises:
        InvalidInput: `dummy_inputs` are not by name.

    """
    model, composite = registration.propagation.model, registration.composite
    table = Table("module", "function", "replaced by", "LRP compatible")
    ruled: set[str] = set()
    for name, module in model.named_modules():
        rule = composite.module_rule(name, module)
        if rule is not None:
            ruled.add(name)
            place = f"{name or 'model'} ({type(module).__name__})"
            stands_in = rule is passthrough  # whose own functions are its rule
            table.add_row(place, VOID, type(module).__name__ if stands_in else rule_name(rule), YES)
    if dummy_inputs is not None:
        for (place, function), fate in _fates(registration, ruled, dummy_inputs).items():
            table.add_row(place, function, *fate)
    Console().print(table)


def _fates(
    registration: Registration, ruled: set[str], dummy_inputs: Mapping[str, Any]
) -> dict[tuple[str, str], tuple[str, str]]:
    """The functions that a run calls outside of modules with a rule, and what becomes of each."""
    if not isinstance(dummy_inputs, Mapping):
        raise InvalidInput(f"dummy_inputs are {dummy_inputs!r}: give the model's arguments by name")
    inputs = {
        name: value.detach().clone().requires_grad_()
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for name, value in dummy_inputs.items()
    }
    recorder = _Recorder(registration.propagation.model, ruled)
    with torch.enable_grad(), recorder:
        registration.propagation.plain(**inputs)
    return {
        (place, target_name(function)): _fate(registration.composite, function)
        for place, function in recorder.calls
    }


def _fate(composite: Composite, function: Any) -> tuple[str, str]:
    """What replaces a function, and whether its relevance is right."""
    rule = composite.function_rule(function)
    if moves(function):
        return VOID, YES
    if rule is not None:
        return rule_name(rule), YES
    return VOID, NO if function in REGISTRY else UNKNOWN


class _Recorder(TorchFunctionMode):
    """Notes the functions whose result carries relevance, and the class of module they run in."""

    def __init__(self, model: nn.Module, ruled: set[str]) -> None:
        super().__init__()
        self._model = model
        self._ruled = ruled
        self.calls: dict[tuple[str, Any], None] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(map(carries_relevance, tensors_in(result))):
            name, module = innermost_module(self._model)
            parts = name.split(".")
            within = {".".join(parts[:n]) for n in range(1, len(parts) + 1)} | {""}
            if not within & self._ruled:
                self.calls[type(module).__name__, func] = None
        return result
