"""Features of autoencoders, edited while a model runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lxt
import zoo
from lxt.errors import InvalidTap
from test_sae import K, naive_features, sae_of, tensors
from test_taps import close, first, ids
from test_units import ROUNDING

SITE = "layers.0"
built: Any = zoo.build


def passing(model: Any, token_ids: Tensor, layer: int = 0) -> Tensor:
    """What a layer puts out [tokens, channels], after those who edit it."""
    found: list[Tensor] = []
    handle = model.model.layers[layer].register_forward_hook(
        lambda _, args, output: found.append(first(output))
    )
    model(token_ids)
    handle.remove()
    return found[0][0].detach()


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk"])
@pytest.mark.parametrize("edit", [lxt.Scale(0), lxt.Scale(3), lxt.Set(2.5), lxt.Add(-0.5)])
def test_a_feature_is_edited_and_the_error_stays(kind: str, edit: lxt.Edit, tmp_path: Path) -> None:
    model, sae, w = built("llama", dtype=torch.float64), sae_of(kind, tmp_path), tensors(kind)
    x = passing(model, ids())
    f = naive_features(x, w, kind)
    number = int((f > 0).sum(0).argmax())
    value = float(edit.value)
    new = {lxt.Scale: f * value, lxt.Set: f * 0 + value, lxt.Add: f + value}[type(edit)]
    error = x - f @ w["W_dec"] - w["b_dec"]
    for position in (None, 2):
        changed = f.clone()
        places = slice(None) if position is None else position
        changed[places, number] = new[places, number]
        expected = changed @ w["W_dec"] + w["b_dec"] + error
        with lxt.steer(model, {sae.feature(SITE, number, position=position): edit}):
            torch.testing.assert_close(passing(model, ids()), expected)
    assert torch.equal(passing(model, ids()), x)


def test_a_feature_switched_off_carries_nothing(tmp_path: Path) -> None:
    """Relevance of the steered model: what the feature read is no longer read by it."""
    model, sae = built("llama", dtype=torch.float64), sae_of("topk", tmp_path)
    w, site = tensors("topk"), SITE
    f = naive_features(passing(model, ids()), w, "topk")
    number = int(f[-1].argmax())
    with lxt.steer(model, {sae.feature(site, number): lxt.Scale(0)}):
        e = lxt.explain(model, ids(), target=lxt.Logit(5))
        # By hand: the gradient at x of what goes on, x − f d, with the gate a constant.
        embedded = model.get_input_embeddings()(ids()).detach().requires_grad_()
        with lxt.attnlrp.context(model):
            value = model(inputs_embeds=embedded, use_cache=False).logits[0, -1, 5]
        (gradient,) = torch.autograd.grad(value, embedded)
    expected = (embedded * gradient).sum(-1).detach()
    assert close(e.relevance, expected, expected, ROUNDING)

    def edited(_: Any, args: Any, output: Any) -> Any:
        x = first(output)
        on = (naive_features(x.detach()[0], w, "topk")[:, number] > 0)[None]
        before = (x - w["b_dec"]) @ w["W_enc"][:, number] + w["b_enc"][number]
        y = x - (before * on)[..., None] * w["W_dec"][number]
        return y if isinstance(output, Tensor) else (y, *output[1:])

    handle = model.get_submodule("model.layers.0").register_forward_hook(edited)
    by_hand = lxt.explain(model, ids(), target=lxt.Logit(5))
    handle.remove()
    assert close(e.relevance, by_hand.relevance, by_hand.relevance, ROUNDING)
    plain = lxt.explain(model, ids(), target=lxt.Logit(5))
    assert not close(e.relevance, plain.relevance, plain.relevance, 1e-3)


def test_generation_with_a_feature_set(tmp_path: Path) -> None:
    model, sae = built("llama"), sae_of("topk", tmp_path)
    assert sae.coder.k == K
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    plain = model.generate(ids(), **options)
    with lxt.steer(model, {sae.feature(SITE, 3): lxt.Set(400.0)}):
        steered = model.generate(ids(), **options)
        # Without a cache the same tokens follow.
        again = model.generate(ids(), **options, use_cache=False)
    assert torch.equal(steered, again)
    assert not torch.equal(steered, plain)
    assert torch.equal(model.generate(ids(), **options), plain)


def test_features_that_are_not_there(tmp_path: Path) -> None:
    model, sae = built("llama"), sae_of("relu", tmp_path)
    with (
        lxt.steer(model, {sae.feature(SITE, 50): lxt.Scale(0)}),
        pytest.raises(InvalidTap, match="there is no feature 50"),
    ):
        model(ids())
    with pytest.raises(InvalidTap, match="is a single number"):
        lxt.steer(model, {sae.feature("layers.0.mlp.down_proj", 3): lxt.Set(torch.ones(2))})
