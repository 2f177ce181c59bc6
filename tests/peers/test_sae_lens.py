"""Autoencoders of SAELens, as they are and as it writes them.

It wants packages of its own, some fifty: `pip install sae-lens "transformer-lens<4"`.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

import lxt
import zoo
from lxt.errors import InvalidTap
from test_sae import explain
from test_taps import close, ids

saes = pytest.importorskip("sae_lens.saes", reason="needs sae-lens, with what it depends on")

SIZES = {"d_in": 32, "d_sae": 50, "dtype": "float64"}
KINDS = [
    ("StandardSAE", {}),
    ("JumpReLUSAE", {}),
    ("TopKSAE", {"k": 6}),
    ("TopKSAE", {"k": 6, "rescale_acts_by_decoder_norm": True}),
    ("GatedSAE", {}),
]
over_kinds = pytest.mark.parametrize(("name", "more"), KINDS)
over_normalisations = pytest.mark.parametrize(
    "normalisation", ["none", "layer_norm", "constant_norm_rescale"]
)


def made(name: str, normalisation: str, more: dict[str, Any]) -> Any:
    config = getattr(saes, f"{name}Config")
    sae = getattr(saes, name)(config(**SIZES, **more, normalize_activations=normalisation))
    generator = torch.Generator().manual_seed(1)
    for parameter in sae.parameters():
        parameter.data.normal_(generator=generator).div_(4)
    if hasattr(sae, "threshold"):
        sae.threshold.data.abs_()
    return sae


@over_normalisations
@over_kinds
def test_parts_add_up(name: str, more: dict[str, Any], normalisation: str) -> None:
    model, sae = zoo.build("llama", dtype=torch.float64), made(name, normalisation, more)
    e = lxt.explain(
        model, ids(2), taps=[lxt.Features(sae, "layers.0"), lxt.Residual(layer=0)]
    ).latent
    stream = e.pop("residual").total
    assert close(sum((part.total for part in e.values()), torch.zeros(())), stream, stream, 1e-12)
    assert e["features"].relevance.any()
    assert all(p.requires_grad for p in sae.parameters())


@over_normalisations
@pytest.mark.parametrize(("name", "more"), KINDS[:-1])
def test_what_it_writes_is_read(
    name: str, more: dict[str, Any], normalisation: str, tmp_path: Path
) -> None:
    model, sae = zoo.build("llama", dtype=torch.float64), made(name, normalisation, more)
    sae.save_model(str(tmp_path))
    both = lxt.SAE(sae), lxt.SAE.load(tmp_path)
    one, other = (lxt.explain(model, ids(), taps=lxt.Features(s, "layers.0")) for s in both)
    for key, latent in one.latent.items():
        assert close(latent.relevance, other.latent[key].relevance, one.relevance, 1e-12)
        assert close(latent.activation, other.latent[key].activation, latent.activation, 1e-12)
    number = int(one.latent["features"].activation[0, 0, -1].argmax())
    for key in ("target", "through"):
        a, b = (explain(model, ids(), **{key: s.feature("layers.0", number)}) for s in both)
        assert a.relevance.any()
        assert close(a.relevance, b.relevance, a.relevance, 1e-12)


def test_transcoders_are_refused() -> None:
    config = saes.TranscoderConfig(**SIZES, d_out=32, apply_b_dec_to_input=False)
    with pytest.raises(InvalidTap, match="Transcoder is a transcoder"):
        lxt.SAE(saes.Transcoder(config))
