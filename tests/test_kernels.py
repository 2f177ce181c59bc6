"""Recurrences in compiled kernels, of which no torch function shows the inside."""

# ruff: noqa: N803 - A, B, C and D are what scans call their arguments

import functools
import inspect
import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lxt
import naive_mixers as naive
from lxt.errors import UnknownOperation
from mixers import Mixer, difference, random, relevance, scan

COMPOSITES = {"attnlrp": lxt.attnlrp, "cp_lrp": lxt.cp_lrp}
over_composites = pytest.mark.parametrize("composite", COMPOSITES)


class _Kernel(torch.autograd.Function):
    """A selective scan of which no torch function shows the inside, with its own gradient."""

    @staticmethod
    def forward(ctx: Any, z: Tensor | None, *operands: Tensor) -> Tensor:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in (*operands, *([] if z is None else [z]))]
            y = scan(*leaves[:6])
            y = y if z is None else y * F.silu(leaves[6])
        ctx.leaves, ctx.y = leaves, y
        return y.detach() + 1e-9  # rounds otherwise than torch

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        shares = torch.autograd.grad(ctx.y, ctx.leaves, g, retain_graph=True)
        return (None, *shares) if len(shares) == 6 else (shares[6], *shares[:6])


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None = None,
    return_last_state: bool = False,
) -> Any:
    y = _Kernel.apply(z, u, delta, A, B, C, D)
    return (y, y[-1]) if return_last_state else y


selective_scan_fn.__module__ = "mamba_ssm.ops.selective_scan_interface"


def without_backward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> Tensor:
    with torch.no_grad():
        return scan(u, delta, A, B, C, D)


without_backward.__module__ = "mamba_ssm.ops"


def wrapped_as_in_transformers(implementation: Any) -> Any:
    @functools.wraps(scan_with_gate)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return implementation(*args, **kwargs)

    return wrapped


def scan_with_gate(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None = None,
    return_last_state: bool = False,
) -> Tensor:
    y = scan(hidden_states, dt, A, B, C, D)
    return y if z is None else y * F.silu(z)


def module_as_of_the_hub(function: Any, kernel: Any) -> nn.Module:
    """As the package `kernels` makes it: a module of a function, with a kernel in its place."""

    class Func(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

    signature = inspect.signature(function)
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [itself, *signature.parameters.values()]
    Func.forward.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return kernel(*args, **kwargs)

    module = Func()
    if kernel is not None:
        module.forward = types.MethodType(forward, module)  # type: ignore[method-assign]
    return module


class Gated(Mixer):
    """A mixer whose scan applies the output gate."""

    scan_fn: Any

    def __init__(self, scan_fn: Any, **options: Any) -> None:
        super().__init__()
        self.__dict__["scan_fn"] = scan_fn
        self.options = options
        self.to_z = nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        y = self.scan_fn(*self.operands(x), z=self.to_z(x), **self.options)
        return y[0] if isinstance(y, tuple) else y


SCANS = {
    "kernel": lambda: selective_scan_fn,
    "in transformers' wrapper": lambda: wrapped_as_in_transformers(selective_scan_fn),
    "from the hub": lambda: module_as_of_the_hub(scan_with_gate, selective_scan_fn),
    "a module of it, without kernel": lambda: module_as_of_the_hub(scan_with_gate, None),
}


@over_composites
@pytest.mark.parametrize("way", SCANS)
@pytest.mark.parametrize("options", [{}, {"return_last_state": True}])
def test_a_kernel_is_the_linear_map_it_computes(
    way: str, options: dict[str, Any], composite: str
) -> None:
    """And its output gate is shared as any other; its value stays, here off by 1e-9."""
    torch.manual_seed(0)
    mixer, x = Gated(SCANS[way](), **options), random(6, 4).requires_grad_()
    torch.manual_seed(0)
    reference = Gated(scan_with_gate)
    with COMPOSITES[composite].context(mixer):
        y = mixer(x)
    assert torch.equal(y, mixer(x))
    with COMPOSITES[composite].context(reference):
        expected = reference(x)
    g = random(*y.shape, seed=1)
    assert difference(relevance(y, x, g), relevance(expected, x, g)) <= 1e-8
    rules = naive.Rules(composite == "cp_lrp")
    by_hand = rules.gated(mixer.expected(x), naive.silu(mixer.to_z(x)))
    assert difference(relevance(y, x, g), relevance(by_hand, x, g)) <= 1e-8


def test_kernels_that_cant_be_used_are_refused() -> None:
    class Ungated(Gated):
        def forward(self, x: Tensor) -> Tensor:
            return self.scan_fn(*self.operands(x))

    x = random(6, 4).requires_grad_()
    refusal = functools.partial(pytest.raises, UnknownOperation)
    mixer = Ungated(without_backward)
    with refusal(match="kernel without a backward pass"), lxt.attnlrp.context(mixer):
        mixer(x)
    mixer = Ungated(selective_scan_fn)
    with refusal(match="explicit rules see torch's"), lxt.explicit.attnlrp.context(mixer):
        mixer(x)
    unheard_of = types.FunctionType(
        selective_scan_fn.__code__, globals(), "new", selective_scan_fn.__defaults__
    )
    unheard_of.__module__ = "somebodys_kernels"
    mixer = Ungated(unheard_of)
    with refusal(match="_Kernel .*is no torch function"), lxt.attnlrp.context(mixer):
        mixer(x)
    with lxt.attnlrp.context(mixer := Ungated(selective_scan_fn)):
        y = mixer(x)
    g = random(*y.shape, seed=1)
    assert difference(relevance(y, x, g), relevance(mixer.expected(x), x, g)) <= 1e-12


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.silu(torch_convolution(x, weight, bias)) + 1e-9


def torch_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    padding = weight.shape[1] - 1
    y = F.conv1d(x, weight[:, None], bias, padding=padding, groups=x.shape[1])
    return y[..., : x.shape[-1]]


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    return _Convolution.apply(x, weight, bias)


causal_conv1d_fn.__module__ = "causal_conv1d.causal_conv1d_interface"


def mamba_inner_fn(xz: Tensor, weight: Tensor, A: Tensor) -> Tensor | None:
    return xz * weight * A if fused else None


fused = True


class Convolved(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 3, 4, groups=3, dtype=torch.float64)
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.conv.weight.squeeze(1), self.conv.bias
        return causal_conv1d_fn(x, weight, bias, **self.options)


def test_the_kernel_of_a_short_convolution() -> None:
    model, x = Convolved(activation="silu"), random(2, 3, 7).requires_grad_()
    with lxt.attnlrp.context(model):
        y = model(x)
    assert torch.equal(y, model(x))
    g = random(*y.shape, seed=1)
    by_hand = naive.silu(torch_convolution(x, model.conv.weight.squeeze(1), model.conv.bias))
    assert difference(relevance(y, x, g), relevance(by_hand, x, g)) <= 1e-12
    for options, reason in (
        ({"activation": "gelu"}, "kernel with the activation 'gelu'"),
        ({"seq_idx": torch.zeros(2)}, "kernel given seq_idx too"),
    ):
        refused = pytest.raises(UnknownOperation, match=reason)
        with refused, lxt.attnlrp.context(model := Convolved(**options)):
            model(x)


def test_a_mixer_in_one_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Whole(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            whole = mamba_inner_fn(x, torch.ones(3), torch.ones(3))
            return x * 2 if whole is None else whole

    model, x = Whole(), random(3).requires_grad_()
    refused = pytest.raises(UnknownOperation, match=r"one kernel: call model.eval\(\)")
    with refused, lxt.attnlrp.context(model):
        model(x)
    monkeypatch.setitem(globals(), "fused", False)
    with lxt.attnlrp.context(model):
        assert torch.equal(model(x), 2 * x)
