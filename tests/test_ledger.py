"""Who absorbed what: ledgers of tiny models, against sums done by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lxt
from lxt.auditing.ledger import Ledger

BIASES, SHIFTS, POSITIONS = "biases", "norm shifts", "positions and other constants"
AT_ZERO, SOFTMAX, OTHERS = "values at 0", "softmax", "other constants"


class Net(nn.Module):
    """A model of one function, and the parameters it takes."""

    def __init__(self, function: Callable[..., Tensor], *parameters: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        self.parts = [p if isinstance(p, nn.Module) else nn.Parameter(p) for p in parameters]
        for number, part in enumerate(self.parts):
            setattr(self, f"part{number}", part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        for n, parameter in enumerate(layer.parameters()):
            parameter.copy_(random(*parameter.shape, seed=n + 1))
    return layer


def audited(model: nn.Module, x: Tensor, composite: lxt.Composite = lxt.attnlrp) -> lxt.Report:
    """The audit of the sum of all that a model puts out."""
    return lxt.audit(model, x, lambda y: y, composite)


def check(report: lxt.Report, **absorbed: Tensor | float) -> None:
    """The books close, and each absorber has what it should have, and nobody else anything."""
    assert report.ok, [finding.text for finding in report.findings]
    scale = max(abs(report.target), report.gross)
    assert report.ledger.imbalance() <= 1e-10 * scale
    expected = {name.replace("_", " "): float(value) for name, value in absorbed.items()}
    for name in {*expected, *report.absorbed}:
        found = report.absorbed.get(name, 0.0)
        assert found == pytest.approx(expected.get(name, 0.0), abs=1e-10 * scale), name
    rest = report.target - sum(expected.values())
    assert report.relevance == pytest.approx(rest, abs=1e-10 * scale)


def test_a_bias_keeps_its_share() -> None:
    layer = linear(3, 2)
    x = random(4, 3)
    report = audited(layer, x)
    assert report.target == pytest.approx(layer(x).sum().item())
    check(report, biases=4 * layer.bias.sum())


def test_a_bias_of_one_number_for_each_channel_and_positions_of_many() -> None:
    bias, positions = random(3, seed=5), random(4, 3, seed=6)
    check(audited(Net(lambda x, b: x + b, bias), random(4, 3)), biases=4 * bias.sum())
    report = audited(Net(lambda x, p: x + p, positions), random(4, 3))
    check(report, **{POSITIONS: positions.sum()})


def test_what_later_layers_make_of_a_position() -> None:
    positions, layer = random(4, 3, seed=6), linear(3, 2)
    report = audited(Net(lambda x, p, f: f(x + p), positions, layer), random(4, 3))
    passed_on = (positions @ layer.weight.T).sum()
    check(report, biases=4 * layer.bias.sum(), **{POSITIONS: passed_on})


def test_the_shift_of_a_norm() -> None:
    norm = nn.LayerNorm(5, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(random(5, seed=1))
        norm.bias.copy_(random(5, seed=2))
    x = random(2, 5)
    report = audited(norm, x)
    check(report, norm_shifts=2 * norm.bias.sum())
    deviation = (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    by_hand = ((x - x.mean(-1, keepdim=True)) / deviation * norm.weight).sum()
    assert report.relevance == pytest.approx(by_hand.item(), rel=1e-12)


def test_a_norm_without_shift_keeps_nothing() -> None:
    def rms(x: Tensor, weight: Tensor) -> Tensor:
        return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))

    check(audited(Net(rms, random(5, seed=1)), random(2, 5)))


def test_softmax_keeps_the_remainder_of_its_linearisation() -> None:
    values = random(5, 2, seed=3)
    x = random(2, 5)
    report = audited(Net(lambda x, v: torch.softmax(x, -1) @ v, values), x)
    p = torch.softmax(x, -1)
    g = values.sum(-1).expand_as(p)
    flowing = (x * p * (g - (p * g).sum(-1, keepdim=True))).sum()
    check(report, softmax=(p * g).sum() - flowing)


def test_attention_keeps_what_its_softmax_does() -> None:
    x = random(1, 2, 4, 3)

    def attend(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x * 0.5, x * 2)

    report = audited(Net(attend), x)
    p = torch.softmax((x @ (x * 0.5).mT) / 3**0.5, -1)
    scores = (x @ (x * 0.5).mT) / 3**0.5
    g = (2 * x).sum(-1)[..., None, :].expand_as(p)
    values = 0.5 * (p * g).sum()
    flowing = 0.5 * (scores * p * (g - (p * g).sum(-1, keepdim=True))).sum()
    check(report, softmax=(p * g).sum() - values - flowing)


def test_an_activation_keeps_its_value_at_0() -> None:
    check(audited(Net(torch.relu), random(3, 4)))
    check(audited(Net(F.gelu), random(3, 4)))
    weight = random(4, 2, seed=1)
    report = audited(Net(lambda x, w: torch.sigmoid(x) @ w, weight), random(3, 4))
    check(report, values_at_0=3 * 0.5 * weight.sum())
    report = audited(Net(torch.exp), random(3, 4))
    assert report.absorbed[OTHERS] == pytest.approx(12.0)  # exp(0) = 1


def test_a_gate_hands_on_all() -> None:
    x = random(3, 4)
    report = audited(Net(lambda x: F.silu(x) * (2 * x)), x)
    check(report)
    assert report.target == pytest.approx((F.silu(x) * 2 * x).sum().item())


def test_a_gated_linear_unit() -> None:
    x = random(3, 8)
    a, b = x.chunk(2, -1)
    report = audited(Net(lambda x: F.glu(x)), x)
    # Half of the relevance goes to the gate, whose value at 0 is 1/2.
    check(report, values_at_0=(0.5 * a * 0.5).sum())
    assert report.target == pytest.approx((a * b.sigmoid()).sum().item())


def test_a_module_that_runs_twice() -> None:
    layer = linear(3, 3)
    report = audited(Net(lambda x, f: f(f(x)), layer), random(2, 3))
    through = 2 * (layer.weight @ layer.bias).sum()
    check(report, biases=through + 2 * layer.bias.sum())
    (row,) = (row for row in report.coverage if row.operation.endswith("linear"))
    assert row.times == 2


def test_a_residual_written_in_place() -> None:
    def residual(x: Tensor, f: nn.Module) -> Tensor:
        h = f(x)
        h += x
        return h

    layer = linear(3, 3)
    report = audited(Net(residual, layer), x := random(2, 3))
    check(report, biases=2 * layer.bias.sum())
    (addition,) = report.additions
    assert addition.code == "h += x"
    branches = (x @ layer.weight.T + layer.bias).abs().sum() + x.abs().sum()
    by_hand = branches / (layer(x) + x).abs().sum()
    assert addition.amplification == pytest.approx(by_hand.item())


def test_a_view_written_in_place() -> None:
    bias = random(2, seed=4)

    def shifted(x: Tensor, b: Tensor) -> Tensor:
        h = x * 2
        h[:, :2] += b
        return h * h.detach().sign()

    x = random(4, 3)
    h = x * 2
    h[:, :2] += bias
    report = audited(Net(shifted, bias), x)
    check(report, biases=(bias * h[:, :2].sign()).sum())


def test_constants_written_over_a_part() -> None:
    def overwritten(x: Tensor) -> Tensor:
        h = x * 2
        h[:, 0] = 3.0
        return h

    x = random(4, 3)
    report = audited(Net(overwritten), x)
    check(report, **{OTHERS: 4 * 3.0})
    assert report.relevance == pytest.approx(2 * x[:, 1:].sum().item())


def test_a_constant_token_in_front() -> None:
    token = random(1, 3, seed=7)
    layer = linear(3, 2, bias=False)
    report = audited(Net(lambda x, t, f: f(torch.cat([t, x])), token, layer), random(4, 3))
    check(report, **{OTHERS: (token @ layer.weight.T).sum()})


def test_a_checkpointed_block_has_the_same_ledger() -> None:
    layer = linear(3, 3)

    def block(x: Tensor) -> Tensor:
        return torch.sigmoid(layer(x)) * x

    x = random(2, 3)
    plain = audited(Net(lambda x, _: block(x), layer), x)
    again = audited(Net(lambda x, _: checkpoint(block, x, use_reentrant=False), layer), x)
    assert again.ok, again.findings
    assert again.absorbed == pytest.approx(plain.absorbed, rel=1e-12)
    assert plain.absorbed[BIASES]
    assert plain.absorbed[AT_ZERO]


def test_layers_are_bounded_by_what_crosses_them() -> None:
    model = nn.Sequential(linear(3, 3), nn.ReLU(), linear(3, 2))
    x = random(2, 3)
    report = audited(model, x)
    first, _, last = report.layers
    assert (first.module, last.module) == ("0", "2")
    assert last.received == pytest.approx(report.target)
    assert first.passed == pytest.approx(report.relevance)
    assert first.received == pytest.approx(last.passed)
    assert last.absorbed == pytest.approx(2 * model[2].bias.sum().item())


def test_the_epsilon_of_explicit_rules() -> None:
    import lxt.explicit

    layer = linear(3, 2)
    report = audited(layer, random(4, 3), lxt.explicit.attnlrp)
    assert report.ok, report.findings
    assert report.ledger.imbalance() <= 1e-10 * report.gross
    assert report.absorbed[BIASES] == pytest.approx(4 * layer.bias.sum().item(), rel=1e-4)
    assert 0 < abs(report.absorbed["ε"]) < 1e-4 * report.gross


def test_only_the_rule_that_does_not_conserve_is_unexplained() -> None:
    layer = linear(3, 3)
    model = Net(lambda x, f: torch.relu(f(x)) * 2, layer)
    doubled = lxt.attnlrp | {F.linear: lambda x, w, b: F.linear(2 * x - x.detach(), w, b)}
    report = audited(model, random(2, 3), doubled)
    ledger: Ledger = report.ledger
    (account,) = (a for a in ledger.accounts if abs(a.rest) > 1e-10)
    assert account.call.operation == "torch.nn.functional.linear"
    assert account.rest == pytest.approx(-account.passed / 2)
    assert report.absorbed["unexplained"] == pytest.approx(account.rest)
    assert ledger.imbalance() <= 1e-10 * report.gross


def test_a_write_into_the_view_that_a_linear_layer_puts_out() -> None:
    layer = linear(3, 3)

    def added(x: Tensor, f: nn.Module) -> Tensor:
        y = f(x)
        y += x
        return y

    x = random(2, 4, 3)
    report = audited(Net(added, layer), x)
    check(report, biases=8 * layer.bias.sum())
    plain = audited(Net(lambda x, f: f(x) + x, layer), x)
    assert report.relevance == pytest.approx(plain.relevance, rel=1e-12)


WRITTEN_OUT: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda e: e / e.sum(-1, keepdim=True),
    "einsum": lambda e: e / torch.einsum("ij->i", e)[:, None],
}


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_a_softmax_that_is_written_out(name: str) -> None:
    layer, values = linear(3, 4, bias=False), random(4, 2, seed=9)
    x = random(5, 3)
    report = audited(Net(lambda x, f, v: WRITTEN_OUT[name](torch.exp(f(x))) @ v, layer, values), x)
    whole = audited(Net(lambda x, f, v: torch.softmax(f(x), -1) @ v, layer, values), x)
    assert report.relevance == pytest.approx(whole.relevance, rel=1e-9)
    (quotient,) = (a for a in report.ledger.accounts if a.rest_absorber == SOFTMAX and a.call.rest)
    (exp,) = (a for a in report.ledger.accounts if a.call.family == "exponential")
    assert quotient.call.rule == "quotient"
    # What a softmax keeps in one, two keep here: the quotient, and the 1 of each exponential.
    assert quotient.rest + exp.constant == pytest.approx(whole.absorbed[SOFTMAX], rel=1e-9)
    check(report, softmax=quotient.rest, other_constants=exp.constant)


@pytest.mark.parametrize("composite", [lxt.attnlrp, lxt.cp_lrp], ids=lambda c: c.name)
@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_a_softmax_that_is_written_out_beside_a_path(name: str, composite: lxt.Composite) -> None:
    layer, values = linear(3, 4, bias=False), random(4, 3)
    weights = WRITTEN_OUT[name]
    model = Net(lambda x, f, v: x + weights(torch.exp(f(x))) @ v, layer, values)
    report = audited(model, random(5, 3), composite)
    assert report.ok, report.findings
    kept = report.absorbed.get(SOFTMAX, 0.0)
    assert (abs(kept) > 0.1) == (composite is lxt.attnlrp)  # in CP-LRP weights are constants
    assert report.ledger.imbalance() <= 1e-10 * report.gross
