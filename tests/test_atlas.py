"""Atlases: planted neurons are found again; what is kept is what a plain loop finds; refusals."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import lxt
import zoo
from lxt.errors import InvalidFile, InvalidInput, InvalidModel, InvalidTap, UnwritableFile
from planted import WORDS, PlantedForCausalLM, Words
from spellings import byte_level_bpe

pytest.importorskip("pyarrow")
from lxt.atlas.atlas import Atlas

ACT = lxt.Tap("layers.*.mlp.act")


def texts(count: int = 12, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 11))) for _ in range(count)]


def build(folder: Path, corpus: Any = None, **options: Any) -> Atlas:
    model = options.pop("model", None) or PlantedForCausalLM()
    given = {"tokenizer": Words(), "taps": ACT, "context": 6, "top": 4, "batch_size": 2}
    corpus = texts() if corpus is None else corpus
    return Atlas.build(model, corpus, folder=folder, **given | options)


def test_planted_neurons_are_found_by_activation_and_relevance(tmp_path: Path) -> None:
    atlas = build(tmp_path / "a", texts(60))
    assert len(atlas) == len(WORDS)
    assert atlas.sites[0].name == "layers.0.mlp.act"
    for n, unit in enumerate(atlas.units):
        assert unit.neuron == n
        for by in ("activation", "relevance"):
            top = atlas.top(unit, by)
            assert len(top) == 4
            for context in top:
                assert context.tokens[context.peak].strip() == WORDS[n]
                assert context.activation == 1 + n
                # 3 × activation is the logit of the next token there, and the highest.
                assert context.relevance == pytest.approx(3 * (1 + n))
                assert context.value == getattr(context, by)
                for token, value in zip(context.tokens, context.activations, strict=True):
                    assert value == (1 + n if token.strip() == WORDS[n] else 0)
        s = atlas.statistics(unit)
        tokens = " ".join(texts(60)).split()
        share = tokens.count(WORDS[n]) / len(tokens)
        assert s.tokens == len(tokens)
        assert (s.active, s.mean) == pytest.approx((share, share * (1 + n)))
        assert (s.least, s.most) == (0, 1 + n)
        assert s.absolute_relevance == pytest.approx(3 * share * (1 + n))


def test_positions_are_those_of_the_corpus(tmp_path: Path) -> None:
    corpus = texts(30)
    atlas = build(tmp_path / "a", corpus, tokenizer=Words(before=(7, 6)), skip=1)
    seen = 0
    for unit in atlas.units:
        for context in atlas.top(unit):
            words = corpus[context.text].split()
            assert words[context.position] == context.tokens[context.peak].strip()
            assert context.ids[:2] == [7, 6]
            assert context.ids[context.place] == WORDS.index(words[context.position])
            assert context.position % 4, "the first token of each row doesn't count"
            seen += 1
    assert seen == 4 * len(WORDS)


NEGATIVE = ("activation", "-activation", "relevance", "-relevance")


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert_mlm", "bert"])
def test_what_is_kept_is_what_explanations_one_by_one_tell(name: str, tmp_path: Path) -> None:
    """Each row by itself, through the public way, against batches of unequal rows."""
    if name not in zoo.NAMES:
        pytest.skip(f"there is no {name} in the zoo")
    model = zoo.build(name, vocab_size=320, dtype=torch.float32).eval()
    tokenizer = byte_level_bpe()
    corpus = ["The capital of France is Paris.", "Größe, café", "東京は", "naïve Paris of"]
    taps = [lxt.Neurons(layer=0), lxt.Heads(layer=1), lxt.Residual()]
    atlas = Atlas.build(
        model, corpus, tokenizer=tokenizer, taps=taps, by=NEGATIVE, context=7, top=50,
        folder=tmp_path / "a", batch_size=3,
    )  # fmt: skip
    rows = []
    for text in corpus:
        ids = tokenizer(text)["input_ids"]
        rows += [ids[start : start + 7] for start in range(0, len(ids), 7)]
    latents = [predictions_of(model, row, taps) for row in rows]
    for number, site in enumerate(atlas.sites):
        for index in range(0, site.units, 7):
            unit = atlas.units[sum(s.units for s in atlas.sites[:number]) + index]
            for by in NEGATIVE:
                sign = -1 if by[0] == "-" else 1
                kind = by.removeprefix("-")
                expected = []
                for row, of_row in zip(rows, latents, strict=True):
                    x, r = of_row[number]
                    values = sign * (x if kind == "activation" else r)[:, index]
                    at = int(values.argmax())
                    expected.append((sign * values[at].item(), x[at, index], r[at, index], row))
                expected.sort(key=lambda one: -sign * one[0])
                found = atlas.top(unit, by)
                assert len(found) == len(rows)
                scale = max(abs(one[0]) for one in expected) + 1e-6
                for context, (value, x, r, _) in zip(found, expected, strict=True):
                    assert context.value == pytest.approx(value, abs=1e-4 * scale)
                    if sum(abs(value - one[0]) < 1e-3 * scale for one in expected) == 1:
                        assert context.activation == pytest.approx(float(x), rel=1e-3, abs=1e-5)
                        assert context.relevance == pytest.approx(float(r), rel=1e-2, abs=1e-4)


def predictions_of(model: Any, ids: list[int], taps: list[Any]) -> list[tuple[Any, Any]]:
    """Activation and relevance [tokens, units] of each site, by one explanation of a row."""
    target: Any = None
    if "SequenceClassification" not in type(model).__name__:
        target = [lxt.Prediction(position=t) for t in range(len(ids))]
    e = lxt.explain(model, ids, target=target, taps=taps, reduce="sum" if target else None)
    found = []
    for latent in e.latent.values():
        for layer, units in enumerate(latent.units):
            x, r = latent.activation[layer], latent.relevance[layer]
            x, r = (v[:, None] if v.dim() == 1 else v[:, :units] for v in (x, r))
            found.append((x, r))
    return found


def test_activation_alone_is_the_same_and_puts_nothing_on_the_model(tmp_path: Path) -> None:
    model = zoo.build("llama", vocab_size=320, dtype=torch.float32).eval()
    given = {"tokenizer": byte_level_bpe(), "context": 8, "batch_size": 3, "top": 5}
    taps = [lxt.Neurons(), lxt.Heads(), lxt.Residual(channels=True)]
    corpus = ["The capital of France is Paris.", "naïve café Größe"] * 3
    both = Atlas.build(model, corpus, folder=tmp_path / "a", taps=taps, **given)
    alone = Atlas.build(model, corpus, folder=tmp_path / "b", taps=taps, by=["activation"], **given)
    assert alone.sites == both.sites
    assert alone.manifest["settings"]["composite"] is None
    for unit in both.units[::11]:
        for one, other in zip(both.top(unit), alone.top(unit), strict=True):
            assert (one.value, one.text, one.position) == (other.value, other.text, other.position)
            assert torch.equal(one.activations, other.activations)
            assert other.relevance is None
        assert alone.statistics(unit).absolute_relevance is None
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_batch_size_and_order_of_ties_change_nothing(tmp_path: Path) -> None:
    corpus = texts(25)
    atlases = [build(tmp_path / str(size), corpus, batch_size=size) for size in (1, 3, 50)]
    for unit in atlases[0].units:
        for by in atlases[0].by:
            tops = [
                [(c.value, c.text, c.position, c.ids) for c in atlas.top(unit, by)]
                for atlas in atlases
            ]
            assert tops[0] == tops[1] == tops[2]


def test_units_are_found_by_the_end_of_their_name(tmp_path: Path) -> None:
    atlas = build(tmp_path / "a")
    for given in ("mlp.act[3]", "layers.0.mlp.act[-5]", lxt.Unit("layers.*.mlp.act", 3)):
        assert atlas.name(given) == "layers.0.mlp.act[3]"
    assert repr(atlas.unit("act[3]")) == "<Unit /layers.0.mlp.act[3]>"
    for given, words in {
        "mlp.act": "says not which of 8 neurons",
        "mlp.act[8]": "there is no unit 8",
        "mlp.acts[1]": "there is, for instance, 'layers.0.mlp.act'",
        "": "no unit",
    }.items():
        with pytest.raises(InvalidTap, match=words.replace("[", r"\[")):
            atlas.top(given)
    with pytest.raises(InvalidTap, match="of neurons, heads and channels"):
        atlas.top(lxt.Unit("mlp.act", direction=torch.ones(8)))
    with pytest.raises(InvalidInput, match="this atlas ranks contexts by 'activation', 'relev"):
        atlas.top("act[3]", by="-activation")


def test_what_was_begun_otherwise_is_refused(tmp_path: Path) -> None:
    build(tmp_path / "a")
    for options, words in [
        ({"top": 5}, "begun with top=4, and not 5"),
        ({"taps": lxt.Tap("layers.*.mlp.up")}, "begun with taps="),
        ({"batch_size": 3}, "batch_size=2, and not 3"),
        ({"composite": "cp_lrp"}, "composite='attnlrp', and not 'cp_lrp'"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            build(tmp_path / "a", **options)
    other = PlantedForCausalLM([2.0] * len(WORDS))
    with pytest.raises(InvalidModel, match="of another model .* its weights are others"):
        build(tmp_path / "a", model=other)
    with pytest.raises(InvalidModel, match="of another model"):
        Atlas.open(tmp_path / "a", model=other)
    for corpus in (texts()[:-1], [*texts(), "a b"], texts()[::-1], texts(seed=1)):
        with pytest.raises(InvalidInput, match="of another corpus"):
            build(tmp_path / "a", corpus)
    assert len(build(tmp_path / "a")) == len(WORDS)


def test_damage_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    build(folder)
    for name in ("units.parquet", "contexts.parquet", "rows.parquet"):
        whole = (folder / name).read_bytes()
        for broken in (whole[:-1], whole[:40] + bytes([whole[40] ^ 1]) + whole[41:], b""):
            (folder / name).write_bytes(broken)
            with pytest.raises(InvalidFile, match=f"{name}' is damaged"):
                Atlas.open(folder)
        (folder / name).unlink()
        with pytest.raises(InvalidFile, match=f"{name}' can't be read"):
            Atlas.open(folder)
        (folder / name).write_bytes(whole)
    whole = (folder / "manifest.json").read_text()
    content = json.loads(whole)
    for text, words in {
        whole[:50]: "no manifest of an atlas",
        "[]": "its format is not lxt.atlas",
        json.dumps(content | {"version": 99}): "has version 99, and this version of lxt reads 1",
        json.dumps({k: v for k, v in content.items() if k != "files"}): "it lacks files",
        json.dumps(content | {"status": "building"}): "is not finished",
    }.items():
        (folder / "manifest.json").write_text(text)
        with pytest.raises(InvalidFile, match=words):
            Atlas.open(folder)
    with pytest.raises(InvalidFile, match="there is no atlas in"):
        Atlas.open(tmp_path / "nowhere")


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InvalidInput, match="holds other things, such as 'thesis.txt'"):
        build(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UnwritableFile):
        build(tmp_path / "thesis.txt" / "a")


def test_a_second_builder_is_refused(tmp_path: Path) -> None:
    def corpus():
        yield "a b c"
        with pytest.raises(UnwritableFile, match="another process builds"):
            build(tmp_path / "a")
        yield "d e f"

    assert len(build(tmp_path / "a", corpus())) == len(WORDS)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"corpus": []}, InvalidInput, "holds no texts"),
        ({"corpus": ["", "  "]}, InvalidInput, "holds no texts"),
        ({"corpus": ["a", 5]}, InvalidInput, "text 1 of the corpus is 5, and no text"),
        ({"corpus": 5}, InvalidInput, "5 is no corpus"),
        ({"tokenizer": None}, InvalidInput, "needs a tokenizer"),
        ({"by": "activation"}, InvalidInput, "give a list of"),
        ({"by": ["size"]}, InvalidInput, "give a list of"),
        ({"by": ["activation"] * 2}, InvalidInput, "names one twice"),
        ({"top": 0}, InvalidInput, "top=0 is no integer, from 1"),
        ({"context": True}, InvalidInput, "context=True is no integer"),
        ({"context": 1, "skip": 1}, InvalidInput, "leaves no room"),
        ({"window": (1,)}, InvalidInput, "tokens before and after"),
        ({"flush": 0}, InvalidInput, "flush=0 is no number of batches"),
        ({"taps": []}, InvalidInput, "nothing to look at"),
        ({"taps": lxt.Tap("mlp.act", top=2)}, InvalidTap, "leave out over=… and top=…"),
        ({"taps": "mlp.bend"}, InvalidTap, "no module"),
        ({"model": PlantedForCausalLM().train()}, InvalidModel, "call model.eval"),
    ],
)
def test_arguments_that_are_none(
    options: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words.replace("(", r"\(")):
        build(tmp_path / "a", **options)


def test_contexts_are_few_where_rows_are(tmp_path: Path) -> None:
    atlas = build(tmp_path / "a", ["a b"])
    assert [len(atlas.top(unit)) for unit in atlas.units] == [1] * len(WORDS)
