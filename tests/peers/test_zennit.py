"""Zennit's rules as activation · gradient: the numbers, beside loops and Zennit's own form."""

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
import zennit.composites
import zennit.core
import zennit.rules as rules
from torch import Tensor, nn
from zennit.composites import NameMapComposite
from zennit_nets import (
    EXACT,
    close,
    cnn,
    everywhere,
    gamma,
    mlp,
    modified_gradient,
    normal,
    vit,
)

import lxt
from lxt.efficient.zennit_patches import monkey_patch_zennit


@pytest.fixture
def patched() -> Iterator[None]:
    with monkey_patch_zennit():
        yield


# --- each rule, by loops --------------------------------------------------------------------------

Share = Callable[[float, list[float], float], list[float]]


def naive_epsilon(epsilon: float) -> Share:
    def share(relevance: float, z: list[float], bias: float) -> list[float]:
        total = sum(z) + bias
        return [part * relevance / (total + (epsilon if total >= 0 else -epsilon)) for part in z]

    return share


def naive_gamma(gamma: float) -> Share:
    """Of contributions with the output's sign, 1 + γ times as much."""

    def share(relevance: float, z: list[float], bias: float) -> list[float]:
        sign = 1 if sum(z) + bias > 0 else -1
        grown = [part * (1 + gamma * (part * sign > 0)) for part in [*z, bias]]
        return [part * relevance / sum(grown) for part in grown[:-1]]

    return share


def naive_alpha_beta(alpha: float, beta: float) -> Share:
    def share(relevance: float, z: list[float], bias: float) -> list[float]:
        positive = [max(part, 0) for part in [*z, bias]]
        negative = [min(part, 0) for part in [*z, bias]]
        up = [part / (sum(positive) or 1) for part in positive[:-1]]
        down = [part / (sum(negative) or 1) for part in negative[:-1]]
        return [relevance * (alpha * a - beta * b) for a, b in zip(up, down, strict=True)]

    return share


def naive_relevance(model: nn.Sequential, x: Tensor, share: Share) -> Tensor:
    """R of one row at the input, for its first output; activations pass relevance on."""
    activations = [x]
    for layer in model:
        activations.append(layer(activations[-1]))
    relevance = [0.0] * activations[-1].numel()
    relevance[0] = float(activations[-1][0])
    for layer, inputs in reversed(list(zip(model, activations, strict=False))):
        if isinstance(layer, nn.ReLU):
            continue
        new = [0.0] * inputs.numel()
        for j, (row, bias) in enumerate(zip(layer.weight.tolist(), layer.bias, strict=True)):
            z = [w * value for w, value in zip(row, inputs.tolist(), strict=True)]
            if relevance[j] != 0:
                new = [a + b for a, b in zip(new, share(relevance[j], z, float(bias)), strict=True)]
        relevance = new
    return torch.tensor(relevance, dtype=torch.float64)


@pytest.mark.parametrize(
    ("rule", "share"),
    [
        (rules.Epsilon(0.1), naive_epsilon(0.1)),
        (rules.Gamma(0.25, EXACT), naive_gamma(0.25)),
        (rules.Gamma(3.0, EXACT), naive_gamma(3.0)),
        (rules.ZPlus(EXACT), naive_alpha_beta(1, 0)),
        (rules.AlphaBeta(2, 1, EXACT), naive_alpha_beta(2, 1)),
    ],
    ids=["epsilon", "gamma", "large gamma", "zplus", "alphabeta"],
)
@pytest.mark.usefixtures("patched")
def test_a_rule_is_what_loops_say(rule: zennit.core.Hook, share: Share) -> None:
    model = mlp(6, 8, 7, 3)
    x = normal(4, 6)
    actual = x * modified_gradient(model, x, everywhere(rule))
    with torch.no_grad():
        expected = torch.stack([naive_relevance(model, row, share) for row in x])
    assert close(actual, expected)
    assert not close(actual, x * modified_gradient(model, x), 1e-2)


# --- beside Zennit's own form ---------------------------------------------------------------------

CASES: dict[str, Callable[[], zennit.core.Composite]] = {
    "gamma": lambda: gamma(0.25, 0.05),
    "epsilon": lambda: everywhere(rules.Epsilon(0.01), nn.Linear, nn.Conv2d),
    "zplus": lambda: everywhere(rules.ZPlus(), nn.Linear, nn.Conv2d),
    "alphabeta": lambda: everywhere(rules.AlphaBeta(2, 1), nn.Linear, nn.Conv2d),
    "by name": lambda: NameMapComposite([(["0", "2"], rules.Gamma(0.3)), (["6"], rules.ZPlus())]),
    "norm": lambda: everywhere(rules.Norm(), nn.AvgPool2d),
    "flat": lambda: NameMapComposite([(["0"], rules.Flat())]),
    "wsquare": lambda: NameMapComposite([(["0"], rules.WSquare())]),
    "box": lambda: zennit.composites.EpsilonGammaBox(low=-3.0, high=3.0),
    "plus flat": zennit.composites.EpsilonPlusFlat,
    "alpha2beta1": zennit.composites.EpsilonAlpha2Beta1,
}


def explicit(model: nn.Module, x: Tensor, composite: zennit.core.Composite) -> Tensor:
    """Zennit as it comes: relevance is what arrives at the input, from the output's own value.

    A layer for which the composite has no rule gets the ε-rule with ε → 0, which is ours, and an
    activation passes relevance on.
    """
    named = {name: composite.module_map({}, name, m) for name, m in model.named_modules()}
    rest = [
        (name, rules.Pass() if isinstance(m, nn.ReLU | nn.Flatten) else rules.Norm(EXACT))
        for name, m in model.named_children()
        if named[name] is None and not isinstance(m, nn.Flatten)
    ]
    others = NameMapComposite([([name], rule) for name, rule in rest])
    x = x.detach().requires_grad_()
    with composite.context(model), others.context(model):
        y = model(x)[:, 0]
        return torch.autograd.grad(y, x, y.detach())[0]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ours", [lxt.attnlrp, lxt.cp_lrp], ids=lambda c: c.name)
def test_a_net_has_the_relevance_that_zennit_itself_gives(name: str, ours: lxt.Composite) -> None:
    model, x = cnn(), normal(2, 3, 8, 8)
    expected = explicit(model, x, CASES[name]())
    with monkey_patch_zennit():
        actual = x * modified_gradient(model, x, CASES[name](), ours)
    assert float(expected.norm()) > 1e-4
    assert close(actual, expected, 1e-9)


def test_outside_of_our_contexts_the_composite_must_have_it_all() -> None:
    model, x = cnn(), normal(2, 3, 8, 8)
    composite = zennit.composites.EpsilonGammaBox(low=-3.0, high=3.0)
    expected = explicit(model, x, composite)
    with monkey_patch_zennit():
        actual = x * modified_gradient(model, x, composite, ours=None)
    assert close(actual, expected, 1e-9)


# --- what leaves the gradient as it is ------------------------------------------------------------


@pytest.mark.usefixtures("patched")
def test_gamma_zero_is_no_zennit() -> None:
    model, x = vit(), normal(2, 3, 32, 32)
    for ours in (lxt.attnlrp, lxt.cp_lrp):
        expected = modified_gradient(model, x, None, ours)
        assert close(modified_gradient(model, x, gamma(0, 0), ours), expected, 1e-11)
        assert not close(modified_gradient(model, x, gamma(0, 0.1), ours), expected, 1e-2)


def mlp_with_zeros() -> tuple[nn.Sequential, Tensor]:
    """Inputs and outputs that are exactly 0, an activation and an affine layer."""
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.GELU(), nn.Identity(), nn.Linear(8, 3))
    model = model.double()
    nn.init.zeros_(model[0].weight[2])  # type: ignore[index]
    x = normal(4, 6)
    x[0, 3] = x[1] = 0
    return model, x


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize("rule", [rules.Epsilon(0), rules.Norm(0)], ids=["epsilon", "norm"])
def test_epsilon_zero_is_our_own_gradient(rule: zennit.core.Hook) -> None:
    torch.manual_seed(0)
    model, x = mlp_with_zeros()
    expected = modified_gradient(model, x)
    assert float(expected[1].norm()) > 0.1  # at x = 0 there is a gradient
    assert close(modified_gradient(model, x, everywhere(rule)), expected, 1e-14)


@pytest.mark.usefixtures("patched")
def test_pass_is_our_own_rule_of_an_activation() -> None:
    torch.manual_seed(0)
    model, x = mlp_with_zeros()
    expected = modified_gradient(model, x)
    composite = everywhere(rules.Pass(), nn.GELU, nn.Identity)
    assert close(modified_gradient(model, x, composite), expected, 1e-14)
    plain = modified_gradient(model, x, ours=None)
    assert not close(plain, expected, 1e-2)  # where Pass alone does it, but for the limit at 0
    assert close(modified_gradient(model, x, composite, ours=None)[2:], expected[2:], 1e-14)


# --- division by x --------------------------------------------------------------------------------


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "rule", [rules.Gamma(0.25), rules.ZPlus(), rules.AlphaBeta(2, 1), rules.Epsilon(1e-3)]
)
def test_near_zero_the_gradient_is_that_of_its_side(
    rule: zennit.core.Hook, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3).to(dtype)
    x = torch.tensor([1.5, -0.7, 0.4, 0.0], dtype=dtype)

    def at(value: float) -> Tensor:
        x[3] = value
        return modified_gradient(layer, x, everywhere(rule), None)[3].double()

    tiny = 1e-7 if dtype is torch.float16 else 1e-30
    above, zero, below = at(tiny), at(0.0), at(-tiny)
    # float16 holds 1e-7 with two bits
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 1e-2)
    assert float((above - at(1e-3)).abs()) < 0.05 * float(above.abs()) + 1e-9
    assert float((zero - (above + below) / 2).abs()) <= tolerance * float(above.abs() + below.abs())


@pytest.mark.usefixtures("patched")
def test_flat_relevance_is_exact_but_at_zero() -> None:
    model, x = mlp(4, 3), normal(2, 4)
    x[0, 1], x[1, 2] = 0, 1e-200
    composite = everywhere(rules.Flat(EXACT))
    gradient = modified_gradient(model, x, composite)
    assert gradient.isfinite().all()
    y = model(x)[:, 0].detach()
    expected = (y / 4)[:, None].expand(2, 4).clone()
    expected[0, 1] = 0
    assert close(x * gradient, expected)
    x = x.float()
    x[1, 2] = 1e-40  # whose quotient no float32 holds
    gradient = modified_gradient(model.float(), x, composite)
    assert gradient.isfinite().all()
    assert gradient[1, 2] == 0


@pytest.mark.usefixtures("patched")
def test_half_precision_is_near_double() -> None:
    model, x = cnn(), normal(2, 3, 8, 8)
    expected = x * modified_gradient(model, x, gamma(0.25, 0.05, 1e-6))
    for dtype, tolerance in ((torch.bfloat16, 0.05), (torch.float16, 0.01)):
        half = x.to(dtype)
        gradient = modified_gradient(model.to(dtype), half, gamma(0.25, 0.05, 1e-6))
        assert gradient.dtype == dtype
        assert close(half.double() * gradient.double(), expected, tolerance)


@pytest.mark.usefixtures("patched")
def test_a_rule_runs_in_the_autocast_of_its_forward() -> None:
    model, x = cnn(), normal(2, 3, 8, 8)
    composite = gamma(0.25, 0.05, 1e-6)
    expected = x * modified_gradient(model, x, composite)
    leaf = x.float().requires_grad_()
    with composite.context(model.float()):
        with lxt.attnlrp.context(model), torch.autocast("cpu", torch.bfloat16):
            y = model(leaf)[:, 0].sum()
        (gradient,) = torch.autograd.grad(y, leaf)
    assert close(x * gradient, expected, 0.05)


# --- the recipe --------------------------------------------------------


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize("ours", [lxt.attnlrp, lxt.cp_lrp], ids=lambda c: c.name)
def test_the_grid_of_the_vision_recipe(ours: lxt.Composite) -> None:
    model, x = vit(), normal(1, 3, 32, 32)
    plain = model(x)
    heatmaps = []
    for conv, linear in itertools.product([0.1, 0.25, 100], [0, 0.01, 0.05, 0.1, 1]):
        composite = gamma(conv, linear, 1e-6)
        composite.register(model)
        image = x.clone().requires_grad_()
        with ours.context(model):
            logits = model(image)
        assert torch.equal(logits, plain)
        logits[0, 2].backward()
        composite.remove()
        assert image.grad is not None
        heatmaps.append((image * image.grad).sum(1).detach().flatten())
    grid = torch.stack(heatmaps)
    assert grid.isfinite().all()
    assert torch.corrcoef(grid).triu(1).max() < 1 - 1e-9  # no two alike
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
