"""What a finding says, and the report."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import lxt
from audited import CubeGate, Net, X, audited, example

# --- what a finding says --------------------------------------------------------------------------


def test_an_unknown_function_is_named_with_place_nature_and_line() -> None:
    def gate(x: Tensor) -> Tensor:
        return torch.special.i1(x)

    (finding,) = lxt.audit(
        nn.Sequential(Net(gate), Net(lambda x: x)).get_submodule("0"), X
    ).findings
    assert finding.kind == "unknown operation"
    for part in (
        "torch.special.i1",
        "element-wise",
        "(Net)",
        "test_audit_report.py",
        "return torch.special.i1(x)",
    ):
        assert part in finding.text
    assert finding.line == "composite | {torch.special.i1: lxt.rules.unit}"


@pytest.mark.parametrize(
    ("function", "rule"),
    [
        (lambda x: torch.special.i1(x), "lxt.rules.unit"),
        (lambda x: torch.logaddexp(x, x.abs()), "my_rule"),
        (lambda x: torch.renorm(x, 2, 0, 1.0), "my_rule"),
    ],
)
def test_the_line_to_write_fits_the_function(function: Callable[..., Tensor], rule: str) -> None:
    (finding,) = audited(function).findings
    assert rule in (finding.line or "")


def test_the_line_makes_it_sound() -> None:
    report = audited(torch.special.i1)
    line = report.findings[0].line
    assert line
    again = audited(
        torch.special.i1, eval(line, {"composite": lxt.attnlrp, "torch": torch, "lxt": lxt})
    )
    assert again.ok


def test_a_function_in_a_module_is_given_the_name_of_the_module() -> None:
    (finding,) = audited(CubeGate()).findings
    assert finding.text.startswith("Cube is no torch function")
    assert "{CubeGate: lxt.rules.unit}" in (finding.line or "")


def test_a_function_that_runs_often_is_one_finding_with_a_count() -> None:
    report = audited(lambda x: [x := torch.special.i1(x) for _ in range(3)][-1])
    (finding,) = report.findings
    assert ", 3 times" in finding.text
    (row,) = (row for row in report.coverage if row.status == "unknown")
    assert row.times == 3


class QuickGELU(nn.Module):
    """One element-wise function in two operations, each of which has a rule."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def test_an_activation_that_is_taken_apart() -> None:
    (finding,) = audited(QuickGELU()).findings
    assert finding.kind == "activation taken apart"
    for part in ("QuickGELU is element-wise", "(mul, sigmoid)", "return x * torch.sigmoid"):
        assert part in finding.text
    assert finding.line == "composite | {QuickGELU: lxt.rules.unit}"
    assert audited(QuickGELU(), lxt.attnlrp | {QuickGELU: lxt.rules.unit}).ok
    shifted = nn.Sequential(type("OnePlus", (nn.Module,), {"forward": lambda _, x: 1 + x.tanh()})())
    for module in (nn.SiLU(), nn.LayerNorm(6), nn.Softmax(-1), nn.Hardswish(), shifted):
        assert audited(module).ok


# --- the report -----------------------------------------------------------------------------------


def test_json_has_it_all(tmp_path: Any) -> None:
    model, rows = example("llama")
    report = lxt.audit(model, {"input_ids": rows.input_ids})
    path = tmp_path / "report.json"
    report.to_json(path)
    document = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert document == json.loads(report.to_json()) == report.to_dict()
    assert document["schema"] == 1
    assert document["ok"] is True
    assert set(document) == {
        *("schema", "ok", "counts", "model", "composite", "dtype", "target", "relevance", "gross"),
        *("coverage", "absorbed", "operations", "layers", "additions", "sinks"),
        *("forward_identical", "fused", "attention", "float64", "findings", "skipped"),
    }
    assert set(document["coverage"][0]) == {
        *("operation", "status", "rule", "module", "module_class", "file", "line", "code", "times")
    }
    books = document["relevance"] + sum(document["absorbed"].values())
    assert books == pytest.approx(document["target"], rel=1e-5)


def test_numbers_that_are_not_finite_are_null_in_json() -> None:
    report = lxt.audit(Net(torch.relu), X)
    odd = replace(report, target=math.nan, absorbed={"biases": math.inf}, gross=-math.inf)
    document = json.loads(odd.to_json(), parse_constant=pytest.fail)
    assert document["target"] is None
    assert document["absorbed"]["biases"] is None


@pytest.mark.parametrize("width", [40, 120])
def test_the_report_prints_in_any_width(width: int) -> None:
    model, rows = example("llama")
    composite = lxt.attnlrp.without(F.silu)
    report = lxt.audit(model, {"input_ids": rows.input_ids}, composite=composite)
    console = Console(file=io.StringIO(), width=width)
    console.print(report)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for part in ("1 finding", "silu", "coverage", "ledger", "the target", "layers"):
        assert part in text
    assert "sound: " in str(lxt.audit(model, {"input_ids": rows.input_ids}))


def test_the_numbers_of_a_table_have_the_same_decimals() -> None:
    report = lxt.audit(Net(torch.relu), X)
    books = {"biases": 0.25, "softmax": 2e-4}
    shown = str(replace(report, target=12.345, relevance=12.0948, absorbed=books))
    for number in ("12.09", "0.25", "2e-04", "12.35"):
        assert re.search(rf"(the input|absorbed: \w+|the target) +{re.escape(number)} ", shown)


def test_names_that_look_like_markup_or_escapes_are_inert() -> None:
    hostile = "\x1b[31mred[bold]\x00\u202e"

    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.i1(x)

    Odd.__name__ = Odd.__qualname__ = hostile.replace("\x00", "")
    model = nn.Sequential()
    model.add_module(hostile, Odd())
    model.add_module("last", nn.Linear(6, 3))
    report = lxt.audit(model, X)
    assert not report.ok
    shown = str(report)
    assert not {"\x1b", "\x00", "\u202e"} & set(shown)
    assert "[bold]" in shown
    with pytest.raises(lxt.errors.CheckFailed) as raised:
        lxt.testing.check_model(model, X)
    assert not {"\x1b", "\x00", "\u202e"} & set(str(raised.value))
