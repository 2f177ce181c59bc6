"""Taps and units where a mistake would be silent: one site under two names, graphs, odd places."""

from __future__ import annotations

import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import lxt
import zoo
from lxt.errors import InvalidModel, InvalidTap
from lxt.explained import ExplainedTarget
from test_taps import close, first, ids

NEURON = lxt.Unit("layers.0.mlp.act_fn", 3)
HEADS = lxt.Site("layers.0.self_attn.o_proj", end="input", heads=4)
CHANNELS = lxt.Site("layers.0.self_attn.o_proj", end="input")


@pytest.mark.parametrize(
    ("units", "same"),
    [
        (
            [NEURON, lxt.Unit("model.layers.0.mlp.act_fn", 7)],
            [NEURON, lxt.Unit("layers.0.mlp.act_fn", 7)],
        ),
        (
            [lxt.Unit(HEADS, head=0), lxt.Unit(CHANNELS, 20)],
            [lxt.Unit(HEADS, head=0), lxt.Unit(HEADS, 20)],
        ),
    ],
    ids=["paths", "heads"],
)
def test_a_site_is_one_however_it_is_written(units: Any, same: Any) -> None:
    model = zoo.build("llama")
    one, other = (lxt.explain(model, ids(), through=some).relevance for some in (units, same))
    parts = [lxt.explain(model, ids(), through=unit).relevance for unit in units]
    assert torch.equal(one, other)
    assert one.any()
    assert close(one, parts[0] + parts[1], one, 1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"through": NEURON},
        {"target": [NEURON, lxt.Unit("layers.1.mlp.act_fn", 1)]},
        {"target": lxt.Every(), "through": NEURON, "taps": lxt.Heads()},
    ],
    ids=["through", "units", "all"],
)
def test_no_graph_outlives_an_explanation(options: dict[str, Any]) -> None:
    model, passed = zoo.build("llama"), []

    def keep(module: nn.Module, args: Any) -> None:
        passed.append(weakref.ref(first(args)))

    for layer in model.model.layers:
        layer.input_layernorm.register_forward_pre_hook(keep)
    e = lxt.explain(model, ids(), checkpoint=1, **options)
    gc.collect()
    assert len(passed) > 2  # layers ran a second time
    assert not any(reference() is not None for reference in passed)
    assert e.relevance.any()


def test_the_site_of_an_explained_unit_shows_the_unit() -> None:
    model = zoo.build("llama")
    e = lxt.explain(model, ids()[0], target=lxt.Unit("layers.0", 5), taps="layers.0")
    assert isinstance(e.target, ExplainedTarget)
    expected = torch.zeros(7, 32, dtype=torch.float64)
    expected[-1, 5] = e.target.value
    assert torch.equal(e.latent["layers.0"].relevance[0], expected)
    assert torch.equal(e.latent["layers.0"].activation[0, -1, 5], expected[-1, 5])
    alone = lxt.explain(model, ids()[0], target=lxt.Unit("layers.0", 5))
    assert torch.equal(e.relevance, alone.relevance)


def test_a_trace_of_a_unit_ends_at_it() -> None:
    e = lxt.trace(zoo.build("llama"), ids()[0], target=lxt.Unit("layers.0", 5))
    assert isinstance(e.target, ExplainedTarget)
    assert e.relevance.sum(-1)[1].item() == pytest.approx(e.target.value, rel=1e-12)
    assert not e.relevance[2].any()


@pytest.mark.parametrize(
    "options",
    [
        {"taps": "embed_tokens"},
        {"target": lxt.Unit("embed_tokens", 1)},
        {"through": lxt.Unit("embed_tokens")},
    ],
    ids=["tap", "target", "through"],
)
def test_the_input_is_no_place_within(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidTap, match="embed_tokens puts out the input itself"):
        lxt.explain(zoo.build("llama"), ids(), **options)


def test_labels_are_not_taken_for_tokens_where_there_are_as_many() -> None:
    config = transformers.BertConfig(
        vocab_size=128,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
    )
    config.num_labels = 5
    model = transformers.BertForSequenceClassification(config).eval()
    for tokens in (5, 7):
        with pytest.raises(InvalidTap, match=r"classifier has the shape \[1, 5\]"):
            lxt.explain(model, ids(1, tokens), taps="classifier")


@pytest.mark.parametrize("top", [None, 3])
def test_a_unit_of_what_was_summed_is_of_all_tokens(top: int | None) -> None:
    tap = lxt.Neurons(over="tokens", top=top)
    neurons = lxt.explain(zoo.build("llama"), ids()[0], taps=tap).latent["neurons"]
    site, position, number, _ = neurons.strongest(1)[0]
    assert (position, neurons.unit(site, number, position).position) == (-1, None)
    assert neurons.unit(site, number, 2).position == 2


def test_the_last_token_of_what_was_not_summed_is_the_last() -> None:
    neurons = lxt.explain(zoo.build("llama"), ids()[0], taps=lxt.Neurons(top=3)).latent["neurons"]
    site, _, number, _ = neurons.strongest(1)[0]
    assert neurons.unit(site, number, -1).position == -1


def test_a_unit_of_one_of_several_runs_is_none() -> None:
    config = transformers.AlbertConfig(
        vocab_size=128,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
    )
    model = transformers.AlbertForSequenceClassification(config).eval()
    neurons = lxt.explain(model, ids()[0], taps=lxt.Neurons()).latent["neurons"]
    assert neurons.sites[1].endswith(":input #1")
    with pytest.raises(InvalidTap, match="no lxt.Unit that its path tells"):
        neurons.unit(neurons.sites[1], 3)


def test_a_site_alone_is_a_tap() -> None:
    e = lxt.explain(zoo.build("llama"), ids(), taps=lxt.Site("layers.0", end="input"))
    assert list(e.latent) == ["layers.0:input"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: lxt.Residual(layer=[]),
        lambda: lxt.Site("a", heads=True),
        lambda: lxt.explain(zoo.build("llama"), ids(), through=[]),
    ],
    ids=["layer", "heads", "through"],
)
def test_nothing_is_not_taken_for_all(make: Any) -> None:
    with pytest.raises(InvalidTap):
        make()


def test_a_direction_that_is_trained_is_a_direction() -> None:
    direction = nn.Parameter(torch.arange(32.0) - 7.3)
    relevance: list[Tensor] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for v in (direction, direction.detach()):
            unit = lxt.Unit("layers.0", direction=v)
            relevance.append(lxt.explain(zoo.build("llama"), ids(), target=unit).relevance)
    assert torch.equal(*relevance)
    assert not relevance[0].requires_grad


def test_what_comes_from_another_leaf_is_an_error_and_not_nothing() -> None:
    class Elsewhere(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(4, 4)

        def get_input_embeddings(self) -> nn.Module:
            return self.embedding

        def forward(self, input_ids: Tensor, other: Tensor) -> Any:
            return (self.embedding(input_ids).detach() + other,)

    inputs = {"input_ids": torch.tensor([[3, 1]]), "other": torch.ones(1, requires_grad=True)}
    with pytest.raises(InvalidModel, match="does not come from the input embeddings"):
        lxt.explain(Elsewhere(), inputs)
