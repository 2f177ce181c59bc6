"""What ablation and patching return, and what they refuse."""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
from typing import Any

import pandas
import pytest
import torch
from torch import nn

import lxt
import zoo
from causal_models import Linear, TinyLM
from lxt import evaluate
from lxt.errors import (
    AlreadyRegistered,
    InvalidComposite,
    InvalidInput,
    InvalidModel,
    InvalidTap,
    InvalidTarget,
)
from lxt.explained import ExplainedTarget
from lxt.explicit.composites import attnlrp as explicit_attnlrp

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
OTHERS = torch.tensor([[3, 1, 4, 2, 5], [9, 2, 6, 7, 3]])


def tiny() -> TinyLM:
    return TinyLM([Linear(), Linear()])


def by_hand(**changes: Any) -> evaluate.Interventions:
    """Two rows with three interventions each."""
    effect = torch.tensor([1.0, 2, 3, 1, 2, 4]).double()
    values: dict[str, Any] = {
        "kind": "patching",
        "component": ["a", "a", "b"] * 2,
        "row": torch.tensor([0, 0, 0, 1, 1, 1]),
        "site": ["s", "t", "u"] * 2,
        "layer": torch.tensor([0, 1, 0] * 2),
        "unit": torch.full((6,), -1),
        "position": torch.full((6,), -1),
        "effect": effect,
        "predicted": {"up": effect * 2, "down": torch.tensor([2.0, 1, 0, 1, 2, 0]).double()},
        "targets": [ExplainedTarget("logit", "x", 1.0, 0, "x")] * 2,
        "provenance": {"model": "hand"},
    }
    return evaluate.Interventions(**values | changes)


# --- results --------------------------------------------------------------------------------------


def test_correlations_are_means_over_rows_with_their_standard_error():
    first, second, *rest = by_hand().agreements()
    assert (first.component, first.method, first.rows, first.interventions) == ("a", "up", 2, 4)
    assert (first.pearson, first.pearson_error) == (pytest.approx(1), pytest.approx(0))
    assert (second.pearson, second.spearman) == (pytest.approx(0), pytest.approx(0))
    assert second.pearson_error == pytest.approx(statistics.stdev([-1, 1]) / math.sqrt(2))
    for one in rest:  # of one intervention there is no correlation
        assert one.rows == 0
        assert math.isnan(one.pearson)


def test_ranks_are_not_values():
    effect = torch.tensor([1.0, 2, 4, 1, 10, 100]).double()
    found = by_hand(component=["a"] * 6, effect=effect, predicted={"log": effect.log()})
    (one,) = found.agreements()
    assert one.spearman == pytest.approx(1)
    assert one.pearson < 1 - 1e-3


def test_averaged_is_the_mean_over_rows_of_each_intervention():
    mean = by_hand().averaged()
    assert mean.effect.tolist() == [1, 2, 3.5]
    assert mean.predicted["down"].tolist() == [1.5, 1.5, 0]
    assert mean.site == ["s", "t", "u"]
    assert mean.row.tolist() == [0, 0, 0]
    some = by_hand(position=torch.tensor([-1, -1, -1, -1, -1, 4])).averaged()
    assert some.effect.tolist() == [1, 2], "what one of the rows lacks is left out"


def test_a_table_has_a_line_for_each_intervention():
    found = by_hand()
    table = found.to_dataframe()
    columns = ["row", "component", "site", "layer", "unit", "position", "effect", "up", "down"]
    assert list(table.columns) == columns
    assert table["down"].tolist() == found.predicted["down"].tolist()
    assert table[["row", "layer", "unit", "position"]].dtypes.unique().tolist() == ["int64"]
    assert isinstance(table, pandas.DataFrame)
    with pytest.raises(InvalidInput, match="'row', as another column"):
        by_hand(predicted={"row": found.effect}).to_dataframe()


def test_what_is_printed():
    text = str(by_hand(component=["[red]\x1b[31mevil\n"] * 6))
    assert "\x1b[31m" not in text
    assert "[red]" in text
    assert "patching · hand · 2 rows" in text
    lines = str(by_hand()).splitlines()
    assert any("a" in line and "4" in line and "1.000 ± 0.000" in line for line in lines)
    assert repr(by_hand()) == "<Interventions by patching: a 4, b 2; predicted by up, down>"
    found = evaluate.ablation(tiny(), IDS, components="layers.*.mix", reference="zero")
    assert "reference: zero" in str(found)


def test_parts_and_sizes():
    found = by_hand()
    assert len(found) == 6
    assert found.of("b").effect.tolist() == [3, 4]
    with pytest.raises(InvalidInput, match="no 'c' among the components"):
        found.of("c")
    with pytest.raises(InvalidInput, match="as many entries"):
        by_hand(site=["s"])


def test_provenance_says_what_was_done():
    found = evaluate.ablation(tiny(), IDS, components="layers.*", composites={"mine": "cp_lrp"})
    assert found.provenance["reference"] == "mean"
    assert found.provenance["composites"] == "mine"
    assert found.provenance["class"] == "TinyLM"
    assert found.kind == "ablation"
    assert [target.kind for target in found.targets] == ["prediction"] * 2


def test_groups_of_neurons():
    model = zoo.build("llama")
    options: Any = {"composites": "gradient", "components": "neurons", "reference": "zero"}
    thirds = evaluate.ablation(model, [5, 6, 7, 8], groups=3, **options)
    assert thirds.unit.tolist() == [0, 1, 2] * (len(thirds) // 3)
    picked = evaluate.ablation(model, [5, 6, 7, 8], groups=[[0, 5], [3]], **options)
    assert picked.unit.tolist() == [0, 1] * (len(picked) // 2)
    alone = evaluate.ablation(model, [5, 6, 7, 8], groups=[[5], [0]], **options)
    total = alone.predicted["gradient"][0] + alone.predicted["gradient"][1]
    assert picked.predicted["gradient"][0] == pytest.approx(float(total))


def test_it_is_imported_when_first_asked_for():
    code = "import sys, lxt; assert 'lxt.evaluate' not in sys.modules; lxt.evaluate.patching"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"components": []}, InvalidInput, "components="),
        ({"components": [3]}, InvalidInput, "component 3"),
        ({"components": ["layers.*", "layers.*"]}, InvalidInput, "twice"),
        ({"components": "layer.*"}, InvalidTap, "no module of TinyLM matches 'layer.*'"),
        ({"components": "heads"}, InvalidTap, "no heads found in TinyLM"),
        ({"components": lxt.Site("layers.*", heads=4)}, InvalidTap, "no 4 parts"),
        ({"composites": "attnlpr"}, InvalidComposite, "did you mean 'attnlrp'"),
        ({"composites": []}, InvalidComposite, "empty"),
        ({"composites": 3}, InvalidComposite, "3"),
        ({"composites": [lxt.attnlrp, "attnlrp"]}, InvalidComposite, "two composites are called"),
        ({"composites": explicit_attnlrp}, InvalidComposite, "hands back relevance"),
        ({"reference": "median"}, InvalidInput, "reference='median' is none of 'mean'"),
        ({"reference": "zero", "reference_inputs": IDS}, InvalidInput, "takes no reference_inputs"),
        (
            {"reference": "mean at position", "reference_inputs": IDS[:, :3]},
            InvalidInput,
            "row 0 has 5 tokens, and the reference no more than 3",
        ),
        ({"positions": "last"}, InvalidInput, "positions='last' is none of 'all', 'each'"),
        ({"groups": 0}, InvalidInput, "groups=0"),
        ({"groups": [[-1]]}, InvalidInput, "groups="),
        ({"groups": [3]}, InvalidInput, "groups="),
        ({"groups": "many"}, InvalidInput, "groups="),
        ({"batch_size": 0}, InvalidInput, "batch_size"),
        ({"progress": "yes"}, InvalidInput, "progress"),
        ({"target": [lxt.Logit(1)]}, InvalidTarget, "1 targets for 2 rows"),
        ({"target": lxt.Every()}, InvalidTarget, "a row has one target"),
        ({"target": lxt.Unit("layers.0", 1)}, InvalidTarget, "a row has one target"),
        ({"target": lxt.Logit(1, position=5)}, InvalidTarget, "no position 5"),
    ],
)
def test_an_ablation_that_cannot_be(options, error, match):
    with pytest.raises(error, match=match.replace("*", r"\*")):
        evaluate.ablation(tiny(), IDS, **{"components": "layers.*"} | options)


def test_a_group_with_a_neuron_that_is_not_there():
    with pytest.raises(InvalidTap, match="group 1 has neuron 5000"):
        evaluate.ablation(zoo.build("llama"), IDS, components="neurons", groups=[[1], [5000]])


def test_a_mean_of_the_row_alone_changes_nothing():
    with pytest.raises(InvalidInput, match="nothing to compare"):
        evaluate.ablation(tiny(), IDS[0], components="layers.*", reference="mean at position")


@pytest.mark.parametrize(
    ("clean", "corrupt", "options", "error", "match"),
    [
        (IDS, OTHERS[0], {}, InvalidInput, "2 clean prompts, and 1 corrupt"),
        (IDS[0], OTHERS[0, :4], {}, InvalidInput, "pair 0: the clean prompt has 5 tokens .* 4"),
        (IDS, IDS, {}, InvalidInput, "pair 0: .* are the same"),
        (IDS, [], {}, InvalidInput, "nothing"),
        (IDS, OTHERS, {"target": [lxt.Logit(1)] * 3}, InvalidTarget, "3 targets for 2 rows"),
    ],
)
def test_a_patching_that_cannot_be(clean, corrupt, options, error, match):
    with pytest.raises(error, match=match):
        evaluate.patching(tiny(), clean, corrupt, components="layers.*", **options)


def test_what_is_read_before_prompts_differ_is_not_changed():
    target = lxt.Logit(1, position=2)
    found = evaluate.patching(tiny(), IDS, OTHERS, components="layers.*", target=target)
    assert len(found) == 2 * 2 * 2
    assert not found.effect.any()


def test_a_model_that_is_not_ready():
    model = tiny().train()
    with pytest.raises(InvalidModel, match="training mode"):
        evaluate.ablation(model, IDS, components="layers.*")
    with pytest.raises(InvalidModel, match="no input embeddings"):
        evaluate.ablation(nn.Linear(2, 2).eval(), IDS, components="mlp")
    model = tiny()
    with lxt.attnlrp.context(model), pytest.raises(AlreadyRegistered):
        evaluate.ablation(model, IDS, components="layers.*")
    assert not any(part._forward_hooks for part in model.modules())


class Twice(nn.Module):
    """Runs one linear map two times."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(6, 6, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.map(self.map(x))


def test_a_module_that_runs_twice_is_refused():
    model = TinyLM([Twice()])
    with pytest.raises(InvalidTap, match="ran 2 times"):
        evaluate.ablation(model, IDS, components="layers.0.map")
    assert not any(part._forward_hooks for part in model.modules())
