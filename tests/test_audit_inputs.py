"""What can be audited, and what it leaves behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lxt
from audited import Net, X, audited, example, kinds
from lxt.errors import InvalidComposite, InvalidInput, InvalidModel, InvalidTarget, LxtError


@pytest.mark.parametrize("padding", ["left", "right", None])
def test_rows_of_tokens(padding: Any) -> None:
    model, rows = example("llama", padding=padding)
    inputs = {"input_ids": rows.input_ids}
    if rows.input_mask is not None:
        inputs["attention_mask"] = rows.input_mask.long()
    report = lxt.audit(model, inputs)
    assert report.ok, report.findings
    assert report.sinks is not None
    assert report.sinks.padding == 0
    assert 0 < report.sinks.first < 1
    assert [bound.module for bound in report.layers] == ["model.layers.0", "model.layers.1"]


def test_ids_alone() -> None:
    model, rows = example("llama")
    assert lxt.audit(model, rows.input_ids[0].tolist()).ok
    assert lxt.audit(model, rows.input_ids, lxt.Logit(7)).ok


@pytest.mark.parametrize("name", ["t5", "vit", "mamba", "bert_mlm", "qwen3_5", "xlstm"])
def test_models_of_other_kinds(name: str) -> None:
    model, one = example(name)
    report = lxt.audit(model, {**one.kwargs, one.leaf_name: one.leaf})
    assert report.ok, report.findings
    assert report.forward_identical


def test_a_tuple_and_a_mapping_of_tensors() -> None:
    model = nn.TransformerDecoderLayer(6, 2, 8, batch_first=True).eval()
    memory = X[None]
    by_place = lxt.audit(model, (X[None], memory))
    by_name = lxt.audit(model, {"tgt": X[None], "memory": memory})
    assert by_place.ok, by_place.findings
    assert by_name.relevance == pytest.approx(by_place.relevance)


def test_a_model_on_which_nothing_can_be_explained() -> None:
    with pytest.raises(InvalidModel, match="does not depend on 0"):
        lxt.audit(Net(lambda x: x.detach()).requires_grad_(False), X)
    with pytest.raises(LxtError, match="no tensor"):
        lxt.audit(Net(lambda x: x), b"text")
    with pytest.raises(InvalidModel, match="no floating-point tensor"):
        lxt.audit(type("Labels", (nn.Module,), {"forward": lambda _, x: x.argmax(-1)})(), X)


@pytest.mark.parametrize(
    ("inputs", "options", "error", "message"),
    [
        ([X], {}, InvalidInput, "is a list: give what the forward of Net takes"),
        (torch.ones(4, 6).long(), {}, InvalidInput, r"\(int64 \[4, 6\]\) is a floating-point"),
        (X[:0], {}, InvalidInput, r"\[0, 6\] has no elements"),
        (X[:, :0], {}, InvalidInput, r"\[4, 0\] has no elements"),
        (X, {"target": True}, InvalidTarget, "no output True"),
        (X, {"composite": {}}, InvalidComposite, "{} is no composite"),
    ],
)
def test_what_an_audit_does_not_take(
    inputs: Any, options: dict[str, Any], error: type[LxtError], message: str
) -> None:
    with pytest.raises(error, match=message):
        lxt.audit(Net(torch.relu), inputs, **options)


def test_an_empty_composite_is_the_one_that_is_audited() -> None:
    report = lxt.audit(Net(torch.relu), X, composite=lxt.Composite({}))
    assert "unknown operation" in kinds(report)


def test_a_composite_that_chooses_the_gradient_where_it_has_no_rule_is_taken_at_its_word() -> None:
    model, rows = example("llama")
    report = lxt.audit(model, rows.input_ids, composite=lxt.gradient)
    assert "unknown operation" not in kinds(report)
    assert any(row.status == "unknown" for row in report.coverage)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripted_code_is_a_finding() -> None:
    report = audited(torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.SiLU())))
    assert "unknown operation" in kinds(report)


def test_a_model_that_puts_out_its_input() -> None:
    with pytest.raises(InvalidModel, match="Identity puts out 0 as it is: no operation runs"):
        lxt.audit(nn.Identity(), X)


def test_an_audit_runs_where_gradients_are_off() -> None:
    with torch.no_grad():
        assert audited(torch.relu).ok
    with torch.inference_mode():
        model = Net(torch.relu)
    assert lxt.audit(Net(torch.relu), X).ok
    del model


def test_an_audit_that_raises_leaves_the_model_as_it_was() -> None:
    calls = 0

    def failing(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > fails_at:
            raise ZeroDivisionError("in the model's own code")
        return torch.relu(x)

    for fails_at in range(6):  # noqa: B007 - `failing` reads it
        calls, model = 0, Net(failing)
        before = dict(vars(model)), [p.requires_grad for p in model.parameters()]
        with pytest.raises(ZeroDivisionError):
            lxt.audit(model, X)
        assert (dict(vars(model)), [p.requires_grad for p in model.parameters()]) == before
        assert all(p.grad is None for p in model.parameters())
        lxt.attnlrp.register(model).remove()  # it is free


def test_progress_is_told_in_stages() -> None:
    stages: list[str] = []
    lxt.audit(Net(torch.relu), X, progress=stages.append)
    assert len(stages) == 6
    assert all(stage and stage == stage.strip() for stage in stages)
