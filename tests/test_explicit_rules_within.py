"""Explicit rules around functions that hold rules, or that write to their input."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lxt.explicit.functional as lf
from explicit_values import carrier, close, linear, relevance, value
from lxt.efficient.rules import identity_rule_implicit
from lxt.errors import InvalidRule
from lxt.explicit import modules
from lxt.explicit.rules import (
    EpsilonRule,
    IdentityRule,
    StopRelevanceRule,
    TaylorDecompositionRule,
    UniformEpsilonRule,
    UniformRule,
    WrapModule,
)


def taylor_rule(module) -> WrapModule:
    return TaylorDecompositionRule(module, ref=0.5, bias=True)


JACOBIAN_RULES = [EpsilonRule, UniformEpsilonRule, TaylorDecompositionRule, taylor_rule]


@pytest.mark.parametrize("rule", JACOBIAN_RULES)
@pytest.mark.parametrize(
    ("part", "inner"),
    [
        (lambda: EpsilonRule(linear(3, 3)), "epsilon_lrp_fn"),
        (lambda: IdentityRule(nn.GELU()), "identity_fn"),
        (lambda: TaylorDecompositionRule(nn.GELU(), 0.5), "taylor_decomposition_fn"),
        (lambda: modules.LinearEpsilon(3, 3, dtype=torch.float64), "linear_epsilon_fn"),
        (lambda: lambda x: lf.add2(x, x), "add2_tensors_fn"),
    ],
)
def test_a_rule_around_another_is_an_error(rule, part, inner: str) -> None:
    part = part()
    x = carrier(2, 3)
    for function in (part, lambda x: part(x * 2).tanh(), lambda x: x + part(x)):
        with pytest.raises(InvalidRule, match=f"explicit rule of its own, {inner}, .*parts"):
            rule(function)(x)
        with torch.no_grad():
            assert torch.equal(rule(function)(x), function(x))
    for outer in (UniformRule, StopRelevanceRule, IdentityRule):  # which need no gradient
        outer(part)(x)


@pytest.mark.parametrize("rule", JACOBIAN_RULES)
def test_a_rule_beside_or_before_a_function_is_none_within(rule) -> None:
    x, r = carrier(2, 3), value(2, 3, seed=1)
    before = EpsilonRule(linear(3, 3))(x)  # a constant to what has it from elsewhere
    factor = before.detach()
    for plain, taken in (
        (lambda v: v * factor, lambda v: v * before),
        (lambda v: v * factor.tanh(), lambda v: v * lf.mul2(before, 1).tanh()),
        (lambda v: v * lf.mul2(factor, 1), lambda v: v * UniformRule(torch.clone)(before)),
    ):
        y = carrier(2, 3, seed=2)
        close(relevance(rule(taken)(y), r, y), relevance(rule(plain)(y), r, y))
    close(relevance(rule(nn.Tanh())(before), r, x), relevance(rule(torch.tanh)(before), r, x))


@pytest.mark.parametrize("rule", JACOBIAN_RULES)
def test_a_function_that_writes_to_its_input_is_refused(rule) -> None:
    """It would write to a copy, and the model would see the original."""

    def in_part(x: Tensor) -> Tensor:
        x[0].mul_(3)
        return x

    for writing in (nn.ReLU(inplace=True), lambda x: x.view(-1).exp_(), in_part):
        x = carrier(2, 3)
        before = x.detach().clone()
        for operand in (x, x * 1):
            with pytest.raises(InvalidRule, match="writes to its operand in place.*inplace=False"):
                rule(writing)(operand)
        assert torch.equal(x, before)
    x = carrier(2, 3)
    y, expected = rule(lambda x: x)(x), rule(torch.clone)(x)
    close(relevance(y, value(2, 3), x), relevance(expected, value(2, 3), x))


def test_the_implicit_identity_rule_of_functions_that_write_to_their_input() -> None:
    for writing, function in ((nn.SiLU(inplace=True), F.silu), (nn.ReLU(inplace=True), F.relu)):
        for numbers in ([-1.0, 0.5, 2.0], [-1.0, 0.0, 2.0]):
            x = torch.tensor(numbers, requires_grad=True)
            y, expected = (identity_rule_implicit(f, x) for f in (writing, function))
            assert torch.equal(y, expected)
            assert x.tolist() == numbers
            assert torch.equal(*(torch.autograd.grad(z.sum(), x)[0] for z in (y, expected)))


def test_the_implicit_identity_rule_stays_in_the_range_of_float16() -> None:
    x = torch.tensor([6e-8, -1.2e-7, 0.0, 1.0, 1e-4], dtype=torch.float16, requires_grad=True)
    y = identity_rule_implicit(torch.exp, x)
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)
    expected = torch.tensor([65504, -65504, 1, torch.e, 1e4])
    torch.testing.assert_close(gradient.float(), expected, rtol=1e-3, atol=0)
    (gradient,) = torch.autograd.grad(y, x, torch.full_like(y, 1e-4), retain_graph=True)
    assert 1600 < gradient[0] < 1700  # the product fits, though the quotient does not
    (gradient,) = torch.autograd.grad(y, x, torch.full_like(y, torch.inf))
    assert gradient[3].isinf()  # what arrives overflown is not hidden
