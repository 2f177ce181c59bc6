"""Steering against hooks written by hand: what is edited, where, for how long, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from lxt.errors import InvalidTap
from lxt.latent.edits import Add, Scale, Set
from lxt.latent.steering import steer
from lxt.latent.units import Site, Unit
from steered import CASES, EDITS, UNITS, Planted, V, by_hand, generated, logits


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize(("name", "unit"), CASES)
def test_agrees_with_a_hook_by_hand(name: str, unit: str, edit: str) -> None:
    model = zoo.build(name)
    side = zoo.ARCHITECTURES[name].padding[0]
    example = zoo.example(name, model, length=6, padding=side)
    mask, what = example.input_mask, UNITS[name][unit]
    assert mask is not None
    real = [row.nonzero().flatten().tolist() for row in mask]
    plain = logits(model, example)
    places = {None: [list(range(6))] * 2, 1: [[c[1]] for c in real], -1: [[c[-1]] for c in real]}
    for position, columns in places.items():
        one = what(position=position)
        with by_hand(model, one, EDITS[edit], columns):
            expected = logits(model, example)
        with steer(model, {one: EDITS[edit]}):
            found = logits(model, example)
        kept = example.output_mask
        torch.testing.assert_close(found[kept], expected[kept], rtol=1e-10, atol=1e-10)
        assert not torch.allclose(found[kept], plain[kept], rtol=1e-6, atol=1e-9)
    assert torch.equal(logits(model, example), plain)


def test_vectors_for_all_channels_and_for_a_head() -> None:
    model = zoo.build("llama")
    example = zoo.example("llama", model, length=4)
    head = Unit(Site("layers.0.self_attn.o_proj", "input", 4), head=1)
    for unit, value in ((Unit("layers.0"), V), (head, V[:8])):
        for kind in (Add, Set, Scale):
            with by_hand(model, unit, kind(value), [list(range(4))] * 2):
                expected = logits(model, example)
            with steer(model, {unit: kind(value)}):
                torch.testing.assert_close(logits(model, example), expected, rtol=1e-11, atol=1e-11)


def test_a_planted_neuron_does_what_it_was_planted_for() -> None:
    model, x = Planted(), torch.tensor([[[5.0, 3.0], [2.0, 7.0]]])
    with steer(model, {Unit("inner", 1): Scale(0)}):
        assert model(x).tolist() == [[5, 2]]
    with steer(model, {Unit("inner", 0, position=1): Set(10)}):
        assert model(x).tolist() == [[2, 3]]
    with steer(model, {"inner": Add(torch.tensor([1.0, 0.0]))}):
        assert model(x).tolist() == [[3, -4]]
    assert model(x).tolist() == [[2, -5]]


def test_edits_of_one_place_act_in_order_and_handles_nest() -> None:
    model, x = Planted(), torch.tensor([[[5.0, 3.0]]])
    unit = Unit("inner", 0)
    outer = steer(model, {unit: Set(1), Unit("inner", 0): Scale(4)})
    assert model(x).item() == 1
    with steer(model, {unit: Add(2)}):
        assert model(x).item() == 3
        outer.remove()  # in any order
        assert model(x).item() == 4
    outer.remove()
    assert model(x).item() == 2


# --- generation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [None, 0, 3, 9, -1, -3])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
def test_generation_with_a_cache_is_that_without(name: str, position: int | None) -> None:
    model = zoo.build(name)
    unit = UNITS[name]["direction"](position=position)
    example = zoo.example(name, model, length=8, padding="left")
    ids, mask = example.input_ids, example.input_mask
    assert ids is not None
    assert mask is not None
    plain = generated(model, ids, mask)
    with steer(model, {unit: Set(40.0)}):
        steered = generated(model, ids, mask)
        assert torch.equal(generated(model, ids, mask, use_cache=False), steered)
        for row in range(2):  # a row alone, without its padding
            alone = generated(model, ids[row : row + 1, mask[row]], mask[row : row + 1, mask[row]])
            assert torch.equal(alone[0, -5:], steered[row, -5:])
        beams = generated(model, ids, mask, num_beams=3)
        assert torch.equal(generated(model, ids, mask, num_beams=3, use_cache=False), beams)
        if position is None or position >= 0:
            assert torch.equal(generated(model, ids, mask, prefill_chunk_size=3), steered)
    assert not torch.equal(steered, plain)
    assert torch.equal(generated(model, ids, mask), plain)


def test_generation_is_a_loop_by_hand() -> None:
    model = zoo.build("llama")
    ids = zoo.example("llama", model, batch=1, length=6).input_ids
    unit, edit = UNITS["llama"]["neuron"](position=7), Set(50.0)
    found = ids
    for _ in range(5):  # position 7 is the second new token
        columns = [[7]] if found.shape[1] > 7 else [[]]
        with by_hand(model, unit, edit, columns), torch.no_grad():
            found = torch.cat([found, model(found).logits[:, -1:].argmax(-1)], 1)
    with steer(model, {unit: edit}):
        assert torch.equal(generated(model, ids, torch.ones_like(ids)), found)


def test_encoders_and_decoders_count_their_own_tokens() -> None:
    model = zoo.build("t5")
    ids = torch.randint(3, 128, (1, 6), generator=torch.Generator().manual_seed(0))
    unit = Unit("/encoder.block.0", neuron=2, position=-2)
    options = {"max_new_tokens": 3, "do_sample": False}
    with by_hand(model, unit, Set(30.0), [[4]]):
        expected = model.generate(ids, **options)
        states = model.encoder(ids).last_hidden_state
    with steer(model, {unit: Set(30.0)}):
        assert torch.equal(model.generate(ids, **options), expected)
        torch.testing.assert_close(model.encoder(ids).last_hidden_state, states)
    with pytest.raises(InvalidTap, match="an encoder and of a decoder"):
        steer(model, {Unit("lm_head", position=0): Scale(0)})


def outside(model: Any, ids: Tensor) -> None:
    x = model.model.embed_tokens(ids)
    places = torch.arange(ids.shape[1])[None]
    model.model.layers[0](x, position_embeddings=model.model.rotary_emb(x, places))


@pytest.mark.parametrize(
    ("position", "call", "message"),
    [
        (2, lambda m, i: generated(m, i, i, cache_implementation="static"), "a static cache"),
        (2, lambda m, i: m(i, attention_mask=i[:, :3]), r"attention_mask is \[2, 3\]"),
        (-1, lambda m, i: generated(m, i, i, prefill_chunk_size=2), "prefill_chunk_size="),
        (-1, lambda m, i: generated(m, i, i, prompt_lookup_num_tokens=2), "prompt_lookup"),
        (-1, lambda m, i: m(i, past_key_values=m(i).past_key_values), "continues a cache of 5"),
        (2, lambda m, i: m(i, past_key_values=object()), "is a object, whose length"),
        (2, outside, "runs outside of LlamaModel"),
    ],
)
def test_positions_that_cannot_be_told_are_refused(position: int, call: Any, message: str) -> None:
    model = zoo.build("llama")
    ids = torch.randint(3, 128, (2, 5), generator=torch.Generator().manual_seed(0))
    unit = Unit("layers.0", neuron=1, position=position)
    with pytest.raises(InvalidTap, match=message), steer(model, {unit: Scale(2)}):
        call(model, ids)


def test_the_logits_of_fewer_tokens_have_no_positions() -> None:
    model = zoo.build("llama")
    ids = torch.randint(3, 128, (2, 5), generator=torch.Generator().manual_seed(0))
    with steer(model, {Unit("lm_head", neuron=1, position=0): Scale(2)}):
        model(ids)
        with pytest.raises(InvalidTap, match=r"lm_head has the shape \[2, 1, 128\]"):
            model(ids, logits_to_keep=1)
