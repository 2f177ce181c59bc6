"""Complex numbers on the path of relevance: each part has its own, and functions are refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lxt
import operations
from lxt.errors import UnknownOperation
from lxt.explicit import explicit_form
from lxt.rules.registry import complex_t, constant_t, sample, t
from operations import Call, Model, as_real, assert_close

COMPOSITES = {"attnlrp": lxt.attnlrp, "cp_lrp": lxt.cp_lrp}
EXPLICIT = {name: explicit_form(composite, 1e-12) for name, composite in COMPOSITES.items()}

z, w, x = complex_t(2, 3), complex_t(2, 3), t(2, 3)

LINEAR = {
    "add": (torch.add, (z, w)),
    "add a real": (torch.add, (z, x)),
    "sub": (torch.sub, (z, w)),
    "neg": (torch.neg, (z,)),
    "sum": (torch.sum, (z, 1)),
    "mean": (torch.mean, (z, 1)),
    "cumsum": (torch.cumsum, (z, 1)),
    "cat": (lambda a, b: torch.cat((a, b)), (z, w)),
    "index": (lambda a: a[:, 1:], (z,)),
    "H": (lambda a: a.H, (z,)),
    "over a constant": (torch.div, (z, complex_t(2, 3, constant=True))),
    "over a carrier": (torch.div, (z, x)),
}
PRODUCTS = {
    "mul": (torch.mul, (z, w)),
    "mul by a real": (torch.mul, (z, x)),
    "matmul": (torch.matmul, (z, complex_t(3, 2))),
    "bmm": (torch.bmm, (complex_t(1, 2, 3), complex_t(1, 3, 2))),
    "einsum": (lambda a, b: torch.einsum("ij,ij->i", a, b), (z, w)),
    "dot": (torch.dot, (complex_t(3), complex_t(3))),
    "vdot": (torch.vdot, (complex_t(3), complex_t(3))),
    "outer": (torch.outer, (complex_t(2), complex_t(3))),
    "linear": (F.linear, (z, complex_t(4, 3, constant=True))),
    "rotary": (
        lambda a, b: torch.view_as_real(
            torch.view_as_complex(a) * torch.polar(torch.ones_like(b), b)
        ),
        (t(2, 3, 2), constant_t(2, 3)),
    ),
}
FUNCTIONS = {
    "abs": torch.abs,
    "sgn": torch.sgn,
    "exp": torch.exp,
    "cos": torch.cos,
    "square": torch.square,
    "power": lambda a: a**2,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "log": torch.log,
    "expm1": torch.expm1,
    "angle": torch.angle,
}

over_composites = pytest.mark.parametrize("composite", COMPOSITES)


def by_parts(a: Tensor, b: Tensor) -> Tensor:
    """The product of the real parts, and that of the imaginary ones."""
    return as_real(a) * as_real(b)


@over_composites
@pytest.mark.parametrize("name", [*LINEAR, *PRODUCTS])
def test_both_formulations_agree_and_conserve(name: str, composite: str) -> None:
    operation, operands = (LINEAR | PRODUCTS)[name]
    call = Call.of(operation, sample(*operands))
    g = call.upstream()
    model = Model(call, torch.float64)
    outputs = model.under(COMPOSITES[composite])
    gradients = model.handed_back(outputs, g)
    expected = [
        by_parts(v.detach(), g_v) for v, g_v in zip(model.explained, gradients, strict=True)
    ]
    put_in = sum((y.detach() * g_y).sum() for y, g_y in zip(outputs, g, strict=True))
    assert float(sum(r.sum() for r in expected)) == pytest.approx(float(put_in), rel=1e-10)

    model = Model(call, torch.float64)
    outputs = model.under(EXPLICIT[composite])
    seeds = [y.detach() * g_y for y, g_y in zip(outputs, g, strict=True)]
    for actual, wanted in zip(model.handed_back(outputs, seeds), expected, strict=True):
        assert_close(as_real(actual), wanted, 1e-8)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("form", ["gradient", "relevance"])
def test_functions_of_complex_numbers_are_refused(name: str, form: str) -> None:
    """A secant that is complex says nothing of the shares of the two parts."""
    composite = lxt.attnlrp if form == "gradient" else lxt.explicit.attnlrp
    model = Model(Call.of(FUNCTIONS[name], sample(z)), torch.float64)
    reason = "angle has no rule" if name == "angle" else "operand is complex: .*imaginary"
    with pytest.raises(UnknownOperation, match=reason):
        model.under(composite)
    with torch.no_grad():
        constant = operations.Model(Call.of(FUNCTIONS[name], sample(z)), torch.float64)
        assert constant.under(composite)


class Rotary(nn.Module):
    """Numbers, turned as pairs by a bias and an angle, and read off again."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([0.5, -0.25], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.tensor([0.3, 0.7, 1.1], dtype=torch.float64)
        turned = torch.view_as_complex(x + self.bias) * torch.polar(torch.ones_like(angles), angles)
        return torch.view_as_real(turned.mH.resolve_conj())


@pytest.mark.parametrize("form", ["gradient", "relevance"])
def test_the_ledger_of_complex_numbers_is_that_of_their_parts(form: str) -> None:
    composite = lxt.attnlrp if form == "gradient" else lxt.explicit.attnlrp
    model, x = Rotary(), Call.of(torch.neg, sample(t(2, 3, 2))).tensors[0]
    with torch.no_grad():
        at_zero = model(torch.zeros_like(x)).sum()
        target = model(x).sum()
    report = lxt.audit(model, x, lambda y: y, composite)
    assert report.ok, [finding.text for finding in report.findings]
    assert report.target == pytest.approx(float(target))
    assert report.relevance == pytest.approx(float(target - at_zero), abs=1e-6)
    assert sum(report.absorbed.values()) == pytest.approx(float(at_zero), abs=1e-6)
    assert report.ledger.imbalance() <= 1e-6 * report.gross
