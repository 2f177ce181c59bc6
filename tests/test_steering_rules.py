"""Steered models under rules; edits of any shape and type; and mistakes, told as such."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

import lxt
import zoo
from lxt.errors import InvalidTap, UnusedEditWarning
from lxt.latent.edits import Add, Edit, Scale, Set, part_of
from lxt.latent.steering import steer
from lxt.latent.units import Site, Unit
from steered import UNITS, Planted, naive

# --- under rules ---------------------------------------------------------------------------------


@pytest.mark.parametrize("composite", [lxt.attnlrp, lxt.cp_lrp])
@pytest.mark.parametrize("edit", [Scale(0.5), Set(2.0), Add(1.0)])
@pytest.mark.parametrize("position", [None, 3])
@pytest.mark.parametrize("unit", UNITS["llama"])
def test_the_steered_model_is_what_is_explained(
    unit: str, position: int | None, edit: Edit, composite: lxt.Composite
) -> None:
    model = zoo.build("llama", dtype=torch.float32)
    ids = zoo.example("llama", model, batch=1).input_ids
    with steer(model, {UNITS["llama"][unit](position=position): edit}):
        report = lxt.audit(model, {"input_ids": ids}, composite=composite)
    assert report.ok, str(report)
    assert "forward as by itself: to the bit" in str(report)


def test_what_is_set_carries_nothing_and_what_is_added_absorbs() -> None:
    model = Planted()
    x = torch.tensor([[[5.0, 3.0]]], requires_grad=True)
    relevances = {}
    for name, edit in {"set": Set(4.0), "add": Add(4.0), "scale": Scale(4.0)}.items():
        with steer(model, {Unit("inner", 0): edit}), lxt.attnlrp.context(model):
            y = model(x)
        relevances[name] = (x * torch.autograd.grad(y.sum(), x)[0]).flatten().tolist()
    assert relevances == {"set": [0, -3], "add": [5, -3], "scale": [20, -3]}


def test_of_a_direction_that_is_set_the_rest_goes_on() -> None:
    model = Planted().double()
    x = torch.randn(1, 2, 2, dtype=torch.float64).requires_grad_()
    v = torch.tensor([3.0, 4.0]).double() / 5
    with steer(model, {Unit("inner", direction=7 * v): Set(2.0)}), lxt.attnlrp.context(model):
        y = model(x)
    g = torch.autograd.grad(y.sum(), x)[0]
    one = torch.tensor([1.0, -1.0]).double()
    torch.testing.assert_close(g, (one - (one @ v) * v).expand(1, 2, 2))
    torch.testing.assert_close((x * g).sum(-1) + 2 * (one @ v), y)


# --- shapes, types, mistakes ---------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    lead=st.lists(st.integers(1, 3), max_size=3),
    heads=st.integers(1, 3),
    size=st.integers(1, 3),
    what=st.sampled_from(["neuron", "head", "direction", "site"]),
    kind=st.sampled_from([Scale, Set, Add]),
    value=st.floats(-8, 8, width=16),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
def test_any_shape_and_type(
    lead: list[int],
    heads: int,
    size: int,
    what: str,
    kind: Any,
    value: float,
    dtype: Any,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    width = heads * size
    x = torch.randn(*lead, width, generator=generator, dtype=torch.float64).to(dtype)
    direction = torch.randn(width, generator=generator, dtype=torch.float64)
    part: dict[str, Any] = {"neuron": seed % width} if what == "neuron" else {}
    part |= {"head": seed % heads} if what == "head" else {}
    part |= {"direction": direction} if what == "direction" else {}
    unit, before = Unit(Site("m", heads=heads), **part), x.clone()
    y = part_of(unit, width).applied(kind(value), x)
    expected = x.double().reshape(1, -1, width).clone()
    for column in range(expected.shape[1]):
        naive(expected, unit, kind(value), 0, column)
    assert y.dtype == dtype
    assert torch.equal(x, before)
    assert y.data_ptr() != x.data_ptr()
    tolerance = 8 * torch.finfo(dtype).eps * (10 + 3 * width * 8)
    torch.testing.assert_close(y.double(), expected.reshape(x.shape), rtol=0, atol=tolerance)


def test_tensors_that_others_hold_are_not_written_to() -> None:
    seen: list[Any] = []

    class Tuple(nn.Module):
        def forward(self, x: Tensor, *, more: Any = None) -> Any:
            seen.append({"out": x * 2, "list": [x]})
            return seen[-1]

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Tuple()

        def forward(self, x: Tensor) -> Tensor:
            return self.part(x)["out"]

    model, x = Whole(), torch.ones(1, 2, 3)
    with steer(model, {Unit("part", 1): Set(9), Unit(Site("part", "input"), 0): Add(1)}):
        y = model(x)
    assert y[0, 0].tolist() == [4, 9, 2]
    assert seen[0]["out"][0, 0].tolist() == [4, 2, 2]
    assert (x == 1).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scale(float("nan")), "nan.*finite number"),
        (lambda: Set("3"), "'3'.*give a number"),
        (lambda: Add(True), "True.*give a number"),
        (lambda: Add(torch.zeros(2, 2)), r"\[2, 2\].*\[channels\]"),
        (lambda: Set(torch.tensor([1.0, float("inf")])), "NaN or infinity"),
        (lambda: steer(Planted(), [1]), r"\[1\] is no mapping"),
        (lambda: steer(Planted(), {"inner": 0}), "0 is nothing to do to inner"),
        (lambda: steer(Planted(), {3: Scale(0)}), "3 is no lxt.Unit"),
        (lambda: steer(Planted(), {"outer": Scale(0)}), "for instance, 'inner'"),
        (lambda: steer(Planted(), {Unit("inner", 2): Scale(0)}), "no neuron 2: inner has 2"),
        (
            lambda: steer(Planted(), {Unit("inner", 0): Set(torch.zeros(2))}),
            r"lxt.Set with 2 numbers: inner\[0\] is a single number",
        ),
        (
            lambda: steer(Planted(), {Unit("inner", direction=torch.ones(3)): Scale(0)}),
            "direction has 3 numbers, and inner 2",
        ),
        (
            lambda: steer(zoo.build("llama"), {"layers.0.mlp.*_proj": Set(torch.zeros(5))}),
            "5 numbers",
        ),
        (lambda: steer(zoo.build("llama"), {"mlp": Scale(0)}), "fits 2 modules"),
        (
            lambda: steer(zoo.build("qwen3_moe"), {Unit("mlp.experts.*", position=1): Set(0)}),
            "within a mixture's experts",
        ),
    ],
)
def test_mistakes_are_told_before_anything_runs(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidTap, match=message):
        make()


def test_mistakes_that_show_when_it_runs() -> None:
    model = nn.Sequential(nn.SiLU(), nn.Linear(3, 3)).half()
    x = torch.ones(1, 2, 3, dtype=torch.half)
    for edits, message in (
        ({Unit("0", 3): Scale(0)}, "no neuron 3: 0 has 3"),
        ({"0": Add(torch.zeros(4))}, "0 has 3 numbers"),
        ({"0": Set(1e6)}, r"1e\+06 is infinite in torch.float16"),
        ({Unit(Site("0", heads=2), head=0): Set(0)}, "2 heads can't share"),
    ):
        with pytest.raises(InvalidTap, match=message), steer(model, edits):
            model(x)
    language = zoo.build("llama")
    ids = torch.tensor([[3, 4]])
    edits = {Unit(Site("embed_tokens", "input")): Scale(0)}
    with pytest.raises(InvalidTap, match="no tensor of floating-point"), steer(language, edits):
        language(ids)


def test_an_edit_that_never_had_anything_to_do_is_told() -> None:
    model = zoo.build("llama")
    unit = Unit("layers.0", position=9)
    with (
        pytest.warns(UnusedEditWarning, match="layers.0 at position 9"),
        steer(model, {unit: Set(0)}),
    ):
        model(torch.tensor([[3, 4]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with steer(model, {unit: Set(0)}):
            pass  # nothing ran
