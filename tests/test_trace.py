"""`lxt.trace` against hooks written by hand, and its views."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import lxt
import zoo
from lxt.cli import app
from lxt.errors import InvalidTap
from test_taps import ids

PROMPT = "The capital of France is"


def test_trace() -> None:
    model = zoo.build("llama", dtype=torch.float64)
    e = lxt.trace(model, ids(2), target=[lxt.Logit(4), lxt.Logit(5)])
    assert e.axes == ("batch", "targets", "layers", "tokens")
    assert e.layers == ["input", "model.layers.0", "model.layers.1"]
    plain = lxt.explain(model, ids(2), target=[lxt.Logit(4), lxt.Logit(5)], taps=lxt.Residual())
    assert torch.equal(e.relevance[:, :, 0], plain.relevance)
    assert torch.equal(e.relevance[:, :, 1:], plain.latent["residual"].relevance)
    assert e[0][1].to_image()[:4] == b"\x89PNG"


@pytest.mark.parametrize("composite", [lxt.attnlrp, lxt.cp_lrp], ids=lambda c: c.name)
def test_smollm2_is_traced_as_by_hooks(smollm2: lxt.LoadedModel, composite: lxt.Composite) -> None:
    model, tokenizer, _ = smollm2
    outputs = []
    layers = model.model.layers
    handles = [
        layer.register_forward_hook(
            lambda _, args, out: (out.retain_grad(), outputs.append(out))[0]
        )
        for layer in layers
    ]
    token_ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    with composite.context(model):
        x = model.get_input_embeddings()(token_ids).detach().requires_grad_()
        logit = model(inputs_embeds=x, use_cache=False, logits_to_keep=1).logits[0, -1].max()
    logit.backward()
    for handle in handles:
        handle.remove()
    by_hand = torch.stack([(out * out.grad).sum(-1)[0].detach() for out in [x, *outputs]])
    e = lxt.trace(model, PROMPT, tokenizer=tokenizer, composite=composite)
    assert e.target.value == logit.item()
    assert len(e.layers or []) == 31
    torch.testing.assert_close(e.relevance, by_hand, rtol=1e-5, atol=1e-5 * by_hand.abs().max())
    # What goes into the last norm is all that the logit is made of.
    assert e.relevance[-1].sum().item() == pytest.approx(logit.item(), rel=1e-4)


def test_the_shell_traces(smollm2: lxt.LoadedModel, tmp_path: Path) -> None:
    file = tmp_path / "e.json"
    result = CliRunner().invoke(app, ["explain", PROMPT, "--trace", "--json", str(file)])
    assert result.exit_code == 0, result.output
    assert "layers          31: input … model.layers.29" in result.stdout
    assert lxt.Explanation.load(file).axes == ("layers", "tokens")


def test_trace_has_its_own_taps() -> None:
    with pytest.raises(InvalidTap, match="give other taps to lxt.explain"):
        lxt.trace(zoo.build("llama"), ids(), taps=lxt.Heads())
