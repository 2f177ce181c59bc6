"""Activations and norms, as functions at telling points and as modules inside a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from torch import Tensor, nn

import operations
from lxt.composites import attnlrp, cp_lrp
from lxt.rules.secants import numeric_slope
from naive_functions import FUNCTIONS, JUMPS_AT_0, secant
from operations import Call, Model

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# --- secant slopes at telling points -------------------------------------------------------------

NEAR_ZERO = (0.0, 5e-324, 1e-310, 1e-30, 1e-12, 1e-8, 1e-7, 1e-6, 3e-6, 7e-6, 1e-5, 1e-4, 1e-3)
MIDDLE = (0.1, 0.3, 0.5, 0.7, 0.99, 1.0, 1.4, 3.0, 5.0, 6.0, 7.0)
FAR = (19.0, 20.0, 21.0, 30.0, 40.0, 100.0, 1e4)
POINTS = tuple(sign * x for x in NEAR_ZERO + MIDDLE + FAR for sign in (1.0, -1.0))

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "threshold": (0.15, 0.5),
    "clamp": (-0.5, 0.7),
    "clip": (0.3,),
    "clamp_min": (0.2,),
    "clamp_max": (0.2,),
    "leaky_relu": (0.2,),
    "__rpow__": (3.0,),
}
# Where the function exists, and its value and slope are finite in float64.
DOMAINS = {
    "asin": (-1, 1),
    "acos": (-1, 1),
    "atanh": (-0.999, 0.999),
    "erfinv": (-0.999, 0.999),
    "log1p": (-0.999, 1e5),
    "tan": (-1.5, 1.5),
    **dict.fromkeys(("exp", "exp2", "expm1", "sinh", "cosh", "__rpow__"), (-200, 200)),
}
# Absolute errors, in addition to 1e-6 of the slope itself: what is left over of f(x) − f(0), where
# it cancels, is about 1e-16, and the slope that over x. x − tanh(x) cancels in torch itself, and
# cosh(x) − 1 down to the point below which the derivative is taken, 6e-6. GELU is x · (1 + erf) / 2
# in torch too, which cancels for x ≪ 0.
CANCELLATION = {"tanhshrink": 1e-10, "cosh": 1e-10, "gelu": 1e-15}

FUNCTIONALS = {
    operations.base_name(entry.operation): entry.operation
    for entry in operations.all_entries().values()
    if operations.base_name(entry.operation) in FUNCTIONS
    and not operations.is_in_place(entry.operation)
}


def slopes_of(
    operation: Callable[..., Tensor], points: Tensor, *args: Any
) -> tuple[Tensor, Tensor]:
    """Values and secant slopes that the rule of an operation gives at `points`."""
    call = Call(operation, ((operations.Slot(0), *args), {}), (points,), (True,))
    model = Model(call, points.dtype)
    (y,) = model.under(attnlrp)
    return y, model.handed_back([y], [torch.ones_like(y)])[0]


def points_of(name: str, points: tuple[float, ...] = POINTS) -> list[float]:
    low, high = DOMAINS.get(name, (-math.inf, math.inf))
    # Beside a jump at 0 the slope grows over all bounds, that of float16 first.
    nearest = 1e-4 if FUNCTIONS[name] in JUMPS_AT_0 else 0
    return [x for x in points if low <= x <= high and (x == 0 or abs(x) >= nearest)]


def assert_secants(name: str, points: list[float]) -> None:
    args = ARGUMENTS.get(name, ())
    _, slopes = slopes_of(FUNCTIONALS[name], torch.tensor(points, dtype=torch.float64), *args)
    for x, slope in zip(points, slopes.tolist(), strict=True):
        wanted = secant(FUNCTIONS[name], x, *args)
        assert slope == pytest.approx(wanted, rel=1e-6, abs=CANCELLATION.get(name, 0)), x


def test_every_activation_function_is_here():
    assert set(FUNCTIONALS) == set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONALS)
def test_secant_at_telling_points(name):
    assert_secants(name, points_of(name))


@pytest.mark.parametrize("name", FUNCTIONALS)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_secant_in_low_precision(name, dtype):
    args = ARGUMENTS.get(name, ())
    points = torch.tensor(points_of(name), dtype=torch.float64).to(dtype)
    y, slopes = slopes_of(FUNCTIONALS[name], points, *args)
    finite = y.isfinite()
    assert finite.sum() > 30
    assert slopes[finite].isfinite().all()
    for x, slope in zip(points[finite].tolist(), slopes[finite].tolist(), strict=True):
        wanted = secant(FUNCTIONS[name], x, *args)
        # The slope is computed in float32, where f(x) − f(0) cancels to 1e-7 / 5e-3 at worst, the
        # edge of where the derivative is taken, and rounded to the precision of the operand.
        eps = torch.finfo(dtype).eps
        assert slope == pytest.approx(wanted, rel=2 * eps + 1e-4, abs=5e-5), x


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(set(FUNCTIONALS) - set(CANCELLATION))),
    st.floats(-1e4, 1e4) | st.floats(-1e-4, 1e-4) | st.floats(-3, 3),
)
@example("sigmoid", -0.0)
def test_secant_anywhere(name, x):
    for point in points_of(name, (x,)):
        assert_secants(name, [point])


@settings(max_examples=50, deadline=None)
@given(st.floats(-30, 30), st.floats(-2, 2), st.booleans())
def test_numeric_slope_of_any_function(x, offset, at_origin):
    x = x / 1e7 if at_origin else x
    slope = numeric_slope(lambda u: u.sin() + offset, torch.tensor([x], dtype=torch.float64))
    wanted = math.sin(x) / x if abs(x) > 1e-300 else 1.0
    # eps^(1/3) is the edge: eps · (|offset| + 1) / eps^(1/3), and eps^(2/3) / 24 on the other side.
    assert slope.item() == pytest.approx(wanted, abs=2e-10)


class Swish(nn.Module):
    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        hidden = 2 * x
        if self.in_place:
            hidden *= torch.sigmoid(hidden)
            return hidden
        return hidden * torch.sigmoid(hidden)


@pytest.mark.parametrize("composite", [attnlrp, cp_lrp], ids=lambda composite: composite.name)
def test_an_activation_may_be_written_over_its_own_operand(composite):
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    found = []
    for in_place in (True, False):
        model = Swish(in_place=in_place)
        with composite.context(model):
            output = model(x)
        found.append((output.detach(), *torch.autograd.grad(output.sum(), x)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-14, atol=0)
