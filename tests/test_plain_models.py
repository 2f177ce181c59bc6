"""Transformers in plain PyTorch code, put to the checks that every type of `transformers` is."""

import pytest
import torch
from torch import nn

import lxt
from lxt.coverage.build import randomise
from lxt.coverage.checks import Row, examine
from lxt.coverage.inputs import Example
from plain_models import BATCH, MODELS, TOKENS, WIDTH


def built(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name]().double().eval().requires_grad_(False)
    randomise(model, seed=0)
    return model


def example(model: nn.Module) -> Example:
    names = {"Decoder": ("source", "target"), "TransformerEncoder": ("src",)}
    generator = torch.Generator().manual_seed(1)
    leaves = {
        name: torch.randn(BATCH, TOKENS, WIDTH, dtype=torch.float64, generator=generator)
        for name in names.get(type(model).__name__, ("x",))
    }
    return Example({name: leaf.requires_grad_() for name, leaf in leaves.items()})


@pytest.mark.parametrize("name", MODELS)
def test_plain_models_keep_the_contracts(name: str) -> None:
    """Forward, trace, conservation, and agreement of the two formulations."""
    model, row = built(name), Row(name)
    examine(row, model, example(model))
    assert row.status == "covered", row.reason


@pytest.mark.parametrize("composite", ["attnlrp", "cp_lrp"])
@pytest.mark.parametrize("name", MODELS)
def test_the_audit_finds_nothing(name: str, composite: str) -> None:
    model = built(name)
    inputs = {key: leaf.detach() for key, leaf in example(model).leaves.items()}
    report = lxt.audit(model, inputs, composite=composite)
    assert report.ok, str(report)


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("encoder, ")])
def test_the_fast_path_without_gradients_gives_the_same(name: str) -> None:
    """torch fuses a whole layer where nothing requires grad; under rules it has to be seen."""
    import lxt

    model = built(name)
    x = next(iter(example(model).leaves.values()))
    with torch.no_grad():
        fast = model(x)
    with lxt.attnlrp.context(model):
        seen = model(x)
    with lxt.attnlrp.context(model), torch.no_grad():
        assert torch.equal(model(x), fast)
    torch.testing.assert_close(seen, fast, rtol=1e-10, atol=1e-10)
    assert torch.autograd.grad(seen.sum(), x)[0].isfinite().all()
