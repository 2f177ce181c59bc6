"""Softmax and norms that a model writes out by hand: the rule of the whole, or refused by name."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import naive_attention
import naive_functions
import naive_norms
import odd_models
from lxt.composites import attnlrp
from lxt.explicit.composites import attnlrp as explicit_attnlrp
from odd_models import COMPOSITES, assert_refused, model_of, operand, upstream
from operations import assert_close

# --- softmax, written out -------------------------------------------------------------------------

MASK = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1], [0, 1, 1, 1]], dtype=torch.float64)
OUT = MASK == 0
SQUARE = torch.linspace(-1, 2, 16, dtype=torch.float64).view(4, 4)


def over_sum(e: Tensor) -> Tensor:
    return e / e.sum(-1, keepdim=True)


def in_place(x: Tensor) -> Tensor:
    e = torch.exp(x)
    e /= e.sum(-1, keepdim=True)
    return e


def all_in_place(x: Tensor) -> Tensor:
    e = x.sub(x.amax(-1, keepdim=True)).exp_().masked_fill_(OUT, 0)
    return e.div_(e.sum(-1, keepdim=True))


def sum_in_place(x: Tensor) -> Tensor:
    e = torch.exp(x)
    total = e.sum(-1, keepdim=True)
    total += 0.25
    return e / total


def off_by_one(x: Tensor) -> Tensor:
    m = x.detach().amax(-1, keepdim=True)
    e = torch.exp(x - m)
    return e / (torch.exp(-m) + e.sum(-1, keepdim=True))


def clamped(low: float) -> Callable[[Tensor], Tensor]:
    def softmax(x: Tensor) -> Tensor:
        e = torch.exp(x)
        return e / e.sum(-1, keepdim=True).clamp(min=low)

    return softmax


def divided(x: Tensor, by: Callable[[Tensor], Tensor]) -> Tensor:
    e = torch.exp(x)
    return e / by(e)


def divided_turned(e: Tensor) -> Tensor:
    turned = e.T
    return (turned / turned.sum(0, keepdim=True)).T


# What it stands for: weights over which mask, with which base, plus what, clamped to what.
Softmax = Callable[[Tensor], Tensor]
SOFTMAXES: dict[str, tuple[Softmax, dict[str, Any]]] = {
    "plain": (lambda x: over_sum(torch.exp(x)), {}),
    "of Tensor": (lambda x: over_sum(x.exp()), {}),
    "less the maximum": (lambda x: over_sum(torch.exp(x - x.max())), {}),
    "less each row's": (lambda x: over_sum(torch.exp(x - x.amax(-1, keepdim=True))), {}),
    "less max().values": (lambda x: over_sum(torch.exp(x - x.max(-1, True).values)), {}),
    "less it, detached": (lambda x: over_sum((x - x.detach().amax(-1, True)).exp()), {}),
    "computed twice": (lambda x: torch.exp(x) / torch.exp(x).sum(-1, keepdim=True), {}),
    "twice, less the maximum": (
        lambda x: torch.exp(x - x.max()) / torch.exp(x - x.max()).sum(-1, keepdim=True),
        {},
    ),
    "e /= s": (in_place, {}),
    "all in place": (all_in_place, {"mask": MASK}),
    "s += c": (sum_in_place, {"plus": 0.25}),
    "+ eps": (lambda x: divided(x, lambda e: e.sum(-1, keepdim=True) + 1e-3), {"plus": 1e-3}),
    "off by one": (lambda x: divided(x, lambda e: 1 + e.sum(-1, keepdim=True)), {"plus": 1.0}),
    "off by one, shifted": (off_by_one, {"plus": 1.0}),
    "clamped": (clamped(1e-3), {}),
    "clamped indeed": (clamped(4.0), {"low": 4.0}),
    "maximum": (
        lambda x: divided(x, lambda e: torch.maximum(e.sum(-1, True), torch.tensor(1e-3).double())),
        {},
    ),
    "masked by a product": (lambda x: over_sum(torch.exp(x) * MASK), {"mask": MASK}),
    "masked after": (lambda x: over_sum(torch.exp(x).masked_fill(OUT, 0)), {"mask": MASK}),
    "masked before": (lambda x: over_sum(x.masked_fill(OUT, -torch.inf).exp()), {"mask": MASK}),
    "masked by where": (lambda x: over_sum(torch.where(OUT, 0.0, torch.exp(x))), {"mask": MASK}),
    "unsqueezed": (lambda x: divided(x, lambda e: e.sum(-1)[:, None]), {}),
    "summed by einsum": (lambda x: divided(x, lambda e: torch.einsum("ij->i", e)[:, None]), {}),
    "summed by a product": (lambda x: divided(x, lambda e: e @ torch.ones(4, 1).double()), {}),
    "over the other dimension": (
        lambda x: divided(x.T.contiguous(), lambda e: e.sum(0)).T,
        {},
    ),
    "turned after": (lambda x: divided_turned(torch.exp(x)), {}),
    "masked and turned": (lambda x: divided_turned(torch.exp(x) * MASK), {"mask": MASK}),
    "turned, of base 2": (lambda x: divided_turned(torch.exp2(x)), {"base": 2.0}),
    "of base 2": (lambda x: over_sum(torch.exp2(x)), {"base": 2.0}),
    "of base 3": (lambda x: over_sum(3.0**x), {"base": 3.0}),
    "logsumexp": (lambda x: torch.exp(x - torch.logsumexp(x, -1, keepdim=True)), {}),
    "its method": (lambda x: (x - x.logsumexp(-1).unsqueeze(-1)).exp(), {}),
    "log_softmax": (lambda x: F.log_softmax(x, -1).exp(), {}),
}  # fmt: skip


def softmax_gradient(
    x: Tensor,
    g: Tensor,
    mask: Tensor | None = None,
    base: float = math.e,
    plus: float = 0.0,
    low: float = 0.0,
) -> Tensor:
    """Prop. 3.1 row by row: y_i = m_i bˣⁱ / max(Σ m bˣ + c, low), by the quotient rule."""
    result = torch.zeros_like(x)
    for row in range(len(x)):
        weights = [1.0] * x.shape[1] if mask is None else mask[row].tolist()
        e = [w * base**v for w, v in zip(weights, x[row].tolist(), strict=True)]
        total = math.fsum(e) + plus
        d, moves = max(total, low), float(total > low)
        for i, j in itertools.product(range(len(e)), repeat=2):
            slope = (i == j) * e[i] / d - moves * e[i] * e[j] / d**2
            result[row, j] += g[row, i] * math.log(base) * slope
    return result


@pytest.mark.parametrize("name", SOFTMAXES)
def test_softmax_written_out_is_softmax(name: str) -> None:
    function, form = SOFTMAXES[name]
    model, x, g = model_of(lambda _, x: function(x)), operand(), upstream()
    with attnlrp.context(model):
        y = model(x * 1)
    assert torch.equal(y, function(x.detach()))
    (gradient,) = torch.autograd.grad(y, x, g)
    assert_close(gradient, softmax_gradient(x.detach(), g, **form), 1e-14)


@pytest.mark.parametrize("name", SOFTMAXES)
@pytest.mark.parametrize("composite", ["cp_lrp", "explicit cp_lrp"])
@pytest.mark.filterwarnings("ignore::lxt.errors.UnusedCompositeWarning")
def test_softmax_written_out_is_a_constant_in_cp_lrp(name: str, composite: str) -> None:
    function, _ = SOFTMAXES[name]
    model = model_of(lambda _, x: function(x))
    with COMPOSITES[composite].context(model):
        y = model(operand() * 1)
    assert not y.requires_grad


# Where x − max(x) is 0, the explicit ε-rule hands on nothing to x, nor takes it from a constant.
DETACHED = ("less it, detached", "off by one, shifted")


@pytest.mark.parametrize("name", [name for name in SOFTMAXES if name not in DETACHED])
def test_softmax_written_out_is_softmax_in_the_explicit_formulation(name: str) -> None:
    function, form = SOFTMAXES[name]
    model, x, g = model_of(lambda _, x: function(x)), operand(), upstream()
    with explicit_attnlrp.context(model):
        y = model(x)
    (relevance,) = torch.autograd.grad(y, x, g * y.detach())
    wanted = x.detach() * softmax_gradient(x.detach(), g, **form)
    assert_close(relevance, wanted, 1e-6)  # ε is 1e-8, and exponentials are as small as 0.1


def test_log_of_softmax_is_log_softmax() -> None:
    for function in (
        lambda x: torch.log(torch.softmax(x, -1)),
        lambda x: x.softmax(-1).log(),
    ):
        model, x, g = model_of(lambda _, x, f=function: f(x)), operand(), upstream()
        with attnlrp.context(model):
            y = model(x * 1)
        rows = zip(x.tolist(), g.tolist(), strict=True)
        wanted = [naive_attention.softmax_row_gradient(*row, log=True) for row in rows]
        (gradient,) = torch.autograd.grad(y, x, g)
        assert_close(gradient, torch.tensor(wanted, dtype=torch.float64), 1e-14)


NEARLY: dict[str, Softmax] = {
    "the sum over another dimension": lambda x: divided(
        x[:, :3], lambda e: e.sum(-1, keepdim=True).T
    ),
    "masked after the sum": lambda x: (lambda e: e * MASK / e.sum(-1, True))(torch.exp(x)),
    "the maximum": lambda x: divided(x, lambda e: e.amax(-1, keepdim=True)),
    "the product": lambda x: (lambda e: (e @ x.T) / e.sum(-1, keepdim=True))(torch.exp(x)),
    "one of them": lambda x: (lambda e: e[:, 0] / e.sum(-1))(torch.exp(x)),
    "summed one by one": lambda x: divided(x, lambda e: sum(e.unbind(-1), odd_models.ONE[0] * 0)),
    "shifted by what carries": lambda x: (
        lambda m: (lambda e: e / (torch.exp(-m) + e.sum(-1, True)))(torch.exp(x - m))
    )(x.amax(-1, keepdim=True)),
    "another logsumexp": lambda x: torch.exp(x - torch.logsumexp(2 * x, -1, keepdim=True)),
    "a logsumexp written out": lambda x: torch.exp(x - x.exp().sum(-1, True).log()),
    "times the reciprocal": lambda x: (lambda e: e * e.sum(-1, True).reciprocal())(torch.exp(x)),
    "times 1 / s": lambda x: (lambda e: e * (1 / e.sum(-1, True)))(torch.exp(x)),
    "times s ** -1": lambda x: (lambda e: e * e.sum(-1, True) ** -1)(torch.exp(x)),
    "F.normalize": lambda x: F.normalize(torch.exp(x), p=1, dim=-1),
    "the 1-norm": lambda x: divided(x, lambda e: e.norm(p=1, dim=-1, keepdim=True)),
    "weighted and summed at once": lambda x: (lambda o: o[:, :4] / o[:, 4:])(
        torch.exp(x) @ torch.cat([SQUARE, torch.ones_like(SQUARE[:, :1])], -1)
    ),
    "values that carry": lambda x: (lambda o: o[:, :4] / o[:, 4:])(
        torch.exp(x @ x.T) @ torch.cat([x, torch.ones_like(x[:, :1])], -1)
    ),
    "linear attention": lambda x: (lambda q, k: (q @ (k.T @ x)) / (q @ k.sum(0, True).T))(
        torch.exp(x), torch.exp(2 * x)
    ),
    "over exp(logsumexp)": lambda x: torch.exp(x) / torch.exp(torch.logsumexp(x, -1, True)),
    "times exp(-logsumexp)": lambda x: torch.exp(x) * torch.exp(-torch.logsumexp(x, -1, True)),
    "exp2 of it": lambda x: torch.exp(x) / torch.exp2(1.4427 * x.logsumexp(-1, True) + 1),
    "exp of c - it": lambda x: torch.exp(x - 1) * (1 - x.logsumexp(-1, True)).exp_(),
    "shifted by it": lambda x: torch.exp(x) * torch.exp(x - x - x.logsumexp(-1, True)),
    "expm1 + 1": lambda x: over_sum(torch.expm1(x) + 1),
    "expm1": lambda x: over_sum(torch.expm1(x)),
    "softplus": lambda x: torch.log(1 + torch.exp(x)),
    "softplus of log1p": lambda x: torch.log1p(torch.exp(x)),
    "softplus in place": lambda x: torch.exp(x).add_(1).log_(),
    "softplus of log1p in place": lambda x: x.exp().log1p_(),
    "stable softplus": lambda x: x.clamp(min=0) + torch.log1p(torch.exp(-x.abs())),
    "softplus of base 2": lambda x: torch.log2(1 + torch.exp2(x)),
    "addcdiv": lambda x: (lambda e: torch.addcdiv(x, e, e.sum(-1, True)))(torch.exp(x)),
}


@pytest.mark.parametrize("name", NEARLY)
def test_what_is_nearly_softmax_is_refused(name: str) -> None:
    assert_refused(lambda _, x: NEARLY[name](x), "exponential|logsumexp|softmax")


def test_exponentials_by_themselves_have_their_secant() -> None:
    model, x, g = model_of(lambda _, x: x.exp() / (1 + x.abs().sum())), operand(), upstream()
    with attnlrp.context(model):
        y = model(x * 1)
    (gradient,) = torch.autograd.grad(y, x, g)
    slopes = [naive_functions.secant(mpmath.exp, v) for v in x.flatten().tolist()]
    d = 1 + math.fsum(abs(v) for v in x.flatten().tolist())
    assert_close(gradient, g * torch.tensor(slopes, dtype=torch.float64).view_as(x) / d, 1e-14)


# --- norms, written out ---------------------------------------------------------------------------

EPS = 1e-5


def shifted(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def rms_in_place(x: Tensor) -> Tensor:
    y = x.clone()
    y *= torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)
    return y


def std_mean(x: Tensor) -> Tensor:
    deviation, mean = torch.std_mean(x, -1, keepdim=True, correction=0)
    return (x - mean) / deviation


def var_mean(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, -1, keepdim=True, correction=0)
    return (x - mean) / (variance + EPS).sqrt()


NORMS: dict[str, tuple[Softmax, dict[str, Any]]] = {
    "rsqrt": (lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS), {}),
    "** -0.5": (lambda x: x * (x.pow(2).mean(-1, True) + EPS) ** -0.5, {}),
    "pow(-0.5)": (lambda x: x * (x * x).mean(-1, True).add(EPS).pow(-0.5), {}),
    "/ sqrt": (lambda x: x / torch.sqrt(x.square().mean(-1, keepdim=True) + EPS), {}),
    "1 / sqrt": (lambda x: x * (1 / (x.square().mean(-1, keepdim=True) + EPS).sqrt()), {}),
    "reciprocal": (lambda x: x * (x.square().mean(-1, True) + EPS).sqrt().reciprocal(), {}),
    "norm": (lambda x: x / (x.norm(dim=-1, keepdim=True) / 4**0.5), {"eps": 0.0}),
    "vector_norm": (
        lambda x: x / torch.linalg.vector_norm(x, dim=-1, keepdim=True) * 2,
        {"eps": 0.0},
    ),
    "F.normalize": (lambda x: F.normalize(x, dim=-1) * 4**0.5, {"eps": 0.0}),
    "einsum": (lambda x: x * torch.rsqrt(torch.einsum("ij,ij->i", x, x)[:, None] / 4 + EPS), {}),
    "a product": (lambda x: x * torch.rsqrt((x * x).sum(-1, True) / 4 + EPS), {}),
    "in place": (rms_in_place, {}),
    "F.rms_norm": (lambda x: F.rms_norm(x, (4,), eps=EPS), {}),
    "centred / sqrt(var)": (
        lambda x: shifted(x) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + EPS),
        {"centred": True},
    ),
    "centred / std": (
        lambda x: shifted(x) / x.std(-1, unbiased=False, keepdim=True),
        {"centred": True, "eps": 0.0},
    ),
    "centred, unbiased": (
        lambda x: shifted(x) / x.std(-1, keepdim=True) * (4 / 3) ** 0.5,
        {"centred": True, "eps": 0.0},
    ),
    "var of the centred": (
        lambda x: (lambda c: c * torch.rsqrt(c.square().mean(-1, True) + EPS))(shifted(x)),
        {"centred": True},
    ),
    "std_mean": (std_mean, {"centred": True, "eps": 0.0}),
    "var_mean": (var_mean, {"centred": True}),
    "F.layer_norm": (lambda x: F.layer_norm(x, (4,), eps=EPS), {"centred": True}),
}


@pytest.mark.parametrize("composite", ["attnlrp", "cp_lrp"])
@pytest.mark.parametrize("name", NORMS)
def test_norms_written_out_are_norms(name: str, composite: str) -> None:
    function, form = NORMS[name]
    model, x, g = model_of(lambda _, x: function(x)), operand(), upstream()
    with COMPOSITES[composite].context(model):
        y = model(x * 1)
    (gradient,) = torch.autograd.grad(y, x, g)
    options = {"centred": False, "eps": EPS} | form
    assert_close(gradient, naive_norms.normalized(x.detach(), g, 4, **options), 1e-13)
