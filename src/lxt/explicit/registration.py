"""A layer map on one model: translated for the engine, put on, and taken off again."""

from __future__ import annotations

import copy
import functools
import inspect
import operator
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lxt.composite import Composite
from lxt.engine.admission import require_module
from lxt.engine.callsite import describe_callsite, innermost_module, warn_caller
from lxt.engine.zennit import has_zennits_hook
from lxt.entries import rule_name
from lxt.errors import InvalidComposite, UnmappedOperationWarning
from lxt.explicit import functional as lf
from lxt.explicit.composites import moves, not_in_place
from lxt.explicit.modules import INIT_MODULE_MAPPING, MultiheadAttention_CP
from lxt.explicit.rules import epsilon_lrp
from lxt.rules.elementary import passthrough
from lxt.rules.registry import (
    OPERATORS,
    REGISTRY,
    Operation,
    Refusal,
    as_family,
    in_place,
    spelled,
)
from lxt.structure import matches, require_names

__all__ = ["Registration"]

LayerMap = Mapping[Any, Any]


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
        require_module(model)
        with ExitStack() as undo:
            for canonizer in canonizers:
                for instance in _canonized(canonizer, model):
                    undo.callback(instance.remove)
            if no_grad:
                undo.callback(_frozen(model))
            if isinstance(layer_map, Composite):
                self.composite = layer_map
            else:
                require_names(model, [key for key in layer_map if isinstance(key, str)])
                undo.callback(_replace_modules(model, layer_map))
                self.composite = _translated(model, layer_map)
            self.propagation = self.composite.register(model)
            self.propagation.on_plain = _Unmapped(model)
            undo.callback(self.propagation.remove)
            undo.callback(_annotated(model, self.composite))
            if zennit_composite is not None:
                undo.callback(zennit_composite.remove)
                zennit_composite.register(model)
            self._undo = undo.pop_all()

    def remove(self) -> None:
        """Take everything off again, in reverse."""
        self._undo.close()


def _canonized(canonizer: Any, model: nn.Module) -> Iterable[Any]:
    """Apply a canonizer, of LXT's kind, which is told whether to print, or of Zennit's."""
    if not hasattr(canonizer, "apply"):
        raise InvalidComposite(f"{canonizer!r} is no canonizer: it has no apply(model)")
    takes_verbose = len(inspect.signature(canonizer.apply).parameters) > 1
    return (canonizer.apply(model, False) if takes_verbose else canonizer.apply(model)) or ()


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


def _rule_for(layer_map: LayerMap, path: str, module: nn.Module) -> Any:
    """The rule of the first key that fits a module, or None."""
    for key, rule in layer_map.items():
        if isinstance(key, str) and matches(path, key):
            return rule
        if isinstance(key, type) and isinstance(module, key):
            return rule
    return None


def _replace_modules(model: nn.Module, layer_map: LayerMap) -> Callable[[], None]:
    """Put modules in the place of those that they stand in for; returns what undoes it."""
    stand_ins: dict[nn.Module, nn.Module] = {}
    replaced: list[tuple[nn.Module, str, nn.Module]] = []

    def replace(parent: nn.Module, prefix: str) -> None:
        for name, child in list(parent._modules.items()):
            if child is None:
                continue
            rule = _rule_for(layer_map, f"{prefix}{name}", child)
            if rule in INIT_MODULE_MAPPING:
                if child not in stand_ins:
                    stand_in = INIT_MODULE_MAPPING[rule](child, rule)
                    stand_ins[child] = stand_in.train(child.training)
                replaced.append((parent, name, child))
                child = stand_ins[child]
                setattr(parent, name, child)
            if rule is None or rule in INIT_MODULE_MAPPING:
                replace(child, f"{prefix}{name}.")  # what has a rule of its own hides its parts

    def put_back() -> None:
        for parent, name, child in reversed(replaced):
            stand_in = stand_ins[child]
            if parent._modules.get(name) is stand_in:
                child._is_full_backward_hook = stand_in._is_full_backward_hook
                setattr(parent, name, child.train(stand_in.training))

    try:
        replace(model, "")
    except BaseException:
        put_back()
        raise
    return put_back


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
        rule = composite.module_rule(name, module)
        if rule not in (None, passthrough) and "extra_repr" not in module.__dict__:
            shown = f"{module.extra_repr()} | {rule_name(rule)}".removeprefix(" | ")
            module.__dict__["extra_repr"] = functools.partial(str, shown)
            noted.append(module)

    def remove() -> None:
        for module in noted:
            del module.__dict__["extra_repr"]

    return remove


# --- functions ------------------------------------------------------------------------------------


def _add2(rule: Any, input: Any, other: Any, alpha: float = 1) -> Tensor:
    if alpha == 1:
        return rule(input, other)
    return epsilon_lrp(lambda a, b: torch.add(a, b, alpha=alpha), 1e-8, input, other)


def _matmul(rule: Any, input: Any, other: Any = None, mat2: Any = None) -> Tensor:
    return rule(input, mat2 if other is None else other)


def _mean(rule: Any, input: Any, dim: Any = None, keepdim: bool = False, axis: Any = None) -> Any:
    return rule(input, axis if dim is None else dim, keepdim)


def _softmax(rule: Any, input: Any, *args: Any, dtype: Any = None, **named: Any) -> Tensor:
    # torch.softmax(x, dim, dtype), F.softmax(x, dim, stacklevel, dtype)
    dim = args[0] if args else named.get("dim", named.get("axis"))
    return rule(input, dim, next((a for a in args if isinstance(a, torch.dtype)), dtype))


def _layer_norm(
    rule: Any, input: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_
) -> Tensor:
    if weight is None and len(shape) > 1:
        raise Refusal("it normalises several dimensions without a weight, whose shape tells them")
    return rule(input, weight, bias, eps)


# How torch calls what these functions stand for.
_CALLED: dict[Any, Callable[..., Tensor]] = {
    lf.add2: _add2,
    lf.mul2: lambda rule, input, other: rule(input, other),
    lf.matmul: _matmul,
    lf.mean: _mean,
    lf.softmax: _softmax,
    lf.layer_norm: _layer_norm,
}


def _translated(model: nn.Module, layer_map: LayerMap) -> Composite:
    """A layer map as a table of the engine."""
    modules: dict[Any, Any] = {
        # Their own functions are their rule. Parts of attention may have others.
        cls: passthrough
        for cls in INIT_MODULE_MAPPING
        if not issubclass(cls, MultiheadAttention_CP)
    }
    for path, module in model.named_modules():
        rule = _rule_for(layer_map, path, module)
        if rule is not None and rule not in INIT_MODULE_MAPPING:
            modules[f"/{path}"] = _module_rule(rule)
    functions: dict[Any, Any] = {
        operation: entry.rule for operation, entry in REGISTRY.items() if moves(operation)
    }
    for key, rule in layer_map.items():
        if not isinstance(key, str | type):
            functions |= _function_rules(key, rule)
    for operation in REGISTRY:
        plain = not_in_place(operation)
        if plain is not None and plain in functions and operation not in functions:
            functions[operation] = in_place(as_family(functions[plain]), plain)
    return Composite(
        {**functions, **modules}, name="layer map", on_unknown="gradient", formulation="relevance"
    )


_SYNONYMS = {
    "mul": ("mul", "multiply"),
    "div": ("div", "divide", "true_divide"),
    "sub": ("sub", "subtract"),
    "pow": ("pow", "__pow__"),
}


def _function_rules(key: Any, rule: Callable[..., Any]) -> dict[Operation, Any]:
    """The rules of all torch functions that a key stands for."""
    name = OPERATORS.get(key) or getattr(key, "__name__", "").strip("_")
    found = list(spelled(*_SYNONYMS.get(name, (name,))))
    operations = found if key in OPERATORS or key in found else [key]
    called = _as_torch_calls(rule)
    rules: dict[Operation, Any] = {}
    for operation in operations:
        plain = not_in_place(operation)
        rules[operation] = called if plain is None else in_place(as_family(called), plain)
    if name == "sub" and key not in (operator.isub, Tensor.sub_):
        for reflected in (torch.rsub, Tensor.__rsub__):  # `2 - x` is x.__rsub__(2)
            rules[reflected] = functools.partial(_reflected, called)
    return rules


def _reflected(rule: Callable[..., Any], input: Tensor, other: Any) -> Any:
    return rule(other, input)


def _as_torch_calls(rule: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a layer map as a rule of the engine."""
    written = rule.func if isinstance(rule, functools.partial) else rule
    called = _CALLED.get(written)
    if called is None:
        return rule
    adapted = functools.partial(called, rule)
    signature = inspect.signature(adapted)

    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise Refusal(str(error)) from None
        return adapted(*args, **kwargs)

    checked.__name__ = getattr(written, "__name__", "rule")
    return checked


class _Unmapped:
    """Warns of what a map leaves to autograd, whose plain gradient is no relevance; once each."""

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._warned: set[str] = set()

    def __call__(self, what: str) -> None:
        model = self._model()
        if what in self._warned or model is None or has_zennits_hook(innermost_module(model)[1]):
            return
        self._warned.add(what)
        warn_caller(
            f"{what} is not in the layer map, and its plain gradient is no relevance\n"
            f"{describe_callsite(model)}",
            UnmappedOperationWarning,
        )
