"""Atlases of features of autoencoders, and of routed experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lxt
import zoo
from lxt.errors import InvalidInput, InvalidTap
from planted import WORDS, PlantedForCausalLM, Words
from spellings import byte_level_bpe
from test_atlas import build, texts

pytest.importorskip("pyarrow")
from lxt.atlas.atlas import Atlas

CORPUS = ["The capital of France is Paris.", "naïve café Größe", "The capital is café"]


class Coder(nn.Module):
    """f = ReLU(x W_enc + b_enc), decoded by W_dec."""

    def __init__(self, encoder: Tensor, bias: Tensor, decoder: Tensor) -> None:
        super().__init__()
        self.W_enc, self.b_enc, self.W_dec = map(nn.Parameter, (encoder, bias, decoder))

    def encode(self, x: Tensor) -> Tensor:
        return (x @ self.W_enc + self.b_enc).relu()

    def decode(self, features: Tensor) -> Tensor:
        return features @ self.W_dec


def planted_sae(shift: int = 0) -> lxt.SAE:
    """Of the planted layer's output e_n + 3 (1 + n) e_(n+1): feature n is 3 (1 + n) at token n.

    With a shift, features have other numbers.
    """
    size, width = len(WORDS), len(WORDS) + 2
    # At token n channel n + 1 is 3 (1 + n) ≥ 3, and channel n is 1: a bias of −1 tells them apart.
    decoder = torch.eye(size, width).roll(-1, 0)  # row n is channel n + 1
    decoder = decoder.roll(shift, 0)
    return lxt.SAE(Coder(decoder.T.clone(), -torch.ones(size), decoder))


def random_sae(width: int, count: int = 24, seed: int = 0) -> lxt.SAE:
    draw = torch.Generator().manual_seed(seed)
    shapes = (width, count), (count,), (count, width)
    return lxt.SAE(Coder(*(torch.randn(shape, generator=draw) for shape in shapes)))


def tiny(name: str, folder: Path, **options: Any) -> tuple[Any, Any, Atlas]:
    model = zoo.build(name, vocab_size=320, dtype=torch.float32).eval()
    tokenizer = byte_level_bpe()
    given: dict[str, Any] = {"context": 9, "top": 3, "batch_size": 4, **options}
    return model, tokenizer, Atlas.build(model, CORPUS, tokenizer=tokenizer, folder=folder, **given)


def test_planted_features_are_found_by_activation_and_relevance(tmp_path: Path) -> None:
    model, sae = PlantedForCausalLM(), planted_sae()
    tap = lxt.Features(sae, "layers.0")
    atlas = build(tmp_path / "a", texts(60), model=model, taps=tap)
    assert [(site.name, site.kind, site.units) for site in atlas.sites] == [
        ("layers.0:features", "features", len(WORDS))
    ]
    for n, word in enumerate(WORDS):
        for by in ("activation", "relevance"):
            top = atlas.top(f"layers.0[{n}]", by)
            assert len(top) == 4
            for context in top:
                assert context.tokens[context.peak].strip() == word
                assert context.activation == 3 * (1 + n) - 1
                # Channel n + 1 is the highest logit, and the decoder writes the feature there.
                assert context.relevance == pytest.approx(3 * (1 + n) - 1)
        d = atlas.describe(f"layers.0[{n}]", model=model, tokenizer=Words(), sae=sae, contexts=2)
        assert d.lens is not None
        label, value = d.lens.promoted[0]
        assert (label.strip(), value) == (WORDS[(n + 1) % len(WORDS)], 1)
        assert "direction of the decoder" in d.lens.note
        for ones in d.contexts.values():
            for one in ones:
                e = one.attribution
                assert e is not None
                assert e.relevance[-1] > 0
                assert not e.relevance[:-1].any()


@pytest.mark.parametrize("end", ["output", "input"])
def test_what_is_kept_is_what_a_plain_loop_finds(end: Any, tmp_path: Path) -> None:
    """Features by encoding what passes; relevance f · (W_dec g), row by row."""
    model = zoo.build("llama", vocab_size=320, dtype=torch.float32).eval()
    tokenizer, path = byte_level_bpe(), "model.layers.1"
    sae = random_sae(model.config.hidden_size)
    tap = lxt.Features(sae, lxt.Site(path, end), name="mine")
    given: dict[str, Any] = {"tokenizer": tokenizer, "taps": [tap], "context": 7, "top": 9}
    both = Atlas.build(model, CORPUS, folder=tmp_path / "a", batch_size=3, **given)
    alone = Atlas.build(model, CORPUS, folder=tmp_path / "b", by=["activation"], **given)
    assert alone.sites == both.sites
    suffix = ":mine" if end == "output" else ":input:mine"
    assert both.names[5] == f"{path}{suffix}[5]"
    features, relevance = [], []
    for text in CORPUS:
        ids = tokenizer(text)["input_ids"]
        for start in range(0, len(ids), 7):
            f, r = _naively(model, path, end, sae, ids[start : start + 7])
            features.append(f)
            relevance.append(r)
    for index in range(24):
        for by, rows in (("activation", features), ("relevance", relevance)):
            fires = [row[:, index] > 0 for row in features]
            there = [row[at, index] for row, at in zip(rows, fires, strict=True) if at.any()]
            expected = sorted((float(values.max()) for values in there), reverse=True)
            found = [context.value for context in both.top(both.names[index], by)]
            assert found == pytest.approx(expected[:9], rel=1e-3, abs=1e-4)
        one, other = (atlas.top(atlas.names[index]) for atlas in (both, alone))
        assert [c.value for c in one] == pytest.approx([c.value for c in other], rel=1e-5)
        mean = torch.cat(features)[:, index].mean()
        assert both.statistics(both.names[index]).mean == pytest.approx(float(mean), rel=1e-4)
    unit = both.unit("layers.1:input[3]" if end == "input" else "layers.1[3]", sae=sae)
    assert (unit.place.end, unit.feature) == (end, 3)
    assert both.name(unit) == both.names[3]


def _naively(
    model: Any, path: str, end: str, sae: lxt.SAE, ids: list[int]
) -> tuple[Tensor, Tensor]:
    seen: list[Tensor] = []
    module = model.get_submodule(path)
    if end == "output":
        hook = module.register_forward_hook(lambda _, args, out: seen.append(out))
    else:
        hook = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with lxt.attnlrp.context(model):
        x = model.get_input_embeddings()(torch.tensor([ids])).detach().requires_grad_()
        logits = model(inputs_embeds=x).logits[0]
    hook.remove()
    (passed,) = seen
    (g,) = torch.autograd.grad(logits.max(-1).values.sum(), passed)
    f = sae.encode(passed).detach()[0]
    return f, f * (g[0] @ sae.coder.W_dec.detach().T)


def test_another_autoencoder_is_refused(tmp_path: Path) -> None:
    model, sae, other = PlantedForCausalLM(), planted_sae(), planted_sae(1)
    given: dict[str, Any] = {"model": model, "taps": lxt.Features(sae, "layers.0")}
    atlas = build(tmp_path / "a", **given)
    build(tmp_path / "a", model=model, taps=lxt.Features(planted_sae(), "layers.0"))
    with pytest.raises(InvalidInput, match="begun with weights of sae="):
        build(tmp_path / "a", model=model, taps=lxt.Features(other, "layers.0"))
    assert atlas.unit("layers.0[2]", sae=[other, sae]).feature == 2
    whole = {"model": model, "tokenizer": Words()}
    for attempt in (
        lambda: atlas.unit("layers.0[2]", sae=other),
        lambda: atlas.describe("layers.0[2]", sae=other, **whole),
        lambda: atlas.top(other.feature("layers.0", 2)),
    ):
        with pytest.raises(InvalidTap, match="another autoencoder"):
            attempt()
    for attempt in (
        lambda: atlas.unit("layers.0[2]"),
        lambda: atlas.units,
        lambda: atlas.describe("layers.0[2]", **whole),
        lambda: atlas.to_html(tmp_path / "pages", **whole),
    ):
        with pytest.raises(InvalidTap, match="give sae=…"):
            attempt()
    assert atlas.describe("layers.0[2]").unit is None
    unit = sae.feature("layers.0", 2)
    assert atlas.describe(unit, **whole).unit is not None
    with pytest.raises(InvalidTap, match="has none such, but features of layers.0:features"):
        atlas.top(lxt.Unit("layers.0", 2))
    atlas.to_html(tmp_path / "pages", sae=sae, most=3, **whole)
    assert len(list((tmp_path / "pages" / "units").iterdir())) == 3


def test_where_a_feature_does_not_fire_is_no_context(tmp_path: Path) -> None:
    corpus, model, sae = ["a b c", "d e f", "a g"], PlantedForCausalLM(), planted_sae()
    atlas = build(tmp_path / "a", corpus, taps=lxt.Features(sae, "layers.0"))
    for by in atlas.by:
        assert [context.text for context in atlas.top("layers.0[0]", by)] == [0, 2]
        assert not atlas.top("layers.0[7]", by)
    d = atlas.describe("layers.0[7]", model=model, tokenizer=Words(), sae=sae)
    assert d.lens is not None
    assert d.lens.promoted[0][0].strip() == "a"
    assert "contexts  none" in str(d)
    with torch.no_grad():
        sae.coder.b_enc -= 1000
    taps = [lxt.Features(sae, "layers.0"), lxt.Tap("layers.*.mlp.act")]
    for folder, some in (("b", taps), ("c", taps[:1])):
        atlas = build(tmp_path / folder, corpus, taps=some)
        assert not any(atlas.top(f"layers.0[{n}]", by) for n in range(8) for by in atlas.by)
        assert atlas.statistics("layers.0[0]").active == 0
        atlas.to_html(tmp_path / f"{folder}-pages")
    atlas = build(tmp_path / "b", corpus, taps=taps)
    assert [context.text for context in atlas.top("act[0]")] == [0, 2, 1]


def test_features_beside_channels_of_the_same_site(tmp_path: Path) -> None:
    sae = planted_sae()
    taps = [lxt.Features(sae, "layers.0"), lxt.Residual(channels=True)]
    with pytest.raises(InvalidTap, match="name='a:b': in an atlas"):
        build(tmp_path / "a", taps=lxt.Features(sae, "layers.0", name="a:b"))
    atlas = build(tmp_path / "a", taps=taps)
    assert atlas.name("layers.0[1]") == "layers.0[1]"
    assert atlas.name(lxt.Unit("layers.0", 1)) == "layers.0[1]"
    for given in ("layers.0:features[1]", sae.feature("layers.0", 1)):
        assert atlas.name(given) == "layers.0:features[1]"


def test_an_autoencoder_without_weights_is_refused(tmp_path: Path) -> None:
    class Bare:
        def encode(self, x: Tensor) -> Tensor:
            return x.relu()

        decode = encode

    with pytest.raises(InvalidTap, match="Bare holds no tensors"):
        build(tmp_path / "a", taps=lxt.Features(Bare(), "layers.0"))


def test_the_lens_of_a_feature_elsewhere_says_why_there_is_none(tmp_path: Path) -> None:
    model, sae = PlantedForCausalLM(), planted_sae()
    atlas = build(tmp_path / "a", model=model, taps=lxt.Features(sae, "layers.0.mlp"))
    d = atlas.describe("mlp[2]", model=model, tokenizer=Words(), sae=sae)
    assert d.lens is not None
    assert d.lens.note == "No logit lens: layers.0.mlp is not what a layer puts out."


def test_modules_that_run_several_times_are_told_in_one_order(tmp_path: Path) -> None:
    model = PlantedForCausalLM()
    model.layers.extend([PlantedForCausalLM().layers[0], model.layers[0]])
    both = build(tmp_path / "a", model=model)
    alone = build(tmp_path / "b", model=model, by=["activation"])
    assert alone.sites == both.sites
    assert [site.name for site in both.sites] == [
        "layers.0.mlp.act #0",
        "layers.1.mlp.act",
        "layers.0.mlp.act #1",
    ]


def test_experts_have_contexts_and_no_attribution(tmp_path: Path) -> None:
    taps, by = lxt.Experts(), ("activation", "relevance")
    model, tokenizer, atlas = tiny("mixtral", tmp_path / "a", taps=taps, by=by)
    _, _, alone = tiny("mixtral", tmp_path / "b", taps=taps, by=["activation"])
    assert {site.kind for site in atlas.sites} == {"experts"}
    assert alone.sites == atlas.sites
    count = atlas.sites[0].units
    rows = [
        ids[start : start + 9]
        for ids in (tokenizer(text)["input_ids"] for text in CORPUS)
        for start in range(0, len(ids), 9)
    ]
    latents = [lxt.explain(model, row, taps=taps).latent["experts"] for row in rows]
    for number, name in enumerate(atlas.names):
        weights = [one.activation[number // count, :, number % count].max() for one in latents]
        expected = sorted((float(w) for w in weights if w > 0), reverse=True)[:3]
        for one in (atlas, alone):
            found = [context.value for context in one.top(name)]
            assert found == pytest.approx(expected, rel=1e-4)
    d = atlas.describe(atlas.names[1], model=model, tokenizer=tokenizer)
    assert (d.unit, len(d.contexts["relevance"])) == (None, len(atlas.top(atlas.names[1])))
    assert all(one.attribution is None for ones in d.contexts.values() for one in ones)
    assert d.lens is not None
    assert "No logit lens: an expert writes in no one direction" in d.lens.note
    assert "its activation is the router's weight" in " ".join(str(d).split())
    with pytest.raises(InvalidTap, match=r"is no lxt.Unit: an expert"):
        atlas.unit(atlas.names[1])


def test_fewer_rows_run_at_a_time_where_features_are_many(tmp_path: Path) -> None:
    sizes = []
    for count in (8, 4096):
        taps = lxt.Features(random_sae(10, count), "layers.0")
        given: dict[str, Any] = {"taps": taps, "batch_size": None, "memory_budget": 4_000_000}
        atlas = build(tmp_path / str(count), **given)
        sizes.append(atlas.manifest["settings"]["batch_size"])
    assert sizes[0] > sizes[1] == 4_000_000 // (6 * 4 * 4096) // 6
