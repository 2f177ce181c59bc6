"""Multi-head attention of `lxt.explicit`, by CP-LRP, against torch's and written out."""

import copy
import math
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explicit_values import close, filled, taylor, value
from lxt.errors import InvalidInput, InvalidRule, UnknownOperation
from lxt.explicit import modules as lm, special
from lxt.explicit.check import conservation_check
from lxt.explicit.rules import EpsilonRule, StopRelevanceRule


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
