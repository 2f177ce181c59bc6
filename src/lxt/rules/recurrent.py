"""Recurrences: selective state spaces, linear attention with decay, delta rule, RWKV, mLSTM.

Each of them is a matrix that mixes positions, y_t = Σ_s M_ts(…) v_s, computed by a loop, in chunks
or by a kernel. All of M is made of decays, gates, keys and queries. With these as constants the map
is linear in what it carries, so that

    R_s = v_s ⊙ Σ_t M_tsᵀ (R_t / y_t)        (the ε-rule with ε → 0, AttnLRP Eq. 8)

is conserved exactly, and is a property of the map: it can't depend on how it is computed. Any rule
that splits relevance between factors does, since a loop multiplies the decays one by one and chunks
multiply exponentials of sums.

Sources: that Δ, A, B and C of selective state spaces are constants is MambaLRP (Jafari et al.,
NeurIPS 2024), which finds that plain gradient × input loses conservation in them; that the map is
attention with M for weights, Ali et al. 2024, "The hidden attention of Mamba models"; gates of
recurrent networks as constants, Arras et al. 2017 and 2019 ("signal takes all"). For linear
attention, delta rule, RWKV and mLSTM we know of no LRP rule in the literature; they get that of the
same map, which is CP-LRP's of attention (Ali et al. 2022), where weights are constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lxt.gradients import carries_relevance, stop, substitute
from lxt.rules.registry import (
    Operation,
    Refusal,
    constant_t,
    family,
    require_constant,
    rule,
    sample,
    t,
)
from lxt.structure import InTheOpen, parameter_names

__all__ = ["recurrence", "short_convolution", "value_only_split", "whole_mixer"]

# Packages whose functions are compiled kernels, of which no torch function shows the inside.
KERNELS = frozenset({"causal_conv1d", "causal_conv1d_cuda", "fla", "mamba_ssm"})


@rule(
    torch.linalg.solve_triangular,
    source="AttnLRP Eq. 8",
    samples=[sample(constant_t(3, 3), t(3, 2), upper=False, unitriangular=True)],
)
def solve_triangular(A: Tensor, B: Tensor, **kwargs: Any) -> Tensor:  # noqa: N803 - torch's
    """X with A X = B, which is linear in B; A, made of decays and keys, is a constant."""
    require_constant(A=A)
    return torch.linalg.solve_triangular(A, B, **kwargs)


# Under these names wrappers keep what they call: those of `transformers`, and of `kernels`.
WRAPPED = ("implementation", "func")


def is_kernel(function: Any) -> bool:
    """Whether what runs in the end is a kernel.

    That is a function of one of those packages, which `transformers` puts inside of wrappers where
    it finds them, or one from the hub, which the package `kernels` puts in place of a forward.
    """
    while True:
        if isinstance(function, nn.Module):
            if "forward" in function.__dict__:
                own = type(function).forward
                return getattr(function.__dict__["forward"], "__func__", None) is not own
            function = type(function).forward
        if (getattr(function, "__module__", None) or "").partition(".")[0] in KERNELS:
            return True
        names = getattr(getattr(function, "__code__", None), "co_freevars", ())
        within = next((name for name in WRAPPED if name in names), None)
        if within is None:
            return False
        function = function.__closure__[names.index(within)].cell_contents


def stopped(value: Any) -> Any:
    """A value, or the tensors in tuples, lists and dictionaries, as constants."""
    if isinstance(value, tuple | list):
        return type(value)(stopped(item) for item in value)
    if isinstance(value, dict):
        return {name: stopped(item) for name, item in value.items()}
    return stop(value) if carries_relevance(value) else value


def named(operation: Operation, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by the names of the operation's parameters."""
    names = parameter_names(operation)
    if len(args) > len(names):
        raise Refusal(f"it is called with {len(args)} arguments and names {len(names)}")
    return dict(zip(names, args, strict=False)) | kwargs


def recurrence(*carriers: str, gate: str | None = None, with_kernels: bool = True) -> InTheOpen:
    """A recurrence, linear in the arguments of these names; all others are constants.

    Written in torch, its operations have their own rules, of which these operands leave the linear
    ones. A kernel is taken as a whole: its own gradient is right, as it is linear. An output gate
    that it applies, y = h · SiLU(gate), is a product of two: in AttnLRP half to each, in CP-LRP the
    gate is a constant. A kernel is run without it for that, while the value stays the kernel's.

    Args:
        carriers: the names under which it takes what carries relevance, and its own earlier state.
        gate: the name of the output gate, if it has one.
        with_kernels: whether kernels are taken for what they are, or refused.

    Raises:
        Refusal: it is a kernel, and has no backward pass or is not to be taken.

    """

    def apply(operation: Operation, *args: Any, **kwargs: Any) -> Any:
        given = named(operation, args, kwargs)
        names = list(given)
        kept = (*carriers, gate)
        held = {name: x if name in kept else stopped(x) for name, x in given.items()}
        args, kwargs = tuple(map(held.get, names[: len(args)])), {n: held[n] for n in kwargs}
        if not is_kernel(operation) or not any(map(carries_relevance, held.values())):
            return operation(*args, **kwargs)
        if not with_kernels:
            raise Refusal("it is a kernel, and the explicit rules see torch's operations only")
        if gate is None or not carries_relevance(held.get(gate)):
            return own_gradient(operation, args, kwargs)
        place = names.index(gate)
        without = tuple(None if i == place else x for i, x in enumerate(args))
        ungated = own_gradient(operation, without, {n: kwargs[n] for n in kwargs if n != gate})
        with torch.no_grad():
            value = operation(*args, **kwargs)
        if isinstance(value, tuple):
            return valued(ungated[0] * F.silu(held[gate]), value[0]), *ungated[1:]
        return valued(ungated * F.silu(held[gate]), value)

    return InTheOpen(apply, "recurrence")


def own_gradient(operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A kernel's result with its own gradient.

    Raises:
        Refusal: it has none.
    """
    from lxt.engine.mode import outside_rules  # which needs the rules

    with outside_rules():
        result = operation(*args, **kwargs)
    first = result[0] if isinstance(result, tuple) else result
    if not carries_relevance(first):
        raise Refusal("it is a kernel without a backward pass: call the model without a cache")
    return result


def valued(x: Tensor, value: Tensor) -> Tensor:
    """`x` with the value that a kernel has for it, which may round otherwise."""
    from lxt.engine.mode import outside_rules  # which needs the rules

    with outside_rules():
        return substitute(x, lambda x: (value.to(x.dtype), ()), lambda g: g)


def causal_convolution(operation: Operation, *args: Any, **kwargs: Any) -> Any:
    """The causal convolution before a recurrence, and its activation: linear, then Eq. 9.

    Written in torch, its operations have their own rules. A kernel does both at once: the value is
    the kernel's, and relevance goes through the same convolution written in torch.

    Raises:
        Refusal: it is a kernel that is given more than input, weight, bias and activation.

    """
    given = named(operation, args, kwargs)
    if not is_kernel(operation) or not any(map(carries_relevance, given.values())):
        return operation(*args, **kwargs)
    known = ("x", "hidden_states", "weight", "bias", "activation")
    more = [name for name, value in given.items() if name not in known and value is not None]
    if more:
        raise Refusal(f"it is a kernel given {', '.join(more)} too: call the model without a cache")
    x = given["x"] if "x" in given else given["hidden_states"]
    weight, activation = given["weight"], given.get("activation")
    if activation not in (None, "silu", "swish"):
        raise Refusal(f"it is a kernel with the activation {activation!r}")
    with torch.no_grad():
        value = operation(*args, **kwargs)
    padding, groups = weight.shape[-1] - 1, x.shape[1]
    y = F.conv1d(x, weight.unsqueeze(1), given.get("bias"), padding=padding, groups=groups)
    y = y[..., : x.shape[-1]]
    return valued(y if activation is None else F.silu(y), value)


def fused_mixer(operation: Operation, *args: Any, **kwargs: Any) -> Any:
    """Convolution, recurrence, gate and norm in one kernel: nothing in it can be told apart.

    Without the kernel, `transformers` has a function that returns None in its place.

    Raises:
        Refusal: it is there.

    """
    with torch.no_grad():
        result = operation(*args, **kwargs)
    if result is not None and any(map(carries_relevance, (*args, *kwargs.values()))):
        raise Refusal(
            "it runs convolution, recurrence and gate in one kernel: call model.eval(), or switch "
            "the fused path off, so that they are called one by one"
        )
    return result


short_convolution = InTheOpen(causal_convolution, "short_convolution")
whole_mixer = InTheOpen(fused_mixer, "whole_mixer")


@family
def value_only_split(operation: Operation, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    """Queries, keys and values of linear attention: the values carry, the others are constants."""
    parts = operation(*args, **kwargs)
    if len(parts) != 3:
        raise Refusal(f"it makes {len(parts)} parts, and query, key and value are three")
    return stop(parts[0]), stop(parts[1]), parts[2]
