"""`lxt.explicit.rules` against LXT's own values, and against each rule by dense Jacobians."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.utils.checkpoint import checkpoint

import lxt.explicit.functional as lf
from explicit_values import CASES, carrier, close, linear, relevance, taylor, tensors, value
from lxt.errors import InvalidRule, NonFiniteRelevance
from lxt.explicit import rules
from lxt.explicit.check import conservation_check
from lxt.explicit.rules import (
    EpsilonRule,
    IdentityRule,
    StopRelevanceRule,
    TaylorDecompositionRule,
    UniformEpsilonRule,
    UniformRule,
    WrapModule,
)


def cubic(a: Tensor, b: Tensor) -> Tensor:
    """Non-linear in both, and not zero at 0."""
    return (a * b).tanh() @ torch.ones(3, 2, dtype=a.dtype) + a.sum() ** 3 + b.exp().mean() + 2


def test_golden_epsilon() -> None:
    inputs, constants, output, r, relevances = tensors(CASES["EpsilonRule"])
    module = linear(5, 4)
    module.load_state_dict({"weight": constants["W"], "bias": constants["b"]})
    y = EpsilonRule(module)(*inputs)
    close(y.detach(), output, rtol=1e-12)
    close(relevance(y, r, *inputs), relevances)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("IdentityRule", IdentityRule(nn.GELU())),
        ("UniformRule", UniformRule(torch.mul)),
        ("UniformEpsilonRule", UniformEpsilonRule(torch.matmul)),
    ],
)
def test_golden(name: str, module: nn.Module) -> None:
    inputs, _, output, r, relevances = tensors(CASES[name])
    y = module(*inputs)
    close(y.detach(), output, rtol=1e-12)
    close(relevance(y, r, *inputs), relevances)


# Each rule, written a second time


seeds = st.integers(0, 99)
quick = settings(max_examples=10, deadline=None)


def operands(seed: int) -> tuple[Tensor, Tensor]:
    return carrier(2, 3, seed=seed), carrier(3, seed=seed + 100)


@quick
@given(seeds, st.sampled_from([1e-8, 1e-2]))
def test_epsilon_and_uniform_epsilon(seed: int, epsilon: float) -> None:
    a, b = operands(seed)
    r = value(2, 2, seed=seed)
    expected = taylor(cubic, (a, b), r, epsilon)
    y = EpsilonRule(cubic, epsilon)(a, b)
    assert torch.equal(y, cubic(a, b))
    close(relevance(y, r, a, b), expected)
    y = UniformEpsilonRule(cubic, epsilon)(a, b)
    close(relevance(y, r, a, b), [x / 2 for x in expected])
    constant = b.detach()
    y = UniformEpsilonRule(cubic, epsilon)(a, constant)
    close(relevance(y, r, a), expected[:1])


def expansion(function, inputs, points, r: Tensor, bias: bool) -> list[Tensor]:
    """By dense Jacobians at `points`, one row of the output at a time."""
    inputs = [x.detach() for x in inputs]
    y = function(*inputs)
    jacobians = [
        j.reshape(y.numel(), -1) for j in jacobian(function, tuple(p.detach() for p in points))
    ]
    first_order = sum(j @ x.flatten() for j, x in zip(jacobians, inputs, strict=True))
    denominator = (y.flatten() if bias else first_order) + 1e-6
    shares = r.flatten() / denominator
    return [
        (x.flatten() * sum(row * share for row, share in zip(j, shares, strict=True))).view(x.shape)
        for j, x in zip(jacobians, inputs, strict=True)
    ]


@quick
@given(seeds, st.booleans())
def test_taylor(seed: int, bias: bool) -> None:
    a, b = operands(seed)
    r = value(2, 2, seed=seed)
    given = (value(2, 3, seed=seed + 200), value(3, seed=seed + 300))
    for ref, points in (
        (given, given),
        (iter(given), given),
        (0.5, (torch.full_like(a, 0.5), torch.full_like(b, 0.5))),
        ((1, given[1]), (torch.ones_like(a), given[1])),
        ((given[1], given[1]), (given[1].expand(2, 3), given[1])),
    ):
        y = TaylorDecompositionRule(cubic, ref, bias)(a, b)
        assert torch.equal(y, cubic(a, b))
        close(relevance(y, r, a, b), expansion(cubic, (a, b), points, r, bias), rtol=1e-7)


def test_taylor_at_zero_is_the_default_and_a_tensor_is_for_the_one_input() -> None:
    x, r = carrier(2, 3), value(2, 3, seed=1)
    (ours,) = relevance(TaylorDecompositionRule(torch.sin)(x), r, x)
    close(ours, r * x.detach() / (x.detach() + 1e-6))  # sin has slope 1 at 0
    x0 = value(2, 3, seed=2)
    (ours,) = relevance(TaylorDecompositionRule(torch.sin, x0, bias=True)(x), r, x)
    close(ours, x.detach() * x0.cos() * r / (x.detach().sin() + 1e-6))


def test_taylor_hands_out_its_bias() -> None:
    module = linear(4, 3)
    x, r = carrier(2, 3), value(2, 4, seed=1)
    total = r.sum()

    def evenly(inputs, relevances, bias_relevance):
        (part,) = relevances
        return (part + bias_relevance.sum() / inputs[0].numel(),)

    def unchanged(inputs, relevances):
        return relevances

    (kept,) = relevance(TaylorDecompositionRule(module, 0, True)(x), r, x)
    (same,) = relevance(TaylorDecompositionRule(module, 0, True, unchanged)(x), r, x)
    (given,) = relevance(TaylorDecompositionRule(module, 0, True, evenly)(x), r, x)
    close(kept, taylor(module, (x,), r, 1e-6)[0])
    assert torch.equal(kept, same)
    assert abs((kept.sum() - total).item()) > 1e-2
    close(given.sum(), total, rtol=1e-3)  # up to ε
    wrong = TaylorDecompositionRule(module, 0, True, lambda inputs, relevances: (r, r))
    with pytest.raises(InvalidRule, match=r"\[\[2, 4\], \[2, 4\]\]; they must be \[\[2, 3\]\]"):
        relevance(wrong(x), r, x)


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ((0, 0, 0), "3 reference points, and there are 2 inputs"),
        (torch.zeros(3), "1 reference points, and there are 2 inputs"),
        ((torch.zeros(4), 0), r"\[4\] of input 0 must be .* shape \[2, 3\]"),
        ((0, torch.zeros(2, 3)), r"\[2, 3\] of input 1 must be .* shape \[3\]"),
        ((0, "zero"), "'zero' of input 1 must be a number"),
    ],
)
def test_a_reference_that_does_not_fit_is_quoted(ref, message: str) -> None:
    with pytest.raises(InvalidRule, match=message):
        TaylorDecompositionRule(cubic, ref)(*operands(0))


def test_taylor_of_what_does_not_depend_on_an_operand() -> None:
    a, b = operands(0)
    r = value(2, 3)
    for bias in (False, True):
        y = TaylorDecompositionRule(lambda a, b: a * 2, 0, bias)(a, b)
        parts = relevance(y, r, a, b)
        close(parts, [r * 2 * a.detach() / (2 * a.detach() + 1e-6), torch.zeros_like(b)])


def test_uniform_shares_among_carriers_and_sums_what_was_broadcast() -> None:
    a, b = operands(0)
    r = value(2, 3)
    parts = relevance(UniformRule(torch.mul)(a, b), r, a, b)
    close(parts, [r / 2, r.sum(0) / 2])
    for function in (lambda a, b: b * a, lambda a, b, scale: b * a + scale):
        extra = (2.5,) if function.__code__.co_argcount == 3 else ()
        close(relevance(UniformRule(function)(a, b.detach(), *extra), r, a), [r])


def test_identity_and_stop() -> None:
    x, r = carrier(2, 3), value(2, 3, seed=1)
    y = rules.identity(F.silu, x)
    assert torch.equal(y, F.silu(x))
    assert torch.equal(relevance(y, r, x)[0], r)
    y = StopRelevanceRule(F.silu)(x)
    assert torch.equal(y, F.silu(x))
    assert not y.requires_grad
    # so that a product gives all to the other
    assert torch.equal(relevance(lf.mul2(y, x), r, x)[0], r)


# What holds for every rule


class Shifted(nn.Module):
    """A module with a parameter, a constant operand, a keyword, and a non-tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(value(3, seed=7))

    def forward(self, x: Tensor, mask: Tensor | None = None, *, power: int = 1) -> Tensor:
        y = x * self.weight.to(x.dtype)
        return y**power if mask is None else y.masked_fill(mask, 0) ** power


RULES = {
    "epsilon": EpsilonRule,
    "uniform": UniformRule,
    "uniform epsilon": UniformEpsilonRule,
    "identity": IdentityRule,
    "taylor": lambda module: TaylorDecompositionRule(module, ref=1.0),
    "taylor with bias": lambda module: TaylorDecompositionRule(module, ref=1.0, bias=True),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


@every_rule
def test_keywords_constants_and_parameters(rule) -> None:
    module = Shifted()
    x, r, mask = carrier(2, 3), value(2, 3, seed=1), torch.tensor([True, False, False])
    wrapped = rule(module)
    assert wrapped.module is module
    assert wrapped.weight is module.weight
    y = wrapped(x, mask=mask, power=3)
    assert torch.equal(y, module(x, mask, power=3))
    by_position = relevance(wrapped(x, mask, power=3), r, x)[0]
    for spelled in (y, wrapped(x=x, mask=mask, power=3), wrapped(mask=mask, x=x, power=3)):
        assert torch.equal(relevance(spelled, r, x)[0], by_position)
    assert relevance(y, r, module.weight) == [None]
    assert by_position.abs().sum() > 0
    assert not wrapped(x.detach(), mask=mask).requires_grad
    with torch.no_grad():
        assert torch.equal(wrapped(x, mask=mask, power=3), y)
    with pytest.raises(AttributeError, match="nothing"):
        _ = wrapped.nothing


@every_rule
@pytest.mark.parametrize(
    "function",
    [
        Shifted(),
        nn.Identity(),
        lambda x: x.view(-1).view(2, 3),
        lambda x: x.mT.contiguous().mT,
        torch.sigmoid,
        torch.exp,
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_writing_to_the_output_and_a_second_backward(rule, function, dtype) -> None:
    x, r = carrier(2, 3, dtype=dtype), value(2, 3, seed=1, dtype=dtype)
    y = rule(function)(x)
    first = relevance(y, r, x)[0]
    assert first.dtype == dtype
    assert first.isfinite().all()
    y += 1
    y.mul_(2)
    assert torch.equal(x, value(2, 3, dtype=dtype))
    again = relevance(y, r, x)[0]
    assert torch.equal(again, 2 * first)
    assert torch.equal(relevance(y, r, x)[0], again)
    wide = x.detach().double().requires_grad_()
    (expected,) = relevance(rule(function)(wide), r.double(), wide)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.05}[dtype]
    assert (first.double() - expected).abs().max() <= tolerance * expected.abs().max()


@every_rule
def test_an_output_that_is_no_tensor_is_an_error(rule) -> None:
    def pair(x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x

    with pytest.raises(InvalidRule, match="one tensor; pair returned a tuple of 2"):
        rule(pair)(carrier(2, 3))
    with pytest.raises(InvalidRule, match="NoneType"):
        rule(lambda x: None)(carrier(2, 3))


@every_rule
def test_relevance_hidden_in_an_argument_is_an_error(rule) -> None:
    x = carrier(2, 3)

    def joined(parts, scale=1):
        return torch.cat(list(parts.values() if isinstance(parts, dict) else parts))

    for parts in ([x, x], (x, x.detach()), {"a": x}):
        with pytest.raises(InvalidRule, match=f"argument 0 of joined is a {type(parts).__name__}"):
            rule(joined)(parts)
        with pytest.raises(InvalidRule, match="argument 'parts' of joined"):
            rule(joined)(parts=parts)
    y = rule(joined)([x.detach(), x.detach()])
    assert y.shape == (4, 3)


@pytest.mark.parametrize("rule", [EpsilonRule, UniformRule, UniformEpsilonRule])
def test_the_same_tensor_twice(rule) -> None:
    x, r = carrier(3, 3), value(3, 3, seed=1)
    a, b = (x.detach().clone().requires_grad_() for _ in range(2))
    function = torch.mul if rule is UniformRule else torch.matmul
    expected = sum(relevance(rule(function)(a, b), r, a, b))
    close(relevance(rule(function)(x, x), r, x)[0], expected)


def test_identity_is_for_one_operand_and_its_shape() -> None:
    a, b = operands(0)
    with pytest.raises(InvalidRule, match=r"mul got 2 that carry relevance, .*\[2, 3\], \[3\]"):
        IdentityRule(torch.mul)(a, b)
    with pytest.raises(InvalidRule, match=r"Linear made \[2, 4\] of \[2, 3\]"):
        IdentityRule(linear(4, 3))(a)
    assert not IdentityRule(linear(4, 3))(a.detach()).requires_grad


def test_uniform_needs_operands_that_are_broadcast() -> None:
    with pytest.raises(InvalidRule, match=r"matmul made \[2, 4\] of \[2, 3\]"):
        UniformRule(torch.matmul)(carrier(2, 3), carrier(3, 4))


def test_what_a_function_detaches_is_a_constant() -> None:
    x = carrier(2, 3)
    for rule in (EpsilonRule, UniformEpsilonRule, TaylorDecompositionRule):
        assert not rule(lambda x: x.detach() * 2)(x).requires_grad


def test_writing_to_an_input_that_a_rule_needs_is_an_error() -> None:
    x = carrier(2, 3)
    for rule in (EpsilonRule, UniformEpsilonRule, TaylorDecompositionRule):
        h = x * 1
        y = rule(linear(4, 3))(h)
        h += 1
        with pytest.raises(RuntimeError, match="inplace"):
            y.sum().backward()


def test_a_rule_of_ones_own() -> None:
    class Doubled(WrapModule):
        def forward(self, x: Tensor) -> Tensor:
            return rules.epsilon_lrp(self.module, 1e-8, x) * 2

    module = linear(4, 3, bias=False)
    x, r = carrier(2, 3), value(2, 4, seed=1)
    y = Doubled(module)(x)
    assert torch.equal(y, module(x) * 2)
    close(relevance(y, r, x)[0].sum(), 2 * r.sum(), rtol=1e-5)
    assert list(Doubled(module).state_dict()) == ["module.weight"]


def test_the_functions_take_lxts_order() -> None:
    a, b = operands(0)
    r = value(2, 3)
    for function, args in (
        (rules.epsilon_lrp_fn, (torch.mul, 1e-8, a, b)),
        (rules.uniform_epsilon_lrp_fn, (torch.mul, 1e-8, a, b)),
        (rules.uniform_rule_fn, (torch.mul, a, b)),
        (rules.taylor_decomposition_fn, (torch.mul, (a + 1, b + 1), False, None, a, b)),
    ):
        assert all(part is not None for part in relevance(function.apply(*args), r, a, b))
    assert torch.equal(relevance(rules.identity_fn.apply(F.silu, a), r, a)[0], r)
    assert not rules.stop_relevance_fn.apply(F.silu, a).requires_grad


def test_epsilon_conserves_without_a_bias() -> None:
    x, r = carrier(2, 3), value(2, 4, seed=1)
    for bias in (False, True):
        (part,) = relevance(EpsilonRule(linear(4, 3, bias=bias), 1e-14)(x), r, x)
        assert (abs((part.sum() - r.sum()).item()) < 1e-10) == (not bias)


def test_the_check_reaches_every_rule() -> None:
    x, r = carrier(2, 3), value(2, 3, seed=1)
    for rule in RULES.values():
        y = rule(Shifted())(x)
        with conservation_check():
            (part,) = relevance(y, r, x)
            with pytest.raises(NonFiniteRelevance, match=r"_fn received"):
                relevance(y, r * torch.nan, x)
        close(part, torch.full_like(part, r.mean().item()), rtol=1e-12)


def test_checkpointing() -> None:
    module, x, r = linear(3, 3), carrier(2, 3), value(2, 3, seed=1)

    def block(x: Tensor) -> Tensor:
        h = EpsilonRule(module)(x)
        h = UniformRule(torch.mul)(h, TaylorDecompositionRule(torch.sigmoid, 1.0)(h))
        return lf.add2(lf.softmax(IdentityRule(F.silu)(h), -1), x)

    expected = relevance(block(x), r, x)
    y = checkpoint(block, x, use_reentrant=False)
    close(torch.autograd.grad(y, x, r)[0], expected[0], rtol=1e-12)
