"""Zennit's rules as activation · gradient, so that they mix with composites of ours.

Zennit's hooks take and return relevance: the "gradient" between its modules is relevance, and a
module without a hook, or under a rule of ours, would take it for a gradient. Patched, a hook takes
the gradient g at the module's output y and makes relevance of it, R = g · y; lets its rule do its
work; and returns R of the input x divided by x.

Zennit's ε-rules, γ, z⁺, αβ and so on are proportional to x, so that R/x has a limit at x = 0: it is
the slope that the rule itself has there (the mean of both sides, where it has a kink). What does
*not* vanish with x is relevance that no gradient can carry through x = 0: `Flat` and `WSquare` give
as much to a black pixel as to any other, and so do the bounds of `ZBox`, and `Pass` at a module
with f(0) ≠ 0. It is exact at x ≠ 0, and missing at x = 0 and wherever R/x exceeds the range of
x's type.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lxt.errors import InvalidComposite, MissingPackage, UnknownOperation
from lxt.gradients import compute_dtype

__all__ = ["ZennitPatch", "monkey_patch_zennit"]

Translate = Callable[[Any, "_Call", Tensor], Tensor]


def monkey_patch_zennit(verbose: bool = False) -> ZennitPatch:
    """Let Zennit's rules take and return gradients: relevance = activation · gradient.

    >>> with monkey_patch_zennit():
    ...     zennit_composite.register(vit)
    ...     with lxt.cp_lrp.context(vit):
    ...         vit(x)[0, label].backward()
    ...     zennit_composite.remove()
    >>> relevance = x * x.grad

    It holds for composites of Zennit that are registered from now on, in the whole process: for
    every `zennit.core.BasicHook` and for `zennit.rules.Pass`. Zennit's `ReLUDeconvNet`,
    `ReLUGuidedBackprop` and `ReLUBetaSmooth` deal in gradients anyway and stay as they are; a hook
    class of your own that overrides `backward` does as well.

    Args:
        verbose: print what is patched.

    Returns:
        The handle, whose `.remove()`, or end of a `with` block, undoes it. Several may be held at
        a time; the patch lasts until all of them are removed.

    Raises:
        MissingPackage: Zennit can't be imported.

    While it holds, the forward pass of a hooked module raises `UnknownOperation` if the module has
    several inputs or outputs that relevance runs through. So does a backward pass with
    `create_graph=True`: second derivatives of a rule aren't to be had.

    """
    try:
        from zennit.core import BasicHook  # pyright: ignore[reportMissingImports]
        from zennit.rules import Pass  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingPackage(
            f"Zennit can't be imported ({error}): pip install lxt[zennit]"
        ) from error
    rules: list[tuple[type, Translate]] = [(BasicHook, _by_rule), (Pass, _passed_on)]
    return ZennitPatch({hook: _methods(hook, translate) for hook, translate in rules}, verbose)


class ZennitPatch:
    """A hold on the patch of Zennit; `.remove()` lets go of it. Also a context manager."""

    _lock = threading.Lock()
    _held = 0
    _before: Mapping[tuple[type, str], Any] = {}

    def __init__(self, methods: Mapping[type, Mapping[str, Any]], verbose: bool) -> None:
        self._holds = True
        cls = ZennitPatch
        with cls._lock:
            cls._held += 1
            if cls._held > 1:
                return
            names = [(hook, name) for hook, table in methods.items() for name in table]
            cls._before = {(hook, name): vars(hook).get(name) for hook, name in names}
            for hook, name in names:
                setattr(hook, name, methods[hook][name])
                if verbose:
                    print(f"{hook.__module__}.{hook.__qualname__}.{name}: activation · gradient")

    def remove(self) -> None:
        """Give Zennit its own methods back, unless others hold the patch. Twice is harmless."""
        cls = ZennitPatch
        with cls._lock:
            if not self._holds:
                return
            self._holds = False
            cls._held -= 1
            if cls._held:
                return
            for (hook, name), method in cls._before.items():
                if method is None:  # it was inherited
                    delattr(hook, name)
                else:
                    setattr(hook, name, method)

    def __enter__(self) -> ZennitPatch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


@dataclass
class _Call:
    """One call of a hooked module: what its rule needs in the backward pass, and no graph."""

    module: nn.Module
    x: Tensor
    version: int
    others: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    autocast: Callable[[], Any]
    y: Tensor | None = None
    g: Tensor | None = None


def _methods(hook_class: type, translate: Translate) -> dict[str, Any]:
    """The methods of a class of hooks that make it speak gradients.

    Zennit's hook for the input's gradient looks up what it needs in one slot a module, filled by
    the module's latest call. Ours holds it call by call, so that a module may be called twice.
    """
    inherited = hook_class.pre_forward  # type: ignore[attr-defined]

    def enter(hook: Any, module: nn.Module, *arguments: Any) -> Any:
        if not torch.is_grad_enabled():
            return None
        handles = len(hook.tensor_handles)
        changed = inherited(hook, module, *arguments)
        if len(hook.tensor_handles) == handles:
            return changed  # nothing that requires grad came in
        hook.tensor_handles.pop().remove()  # Zennit's hook, in place of which comes
        args, kwargs = changed if len(arguments) == 2 else (changed, {})
        call = begin(hook, module, args if isinstance(args, tuple) else (args,), kwargs)
        hook.stored_tensors["call"] = call
        return changed

    def leave(hook: Any, output: Any) -> Any:
        call = hook.stored_tensors.pop("call", None)
        return None if call is None else _finish(hook, call, output)

    def begin(hook: Any, module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> _Call:
        x, *others = args
        if any(isinstance(o, Tensor) and o.requires_grad for o in (*others, *kwargs.values())):
            raise _refusal(hook, module, "several inputs that relevance runs through")
        value = x.detach()
        if getattr(module, "inplace", False):
            value = value.clone()
        call = _Call(module, value, value._version, tuple(others), kwargs, _autocast(x.device.type))
        reference = weakref.ref(hook)

        def on_gradient(plain: Tensor) -> Tensor | None:
            rule = reference()
            if rule is None or not rule.active:
                return None
            if torch.is_grad_enabled():
                raise _refusal(rule, module, "create_graph=True: its second derivative is unknown")
            return translate(rule, call, plain)

        hook.tensor_handles.append(x.register_hook(on_gradient))
        return call

    def before_main(self: Any, module: Any, args: Any, kwargs: Any) -> Any:
        return enter(self, module, args, kwargs)

    def before(self: Any, module: Any, input: Any) -> Any:
        return enter(self, module, input)

    def after_main(self: Any, module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        return leave(self, output)

    def after(self: Any, module: Any, input: Any, output: Any) -> Any:
        return leave(self, output)

    def backward(self: Any, module: Any, grad_input: Any, grad_output: Any) -> Any:
        raise InvalidComposite(
            f"Zennit's {type(self).__name__} was registered on {type(module).__name__} before "
            "monkey_patch_zennit(): register the composite again, after it"
        )

    # Zennit 0.5 hands its hooks positional arguments only, and its successor keyword ones too.
    if len(inspect.signature(inherited).parameters) == 4:
        return {"pre_forward": before_main, "forward": after_main, "backward": backward}
    return {"pre_forward": before, "forward": after, "backward": backward}


def _finish(hook: Any, call: _Call, output: Any) -> Tensor | None:
    if call.x._version != call.version:
        raise _refusal(hook, call.module, "a module that overwrites its input")
    if not isinstance(output, Tensor):
        raise _refusal(hook, call.module, f"a {type(output).__name__} as output, not one tensor")
    if output.grad_fn is None:
        return None
    call.y = output.detach()

    def keep(g: Tensor) -> None:
        call.g = g.detach()

    output = output.clone()  # which the model may write to in place, unlike y
    hook.tensor_handles.append(output.register_hook(keep))
    return output


def _refusal(hook: Any, module: nn.Module, what: str) -> UnknownOperation:
    return UnknownOperation(
        f"Zennit's {type(hook).__name__} on {type(module).__name__} does not cover {what}"
    )


def _autocast(device: str) -> Callable[[], Any]:
    """The autocast in force now, for the backward pass; weights change there, so no cache."""
    return functools.partial(
        torch.autocast,
        device,
        dtype=torch.get_autocast_dtype(device),
        enabled=torch.is_autocast_enabled(device),
        cache_enabled=False,
    )


def _taken(hook: Any, call: _Call) -> tuple[Tensor, Tensor]:
    """The output of a call, in float32 or more, and the gradient that has arrived at it."""
    y, g, call.g = call.y, call.g, None
    if y is None or g is None:
        raise _refusal(hook, call.module, "relevance that leaves it by another way than its output")
    return y.to(compute_dtype(y.dtype)), g


def _passed_on(hook: Any, call: _Call, plain: Tensor) -> Tensor:
    """`Pass`: R of the input is R of the output, element by element."""
    y, g = _taken(hook, call)
    if y.shape != call.x.shape:
        raise _refusal(hook, call.module, f"shapes that differ: {call.x.shape} and {y.shape}")
    return _quotient(g * y, call.x, plain)


def _by_rule(hook: Any, call: _Call, plain: Tensor) -> Tensor:
    """A `BasicHook`: R = Σ over its modified inputs and modules, by its mapper and its reducer."""
    from zennit.core import ParamMod  # pyright: ignore[reportMissingImports]

    y, g = _taken(hook, call)
    x, precision = call.x, compute_dtype(call.x.dtype)
    inputs, outputs = [], []
    modifiers = zip(hook.input_modifiers, hook.param_modifiers, hook.output_modifiers, strict=True)
    for modify_input, modify_parameters, modify_output in modifiers:
        leaf = modify_input(x).detach().requires_grad_()
        changed = ParamMod.ensure(modify_parameters)(call.module)
        with changed as module, torch.enable_grad(), call.autocast():
            inputs.append(leaf)
            outputs.append(modify_output(module.forward(leaf, *call.others, **call.kwargs)))

    denominators = [output.detach().to(y.dtype) for output in outputs]
    mapped = hook.gradient_mapper(g * y, denominators)
    mapped = _without_zero_by_zero((mapped,) if isinstance(mapped, Tensor) else mapped, y, g)
    seeds = [_within_range(m, output.dtype) for m, output in zip(mapped, outputs, strict=True)]
    gradients = torch.autograd.grad(outputs, inputs, seeds)
    gradients = [gradient.to(precision) for gradient in gradients]

    def relevance(of: Sequence[Tensor]) -> Tensor:
        return hook.reducer([value.to(precision) for value in of], gradients)

    one = torch.ones_like(x)
    above, below = (relevance([m(s) for m in hook.input_modifiers]) for s in (one, -one))
    return _quotient(relevance([i.detach() for i in inputs]), x, (above - below) / 2)


def _without_zero_by_zero(mapped: Sequence[Tensor], y: Tensor, g: Tensor) -> list[Tensor]:
    """R / y without a stabilizer is 0/0 at y = 0, where g · y / y has the limit g.

    A rule of several parts has no such limit, and no relevance there to hand out.
    """
    limit = g if len(mapped) == 1 else torch.zeros_like(g)
    return [torch.where((y == 0) & m.isnan(), limit, m) for m in mapped]


def _within_range(seed: Tensor, dtype: torch.dtype) -> Tensor:
    """`seed` cut to the range of a type: R / stabilizer is huge where nothing has a share."""
    bound = torch.finfo(dtype).max
    return torch.where(seed.isinf(), seed, seed.clamp(-bound, bound)).to(dtype)


def _quotient(relevance: Tensor, x: Tensor, limit: Tensor) -> Tensor:
    """R / x in the type of x, or `limit` where there is no such number."""
    quotient = (relevance / x).to(x.dtype)
    return torch.where((x != 0) & quotient.isfinite(), quotient, limit.to(x.dtype))
