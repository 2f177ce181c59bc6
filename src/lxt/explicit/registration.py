"""A layer map on one model: translated for the engine, put on, and taken off again."""

from __future__ import annotations

import copy
import functools
import operator
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from lxt.composite import Composite, matches, rule_name, target_name
from lxt.engine.callsite import caller, describe_callsite
from lxt.engine.opaque import tensors_in
from lxt.errors import UnmappedOperationWarning
from lxt.explicit import functional as lf
from lxt.explicit.composites import moves, not_in_place
from lxt.explicit.modules import INIT_MODULE_MAPPING, MultiheadAttention_CP
from lxt.gradients import carries_relevance
from lxt.rules.elementary import passthrough
from lxt.rules.registry import REGISTRY, Family, Operation, Refusal, in_place, spelled

__all__ = ["UNMAPPED", "Registration"]

LayerMap = Mapping[Any, Any]

UNMAPPED = "unmapped"
"""The name of the rule of what a map leaves to autograd."""


class Registration:
    """A layer map on one model, with what else goes with it; `remove` leaves the model as it was.

    Attributes:
        composite: the map as a table of the engine.
        propagation: the table at work.

    """

    def __init__(
        self,
        model: nn.Module,
        layer_map: LayerMap,
        canonizers: Iterable[Any],
        zennit_composite: Any,
        no_grad: bool,
    ) -> None:
        with ExitStack() as undo:
            for canonizer in canonizers:
                for instance in canonizer.apply(model):
                    undo.callback(instance.remove)
            if no_grad:
                undo.callback(_frozen(model))
            if isinstance(layer_map, Composite):
                self.composite = layer_map
            else:
                undo.callback(_replace_modules(model, layer_map))
                self.composite = _translated(model, layer_map)
            self.propagation = self.composite.register(model)
            undo.callback(self.propagation.remove)
            undo.callback(_annotated(model, self.composite))
            if zennit_composite is not None:
                zennit_composite.register(model)
                undo.callback(zennit_composite.remove)
            self._undo = undo.pop_all()

    def remove(self) -> None:
        """Take everything off again, in reverse."""
        self._undo.close()


def _frozen(model: nn.Module) -> Callable[[], None]:
    """Make parameters constants; returns what undoes it."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)

    def hand_back() -> None:
        for parameter in trainable:
            parameter.requires_grad_(True)

    return hand_back


# --- modules --------------------------------------------------------------------------------------


def _replace_modules(model: nn.Module, layer_map: LayerMap) -> Callable[[], None]:
    """Put modules in the place of those that they stand in for; returns what undoes it."""
    replaced: list[tuple[nn.Module, str, nn.Module]] = []

    def replace(parent: nn.Module, prefix: str) -> None:
        for name, child in list(parent.named_children()):
            path = f"{prefix}{name}"
            rule = next((r for key, r in layer_map.items() if _fits(key, path, child)), None)
            if rule in INIT_MODULE_MAPPING:
                stand_in = INIT_MODULE_MAPPING[rule](child, rule).train(child.training)
                replaced.append((parent, name, child))
                setattr(parent, name, stand_in)
                child = stand_in
            replace(child, f"{path}.")

    def put_back() -> None:
        for parent, name, child in reversed(replaced):
            setattr(parent, name, child)

    try:
        replace(model, "")
    except BaseException:
        put_back()
        raise
    return put_back


def _fits(key: Any, path: str, module: nn.Module) -> bool:
    if isinstance(key, str):
        return matches(path, key)
    return isinstance(key, type) and isinstance(module, key)


def _module_rule(rule: Any) -> Callable[..., Any]:
    """A `WrapModule` class as a rule of the engine."""

    def wrapped(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return rule(_bare(module))(*args, **kwargs)

    written = rule.func if isinstance(rule, functools.partial) else rule
    wrapped.__name__ = written.__name__
    wrapped.__module__ = written.__module__  # by which the engine knows whether to verify it
    return wrapped


def _bare(module: nn.Module) -> nn.Module:
    """A shallow twin without hooks: those of the module itself run around its rule."""
    twin = copy.copy(module)
    for name, value in module.__dict__.items():
        if name.endswith("_hooks") and isinstance(value, OrderedDict):
            twin.__dict__[name] = OrderedDict()
    twin.__dict__["forward"] = module.forward
    return twin


def _annotated(model: nn.Module, composite: Composite) -> Callable[[], None]:
    """Have `print(model)` show which modules have a rule; returns what undoes it."""
    noted: list[nn.Module] = []
    for name, module in model.named_modules():
        rule = composite.named_rule(name) or composite.class_rule(type(module))
        if rule is not None and rule is not passthrough and "extra_repr" not in module.__dict__:
            shown = f"{module.extra_repr()} | {rule_name(rule)}".removeprefix(" | ")
            module.__dict__["extra_repr"] = functools.partial(str, shown)
            noted.append(module)

    def remove() -> None:
        for module in noted:
            del module.__dict__["extra_repr"]

    return remove


# --- functions ------------------------------------------------------------------------------------

# Python's operators by the name of torch's operation.
_OPERATORS = {
    operator.add: "add",
    operator.sub: "sub",
    operator.mul: "mul",
    operator.matmul: "matmul",
    operator.truediv: "div",
    operator.pow: "pow",
    operator.neg: "neg",
    operator.iadd: "add_",
    operator.isub: "sub_",
    operator.imul: "mul_",
    operator.itruediv: "div_",
}

# The arguments that torch gives an operation, as these functions take them.
_ARGUMENTS: dict[Any, Callable[..., tuple[Any, ...]]] = {
    lf.add2: lambda a, b, alpha=1: (a, b if alpha == 1 else lf.mul2(b, alpha)),
    lf.mean: lambda x, dim=None, keepdim=False: (x, dim, keepdim),
    lf.layer_norm: lambda x, shape, weight=None, bias=None, eps=1e-5, *_: (x, weight, bias, eps),
    lf.softmax: lambda x, dim, *rest, dtype=None, **_: (
        (x, dim, next((a for a in rest if isinstance(a, torch.dtype)), dtype))
    ),
}


def _translated(model: nn.Module, layer_map: LayerMap) -> Composite:
    """A layer map as a table of the engine."""
    functions: dict[Any, Any] = {}
    modules: dict[Any, Any] = {}
    for key, rule in layer_map.items():
        if not isinstance(key, str | type):
            functions |= {op: _function_rule(rule) for op in _spellings(key)}
        elif rule not in INIT_MODULE_MAPPING:
            fitting = [type(module) for module in model.modules() if _fits(key, "", module)]
            for target in [key] if isinstance(key, str) else fitting:
                modules.setdefault(target, _module_rule(rule))
    for operation in REGISTRY:
        if operation in functions or moves(operation):
            continue
        plain = not_in_place(operation)
        if plain is not None and plain in functions:
            functions[operation] = in_place(_family(functions[plain]), plain)
        else:
            functions[operation] = _Unmapped(model).rule
    for cls in INIT_MODULE_MAPPING:
        if cls is not MultiheadAttention_CP:  # whose parts may have rules
            modules.setdefault(cls, passthrough)  # its own functions are its rule
    return Composite(
        {**functions, **modules},
        name="layer map",
        on_unknown="gradient",
        formulation="relevance",
    )


def _spellings(key: Any) -> list[Operation]:
    """The torch functions that a function key stands for."""
    name = _OPERATORS.get(key) or getattr(key, "__name__", "")
    found = list(spelled(name))
    return found if key in _OPERATORS or key in found else [key]


def _function_rule(rule: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a layer map as a rule of the engine."""
    written = rule.func if isinstance(rule, functools.partial) else rule
    arguments = _ARGUMENTS.get(written)

    def called(*args: Any, **kwargs: Any) -> Any:
        if arguments is None:
            return rule(*args, **kwargs)
        try:
            given = arguments(*args, **kwargs)
        except TypeError as error:
            raise Refusal(str(error)) from None
        return rule(*given)

    called.__name__ = getattr(written, "__name__", "rule")
    called.__module__ = getattr(written, "__module__", "")
    return called


def _family(rule: Any) -> Family:
    if isinstance(rule, Family):
        return rule
    return Family(lambda _, *args, **kwargs: rule(*args, **kwargs), rule_name(rule))


class _Unmapped:
    """The rule of an operation that the map leaves to autograd: its gradient, with a warning."""

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._warned = False
        self.rule = Family(self._apply, UNMAPPED)

    def _apply(self, operation: Operation, *args: Any, **kwargs: Any) -> Any:
        result = operation(*args, **kwargs)
        if not self._warned and any(map(carries_relevance, tensors_in(result))):
            self._warned = True
            model = self._model()
            where = f"\n{describe_callsite(model)}" if model is not None else ""
            frame = caller()
            warnings.warn_explicit(
                f"{target_name(operation)} is not in the layer map, and its plain gradient is no "
                f"relevance{where}",
                UnmappedOperationWarning,
                frame.f_code.co_filename,
                frame.f_lineno,
            )
        return result
