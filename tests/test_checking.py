"""`lxt.rule`, `lxt.testing`, and the page on a model of one's own."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lxt
import operations
from lxt.composites import PRESETS
from lxt.errors import CheckFailed, InvalidInput, InvalidRule
from lxt.rules.declared import declarations_of
from lxt.rules.registry import REGISTRY
from operations import Call, Slot, mapped

PAGE = Path(__file__).resolve().parents[1] / "docs" / "your-own-model.md"


def leaf(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).requires_grad_()


SAMPLE = lxt.sample(leaf(3, 4))


# --- lxt.rule -------------------------------------------------------------------------------------


def squared_gate(x: Tensor) -> Tensor:
    """An operation written in Python."""
    return x * x.abs()


class Gated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return squared_gate(x) + x


def secant(x: Tensor) -> Tensor:
    return lxt.gradients.secant(x, squared_gate, torch.abs)


def test_a_declared_rule_changes_nothing_in_the_process() -> None:
    before = dict(REGISTRY), {name: dict(preset) for name, preset in PRESETS.items()}

    def define() -> Any:
        return lxt.rule(squared_gate, source="AttnLRP Eq. 9", samples=[SAMPLE])(secant)

    first, second = define(), define()  # as a notebook's cell that runs twice
    assert first is not second
    assert (dict(REGISTRY), {name: dict(preset) for name, preset in PRESETS.items()}) == before
    assert not declarations_of(secant)
    (entry,) = declarations_of(first)
    assert (entry.operation, entry.source, entry.samples) == (
        squared_gate,
        "AttnLRP Eq. 9",
        (SAMPLE,),
    )
    assert first.__name__ == "secant"


def test_a_rule_of_this_library_can_be_declared_and_stays_as_it_was() -> None:
    declared = lxt.rule(torch.special.i1, source="AttnLRP Eq. 9", samples=[SAMPLE])(lxt.rules.unit)
    assert repr(declared) == repr(lxt.rules.unit)
    assert not declarations_of(lxt.rules.unit)
    lxt.testing.check_rule(declared)
    assert lxt.audit(Calling(torch.special.i1), SAMPLE.args[0], composite=lxt.attnlrp | {
        torch.special.i1: declared
    }).ok  # fmt: skip


class Calling(nn.Module):
    def __init__(self, operation: Callable[..., Tensor]) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(x)


def test_one_rule_of_several_operations() -> None:
    @lxt.rule(torch.special.i1, source="Eq. 9", samples=[SAMPLE])
    @lxt.rule(torch.special.i0e, source="Eq. 9", samples=[SAMPLE], absorbs="values at 0")
    @lxt.rules.family
    def both(operation: Any, x: Tensor) -> Tensor:
        return lxt.rules.unit.function(operation, x)

    found = {entry.operation for entry in declarations_of(both)}
    assert found == {torch.special.i1, torch.special.i0e}
    lxt.testing.check_rule(both)
    lxt.testing.check_rule(both, torch.special.i0e)


def test_a_rule_for_a_function_written_in_python() -> None:
    rule = lxt.rule(squared_gate, source="AttnLRP Eq. 9", samples=[SAMPLE], absorbs="nothing")(
        secant
    )
    lxt.testing.check_rule(rule)
    report = lxt.testing.check_model(
        Gated(), leaf(3, 4), composite=lxt.attnlrp | {squared_gate: rule}
    )
    names = {row.operation.rpartition(".")[2]: row.rule for row in report.coverage}
    assert names["squared_gate"] == "secant"


def test_a_rule_for_a_class_of_modules() -> None:
    @lxt.rule(nn.Softplus, source="Eq. 9", samples=[lxt.sample(nn.Softplus(), leaf(3, 4))])
    def softplus(module: nn.Softplus, x: Tensor) -> Tensor:
        return lxt.rules.unit.function(module.forward, x)

    lxt.testing.check_rule(softplus)


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: lxt.rule(source="me"), "a rule is one of an operation"),
        (lambda: lxt.rule("silu", source="me"), "'silu' is no operation"),
        (lambda: lxt.rule(F.silu, source="me", absorbs="all"), "'all'"),  # type: ignore[arg-type]
        (lambda: lxt.rule(F.silu, source="me")(3), "3 is no rule"),  # type: ignore[arg-type]
        (lambda: lxt.testing.check_rule(secant), "secant does not say what it is a rule of"),
        (lambda: lxt.testing.check_rule(secant, squared_gate), "no sample call of"),
        (
            lambda: lxt.testing.check_rule(secant, squared_gate, lxt.sample(torch.ones(2))),
            "nothing that carries relevance",
        ),
    ],
)
def test_what_can_not_be_declared_or_checked(declare: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidRule, match=message):
        declare()


# --- check_rule -----------------------------------------------------------------------------------

kept: list[Tensor] = []


class Saved(torch.autograd.Function):
    """It hangs its result on the context, in a circle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.result = x * x.abs()
        ctx.x = x
        return ctx.result

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.x.abs()


def altered(x: Tensor) -> Tensor:
    return secant(x) * (1 + 2e-7)


def narrow(x: Tensor) -> Tensor:
    return secant(x.float()).to(x.dtype)


def of_another_type(x: Tensor) -> Tensor:
    return secant(x).float()


def leaking(x: Tensor) -> Tensor:
    return lxt.gradients.secant(x, squared_gate, lambda v: 0.5 * v.abs())


def dividing(x: Tensor) -> Tensor:
    return lxt.gradients.secant(x, squared_gate, lambda v: squared_gate(v) / v)


def overflowing(x: Tensor) -> Tensor:
    return lxt.gradients.substitute(
        x, lambda v: (squared_gate(v), (v,)), lambda g, v: g * (v.abs() * 1e5) / 1e5
    )


def by_stride(x: Tensor) -> Tensor:
    return lxt.gradients.secant(
        x, squared_gate, lambda v: v.abs() if x.is_contiguous() else 2 * v.abs()
    )


def writing(x: Tensor) -> Tensor:
    y = secant(x)
    with torch.no_grad():
        x.mul_(2)
    return y


def keeping(x: Tensor) -> Tensor:
    kept.append(x)
    return secant(x)


def stopped(x: Tensor) -> Tensor:
    return squared_gate(x.detach())


def raising(x: Tensor) -> Tensor:
    raise ValueError("no such shape")


UNSOUND: dict[Callable[..., Any], str] = {
    altered: r"float64: its value is not that of the operation: \d+ of 12 elements differ, by up",
    narrow: "float64: its value is not that of the operation",
    of_another_type: r"float64|another value",
    leaking: r"relevance is not conserved: \S+ came in, \S+ was handed on, .* is lost",
    dividing: r"operands that are 0: 12 gradients of operand 1 are NaN",
    overflowing: r"float16: \d+ of 12 gradients of operand 1 are NaN or infinite",
    by_stride: "operands that are non-contiguous: its gradient of operand 1 is 1 off",
    writing: r"it writes to an operand, float64 \[3, 4\]",
    keeping: "it keeps 1 tensors alive",
    Saved.apply: "alive after the backward pass",
    stopped: "no relevance is handed on: its result is a constant",
    raising: "the rule raises ValueError: no such shape",
}


@pytest.mark.parametrize("rule", UNSOUND)
def test_an_unsound_rule_is_told_why(rule: Callable[..., Any]) -> None:
    named = lambda x: rule(x)  # noqa: E731
    with pytest.raises(CheckFailed) as raised:
        lxt.testing.check_rule(named, squared_gate, SAMPLE)
    assert isinstance(raised.value, AssertionError)
    assert re.search(UNSOUND[rule], str(raised.value)), raised.value
    assert "squared_gate, sample 1" in str(raised.value)
    kept.clear()


class Softmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x, -1)


def test_a_unit_must_be_element_wise() -> None:
    with pytest.raises(CheckFailed, match="is for element-wise functions, and the operation is no"):
        lxt.testing.check_rule(lxt.rules.unit, Softmax, lxt.sample(Softmax(), leaf(3, 5)))
    lxt.testing.check_rule(lxt.rules.unit, F.elu, lxt.sample(leaf(3, 5), 0.5))


@pytest.mark.parametrize(
    ("operation", "sample", "message"),
    [
        (F.silu, leaf(3), r"torch\.Tensor is no sample call of torch\.nn\.functional\.silu: give"),
        (F.silu, lxt.sample(), "has no arguments"),
        (F.silu, lxt.sample(leaf(0, 3)), r"of the shape \[0, 3\], which has no elements"),
        (nn.SiLU, lxt.sample(leaf(3)), r"give lxt\.sample\(SiLU\(…\), x\)"),
    ],
)
def test_what_is_no_sample(operation: Any, sample: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        lxt.testing.check_rule(lxt.rules.unit, operation, sample)


def test_a_sound_one_passes() -> None:
    lxt.testing.check_rule(secant, squared_gate, SAMPLE, lxt.sample(leaf(5)), absorbs="nothing")


def test_what_a_rule_may_absorb() -> None:
    sample = lxt.sample(leaf(3, 4))
    lxt.testing.check_rule(lxt.rules.unit, torch.sigmoid, sample)
    with pytest.raises(CheckFailed, match="which it may not keep"):
        lxt.testing.check_rule(lxt.rules.unit, torch.sigmoid, sample, absorbs="nothing")
    with pytest.raises(CheckFailed, match="not conserved"):
        lxt.testing.check_rule(lxt.rules.passthrough, torch.sigmoid, sample)
    lxt.testing.check_rule(lxt.rules.passthrough, torch.sigmoid, sample, absorbs="anything")
    lxt.testing.check_rule(lxt.rules.constant, torch.sigmoid, sample, absorbs="anything")


def test_what_a_declared_rule_absorbs_is_booked_under_its_name() -> None:
    @lxt.rule(torch.special.i1, source="me", samples=[SAMPLE], absorbs="anything")
    def linearised(x: Tensor) -> Tensor:
        return torch.special.i1(x)

    composite = lxt.attnlrp | {torch.special.i1: linearised}
    report = lxt.testing.check_model(Calling(torch.special.i1), leaf(3, 4), composite=composite)
    assert abs(report.absorbed["the rule linearised"]) > 1e-3
    undeclared = lxt.attnlrp | {torch.special.i1: lambda x: torch.special.i1(x)}
    with pytest.raises(CheckFailed, match="relevance lost or made"):
        lxt.testing.check_model(Calling(torch.special.i1), leaf(3, 4), composite=undeclared)


def test_a_constant_weight_and_further_arguments() -> None:
    sample = lxt.sample(leaf(2, 3), torch.ones(4, 3), bias=torch.ones(4))
    lxt.testing.check_rule(lxt.rules.passthrough, F.linear, sample)


FREE = {"softmax", "attention", "exponential", "gated", "constants", "losses"}
"""Files of rules that linearise, or stop: they absorb by design."""

BY_DESIGN = {
    "torch.nn.functional.glu",  # a half of its gate's value at 0
    "torch.polar",  # what its cosine is at 0
    "torch.nn.functional.multi_head_attention_forward",  # softmax within
    *("torch.std_mean", "torch.var_mean"),  # the spread is a constant
}


@pytest.mark.parametrize("name", sorted(set(operations.all_entries()) - {"torch.Tensor.cuda"}))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_rules_of_this_library_pass(name: str) -> None:
    entry = operations.all_entries()[name]
    samples = []
    for call in map(Call.of, [entry.operation] * len(entry.samples), entry.samples):
        tensors = [
            x.clone().requires_grad_(carries)
            for x, carries in zip(call.tensors, call.carries, strict=True)
        ]
        args, kwargs = mapped(
            call.arguments, lambda v, t=tensors: t[v.index] if isinstance(v, Slot) else v
        )
        samples.append(lxt.sample(*args, **kwargs))
    carries = [
        sample
        for sample, call in zip(samples, operations.entry_calls(entry), strict=True)
        if any(y.requires_grad for y in operations.Model(call, call.precise).under(lxt.attnlrp))
    ]
    free = entry.family in FREE or name in BY_DESIGN or len(carries) < len(samples)
    lxt.testing.check_rule(
        entry.rule, entry.operation, *samples, absorbs="anything" if free else "values at 0"
    )


# --- check_model ----------------------------------------------------------------------------------


def test_a_model_that_is_not_sound_is_told_what_to_write() -> None:
    with pytest.raises(CheckFailed) as raised:
        lxt.testing.check_model(Calling(torch.special.i1), leaf(3, 4))
    message = str(raised.value)
    assert message.startswith("Calling under 'attnlrp' is not sound:")
    assert "1. unknown operation: torch.special.i1" in message
    assert "write: composite | {torch.special.i1: lxt.rules.unit}" in message
    with pytest.raises(InvalidInput):
        lxt.testing.check_model(Calling(torch.special.i1), 3)


def test_checks_need_no_pytest() -> None:
    code = "import sys, lxt; lxt.testing.check_rule; assert 'pytest' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import sys, lxt; assert 'lxt.testing' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- the page -------------------------------------------------------------------------------------


def test_the_code_on_the_page_prints_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "odd", raising=False)
    names: dict[str, Any] = {"__name__": "page"}
    blocks = re.findall(r"^```(\w+)([^\n]*)\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    shown, printed = [], []
    for kind, info, code in blocks:
        if kind == "text":
            shown.append(code)
        elif info.strip():
            (tmp_path / info.strip()).write_text(code)
        else:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(code, str(PAGE), "exec"), names)
            if out.getvalue():
                printed.append(out.getvalue())
    names["test_relevance_of_the_odd_model"]()
    del sys.modules["odd"]
    assert len(shown) == len(printed) == 3
    for expected, found in zip(shown, printed, strict=True):
        assert essence(found, tmp_path) == essence(expected, tmp_path)


def essence(text: str, folder: Path) -> str:
    """A report but for numbers, the folder, and how the lines break."""
    joined = "".join(text.split()).replace(f"{folder}/", "")
    return re.sub(r"[-+]?\d+(\.\d+)?(e[-+]\d+)?", "#", joined)


def test_the_page_names_every_kind_of_finding() -> None:
    source = Path(lxt.__file__).parent / "auditing"
    code = (
        "".join(path.read_text() for path in source.glob("*.py"))
        + (source.parent / "audit.py").read_text()
    )
    kinds = set(re.findall(r'Finding\(\s*"([^"]+)"', code))
    assert len(kinds) > 8
    table = PAGE.read_text().partition("## What else")[2]
    assert not [kind for kind in kinds if kind not in table]
