"""Modules of `lxt.explicit` against torch's, and how they are made."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explicit_values import carrier, close, filled, relevance, taylor, value
from lxt.errors import InvalidRule
from lxt.explicit import functional as lf, modules as lm


class LlamaNorm(nn.Module):
    """With the names that transformers gives."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.variance_epsilon = 1e-3

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3)


def rms(eps: float):
    return lambda x, m: lf.rms_norm_identity(x, m.weight, eps)


def layer_norm(eps: float):
    return lambda x, m: lf.layer_norm(x, m.weight, m.bias, eps)


def linear(x: Tensor, m: nn.Linear) -> Tensor:
    return lf.linear_epsilon(x, m.weight, m.bias)


PAIRS = [
    (nn.Softmax(0), lm.SoftmaxDT, (2, 4), lambda x, m: lf.softmax(x, 0)),
    (nn.Linear(4, 3), lm.LinearEpsilon, (2, 4), linear),
    (nn.Linear(4, 3, bias=False), lm.LinearEpsilon, (4,), linear),
    (LlamaNorm(4), lm.RMSNormIdentity, (2, 4), rms(1e-3)),
    (nn.RMSNorm(4, 1e-2), lm.RMSNormIdentity, (2, 4), rms(1e-2)),
    (nn.RMSNorm(4, elementwise_affine=False), lm.RMSNormIdentity, (2, 4), rms(0)),
    (nn.LayerNorm(4, 1e-2), lm.LayerNormEpsilon, (2, 4), layer_norm(1e-2)),
    (nn.LayerNorm((3, 4)), lm.LayerNormEpsilon, (2, 3, 4), layer_norm(1e-5)),
    (nn.LayerNorm(4, bias=False), lm.LayerNormEpsilon, (2, 4), layer_norm(1e-5)),
]


@pytest.mark.parametrize(("original", "replacement", "shape", "function"), PAIRS)
def test_a_replacement_computes_the_same_and_shares_parameters(
    original: nn.Module, replacement, shape, function
) -> None:
    original = filled(copy.deepcopy(original)).eval()
    generator = torch.get_rng_state()
    module = lm.INIT_MODULE_MAPPING[replacement](original, replacement)
    assert torch.equal(torch.get_rng_state(), generator)
    assert type(module) is replacement
    assert not module.training
    assert all(a is b for a, b in zip(module.parameters(), original.parameters(), strict=True))
    x = carrier(*shape)
    close(module(x), original(x), rtol=1e-12)
    r = value(*module(x).shape, seed=8)
    close(relevance(module(x), r, x), relevance(function(x, original), r, x))


def test_layer_norm_without_parameters_normalises_its_shape() -> None:
    original = nn.LayerNorm((3, 4), elementwise_affine=False)
    module = lm.initialize_bias(original, lm.LayerNormEpsilon)
    x = carrier(2, 3, 4)
    assert torch.equal(module(x), original(x))
    ones = torch.ones(3, 4, dtype=torch.float64)
    expected = lf.layer_norm(x, ones, None, 1e-5)
    r = value(2, 3, 4, seed=1)
    close(relevance(module(x), r, x), relevance(expected, r, x))


def test_modules_by_their_arguments() -> None:
    x = carrier(2, 3, 4)
    softmax = lm.SoftmaxDT(1, torch.float32, 2.0, inplace=True)
    assert torch.equal(softmax(x), F.softmax(x.float() / 2, 1))
    for operand, dim in ((x, 0), (x[0], 1), (x[0, 0], 0)):
        assert torch.equal(lm.SoftmaxDT(None)(operand), F.softmax(operand, dim))
    layer = lm.LinearEpsilon(4, 2, False, None, torch.float64, 0.5)
    assert layer.bias is None
    r = value(2, 3, 2, seed=1)
    (ours,) = relevance(layer(x), r, x)
    close(ours, taylor(lambda x: F.linear(x, layer.weight), (x,), r, 0.5)[0])
    assert lm.RMSNormIdentity(4).variance_epsilon == 1e-6
    assert lm.RMSNormIdentity(4).weight.tolist() == [1, 1, 1, 1]
    assert lm.LayerNormEpsilon(4, bias=False).bias is None


def test_buffers_and_submodules_are_shared() -> None:
    def build() -> nn.Sequential:
        inner = nn.Linear(2, 2)
        inner.register_buffer("table", torch.ones(2), persistent=False)
        return nn.Sequential(nn.BatchNorm1d(2), inner)

    original, replacement = build(), build()
    lm.copy_parameters_and_buffers_(original, replacement)
    for kind in (nn.Module.named_parameters, nn.Module.named_buffers):
        ours, theirs = dict(kind(replacement)), dict(kind(original))
        assert ours.keys() == theirs.keys()
        assert all(ours[name] is theirs[name] for name in theirs)
    assert replacement.state_dict().keys() == original.state_dict().keys()


def test_what_is_missing_or_does_not_fit_is_named() -> None:
    with pytest.raises(InvalidRule, match=r"LinearEpsilon needs 'in_features', and GELU"):
        lm.initialize_bias(nn.GELU(), lm.LinearEpsilon)
    with pytest.raises(InvalidRule, match=r"RMSNorm normalises \[3, 4\]"):
        lm.initialize_generic(nn.RMSNorm((3, 4)), lm.RMSNormIdentity)


class Triple(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 3 * super().forward(input)


class Renamed(nn.Linear):
    """With a forward of torch."""


class GemmaNorm(LlamaNorm):
    def forward(self, x: Tensor) -> Tensor:
        return (1 + self.weight) * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3)


class OtherEps(LlamaNorm):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.variance_epsilon = 1e-6


class GatedNorm(LlamaNorm):
    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return super().forward(x) * gate


class Scale(nn.Module):
    """Without the parameter that the replacement has."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 4

    def forward(self, x: Tensor) -> Tensor:
        return x


class OwnRMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class OwnLayerNorm(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + input


class OwnSoftmax(nn.Softmax):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(2 * input)


class Adapted(nn.Linear):
    """The same for as long as its own parameter is zero."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.adapter = nn.Parameter(torch.zeros(3, 4))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + F.linear(input, self.adapter)


class CastingLayerNorm(nn.LayerNorm):
    """As open_clip writes it."""

    def forward(self, input: Tensor) -> Tensor:
        shape, weight, bias = self.normalized_shape, self.weight, self.bias
        return F.layer_norm(input, shape, weight, bias, self.eps).to(input.dtype)


class DuckLinear(nn.Module):
    """As a linear layer, and none of torch's."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.in_features, self.out_features, self.factor = 4, 3, factor
        self.weight, self.bias = nn.Parameter(value(3, 4)), nn.Parameter(value(3, seed=1))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight.T + self.bias) * self.factor


class OwnAttention(nn.MultiheadAttention):
    def forward(self, *args, **kwargs):
        y, weights = super().forward(*args, **kwargs)
        return 2 * y, weights


@pytest.mark.parametrize(
    ("original", "replacement"),
    [
        (Triple(4, 3), lm.LinearEpsilon),
        (Adapted(), lm.LinearEpsilon),
        (GemmaNorm(4), lm.RMSNormIdentity),
        (OtherEps(4), lm.RMSNormIdentity),
        (GatedNorm(4), lm.RMSNormIdentity),
        (Scale(), lm.RMSNormIdentity),
        (OwnLayerNorm(4), lm.LayerNormEpsilon),
        (OwnSoftmax(-1), lm.SoftmaxDT),
        (DuckLinear(2.0), lm.LinearEpsilon),
        (OwnAttention(6, 2), lm.MultiheadAttention_CP),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else "",
)
def test_what_computes_something_else_is_refused(original: nn.Module, replacement) -> None:
    message = f"{type(original).__name__} does not compute .* {replacement.__name__}"
    with pytest.raises(InvalidRule, match=message):
        lm.INIT_MODULE_MAPPING[replacement](original, replacement)


def test_what_computes_the_same_is_replaced() -> None:
    state = torch.get_rng_state()
    for original, replacement in (
        (Renamed(4, 3), lm.LinearEpsilon),
        (lm.LinearEpsilon(4, 3), lm.LinearEpsilon),
        (DuckLinear(1.0), lm.LinearEpsilon),
        (CastingLayerNorm(4), lm.LayerNormEpsilon),
        (OwnRMSNorm(4, 1e-3), lm.RMSNormIdentity),
        (OwnRMSNorm(4, 1e-3, dtype=torch.bfloat16), lm.RMSNormIdentity),
        (LlamaNorm(4).half(), lm.RMSNormIdentity),
        (LlamaNorm(4).to("meta"), lm.RMSNormIdentity),
    ):
        torch.set_rng_state(state)
        module = lm.INIT_MODULE_MAPPING[replacement](original, replacement)
        assert type(module) is replacement
        assert torch.equal(torch.get_rng_state(), state)

    class TripleEpsilon(lm.LinearEpsilon):
        def forward(self, input: Tensor) -> Tensor:
            return lf.mul2(super().forward(input), 3)

    original, x = filled(Triple(4, 3)), carrier(2, 4)
    module = lm.initialize_bias(original, TripleEpsilon)  # whose author knows
    close(module(x), original(x), rtol=1e-12)


def test_a_forward_put_on_an_instance_counts() -> None:
    layer = nn.Linear(4, 3)
    layer.forward = lambda x: 2 * nn.Linear.forward(layer, x)
    with pytest.raises(InvalidRule, match="torch.nn.modules.linear.Linear does not compute"):
        lm.initialize_bias(layer, lm.LinearEpsilon)
    layer.forward = lambda x: nn.Linear.forward(layer, x)
    assert isinstance(lm.initialize_bias(layer, lm.LinearEpsilon), lm.LinearEpsilon)


@pytest.mark.parametrize(
    ("original", "replacement", "shape"),
    [
        (nn.Linear(4, 3), lm.LinearEpsilon, (2, 4)),
        (nn.MultiheadAttention(6, 2), lm.MultiheadAttention_CP, (3, 6)),
    ],
)
def test_hooks_are_those_of_the_original(original: nn.Module, replacement, shape) -> None:
    original = filled(copy.deepcopy(original))
    seen: list[str] = []
    early = original.register_forward_hook(lambda m, args, y: seen.append("early"))
    original.register_forward_pre_hook(lambda m, args, kwargs: seen.append("pre"), with_kwargs=True)
    original.register_forward_hook(
        lambda m, args, kwargs, y: seen.append("kwargs"), with_kwargs=True, always_call=True
    )
    original.register_full_backward_hook(lambda m, g_in, g_out: seen.append("backward"))
    module = lm.INIT_MODULE_MAPPING[replacement](original, replacement)
    late = module.register_forward_hook(lambda m, args, y: seen.append("late"))
    x = carrier(*shape)

    def run() -> list[str]:
        seen.clear()
        y = module(x, x, x)[0] if len(module._modules) else module(x)
        torch.autograd.grad(y, x, y.detach())
        return list(seen)

    assert run() == ["pre", "early", "kwargs", "late", "backward"]
    early.remove()
    assert run() == ["pre", "kwargs", "late", "backward"]
    late.remove()
    assert run() == ["pre", "kwargs", "backward"]
    assert not original._forward_hooks.keys() - module._forward_hooks.keys()


@pytest.mark.parametrize(("original", "replacement", "shape", "function"), PAIRS)
def test_with_zennits_hook_a_module_is_torchs(
    original: nn.Module, replacement, shape, function
) -> None:
    original = filled(copy.deepcopy(original))
    module = lm.INIT_MODULE_MAPPING[replacement](original, replacement)
    x = carrier(*shape)
    y = module(x)
    hook_class = type("Hook", (), {"__module__": "zennit.core", "forward": lambda *args: None})
    handle = module.register_forward_hook(hook_class().forward)
    plain, expected = module(x), original(x)
    assert torch.equal(plain, y)
    r = value(*y.shape, seed=8)
    close(relevance(plain, r, x), relevance(expected, r, x))
    handle.remove()
    with pytest.raises(AssertionError):
        close(relevance(module(x), r, x), relevance(expected, r, x))
