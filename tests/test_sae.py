"""Features of autoencoders: their relevance, as targets, and relevance through them, by hand."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lxt
import zoo
from lxt.errors import InactiveFeatureWarning, InvalidTap
from test_taps import by_hand, close, ids, kept
from test_units import ROUNDING

explain: Any = lxt.explain
"""With arguments by names that are known when it runs."""

CHANNELS, FEATURES, K = 32, 50, 6
KINDS = ["relu", "jumprelu", "topk"]
SITES = {"llama": "model.layers.0", "gpt2": "transformer.h.0"}
over_kinds = pytest.mark.parametrize("kind", KINDS)
over_composites = pytest.mark.parametrize(
    "composite", [lxt.attnlrp, lxt.cp_lrp], ids=lambda c: c.name
)


def tensors(kind: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = {"W_enc": (CHANNELS, FEATURES), "b_enc": (FEATURES,)}
    shapes |= {"W_dec": (FEATURES, CHANNELS), "b_dec": (CHANNELS,)}
    if kind == "jumprelu":
        shapes["threshold"] = (FEATURES,)
    made = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) / 4
        for name, shape in shapes.items()
    }
    return made | ({"threshold": made["threshold"].abs()} if kind == "jumprelu" else {})


def sae_of(kind: str, folder: Path, **options: Any) -> lxt.SAE:
    save_file(tensors(kind), folder / "sae.safetensors")
    options = {"apply_b_dec_to_input": True, "k": K if kind == "topk" else None, **options}
    return lxt.SAE.load(folder / "sae.safetensors", **options)


def naive_features(x: Tensor, w: dict[str, Tensor], kind: str) -> Tensor:
    """Features [tokens, features] of x [tokens, channels], one number after the other."""
    found = torch.zeros(len(x), FEATURES, dtype=torch.float64)
    for token in range(len(x)):
        before = [
            float(((x[token] - w["b_dec"]) * w["W_enc"][:, i]).sum() + w["b_enc"][i])
            for i in range(FEATURES)
        ]
        for i, value in enumerate(before):
            on = value > 0
            if kind == "jumprelu":
                on = on and value > w["threshold"][i]
            if kind == "topk":
                on = on and sum(other > value for other in before) < K
            found[token, i] = value if on else 0
    return found


@over_composites
@over_kinds
@pytest.mark.parametrize("name", SITES)
def test_relevance_of_features_error_and_bias(
    name: str, kind: str, composite: lxt.Composite, tmp_path: Path
) -> None:
    model, site, w = zoo.build(name, dtype=torch.float64), SITES[name], tensors(kind)
    plain = lxt.explain(model, ids(), composite=composite)
    tap = lxt.Features(sae_of(kind, tmp_path), site)
    e = lxt.explain(model, ids(), taps=[tap, lxt.Residual(layer=0)], composite=composite)
    assert e.target == plain.target
    assert torch.equal(e.relevance, plain.relevance)

    x, r = by_hand(model, ids(), composite, [site], "output")[site]
    g = r / x
    f = naive_features(x, w, kind)
    assert 0 < (f > 0).sum() < f.numel()
    error = x - w["b_dec"]
    expected = torch.zeros_like(f)
    for token in range(len(x)):
        for i in range(FEATURES):
            error[token] -= f[token, i] * w["W_dec"][i]
            expected[token, i] = f[token, i] * sum(
                float(g[token, c] * w["W_dec"][i, c]) for c in range(CHANNELS)
            )
    features, left = e.latent["features"], e.latent["features.error"]
    bias = e.latent["features.bias"]
    assert features.axes == ("batch", "layers", "tokens", "features")
    assert left.axes == bias.axes == ("batch", "layers", "tokens")
    assert features.sites == left.sites == [site]
    scale = plain.relevance
    assert close(features.relevance[0, 0], expected, scale, ROUNDING)
    assert close(left.relevance[0, 0], (error * g).sum(-1), scale, ROUNDING)
    assert close(bias.relevance[0, 0], (w["b_dec"] * g).sum(-1), scale, ROUNDING)
    assert close(features.activation[0, 0], f, f)
    assert close(left.activation[0, 0], error.norm(dim=-1), error)
    assert close(bias.activation[0, 0], w["b_dec"].norm().expand(len(x)), x)
    total = features.total + left.total + bias.total
    assert close(total, e.latent["residual"].total, plain.relevance, 1e-12)


@over_kinds
def test_with_what_was_absorbed_later_they_are_the_target(kind: str, tmp_path: Path) -> None:
    """By the ledger: what stayed in operations that ran after the site."""
    model = zoo.build("gpt2", dtype=torch.float64)
    e = explain(model, ids(), taps=lxt.Features(sae_of(kind, tmp_path), SITES["gpt2"]))
    report = lxt.audit(model, {"input_ids": ids()})
    later = ("transformer.h.1", "transformer.ln_f", "lm_head")
    absorbed = sum(
        account.absorbed
        for account in report.ledger.accounts
        if account.call.callsite.module.startswith(later)
    )
    found = sum(float(latent.total.sum()) for latent in e.latent.values())
    assert abs(absorbed) > 1e-3
    assert len(e.latent) == 3
    assert found + absorbed == pytest.approx(float(report.target), rel=1e-6)  # float32 softmax
    assert report.target == pytest.approx(e.target[0].value)


@over_composites
def test_sums_the_strongest_targets_rows_and_checkpoints(
    composite: lxt.Composite, tmp_path: Path
) -> None:
    model, sae = zoo.build("llama", dtype=torch.float64), sae_of("topk", tmp_path)
    taps = [
        lxt.Features(sae, SITES["llama"]),
        lxt.Features(sae, SITES["llama"], top=4, name="strongest"),
        lxt.Features(sae, SITES["llama"], over="tokens", name="sums"),
        lxt.Features(sae, SITES["llama"], top=3, over="tokens", name="few"),
    ]
    batch, mask = ids(3, 6), torch.ones(3, 6, dtype=torch.long)
    mask[1, :2] = 0
    inputs = {"input_ids": batch, "attention_mask": mask}
    targets = [lxt.Logit(5), lxt.Logit(9, position=2), lxt.Contrast(7, 8)]
    options: dict[str, Any] = {"target": targets, "taps": taps, "composite": composite}
    whole = lxt.explain(model, inputs, **options)
    again = lxt.explain(
        model, inputs, **options, checkpoint="sqrt", batch_size=2, memory_budget=100_000
    )
    for row in range(3):
        alone = lxt.explain(model, batch[row][mask[row].bool()], **options)
        assert len(alone.latent) == 12
        for key, one in alone.latent.items():
            for other in (whole[row].latent[key], again[row].latent[key]):
                torch.testing.assert_close(one.relevance, other.relevance, rtol=1e-6, atol=1e-7)
                torch.testing.assert_close(one.activation, other.activation, rtol=1e-6, atol=1e-7)
        latent = alone[1].latent
        every = latent["features"]
        torch.testing.assert_close(latent["sums"].relevance, every.relevance.sum(1))
        error = latent["features.error"].relevance
        torch.testing.assert_close(latent["sums.error"].relevance, error.sum(1))
        torch.testing.assert_close(latent["strongest.error"].relevance, error)
        assert latent["strongest"].strongest(4) == every.strongest(4)
        assert [one[1] for one in latent["few"].strongest(3)] == [-1] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_and_the_forward_to_the_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    model, sae = zoo.build("llama", dtype=dtype), sae_of("relu", tmp_path)
    site, outputs = SITES["llama"], []
    model.register_forward_hook(lambda _, args, output: outputs.append(output.logits.detach()))
    plain = lxt.explain(model, ids())
    e = lxt.explain(model, ids(), taps=[lxt.Features(sae, site), lxt.Residual(layer=0)])
    logits = [one for one in outputs if one.shape[1] == 1]
    assert torch.equal(logits[0], logits[-1])
    assert torch.equal(plain.relevance, e.relevance)
    features = e.latent["features"]
    assert features.relevance.dtype is torch.float32
    parts = [e.latent[key] for key in ("features", "features.error", "features.bias")]
    total = sum((part.total for part in parts), torch.zeros(()))
    size = sum(float(part.relevance.abs().sum()) for part in parts)
    assert (total - e.latent["residual"].total).abs().max() < 1e-6 * size


def test_a_decoder_that_is_not_linear(tmp_path: Path) -> None:
    """Of f ↦ tanh(f W) + b: each feature by the derivative, and the bias is what that misses."""
    w = {name: x.float().double() for name, x in tensors("relu").items()}

    class Bent:
        def encode(self, x: Tensor) -> Tensor:
            return torch.relu(x @ w["W_enc"] + w["b_enc"])

        def decode(self, features: Tensor) -> Tensor:
            return torch.tanh(features @ w["W_dec"]) + w["b_dec"]

    model, site = zoo.build("llama", dtype=torch.float64), SITES["llama"]
    e = lxt.explain(model, ids(), taps=lxt.Features(Bent(), site))
    x, r = by_hand(model, ids(), lxt.attnlrp, [site], "output")[site]
    g, f = r / x, torch.relu(x @ w["W_enc"] + w["b_enc"])
    z = f @ w["W_dec"]
    slope = 1 - torch.tanh(z) ** 2
    parts = {
        "features": f * ((g * slope) @ w["W_dec"].T),
        "features.error": (g * (x - torch.tanh(z) - w["b_dec"])).sum(-1),
        "features.bias": (g * (torch.tanh(z) + w["b_dec"] - slope * z)).sum(-1),
    }
    for key, expected in parts.items():
        assert close(e.latent[key].relevance[0, 0], expected, e.relevance, ROUNDING), key
    bias = torch.tanh(z) + w["b_dec"] - slope * z
    assert close(e.latent["features.bias"].activation[0, 0], bias.norm(dim=-1), x)


def features_with_graph(
    model: nn.Module, token_ids: Tensor, composite: lxt.Composite, w: dict[str, Tensor], kind: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings, what passes the site, its features, and the logits, in one graph."""
    site = SITES["llama"]
    with composite.context(model), kept(model, [site], "output") as found:
        embedded = model.get_input_embeddings()(token_ids).detach().requires_grad_()  # pyright: ignore[reportCallIssue]
        logits = model(inputs_embeds=embedded, use_cache=False).logits
    x = found[site]
    on = torch.stack([naive_features(row, w, kind) for row in x.detach()]) > 0
    return embedded, x, ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * on, logits


@over_composites
@over_kinds
def test_what_made_a_feature_fire(kind: str, composite: lxt.Composite, tmp_path: Path) -> None:
    model, sae, w = zoo.build("llama", dtype=torch.float64), sae_of(kind, tmp_path), tensors(kind)
    embedded, _, f, _ = features_with_graph(model, ids(), composite, w, kind)
    number, position = int(f[0, -1].argmax()), 4
    other = int(f[0, position].argmax())
    units = [
        sae.feature("layers.0", number),
        lxt.Unit("layers.0", feature=other, sae=sae, position=position),
        lxt.Unit("layers.0", feature=other - FEATURES, sae=sae, position=position),
        lxt.Unit("layers.1", 3),
    ]
    e = explain(model, ids()[0], target=units, composite=composite)
    for row, value in ((0, f[0, -1, number]), (1, f[0, position, other])):
        (gradient,) = torch.autograd.grad(value, embedded, retain_graph=True)
        expected = (embedded * gradient).sum(-1)[0].detach()
        assert close(e[row].relevance, expected, expected, ROUNDING)
        assert e[row].target.value == pytest.approx(value.item(), rel=1e-9)
        assert e[row].target.name == units[row].name
    assert units[0].name == f"layers.0 feature {number}"
    torch.testing.assert_close(e[1].relevance, e[2].relevance)
    assert not e[1].relevance[position + 1 :].any()
    alone = lxt.explain(model, ids()[0], target=units[3], composite=composite)
    torch.testing.assert_close(e[3].relevance, alone.relevance)
    again = lxt.explain(model, ids()[0], target=units, composite=composite, checkpoint=1)
    torch.testing.assert_close(again.relevance, e.relevance)


@over_composites
@over_kinds
def test_relevance_through_features(kind: str, composite: lxt.Composite, tmp_path: Path) -> None:
    model, sae, w = zoo.build("llama", dtype=torch.float64), sae_of(kind, tmp_path), tensors(kind)
    embedded, x, f, logits = features_with_graph(model, ids(), composite, w, kind)
    (g,) = torch.autograd.grad(logits[0, -1].max(), x, retain_graph=True)
    chosen = (f[0] > 0).sum(0).topk(3).indices.tolist()
    units = [sae.feature("layers.0", chosen[0]), sae.feature("layers.0", chosen[1], position=2)]
    mask = torch.zeros_like(f)
    mask[..., chosen[0]] = 1
    mask[:, 2, chosen[1]] = 1
    (gradient,) = torch.autograd.grad(f, embedded, (g @ w["W_dec"].T) * mask)
    expected = (embedded * gradient).sum(-1).detach()
    options: dict[str, Any] = {"through": units, "composite": composite}
    e = lxt.explain(model, ids(), **options)
    assert expected.abs().sum() > 0
    assert close(e.relevance, expected, expected, ROUNDING)
    again = lxt.explain(model, ids(), **options, checkpoint="sqrt")
    assert close(again.relevance, expected, expected, ROUNDING)
    targets = [lxt.Logit(4), lxt.Logit(7, position=3)]
    many = lxt.explain(model, ids(2), target=targets, **options)
    for number, target in enumerate(targets):
        one = lxt.explain(model, ids(2), target=target, **options)
        torch.testing.assert_close(many.relevance[:, number], one.relevance)


def test_explicit_composites_hand_back_the_same(tmp_path: Path) -> None:
    from lxt.explicit.composites import attnlrp

    model, sae = zoo.build("llama", dtype=torch.float64), sae_of("relu", tmp_path)
    taps, unit = lxt.Features(sae, "layers.0"), sae.feature("layers.0", 3)
    for options in ({"taps": taps}, {"target": unit}, {"through": unit}):
        one = explain(model, ids(), **options)
        other = explain(model, ids(), **options, composite=attnlrp)
        assert close(one.relevance, other.relevance, one.relevance, 1e-5)
        for key, latent in one.latent.items():
            other_latent = other.latent[key].relevance
            assert close(latent.relevance, other_latent, one.relevance, 1e-5)


def test_planted_features_are_found() -> None:
    """Token 7 writes feature 2, token 9 feature 4; logit 3 reads the first, 8 the second."""

    class Toy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(16, 16, _weight=torch.eye(16))
            self.stream = nn.Identity()
            self.head = nn.Linear(16, 16, bias=False)
            nn.init.zeros_(self.head.weight)
            with torch.no_grad():
                self.head.weight[3, 7], self.head.weight[8, 9] = 2, 1
                self.head.weight[3, 5] = 4

        def get_input_embeddings(self) -> nn.Module:
            return self.embedding

        def forward(self, input_ids: Tensor) -> Any:
            x = self.stream(self.embedding(input_ids) + 0)
            return (self.head(x.sum(1, keepdim=True) + 0 * x),)

    class Planted:
        def encode(self, x: Tensor) -> Tensor:
            f = torch.zeros(6, 16)
            f[2, 7], f[4, 9] = 3, 1
            return torch.relu(x @ f.T)

        def decode(self, features: Tensor) -> Tensor:
            w = torch.zeros(6, 16)
            w[2, 7], w[4, 9] = 0.25, 1  # a fourth of token 7 is left out
            return features @ w

    sae, token_ids = lxt.SAE(Planted()), torch.tensor([9, 7, 5])
    options: dict[str, Any] = {"target": lxt.Logit(3)}
    e = lxt.explain(Toy(), token_ids, taps=lxt.Features(sae, "stream"), **options)
    assert e.relevance.tolist() == [0, 2, 4]
    assert e.latent["features"].strongest(1) == [("stream", 1, 2, 1.5)]
    assert e.latent["features"].relevance.count_nonzero() == 1
    assert e.latent["features"].activation[0, 1].tolist() == [0, 0, 3, 0, 0, 0]
    assert e.latent["features.error"].relevance.tolist() == [[0, 0.5, 4]]
    assert not e.latent["features.bias"].relevance.any()
    through = lxt.explain(Toy(), token_ids, through=sae.feature("stream", 2), **options)
    assert through.relevance.tolist() == [0, 1.5, 0]
    fired = explain(Toy(), token_ids, target=sae.feature("stream", 2, position=1))
    assert (fired.target.value, fired.relevance.tolist()) == (3, [0, 3, 0])
    silent = sae.rewritten(torch.eye(16)[None], 2, lambda f: -f)[0]
    assert torch.equal(silent, torch.eye(16) - 0.75 * torch.diag(torch.eye(16)[7]))


def test_a_feature_that_does_not_fire_warns(tmp_path: Path) -> None:
    model, sae = zoo.build("llama"), sae_of("topk", tmp_path)
    tap = lxt.Features(sae, "layers.0")
    last = lxt.explain(model, ids()[0], taps=tap).latent["features"].activation[0, -1]
    silent, loud = int((last == 0).nonzero()[0]), int(last.argmax())
    with pytest.warns(InactiveFeatureWarning, match=f"feature {silent} is 0 at position 6"):
        e = explain(model, ids()[0], target=sae.feature("layers.0", silent))
    assert e.target.value == 0
    assert not e.relevance.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lxt.explain(model, ids()[0], target=sae.feature("layers.0", loud))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 50}, "no feature 50: .* 32 channels and 50 features has 50"),
        ({"through": -51}, "no feature -51"),
        ({"target": 1, "site": "layers.0.mlp.act_fn"}, r"encode of .* can't take \[1, 7, 48\]"),
        ({"taps": 1, "site": "layers.0.mlp.act_fn"}, r"encode of .* can't take \[1, 7, 48\]"),
        ({"taps": 1, "site": "layers.*"}, "fits 2 modules"),
        ({"taps": 1, "site": "nowhere"}, "no module of .* matches 'nowhere'"),
    ],
)
def test_what_does_not_fit_is_refused(options: Any, message: str, tmp_path: Path) -> None:
    sae, site = sae_of("relu", tmp_path), options.pop("site", "layers.0")
    ((key, number),) = options.items()
    what = lxt.Features(sae, site) if key == "taps" else sae.feature(site, number)
    with pytest.raises(InvalidTap, match=message):
        explain(zoo.build("llama"), ids(), **{key: what})


def test_what_can_be_refused_at_once_is(tmp_path: Path) -> None:
    sae: Any = sae_of("relu", tmp_path)
    wrong: list[Any] = [
        lambda: lxt.Unit("a", feature=1),
        lambda: lxt.Unit("a", sae=sae),
        lambda: lxt.Unit("a", 3, feature=1, sae=sae),
        lambda: lxt.Unit("a", feature="1", sae=sae),  # pyright: ignore[reportArgumentType]
        lambda: lxt.Unit("a", feature=1, sae=3),
        lambda: lxt.Features(3, "a"),
        lambda: lxt.Features(sae, 3),  # pyright: ignore[reportArgumentType]
        lambda: lxt.Features(sae, "a", top=0),
        lambda: sae.feature("a", 1).channels(CHANNELS),
        lambda: sae.direction(FEATURES),
    ]
    for make in wrong:
        with pytest.raises(InvalidTap):
            make()
