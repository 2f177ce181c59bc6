"""Autoencoders from files and from other libraries' objects, and what is none."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lxt
import zoo
from lxt.errors import InvalidFile, InvalidTap
from test_sae import CHANNELS, FEATURES, KINDS, K, explain, naive_features, sae_of, tensors
from test_taps import close, ids

ARCHITECTURES = {"relu": "standard", "jumprelu": "jumprelu", "topk": "topk"}


class HookPoint(nn.Module):
    """What SAELens calls to let others look at a value."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Library(nn.Module):
    """What an SAE of SAELens looks like from outside, and does within."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor

    def __init__(self, kind: str, normalize: str = "none", *, by_norm: bool = False) -> None:
        super().__init__()
        for name, x in tensors(kind).items():
            self.register_parameter(name, nn.Parameter(x))
        self.kind, self.by_norm = kind, by_norm
        self.cfg = SimpleNamespace(
            architecture=lambda: ARCHITECTURES[kind],
            normalize_activations=normalize,
            apply_b_dec_to_input=True,
        )
        self.hook_z_reshaping_mode = False
        self.hook_sae_acts_pre, self.hook_sae_acts_post = HookPoint(), HookPoint()

    def encode(self, x: Tensor) -> Tensor:
        if self.cfg.normalize_activations == "layer_norm":
            mu = x.mean(dim=-1, keepdim=True)
            x = x - mu
            std = x.std(dim=-1, keepdim=True)
            x, self.ln_mu, self.ln_std = x / (std + 1e-5), mu, std
        if self.cfg.normalize_activations == "constant_norm_rescale":
            self.x_norm_coeff = CHANNELS**0.5 / x.norm(dim=-1, keepdim=True)
            x = x * self.x_norm_coeff
        before = self.hook_sae_acts_pre((x - self.b_dec) @ self.W_enc + self.b_enc)
        if self.by_norm:
            before = before * self.W_dec.norm(dim=-1)
        if self.kind == "jumprelu":
            after = before.relu() * (before > self.threshold).to(before.dtype)
        elif self.kind == "topk":
            values, indices = torch.topk(before, k=K, dim=-1, sorted=False)
            after = torch.zeros_like(before)
            after.scatter_(-1, indices, values.relu())
        else:
            after = before.relu()
        return self.hook_sae_acts_post(after)

    def decode(self, features: Tensor) -> Tensor:
        if self.by_norm:
            features = features * (1 / self.W_dec.norm(dim=-1))
        x = features @ self.W_dec + self.b_dec
        if self.cfg.normalize_activations == "layer_norm":
            x = x * self.ln_std + self.ln_mu
            del self.ln_std, self.ln_mu
        if self.cfg.normalize_activations == "constant_norm_rescale":
            x = x / self.x_norm_coeff
            del self.x_norm_coeff
        return x


def config_of(kind: str, **more: Any) -> dict[str, Any]:
    said = {"architecture": ARCHITECTURES[kind], "d_in": CHANNELS, "d_sae": FEATURES}
    said |= {"apply_b_dec_to_input": True, "normalize_activations": "none", "dtype": "float32"}
    said |= {"reshape_activations": "none", "metadata": {"hook_name": "blocks.0.hook_resid_post"}}
    return said | ({"k": K} if kind == "topk" else {}) | more


def saved(folder: Path, kind: str, **more: Any) -> Path:
    """A folder as SAELens writes it."""
    save_file(tensors(kind), folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config_of(kind, **more)))
    return folder


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_computes_as_the_library(kind: str, normalize: str, tmp_path: Path) -> None:
    """In the tap, as a target, and as a condition; in float64."""
    model, library = zoo.build("llama", dtype=torch.float64), Library(kind, normalize)
    folder = saved(tmp_path, kind, normalize_activations=normalize)
    of_file, other = lxt.SAE.load(folder), lxt.SAE(library)
    assert repr(of_file).startswith(f"<SAE the {kind} autoencoder of 32 channels")
    before = dict(vars(library))
    options: dict[str, Any] = {"target": [lxt.Logit(4), lxt.Logit(9)]}
    one = lxt.explain(model, ids(), taps=lxt.Features(of_file, "layers.0"), **options)
    two = lxt.explain(model, ids(), taps=lxt.Features(library, "layers.0"), **options)
    parts = []
    for key, latent in one.latent.items():
        assert close(two.latent[key].relevance, latent.relevance, one.relevance, 1e-9), key
        assert close(two.latent[key].activation, latent.activation, latent.activation, 1e-9), key
        parts.append(latent.total)
    whole = lxt.explain(model, ids(), taps=lxt.Residual(layer=0), **options).latent["residual"]
    assert close(sum(parts, torch.zeros(())), whole.total, one.relevance, 1e-12)
    number = int(one.latent["features"].activation[0, 0, -1].argmax())
    for key in ("target", "through"):
        a = explain(model, ids(), **{key: of_file.feature("layers.0", number)})
        b = explain(model, ids(), **{key: other.feature("layers.0", number)})
        assert a.relevance.abs().sum() > 0
        assert close(a.relevance, b.relevance, a.relevance, 1e-9)
    assert vars(library).keys() == before.keys()
    assert all(p.requires_grad for p in library.parameters())
    x = torch.randn(2, 3, CHANNELS, dtype=torch.float64)
    changed = [sae.rewritten(x, number, lambda f: 2 - f) for sae in (of_file, other)]
    torch.testing.assert_close(*changed)
    if normalize == "none":
        old = of_file.encode(x)[..., [number]]
        expected = x + (2 - old) * tensors(kind)["W_dec"][number]
        torch.testing.assert_close(changed[0], expected)
        torch.testing.assert_close(of_file.direction(number), tensors(kind)["W_dec"][number])
        torch.testing.assert_close(other.direction(-1), tensors(kind)["W_dec"][-1])
    else:
        for sae in (of_file, other):
            with pytest.raises(InvalidTap, match="has no direction for a feature"):
                sae.direction(number)


def test_features_picked_by_what_they_write(tmp_path: Path) -> None:
    folder = saved(tmp_path, "topk", rescale_acts_by_decoder_norm=True)
    x = torch.randn(2, 5, CHANNELS, dtype=torch.float64)
    of_file, library = lxt.SAE.load(folder), lxt.SAE(Library("topk", by_norm=True))
    for one, other in zip(of_file.coded(x), library.coded(x), strict=True):
        torch.testing.assert_close(one, other)
    unit = tensors("topk")["W_dec"][3]
    torch.testing.assert_close(of_file.direction(3), unit / unit.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_the_other_way_round_and_narrow_types(kind: str, tmp_path: Path) -> None:
    w = tensors(kind)
    turned = {n: x.T.contiguous() if n.startswith("W") else x for n, x in w.items()}
    save_file({n: x.bfloat16() for n, x in turned.items()}, tmp_path / "turned.safetensors")
    options: dict[str, Any] = {"apply_b_dec_to_input": True, "k": K if kind == "topk" else None}
    sae = lxt.SAE.load(tmp_path / "turned.safetensors", **options)
    narrow = {n: x.bfloat16().double() for n, x in w.items()}
    x = torch.randn(1, 4, CHANNELS, dtype=torch.float64).float()
    found = sae.encode(x)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found[0].double(), naive_features(x[0].double(), narrow, kind),
                               rtol=1e-4, atol=1e-4)  # fmt: skip


def test_a_config_from_before_saelens_6(tmp_path: Path) -> None:
    save_file(tensors("topk"), tmp_path / "sae_weights.safetensors")
    said = {"architecture": "standard", "activation_fn_str": "topk", "d_in": CHANNELS}
    said |= {"activation_fn_kwargs": {"k": K}, "hook_point": "blocks.0.hook_resid_post"}
    (tmp_path / "cfg.json").write_text(json.dumps(said))
    sae = lxt.SAE.load(tmp_path / "sae_weights.safetensors")
    x = torch.randn(1, 4, CHANNELS, dtype=torch.float64)
    torch.testing.assert_close(sae.encode(x)[0], naive_features(x[0], tensors("topk"), "topk"))


def changed(**tensor: Any) -> dict[str, Tensor]:
    found = {**tensors("relu"), **tensor}
    return {name: x for name, x in found.items() if x is not None}


SQUARE = {
    "W_enc": torch.eye(4), "W_dec": torch.eye(4), "b_enc": torch.ones(4), "b_dec": torch.ones(4)
}  # fmt: skip


@pytest.mark.parametrize(
    ("held", "options", "message"),
    [
        (changed(W_enc=None, b_dec=None), {}, "lacks W_enc, b_dec: there is W_dec, b_enc"),
        (changed(gate=torch.ones(3)), {}, "holds gate, which has no place in one"),
        (changed(W_enc=torch.ones(32, 49)), {}, r"W_enc should be \[32, 50\] .* W_enc \[32, 49\]"),
        (changed(W_dec=torch.ones(3, 4, 5)), {}, r"W_dec should be \[50, 32\]"),
        (changed(b_enc=torch.ones(1, 50)), {}, r"b_enc is \[features\]"),
        (changed(b_enc=torch.ones(0)), {}, "no features, or no channels"),
        (changed(b_enc=torch.ones(50, dtype=torch.int64)), {}, "b_enc is torch.int64"),
        (changed(b_dec=torch.full((32,), torch.nan)), {}, "b_dec holds NaN or infinity"),
        (changed(threshold=torch.ones(32)), {}, r"threshold should be \[50\]"),
        (changed(threshold=torch.ones(50)), {"activation": "relu"}, "threshold is there"),
        (changed(), {"activation": "jumprelu"}, "threshold is missing"),
        (changed(), {"activation": "gelu"}, "activation is 'gelu', and is one of relu, jumprelu"),
        (changed(), {"activation": "topk"}, "activation is 'topk', and k is None"),
        (changed(), {"activation": "relu", "k": 3}, "activation is 'relu', and k is 3"),
        (changed(), {"k": 51}, "k is 51, and there are 50 features"),
        (changed(), {"k": True}, "k is True"),
        (changed(), {"apply_b_dec_to_input": 1}, "apply_b_dec_to_input is 1, neither"),
        (changed(), {"apply_b_dec_to_input": None}, "nothing says whether the encoder takes b_dec"),
        (changed(), {"normalisation": "l2"}, "normalisation is 'l2', and is one of none"),
        (SQUARE, {}, "with 4 channels and as many features nothing says which way round"),
    ],
)
def test_files_that_are_none(held: Any, options: Any, message: str, tmp_path: Path) -> None:
    save_file(held, tmp_path / "sae.safetensors")
    with pytest.raises(InvalidFile, match=message) as caught:
        lxt.SAE.load(tmp_path / "sae.safetensors", **{"apply_b_dec_to_input": True, **options})
    assert str(tmp_path / "sae.safetensors") in str(caught.value)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"architecture": "gated"}, "architecture 'gated' in cfg.json is none of standard"),
        ({"activation_fn": "tanh-relu"}, "activation_fn 'tanh-relu'"),
        ({"normalize_activations": "expected_average_only_in"}, "fold it into the weights"),
        ({"normalize_activations": "batch"}, "normalisation is 'batch'"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor"),
        ({"rescale_acts_by_decoder_norm": "yes"}, "rescale_acts_by_decoder_norm is 'yes'"),
        ({"d_in": 64}, "d_in is 64 in cfg.json, and 32 of the tensors"),
        ({"architecture": "topk"}, "activation is 'topk', and k is None"),
        ({"architecture": ["topk"]}, r"architecture \['topk'\]"),
    ],
)
def test_configs_that_are_not_known(said: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match=message):
        lxt.SAE.load(saved(tmp_path, "relu", **said))


def test_more_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match=r"nothing\.safetensors"):
        lxt.SAE.load(tmp_path / "nothing.safetensors")
    with pytest.raises(InvalidFile, match=r"sae_weights\.safetensors"):
        lxt.SAE.load(tmp_path)
    (tmp_path / "text.safetensors").write_text("weights")
    with pytest.raises(InvalidFile, match="is not the weights of an autoencoder"):
        lxt.SAE.load(tmp_path / "text.safetensors")
    folder = saved(tmp_path, "relu")
    with pytest.raises(InvalidFile, match="activation is 'topk' here, and 'relu' in cfg.json"):
        lxt.SAE.load(folder, activation="topk", k=3)
    for text in ("[]", "{", "3"):
        (tmp_path / "cfg.json").write_text(text)
        with pytest.raises(InvalidFile):
            lxt.SAE.load(folder)
    save_file(SQUARE, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps({"architecture": "standard"}))
    assert lxt.SAE.load(folder).encode(torch.ones(1, 1, 4)).tolist() == [[[1, 1, 1, 1]]]


class Coder:
    """An object that has what it takes, and does something odd."""

    def __init__(self, **odd: Any) -> None:
        self.odd = odd

    def encode(self, x: Tensor) -> Any:
        return self.odd.get("encode", lambda x: x.relu())(x)

    def decode(self, features: Tensor) -> Any:
        return self.odd.get("decode", lambda f: f)(features)


def test_objects_that_are_none() -> None:
    with_heads = Library("relu")
    with_heads.hook_z_reshaping_mode = True
    transcoder = Library("relu")
    transcoder.cfg.architecture = lambda: "skip_transcoder"
    held = Coder()
    held.W_enc = torch.ones(3, requires_grad=True)  # pyright: ignore[reportAttributeAccessIssue]
    for coder, message in (
        (nn.Linear(3, 3), "has no method encode"),
        (Library, "has no method encode"),
        (None, "has no method encode"),
        (with_heads, "turn_off_forward_pass_hook_z_reshaping"),
        (transcoder, "Library is a transcoder"),
        (held, "W_enc of Coder requires grad"),
    ):
        with pytest.raises(InvalidTap, match=message):
            lxt.SAE(coder)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"encode": lambda x: (x, x)}, r"encode of Coder returned tuple for \[1, 7, 32\]"),
        ({"encode": lambda x: x[:, 0]}, r"returned \[1, 32\] for \[1, 7, 32\]"),
        ({"encode": lambda x: x > 0}, r"encode of Coder returned \[1, 7, 32\]"),
        ({"decode": lambda f: f[..., :3]}, r"decode of Coder returned \[1, 7, 3\]"),
        ({"decode": lambda f: f @ torch.ones(2, 3)}, "decode of Coder can't take"),
        ({"decode": lambda f: f.detach()}, "decode of Coder runs without gradients"),
    ],
)
def test_objects_that_return_something_else(odd: Any, message: str) -> None:
    with pytest.raises(InvalidTap, match=message):
        lxt.explain(zoo.build("llama"), ids(), taps=lxt.Features(Coder(**odd), "layers.0"))


def test_encoders_that_keep_nothing_to_go_back_by() -> None:
    class Closed(Coder):
        @torch.no_grad()
        def encode(self, x: Tensor) -> Tensor:
            return x.relu()

    e = lxt.explain(zoo.build("llama"), ids(), taps=lxt.Features(Closed(), "layers.0"))
    assert e.latent["features"].relevance.any()  # that takes the decoder alone
    unit = lxt.SAE(Closed()).feature("layers.0", 3)
    for key in ("target", "through"):
        with pytest.raises(InvalidTap, match="encode of Closed runs without gradients"):
            explain(zoo.build("llama"), ids(), **{key: unit})


def test_sparse_features() -> None:
    sparse = Coder(encode=lambda x: x.relu().to_sparse())
    model = zoo.build("llama")
    one = lxt.explain(model, ids(), taps=lxt.Features(sparse, "layers.0"))
    other = lxt.explain(model, ids(), taps=lxt.Features(Coder(), "layers.0"))
    assert torch.equal(one.latent["features"].relevance, other.latent["features"].relevance)


def test_an_operation_without_a_rule_in_an_encoder() -> None:
    coder = Coder(encode=lambda x: torch.linalg.matrix_exp(x @ x.mT) @ x)
    with pytest.raises(lxt.errors.UnknownOperation, match="matrix_exp"):
        lxt.explain(zoo.build("llama"), ids(), target=lxt.SAE(coder).feature("layers.0", 3))


def test_where_the_weights_are_float32_and_the_model_is_not(tmp_path: Path) -> None:
    sae, model = sae_of("relu", tmp_path), zoo.build("llama", dtype=torch.float64)
    sae.coder.float()
    taps = [lxt.Features(sae, "layers.0"), lxt.Residual(layer=0)]
    e = lxt.explain(model, ids(), taps=taps)
    parts = [latent.total for key, latent in e.latent.items() if key != "residual"]
    total = sum(parts, torch.zeros(()))
    assert close(total, e.latent["residual"].total, e.relevance, 1e-6)
    assert e.latent["features"].relevance.dtype is torch.float64
