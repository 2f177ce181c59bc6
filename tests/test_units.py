"""Units as targets, and relevance through units, against hooks and sums written by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lxt
import zoo
from lxt.errors import InvalidTap, InvalidTarget
from test_taps import close as close_to, first, ids

over_composites = pytest.mark.parametrize(
    "composite", [lxt.attnlrp, lxt.cp_lrp], ids=lambda c: c.name
)
ROUNDING = 1e-6
"""Norms are computed in float32 in these models, and parts of a gradient are rounded otherwise."""
HEADS = lxt.Site("layers.1.self_attn.o_proj", end="input", heads=4)
VECTOR = torch.arange(32).double() - 7.3


def close(one: Tensor, other: Tensor, scale: Tensor) -> bool:
    return close_to(one, other, scale, ROUNDING)


def explained_by_hand(
    model: nn.Module, token_ids: Tensor, composite: lxt.Composite, unit: lxt.Unit, position: int
) -> tuple[float, Tensor]:
    """The value of a unit and the relevance of each token, from hooks and a backward pass."""
    found: list[Tensor] = []
    module = unit.place.the_module(model)
    if unit.place.end == "output":
        hook = module.register_forward_hook(lambda _, args, out: found.append(first(out)))
    else:
        hook = module.register_forward_pre_hook(lambda _, args: found.append(first(args)))
    with composite.context(model):
        x = model.get_input_embeddings()(token_ids[None]).detach().requires_grad_()  # pyright: ignore[reportCallIssue]
        model(inputs_embeds=x, use_cache=False)
    hook.remove()
    at = found[0][0, position]
    if unit.neuron is not None:
        value = at[unit.neuron]
    elif unit.direction is not None:
        value = (at * unit.direction / unit.direction.norm()).sum()
    else:
        part = at if unit.head is None else at.view(4, -1)[unit.head]
        value = (part * (part / part.norm()).detach()).sum()
    (gradient,) = torch.autograd.grad(value, x)
    return value.item(), (x * gradient).sum(-1)[0].detach()


@over_composites
@pytest.mark.parametrize(
    "unit",
    [
        lxt.Unit("layers.1.mlp.act_fn", 5),
        lxt.Unit("layers.0.mlp.act_fn", -1, position=2),
        lxt.Unit("layers.1.mlp.down_proj", 3, position=-2),
        lxt.Unit("layers.0", direction=VECTOR),
        lxt.Unit("layers.1"),
        lxt.Unit(HEADS, head=2),
        lxt.Unit(HEADS, head=-1, position=4),
    ],
    ids=lambda unit: f"{unit.name}@{unit.position}",
)
def test_a_unit_is_explained_as_hooks_do(unit: lxt.Unit, composite: lxt.Composite) -> None:
    model = zoo.build("llama", dtype=torch.float64)
    token_ids = ids()[0]
    position = 6 if unit.position is None else unit.position % 7
    value, relevance = explained_by_hand(model, token_ids, composite, unit, position)
    e = lxt.explain(model, token_ids, target=unit, composite=composite)
    assert (e.target.kind, e.target.name, e.target.position) == ("unit", unit.name, position)
    assert e.target.value == pytest.approx(value, rel=1e-12)
    assert close(e.relevance, relevance, relevance)


def test_many_units_of_many_sites_in_batches() -> None:
    model = zoo.build("gpt2", dtype=torch.float64)
    units = [
        lxt.Unit("h.1.mlp.act", 5),
        lxt.Unit("h.0.mlp.act", 7, position=1),
        lxt.Unit("h.1.mlp.act", 6, position=0),
        lxt.Unit("h.0", direction=VECTOR),
    ]
    inputs = {"input_ids": ids(2, 5), "attention_mask": torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])}
    e = lxt.explain(model, inputs, target=units, taps="h.*.attn")
    for row, tokens in enumerate((ids(2, 5)[0], ids(2, 5)[1, 2:])):
        for number, unit in enumerate(units):
            alone = lxt.explain(model, tokens, target=unit, taps="h.*.attn")
            torch.testing.assert_close(e[row][number].relevance, alone.relevance)
            assert e[row][number].target.value == pytest.approx(alone.target.value)
            one, other = e[row][number].latent["h.*.attn"], alone.latent["h.*.attn"]
            torch.testing.assert_close(one.relevance, other.relevance)
    assert not e[0][1].latent["h.*.attn"].relevance[1].any()  # what comes after has no part in it
    total = lxt.explain(model, inputs, target=units, reduce="sum")
    torch.testing.assert_close(total.relevance, e.relevance.sum(1))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "mixtral"])
@over_composites
def test_relevance_through_all_of_a_cut_is_all(name: str, composite: lxt.Composite) -> None:
    """A layer's output is all that there is between what comes before and after it."""
    model = zoo.build(name, dtype=torch.float64)
    layer = {"gpt2": "h.0"}.get(name, "layers.0")
    options: dict[str, Any] = {"composite": composite}
    whole = lxt.explain(model, ids(2), **options)
    through = lxt.explain(model, ids(2), through=lxt.Unit(layer), **options)
    assert close(through.relevance, whole.relevance, whole.relevance)
    each = [
        lxt.explain(model, ids(2), through=lxt.Unit(layer, i), **options).relevance
        for i in range(32)
    ]
    assert close(sum(each, torch.zeros(())), whole.relevance, whole.relevance)
    some = lxt.explain(model, ids(2), through=[lxt.Unit(layer, i) for i in (3, 9)], **options)
    assert close(some.relevance, each[3] + each[9], whole.relevance)
    at = [lxt.Unit(layer, position=i) for i in range(7)]
    by_position = [lxt.explain(model, ids(2), through=u, **options).relevance for u in at]
    assert close(sum(by_position, torch.zeros(())), whole.relevance, whole.relevance)


@over_composites
def test_relevance_through_heads_and_neurons_is_what_they_hold(composite: lxt.Composite) -> None:
    """Conditional relevance against a graph that is cut by hand at the unit."""
    model = zoo.build("llama", dtype=torch.float64)
    token_ids = ids()[0]
    down = lxt.Site("layers.1.mlp.down_proj", end="input")
    unit = [lxt.Unit(down, 4), lxt.Unit(down, 11)]
    found: list[Tensor] = []
    module = down.the_module(model)
    hook = module.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    with composite.context(model):
        x = model.get_input_embeddings()(token_ids[None]).detach().requires_grad_()
        logit = model(inputs_embeds=x, use_cache=False).logits[0, -1].max()
    hook.remove()
    (g,) = torch.autograd.grad(logit, found[0], retain_graph=True)
    mask = torch.zeros_like(g)
    mask[..., [4, 11]] = 1
    (gradient,) = torch.autograd.grad(found[0], x, g * mask)
    expected = (x * gradient).sum(-1)[0].detach()
    e = lxt.explain(model, token_ids, through=unit, composite=composite)
    assert close(e.relevance, expected, expected)
    checkpointed = lxt.explain(model, token_ids, through=unit, composite=composite, checkpoint=1)
    assert close(checkpointed.relevance, expected, expected)


def test_through_one_site_and_then_another() -> None:
    model = zoo.build("llama", dtype=torch.float64)
    options: dict[str, Any] = {"target": [lxt.Logit(4), lxt.Logit(7, position=3)]}
    early = [lxt.Unit("layers.0", i) for i in range(32)]
    late = lxt.Unit(HEADS, head=1)
    alone = lxt.explain(model, ids(), through=late, **options)
    both = [lxt.explain(model, ids(), through=[late, one], **options).relevance for one in early]
    assert close(sum(both, torch.zeros(())), alone.relevance, alone.relevance)
    v, w = VECTOR / VECTOR.norm(), torch.eye(32).double()
    along = lxt.explain(model, ids(), through=lxt.Unit("layers.0", direction=VECTOR), **options)
    rest = torch.linalg.qr(torch.cat([v[:, None], w], 1))[0].T[1:]
    others = [
        lxt.explain(model, ids(), through=lxt.Unit("layers.0", direction=u), **options).relevance
        for u in rest
    ]
    whole = lxt.explain(model, ids(), **options)
    assert close(sum(others, along.relevance), whole.relevance, whole.relevance)


def test_taps_before_a_unit_see_what_goes_through_it() -> None:
    model = zoo.build("llama", dtype=torch.float64)
    e = lxt.explain(model, ids(), through=lxt.Unit(HEADS, head=1), taps=lxt.Residual())
    plain = lxt.explain(model, ids(), taps=lxt.Residual())
    stream = e.latent["residual"].relevance[0]
    torch.testing.assert_close(stream[1], plain.latent["residual"].relevance[0, 1])
    assert stream[0].sum() != pytest.approx(plain.latent["residual"].relevance[0, 0].sum().item())
    # All of the first layer's output, cut in two: what goes through the head, and what doesn't.
    by_head = [
        lxt.explain(model, ids(), through=lxt.Unit(HEADS, head=h), taps=lxt.Residual(layer=0))
        .latent["residual"]
        .relevance
        for h in range(4)
    ]
    all_heads = lxt.explain(model, ids(), through=lxt.Unit(HEADS), taps=lxt.Residual(layer=0))
    torch.testing.assert_close(sum(by_head), all_heads.latent["residual"].relevance)


def test_positions_of_units_are_each_row_s_own() -> None:
    model = zoo.build("llama", dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    inputs = {"input_ids": ids(2, 5), "attention_mask": mask}
    for position in (-2, 1):
        unit = lxt.Unit("layers.0", position=position)
        both = lxt.explain(model, inputs, through=unit)
        for row in range(2):
            alone = lxt.explain(model, ids(2, 5)[row][mask[row].bool()], through=unit)
            assert close(both[row].relevance, alone.relevance, alone.relevance)


def test_nothing_goes_through_what_the_target_does_not_depend_on() -> None:
    model = zoo.build("llama")
    e = lxt.explain(
        model, ids(), target=lxt.Logit(5, position=1), through=lxt.Unit("layers.0", position=4)
    )
    assert not e.relevance.any()
    unit = lxt.Unit("layers.0.mlp.act_fn", 3)
    assert not lxt.explain(model, ids(), target=unit, through=lxt.Unit("layers.1")).relevance.any()


def test_a_planted_neuron_is_found() -> None:
    """It is on where token 7 stands, reads nothing else, and alone makes logit 3."""

    class Planted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(16, 16, _weight=torch.eye(16))
            self.up, self.act = nn.Linear(16, 6, bias=False), nn.ReLU()
            self.down, self.head = nn.Linear(6, 16, bias=False), nn.Linear(16, 16, bias=False)
            for part in (self.up, self.down, self.head):
                nn.init.zeros_(part.weight)
            with torch.no_grad():
                self.up.weight[2, 7] = 3
                self.up.weight[4, 9] = 1
                self.down.weight[5, 2] = 2
                self.head.weight[3, 5] = 1
                self.head.weight[8, 9] = 0.5

        def get_input_embeddings(self) -> nn.Module:
            return self.embedding

        def forward(self, input_ids: Tensor) -> Any:
            x = self.embedding(input_ids)
            return (self.head((x + self.down(self.act(self.up(x)))).sum(1, keepdim=True) + 0 * x),)

    token_ids = torch.tensor([9, 7, 1])
    e = lxt.explain(Planted(), token_ids, target=lxt.Logit(3), taps="act")
    assert e.latent["act"].strongest(2)[0] == ("act", 1, 2, 6.0)
    assert e.latent["act"].relevance.count_nonzero() == 1
    assert e.relevance.tolist() == [0, 6, 0]
    unit = lxt.Unit("act", 2)
    through = lxt.explain(Planted(), token_ids, target=lxt.Logit(3), through=unit)
    assert through.relevance.tolist() == [0, 6, 0]
    other = lxt.explain(Planted(), token_ids, target=lxt.Logit(3), through=lxt.Unit("act", 4))
    assert other.relevance.tolist() == [0, 0, 0]
    fired = lxt.explain(Planted(), token_ids, target=lxt.Unit("act", 2, position=1))
    assert (fired.target.value, fired.relevance.tolist()) == (3, [0, 3, 0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target": lxt.Unit("layers.1.mlp.act_fn", 48)}, InvalidTap, "no neuron 48: .* has 48"),
        ({"target": lxt.Unit("layers.*", 1)}, InvalidTap, "fits 2 modules"),
        ({"target": lxt.Unit("layers.7", 1)}, InvalidTap, "no module of .* matches 'layers.7'"),
        ({"target": lxt.Unit("layers.0", direction=torch.ones(3))}, InvalidTap, "direction has 3"),
        ({"target": lxt.Unit("layers.0", 1, position=7)}, InvalidTarget, "no position 7"),
        ({"target": [lxt.Unit("layers.0", 1), lxt.Logit(3)]}, InvalidTarget, "stands among units"),
        ({"through": 3}, InvalidTap, "through=3"),
        (
            {"through": [lxt.Unit("layers.0", direction=VECTOR), lxt.Unit("layers.0", 1)]},
            InvalidTap,
            "one direction",
        ),
        ({"through": lxt.Unit("layers.0", 32)}, InvalidTap, "no neuron 32"),
        ({"through": lxt.Unit("layers.0", 1, position=9)}, InvalidTap, "no position 9"),
        ({"through": lxt.Unit(lxt.Site("layers.0", heads=5), head=1)}, InvalidTap, "5 heads"),
    ],
)
def test_units_that_are_none(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        lxt.explain(zoo.build("llama"), ids(), **options)
