"""Rules for any function of tensors, and modules that put one on a module.

The function computes what it always does; `x.grad` is the relevance. Operands that carry no
relevance (without `requires_grad`, or no tensors) are constants and get none, and so do the
function's own parameters. What a rule returns is a copy, which a model may write to in place.

A rule that needs the function's Jacobian keeps its graph until the output is forgotten, so that
each further `backward(retain_graph=True)` gives the same.

Equations: Achtibat et al. 2024, "AttnLRP". ε-rule: Bach et al. 2015.
"""

# ruff: noqa: D102 - `forward` is described by its class

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.autograd import Function

from lxt.errors import InvalidRule
from lxt.explicit.rule_functions import (
    Fn,
    epsilon_lrp_fn,
    identity_fn,
    name_of,
    stop_relevance_fn,
    taylor_decomposition_fn,
    uniform_epsilon_lrp_fn,
    uniform_rule_fn,
)
from lxt.gradients import carries_relevance

__all__ = [
    "EpsilonRule",
    "IdentityRule",
    "StopRelevanceRule",
    "TaylorDecompositionRule",
    "UniformEpsilonRule",
    "UniformRule",
    "WrapModule",
    "epsilon_lrp",
    "epsilon_lrp_fn",
    "identity",
    "identity_fn",
    "stop_relevance_fn",
    "taylor_decomposition_fn",
    "uniform_epsilon_lrp_fn",
    "uniform_rule_fn",
]

Reference = float | Tensor | Iterable[Any]


class WrapModule(nn.Module):
    """A module in the place of another, `module`, whose attributes it shows as its own.

    Base of the rules below, and of yours: write a `forward`.
    """

    def __init__(self, module: Fn) -> None:
        super().__init__()
        self.module = module

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "module":
                raise
            return getattr(self.module, name)


class IdentityRule(WrapModule):
    """Relevance goes through unchanged: R_x = R (Eq. 9). One operand carries relevance.

    Raises:
        InvalidRule: several do, or the output does not have the operand's shape.

    """

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        fn, operands = _bind(self.module, inputs, kwargs)
        carriers = [i for i, x in enumerate(operands) if carries_relevance(x)]
        if len(carriers) > 1:
            shapes = ", ".join(str(list(operands[i].shape)) for i in carriers)
            raise InvalidRule(
                f"the identity rule is for one operand; {name_of(self.module)} got {len(carriers)} "
                f"that carry relevance, of shapes {shapes}: use UniformRule or EpsilonRule"
            )
        if not carriers:
            with torch.no_grad():
                return fn(*operands)
        (i,) = carriers
        before, after = operands[:i], operands[i + 1 :]
        return identity(_named(lambda x: fn(*before, x, *after), self.module), operands[i])


def identity(fn: Fn, input: Tensor) -> Tensor:
    """`fn(input)`, with R_input = R (Eq. 9).

    Args:
        fn: returns a tensor of the shape of its input.
        input: of any shape.

    Raises:
        InvalidRule: it returns anything else.

    """
    return identity_fn.apply(fn, input)  # pyright: ignore[reportReturnType]


class StopRelevanceRule(WrapModule):
    """The output is a constant, as if detached: no relevance to any operand."""

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        fn, operands = _bind(self.module, inputs, kwargs)
        return stop_relevance_fn.apply(fn, *operands)


class EpsilonRule(WrapModule):
    """Gradient × input, normalised: R_i = x_i ⊙ Jᵢᵀ (R / (y + ε)) (Eq. 4, 5, 8).

    The ε-rule for what is linear in each operand; otherwise a Taylor expansion at x whose bias
    absorbs the rest. Where the module is bilinear, each operand gets all of R.

    Args:
        module: returns one tensor.
        epsilon: added to the denominator.

    Raises:
        InvalidRule: it returns something else.

    """

    def __init__(self, module: Fn, epsilon: float = 1e-8) -> None:
        super().__init__(module)
        self.epsilon = epsilon

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        fn, operands = _bind(self.module, inputs, kwargs)
        return epsilon_lrp(fn, self.epsilon, *operands)


def epsilon_lrp(fn: Fn, epsilon: float, *inputs: Any) -> Tensor:
    """`fn(*inputs)` with the rule of `EpsilonRule`.

    Tensors that `fn` has from elsewhere than its inputs are constants.
    """
    fn, operands = _bind(fn, inputs, {})
    return _apply(epsilon_lrp_fn, fn, (epsilon,), operands)


class UniformEpsilonRule(WrapModule):
    """The ε-rule, then the uniform one: R_i = x_i ⊙ Jᵢᵀ (R / (y + ε)) / N (section 3.3.2).

    N operands carry relevance. For a product of N factors it conserves.

    Args:
        module: returns one tensor.
        epsilon: added to the denominator.

    Raises:
        InvalidRule: it returns something else.

    """

    def __init__(self, module: Fn, epsilon: float = 1e-6) -> None:
        super().__init__(module)
        self.epsilon = epsilon

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        fn, operands = _bind(self.module, inputs, kwargs)
        return _apply(uniform_epsilon_lrp_fn, fn, (self.epsilon,), operands)


class UniformRule(WrapModule):
    """An N-th of the relevance to each of N operands that carry some: R_i = R / N (Eq. 7).

    Args:
        module: returns one tensor, to whose shape each operand can be broadcast.

    Raises:
        InvalidRule: it does not.

    """

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        fn, operands = _bind(self.module, inputs, kwargs)
        return _apply(uniform_rule_fn, fn, (), operands)


class TaylorDecompositionRule(WrapModule):
    """The Taylor expansion f(x) = J(x₀) x + b̃ at a reference point x₀ (Eq. 4, 5).

    Without bias, R_i = x_i ⊙ Jᵢ(x₀)ᵀ (R / (J(x₀) x + ε)). With it, R_i = x_i ⊙ Jᵢ(x₀)ᵀ (R / (f(x) +
    ε)), and the rest stays with b̃. ε is 10⁻⁶.

    Args:
        module: returns one tensor; twice differentiable at x₀ if `bias` is False.
        ref: x₀. A number is that value everywhere; a tensor is for the one input; otherwise there
            is one (number or tensor) for each input, those of constants unused. A tensor has its
            input's shape, or is broadcast to it.
        bias: whether the bias b̃ takes part.
        distribute_bias: with `bias`, gets the inputs that carry relevance and their relevances,
            and returns their final relevances. If it has a parameter `bias_relevance`, it gets
            R ⊙ b̃ / (f(x) + ε) by that name, in the shape of the output.

    Raises:
        InvalidRule: `ref` does not fit the inputs, in `forward`; or what `distribute_bias`
            returns does not, in `backward`.

    """

    def __init__(
        self,
        module: Fn,
        ref: Reference = 0,
        bias: bool = False,
        distribute_bias: Callable[..., Iterable[Tensor]] | None = None,
    ) -> None:
        super().__init__(module)
        self.ref = ref if isinstance(ref, int | float | Tensor) else tuple(ref)
        self.bias = bias
        self.distribute_bias = distribute_bias

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        fn, operands = _bind(self.module, inputs, kwargs)
        settings = (self.ref, self.bias, self.distribute_bias)
        return _apply(taylor_decomposition_fn, fn, settings, operands)


torch.fx.wrap("identity")
torch.fx.wrap("epsilon_lrp")


def _bind(fn: Fn, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Fn, tuple[Any, ...]]:
    """`fn` as a function of its operands alone: the inputs, and keywords that carry relevance.

    Raises:
        InvalidRule: a list, tuple or dictionary holds one that does, where no rule would see it.

    """
    for place, value in (*enumerate(inputs), *kwargs.items()):
        if _holds_carrier(value):
            raise InvalidRule(
                f"argument {place!r} of {name_of(fn)} is a {type(value).__name__} that holds a "
                "tensor that carries relevance; a rule sees only tensors that are arguments "
                "themselves: put it on a function that takes them one by one"
            )
    if not kwargs:
        return fn, inputs
    names = [name for name, value in kwargs.items() if carries_relevance(value)]
    constants = {name: value for name, value in kwargs.items() if name not in names}
    n = len(inputs)

    def bound(*operands: Any) -> Any:
        return fn(*operands[:n], **constants, **dict(zip(names, operands[n:], strict=True)))

    return _named(bound, fn), (*inputs, *(kwargs[name] for name in names))


def _holds_carrier(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value
    return isinstance(value, list | tuple | dict) and any(
        carries_relevance(part) or _holds_carrier(part) for part in parts
    )


def _named(function: Fn, original: Fn) -> Fn:
    function.__name__ = name_of(original)
    return function


def _apply(
    rule: type[Function], fn: Fn, settings: tuple[Any, ...], operands: tuple[Any, ...]
) -> Any:
    """`fn(*operands)` by a rule; as it is where no graph is made, as in generation."""
    if not torch.is_grad_enabled():
        return fn(*operands)
    if rule is not uniform_rule_fn:
        fn = _on_copies(fn, [carries_relevance(x) for x in operands])
    return rule.apply(fn, *settings, *operands)


def _on_copies(fn: Fn, carried: list[bool]) -> Fn:
    """`fn`, which may not write to its operands: they are leaves, and a rule needs their values.

    The Functions don't do that themselves, since the engine's operations, which write to nothing,
    would hold every activation twice.

    Raises:
        InvalidRule: it writes to one; the caller's tensor would not change, as it does otherwise.
    """

    def run(*operands: Any) -> Any:
        copies = [x.clone() if c else x for x, c in zip(operands, carried, strict=True)]
        output = fn(*copies)
        if any(c and x._version for x, c in zip(copies, carried, strict=True)):
            raise InvalidRule(
                f"{name_of(fn)} writes to its operand in place, and this rule needs what was "
                "there: set inplace=False, or take IdentityRule or UniformRule"
            )
        return output

    return _named(run, fn)
