"""Descriptions of units: what they respond to, promote, and where they act."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import lxt
import zoo
from lxt.errors import InvalidInput, InvalidModel
from planted import WORDS, PlantedForCausalLM, Words
from spellings import byte_level_bpe
from test_atlas import build, texts

pytest.importorskip("pyarrow")
from lxt.atlas.atlas import Atlas
from lxt.atlas.lens import lens_of
from lxt.atlas.passes import SiteOfAtlas

CORPUS = ["The capital of France is Paris.", "naïve café Größe", "The capital is café"]


def tiny(name: str, folder: Path, **options: Any) -> tuple[Any, Any, Atlas]:
    model = zoo.build(name, vocab_size=320, dtype=torch.float32).eval()
    tokenizer = byte_level_bpe()
    given = {"context": 9, "top": 3, "batch_size": 4}
    return (
        model,
        tokenizer,
        Atlas.build(model, CORPUS, tokenizer=tokenizer, folder=folder, **given | options),
    )


def test_what_was_planted_is_told(tmp_path: Path) -> None:
    model = PlantedForCausalLM()
    atlas = build(tmp_path / "a", texts(40), model=model)
    for n, word in enumerate(WORDS):
        d = atlas.describe(f"act[{n}]", model=model, tokenizer=Words(), contexts=3)
        assert d.lens is not None
        label, value = d.lens.promoted[0]
        assert (label.strip(), value) == (WORDS[(n + 1) % len(WORDS)], 3)
        assert d.lens.promoted[1][1] == 0
        assert "layers.0.mlp.down" in d.lens.note
        assert "with no norm before it" in d.lens.note
        for by in atlas.by:
            assert {token.strip() for token, _ in d.tokens[by]} == {word}
            assert sum(count for _, count in d.tokens[by]) == 4
            assert len(d.contexts[by]) == 3
            for one in d.contexts[by]:
                e = one.attribution
                assert e is not None
                assert e.target.name == f"/layers.0.mlp.act[{n}]"
                expected = torch.zeros(one.context.place + 1)
                expected[-1] = 1 + n  # the token itself and nothing else made it fire
                torch.testing.assert_close(e.relevance, expected)
        assert word in str(d)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert_mlm", "bert"])
def test_contexts_are_attributed_to_the_unit(name: str, tmp_path: Path) -> None:
    model, tokenizer, atlas = tiny(
        name, tmp_path / "a", taps=[lxt.Neurons(layer=1), lxt.Heads(layer=0), lxt.Residual(layer=0)]
    )
    for number, site in enumerate(atlas.sites):
        unit = atlas.units[sum(s.units for s in atlas.sites[:number])]
        d = atlas.describe(unit, model=model, tokenizer=tokenizer)
        for by in atlas.by:
            assert len(d.contexts[by]) == 3
            for one in d.contexts[by]:
                assert one.attribution is not None
                row = one.context.ids
                alone = lxt.explain(model, row, target=unit.at(one.context.place))
                assert one.attribution.target.value == pytest.approx(
                    one.context.activation, rel=1e-3, abs=1e-6
                )
                length = len(one.attribution.relevance)
                scale = alone.relevance.abs().max()
                torch.testing.assert_close(
                    one.attribution.relevance, alone.relevance[:length],
                    atol=2e-4 * float(scale), rtol=0,
                )  # fmt: skip
                assert not alone.relevance[length:].any()
        assert site.name in str(d)


NORMS = {"llama": "model.norm", "gpt2": "transformer.ln_f", "gemma3": "model.norm"}


@pytest.mark.parametrize("name", NORMS)
def test_the_lens_is_the_change_of_logits(name: str) -> None:
    """A small step along the neuron, with the statistics of all norms held, changes logits so."""
    model = zoo.build(name, vocab_size=320, dtype=torch.float64).eval()
    for part in model.modules():  # norms that compute in float32, and weights that are all alike
        for parameter in part.parameters(recurse=False):
            if parameter.dim() == 1:
                torch.nn.init.normal_(parameter, mean=1)
    ids = [5, 6, 7]
    e = lxt.explain(model, ids, taps=lxt.Neurons(layer=-1))
    (latent,) = e.latent.values()
    site = SiteOfAtlas(latent.sites[0], "neurons", latent.units[0], None)
    lens = lens_of(model, None, site, 4, ids, k=320)
    found = torch.tensor([dict(lens.promoted)[f" {token}"] for token in range(320)])
    module = model.get_submodule(site.name.removesuffix(":input"))

    seen: list[torch.Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with lxt.attnlrp.context(model):  # under which the statistics of norms are constants
        embedded = model.get_input_embeddings()(torch.tensor([ids])).detach().requires_grad_()
        logits = model(inputs_embeds=embedded).logits[0, 1]
        (x,) = seen
        rows = [torch.autograd.grad(z, x, retain_graph=True)[0][0, 1, 4] for z in logits]
    hook.remove()
    expected = torch.stack(rows)
    # The sizes that norms divide by are left out: all logits have the same factor.
    factor = (expected @ found.double()) / (found.double() @ found.double())
    assert factor > 0
    torch.testing.assert_close(
        expected, factor * found.double(), rtol=0, atol=1e-4 * float(expected.abs().max())
    )


def test_the_lens_is_honest_where_there_is_none(tmp_path: Path) -> None:
    model, tokenizer, atlas = tiny("bert", tmp_path / "a", taps=[lxt.Neurons(layer=0)])
    lens = atlas.describe(atlas.units[0], model=model, tokenizer=tokenizer).lens
    assert lens is not None
    assert (lens.promoted, lens.suppressed) == ([], [])
    assert lens.note == "No logit lens: BertForSequenceClassification has no output embeddings."
    model, tokenizer, atlas = tiny(
        "llama", tmp_path / "b", taps=[lxt.Heads(layer=0), lxt.Tap("q_proj")]
    )
    for unit, words in {
        atlas.units[0]: "a head writes into a subspace",
        atlas.units[-1]: "",
    }.items():
        lens = atlas.describe(unit, model=model, tokenizer=tokenizer).lens
        assert lens is not None
        assert words in lens.note
        assert not lens.promoted
    model, tokenizer, atlas = tiny("bert_mlm", tmp_path / "c", taps=[lxt.Neurons(layer=0)])
    lens = atlas.describe(atlas.units[0], model=model, tokenizer=tokenizer).lens
    assert lens is not None
    assert "between the last layer and the head is more than a norm" in lens.note
    heads = atlas.describe(atlas.units[0], model=model, tokenizer=tokenizer)
    assert "No logit lens" in str(heads)


def test_without_a_model_colours_are_of_activation(tmp_path: Path) -> None:
    _, _, atlas = tiny("llama", tmp_path / "a", taps=[lxt.Neurons(layer=0)])
    d = atlas.describe(atlas.units[3])
    assert d.lens is None
    assert all(one.attribution is None for ones in d.contexts.values() for one in ones)
    assert "colours: activation" in str(d)


def test_what_is_refused(tmp_path: Path) -> None:
    _, tokenizer, atlas = tiny("llama", tmp_path / "a", taps=[lxt.Neurons(layer=0)])
    other = zoo.build("llama", vocab_size=321, dtype=torch.float32).eval()
    with pytest.raises(InvalidModel, match="of another model"):
        atlas.describe(atlas.units[0], model=other, tokenizer=tokenizer)
    for count in (0, True, 1.5):
        with pytest.raises(InvalidInput, match="no number of contexts"):
            atlas.describe(atlas.units[0], contexts=count)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="no number of pages"):
        atlas.to_html(tmp_path / "html", most=-1)
