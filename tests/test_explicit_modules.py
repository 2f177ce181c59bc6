"""Modules of `lxt.explicit` against torch's, how they are made, and attention by CP-LRP."""

import copy
import math
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lxt.errors import InvalidInput, InvalidRule, UnknownOperation
from lxt.explicit import functional as lf, modules as lm, special
from lxt.explicit.check import conservation_check
from lxt.explicit.rules import EpsilonRule, StopRelevanceRule
from test_explicit_functional import carrier, close, relevance, taylor, value


def filled(module: nn.Module) -> nn.Module:
    """`module` in float64, with parameters of its own."""
    module.double()
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            parameter.copy_(value(*parameter.shape, seed=seed))
    return module


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


# Attention


def attention(**settings) -> tuple[nn.MultiheadAttention, lm.MultiheadAttention_CP]:
    original = filled(nn.MultiheadAttention(6, 2, **settings)).eval()
    return original, lm.initialize_MHA(original, lm.MultiheadAttention_CP)


CONFIGURATIONS = [
    {},
    {"batch_first": True},
    {"bias": False},
    {"kdim": 5, "vdim": 4},
    {"kdim": 5, "vdim": 4, "bias": False, "batch_first": True},
]
KEYS = torch.tensor([[False, False, True, False], [False, True, True, False]])
PAIRS_OF_TOKENS = torch.ones(3, 4, dtype=torch.bool).triu(2)
MASKS = [
    {},
    {"key_padding_mask": KEYS},
    {"key_padding_mask": torch.zeros(2, 4, dtype=torch.float64).masked_fill(KEYS, -torch.inf)},
    {"attn_mask": PAIRS_OF_TOKENS},
    {"attn_mask": torch.ones(3, 4, dtype=torch.bool).triu(1), "is_causal": True},
    {"attn_mask": value(3, 4, seed=4)},
    {"attn_mask": PAIRS_OF_TOKENS.expand(4, 3, 4), "key_padding_mask": KEYS},
    {"attn_mask": value(4, 3, 4, seed=5)},
    {"attn_mask": value(3, 4, seed=4), "key_padding_mask": value(2, 4, seed=6)},
]


def inputs(settings: dict, batch: int | None = 2, dtype=torch.float64) -> list[Tensor]:
    sizes = [(3, 6), (4, settings.get("kdim", 6)), (4, settings.get("vdim", 6))]
    result = []
    for seed, (length, size) in enumerate(sizes):
        first = settings.get("batch_first", False)
        shape = (length, size) if batch is None else (batch, length, size)
        x = value(*shape, seed=seed, dtype=dtype)
        x = x if batch is None or first else x.transpose(0, 1).contiguous()
        result.append(x.requires_grad_())
    return result


@pytest.mark.parametrize("settings", CONFIGURATIONS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_is_torchs(settings, mask, need_weights: bool) -> None:
    original, ours = attention(**settings)
    for average in (True, False):
        call = {"need_weights": need_weights, "average_attn_weights": average, **mask}
        operands = inputs(settings)
        y, weights = ours(*operands, **call)
        expected, expected_weights = original(*operands, **call)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-13)
        if need_weights:
            torch.testing.assert_close(weights, expected_weights, rtol=1e-12, atol=1e-13)
            assert not weights.requires_grad
        else:
            assert weights is None
    original.float()
    ours = lm.initialize_MHA(original, lm.MultiheadAttention_CP)
    narrow = {
        name: part.float() if isinstance(part, Tensor) and part.is_floating_point() else part
        for name, part in mask.items()
    }
    operands = inputs(settings, dtype=torch.float32)
    y, expected = (m(*operands, **narrow, need_weights=need_weights)[0] for m in (ours, original))
    # relative to the size of the output, which sums to near 0 in places
    assert (y - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_without_a_batch(average: bool, batch_first: bool) -> None:
    original, ours = attention(batch_first=batch_first)
    operands = inputs({}, batch=None)
    for mask in (
        {},
        {"key_padding_mask": KEYS[0]},
        {"attn_mask": PAIRS_OF_TOKENS},
        {"attn_mask": value(2, 3, 4)},
    ):
        y, weights = ours(*operands, **mask, average_attn_weights=average)
        expected = original(*operands, **mask, average_attn_weights=average)
        torch.testing.assert_close((y, weights), expected, rtol=1e-12, atol=1e-13)


def test_a_query_that_sees_no_key_is_as_in_torch() -> None:
    original, ours = attention()
    operands = inputs({})
    mask = PAIRS_OF_TOKENS.clone()
    mask[1] = True
    for need_weights in (True, False):
        call = {"attn_mask": mask, "need_weights": need_weights}
        y, expected = ours(*operands, **call)[0], original(*operands, **call)[0]
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-13, equal_nan=True)
        assert bool(y[1].isnan().all()) == need_weights


def naive(module: nn.MultiheadAttention, q, k, v, r, mask) -> Tensor:
    """Relevance of the values [queries, batch, embed], by loops over batch and heads."""
    result = torch.zeros_like(v)
    weights = module(q, k, v, attn_mask=mask, average_attn_weights=False)[1].detach()
    value_weight, value_bias = module.in_proj_weight[12:], module.in_proj_bias[12:]
    project_in = partial(F.linear, weight=value_weight, bias=value_bias)
    project_out = partial(F.linear, weight=module.out_proj.weight, bias=module.out_proj.bias)
    for b in range(v.shape[1]):
        values = project_in(v[:, b]).detach()
        heads = [weights[b, h] @ values[:, 3 * h : 3 * h + 3] for h in range(2)]
        (mixed,) = taylor(project_out, (torch.cat(heads, -1),), r[:, b], 1e-6)
        parts = []
        for h in range(2):
            head = values[:, 3 * h : 3 * h + 3]
            share = mixed[:, 3 * h : 3 * h + 3]
            parts += taylor(lambda head, w=weights[b, h]: w @ head, (head,), share, 1e-6)
        (result[:, b],) = taylor(project_in, (v[:, b],), torch.cat(parts, -1), 1e-6)
    return result


def test_attention_gives_all_to_the_values_by_the_epsilon_rule() -> None:
    original, ours = attention()
    q, k, v = inputs({})
    r = value(3, 2, 6, seed=9)
    expected = naive(original, q, k, v.detach(), r, PAIRS_OF_TOKENS)
    y, _ = ours(q, k, v, attn_mask=PAIRS_OF_TOKENS)
    parts = torch.autograd.grad(y, (q, k, v), r, allow_unused=True, retain_graph=True)
    assert parts[:2] == (None, None)
    close(parts[2], expected)
    (again,) = torch.autograd.grad(y, v, r)
    assert torch.equal(again, parts[2])
    x = inputs({})[0]
    y, _ = ours(x, x, x)
    with conservation_check():
        (part,) = torch.autograd.grad(y, x, r)
    close(part.sum(), r.sum())


def test_rules_can_be_put_on_the_projections() -> None:
    _, ours = attention()
    q, k, v = inputs({})
    r = value(3, 2, 6, seed=9)
    (expected,) = torch.autograd.grad(ours(q, k, v)[0], v, r)
    ours.v_proj = EpsilonRule(ours.v_proj, 1e-6)
    ours.out_proj = EpsilonRule(ours.out_proj, 1e-6)
    (wrapped,) = torch.autograd.grad(ours(q, k, v)[0], v, r)
    assert torch.equal(wrapped, expected)
    ours.v_proj = StopRelevanceRule(ours.v_proj)
    assert not ours(q, k, v)[0].requires_grad


def test_a_hook_that_only_looks_changes_nothing_and_zennits_has_its_way() -> None:
    _, ours = attention()
    q, k, v = inputs({})
    r = value(3, 2, 6, seed=9)
    (expected,) = torch.autograd.grad(ours(q, k, v)[0], v, r)
    seen = []
    handle = ours.v_proj.register_forward_hook(lambda *args: seen.append(args[0]))
    (looked,) = torch.autograd.grad(ours(q, k, v)[0], v, r)
    assert seen == [ours.v_proj]
    assert torch.equal(looked, expected)
    handle.remove()
    hook_class = type("Hook", (), {"__module__": "zennit.core", "forward": lambda *args: None})
    ours.v_proj.register_forward_hook(hook_class().forward)
    (plain,) = torch.autograd.grad(ours(q, k, v)[0], v, r)
    assert not torch.allclose(plain, expected)


@pytest.mark.parametrize("settings", CONFIGURATIONS)
def test_attention_shares_its_parameters(settings) -> None:
    original, ours = attention(**settings)
    shared = {id(p) for p in ours.parameters()}
    assert shared == {id(p) for p in original.parameters()}
    operands = inputs(settings)
    for changed in (
        lambda: [p.data.mul_(2) for p in original.parameters()],
        lambda: ours.load_state_dict({n: p * 3 for n, p in ours.state_dict().items()}, assign=True),
        lambda: ours.float().double(),
    ):
        before = ours(*operands)[0]
        changed()
        after = ours(*operands)[0]
        assert not torch.equal(before, after)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(copied(*operands)[0], ours(*operands)[0])
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.zero_()
        assert copied(*operands)[0].abs().max() == 0
        assert ours(*operands)[0].abs().max() > 0


def test_attention_that_has_no_rule_is_refused() -> None:
    for setting in ("add_bias_kv", "add_zero_attn"):
        with pytest.raises(UnknownOperation, match=f"{setting}=True"):
            attention(**{setting: True})
    _, ours = attention()
    operands = inputs({})
    for message, call in {
        r"is_causal=True only": {"is_causal": True},
        r"attn_mask \[3, 3, 4\] must be .* batch \* heads is 4": {"attn_mask": value(3, 3, 4)},
        r"attn_mask \[4\] must be": {"attn_mask": value(4)},
        r"key_padding_mask \[3, 4\] must be": {"key_padding_mask": value(3, 4)},
        r"key_padding_mask \[4\] must be": {"key_padding_mask": value(4)},
        r"not torch.int64": {"attn_mask": PAIRS_OF_TOKENS.long()},
    }.items():
        with pytest.raises(InvalidInput, match=message):
            ours(*operands, **call)
    with pytest.raises(InvalidRule, match="initialize_MHA"):
        lm.MultiheadAttention_CP()(*operands)


def test_masks_as_lxts_helpers_make_them() -> None:
    logits = value(2, 2, 3, 4)
    mask = special._prepare_key_padding_mask(KEYS, None, logits)
    assert mask.shape == (2, 1, 1, 4)
    assert torch.equal(mask[:, 0, 0] == -math.inf, KEYS)
    mask = special._prepare_attn_mask(PAIRS_OF_TOKENS.expand(4, 3, 4), logits)
    assert mask.shape == (2, 2, 3, 4)
    assert mask.dtype == torch.float64
