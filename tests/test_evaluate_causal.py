"""Ablation and patching: where the truth is known, and against loops written by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lxt
import zoo
from causal_models import Gated, Linear, TinyLM
from lxt import evaluate
from lxt.evaluate.runs import Replacement, Row, Sharing
from lxt.text_case import TextCase

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
SITES = ["layers.*", "layers.*.mix", lxt.Site("layers.*.mix", end="input", heads=3)]
KINDS = ("residual", "attention", "heads", "mlp", "neurons")
MODELS = ["llama", "gpt2", "gemma3", "falcon", "bloom", "qwen3_moe", "gpt_neox"]


def ids(rows: int = 2, tokens: int = 6, seed: int = 1) -> Tensor:
    return torch.randint(5, 90, (rows, tokens), generator=torch.Generator().manual_seed(seed))


# --- where the truth is known ---------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["all", "each"])
def test_of_a_linear_model_relevance_is_what_ablation_takes_away(positions):
    model = TinyLM([Linear(), Linear(), Linear()])
    found = evaluate.ablation(
        model, IDS, components=SITES, reference="zero", positions=positions, target=lxt.Logit(7)
    )
    assert list(found.predicted) == ["attnlrp", "cp_lrp", "gradient"]
    assert len(found) == 2 * (3 + 3 + 9) * (1 if positions == "all" else 5)
    for predicted in found.predicted.values():
        torch.testing.assert_close(predicted, found.effect, rtol=1e-9, atol=1e-9)
    agreements = found.agreements()
    if positions == "all":  # without any of the residual stream, nothing is left of the logit
        assert math.isnan(agreements[0].pearson)
        agreements = agreements[3:]
    for one in agreements:
        assert one.pearson == pytest.approx(1)
        assert one.spearman == pytest.approx(1)
        assert one.rows == 2


@pytest.mark.parametrize("reference", ["mean", "mean at position"])
def test_of_a_linear_model_the_difference_is_what_mean_ablation_takes_away(reference):
    model = TinyLM([Linear(), Linear()])
    found = evaluate.ablation(
        model, IDS, components=SITES, reference=reference, target=lxt.Logit(7)
    )
    assert list(found.predicted)[:2] == ["attnlrp", "attnlrp, difference"]
    torch.testing.assert_close(
        found.predicted["attnlrp, difference"], found.effect, rtol=1e-9, atol=1e-9
    )
    assert not torch.allclose(found.predicted["attnlrp"], found.effect)


def test_of_a_linear_model_the_difference_is_what_patching_does():
    model = TinyLM([Linear(), Linear()])
    corrupt = IDS.clone()
    corrupt[:, 2] = torch.tensor([8, 10])
    found = evaluate.patching(model, IDS, corrupt, components=SITES, target=lxt.Contrast(7, 2))
    for predicted in found.predicted.values():
        torch.testing.assert_close(predicted, found.effect, rtol=1e-9, atol=1e-9)
    assert set(found.position.tolist()) == {2, 3, 4}, "before, there is nothing to patch"
    with torch.no_grad():
        clean, other = (model(x)[:, -1, 7] - model(x)[:, -1, 2] for x in (IDS, corrupt))
    assert [target.value for target in found.targets] == pytest.approx(other.tolist())
    whole = evaluate.patching(
        model, IDS, corrupt, components="layers.*", positions="all", target=lxt.Contrast(7, 2)
    )
    for row in (0, 1):
        effects = whole.effect[whole.row == row]
        torch.testing.assert_close(effects, (clean - other)[row].expand(2).double())


def test_of_a_gate_relevance_is_half():
    """Σ over both factors is the product, and either alone takes all of it away."""
    model = TinyLM([Gated()])
    found = evaluate.ablation(
        model, IDS, components=["layers.0.up", "layers.0.gate"], reference="zero"
    )
    torch.testing.assert_close(found.predicted["gradient"], found.effect)
    torch.testing.assert_close(found.predicted["attnlrp"], found.effect / 2)
    up, gate = found.of("layers.0.up"), found.of("layers.0.gate")
    torch.testing.assert_close(up.effect, gate.effect)


# --- against a loop -------------------------------------------------------------------------------


class Naive:
    """One intervention at a time, on a batch of one, with hooks of its own."""

    def __init__(self, model: nn.Module, row: Tensor, token: int) -> None:
        self.model, self.row, self.token = model, row[None], token

    def value(
        self, path: str = "", end: str = "", write: Callable[[Tensor], None] | None = None
    ) -> float:
        handle = None
        if write is not None:

            def changed(x: Any) -> Any:
                if isinstance(x, tuple):
                    return (changed(x[0]), *x[1:])
                x = x.clone()
                write(x.view(self.row.shape[1], -1))
                return x

            module = self.model.get_submodule(path.removesuffix(":input"))
            if end == "input":
                handle = module.register_forward_pre_hook(lambda _, args: changed(args))
            else:
                handle = module.register_forward_hook(lambda _, args, out: changed(out))
        with torch.no_grad():
            value = float(self.model(self.row).logits[0, -1, self.token])
        if handle is not None:
            handle.remove()
        return value

    def reads(self, path: str, end: str, composite: Any) -> tuple[Tensor, Tensor]:
        """Activation and gradient [tokens, channels]."""
        kept: list[Tensor] = []

        def keep(x: Any) -> None:
            x = x[0] if isinstance(x, tuple) else x
            x.retain_grad()
            kept.extend((x, x.detach().clone()))  # some models write to what passes

        module = self.model.get_submodule(path.removesuffix(":input"))
        embedding: Any = self.model.get_input_embeddings()  # type: ignore[operator]
        leaf = embedding.register_forward_hook(lambda _, args, x: x.detach().requires_grad_())
        if end == "input":
            hook = module.register_forward_pre_hook(lambda _, args: keep(args))
        else:
            hook = module.register_forward_hook(lambda _, args, out: keep(out))
        with composite.context(self.model):
            logits = self.model(self.row).logits
        logits[0, -1, self.token].backward()
        leaf.remove()
        hook.remove()
        x, value = kept
        g = torch.zeros_like(x) if x.grad is None else x.grad
        tokens = self.row.shape[1]
        return value.reshape(tokens, -1), g.reshape(tokens, -1)


def ends_of(model: nn.Module, kind: str) -> str:
    return "input" if kind in ("heads", "neurons") else "output"


def channels(kind: str, unit: int, width: int, model: Any) -> slice:
    if unit < 0:
        return slice(None)
    count = 4 if kind == "neurons" else model.config.num_attention_heads
    size = width // count
    return slice(unit * size, (unit + 1) * size)


@pytest.mark.parametrize("name", MODELS)
def test_ablation_is_what_a_loop_finds(name):
    model = zoo.build(name)
    rows = ids()
    composites = {"lrp": lxt.attnlrp, "plain": lxt.gradient}
    kinds = [kind for kind in KINDS if name != "qwen3_moe" or kind != "neurons"]
    found = evaluate.ablation(
        model, rows, components=kinds, composites=composites, groups=4, target=lxt.Logit(9)
    )
    assert found.components == kinds
    picked = range(0, len(found), max(len(found) // 24, 1))
    sites = {(found.site[i], found.component[i]) for i in picked}
    known = {}
    for path, kind in sites:
        for method, composite in composites.items():
            for row in (0, 1):
                naive = Naive(model, rows[row], 9)
                known[path, kind, method, row] = naive.reads(path, ends_of(model, kind), composite)
    for i in picked:
        path, kind, row = found.site[i], found.component[i], int(found.row[i])
        naive = Naive(model, rows[row], 9)
        a, _ = known[path, kind, "lrp", row]
        both = torch.cat([known[path, kind, "lrp", r][0] for r in (0, 1)])
        here = channels(kind, int(found.unit[i]), a.shape[1], model)
        mean = both.mean(0)[here]

        def write(x: Tensor, here: slice = here, mean: Tensor = mean) -> None:
            x[:, here] = mean

        effect = naive.value() - naive.value(path, ends_of(model, kind), write)
        assert float(found.effect[i]) == pytest.approx(effect, rel=1e-6, abs=1e-7)
        for method in composites:
            _, g = known[path, kind, method, row]
            total = float((a * g)[:, here].sum())
            part = float(((a[:, here] - mean) * g[:, here]).sum())
            assert float(found.predicted[method][i]) == pytest.approx(total, rel=1e-6, abs=1e-9)
            difference = float(found.predicted[f"{method}, difference"][i])
            assert difference == pytest.approx(part, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon", "bert_mlm"])
def test_patching_is_what_a_loop_finds(name):
    model = zoo.build(name)
    clean, corrupt = ids(1), ids(1)
    corrupt[0, 3] += 1
    target = lxt.Logit(9, position=-1)
    found = evaluate.patching(
        model, clean, corrupt, target=target, composites="attnlrp", groups=4, components=KINDS
    )
    assert min(found.position.tolist()) == (0 if name == "bert_mlm" else 3)
    one, other = Naive(model, clean[0], 9), Naive(model, corrupt[0], 9)
    for i in range(0, len(found), max(len(found) // 24, 1)):
        path, kind = found.site[i], found.component[i]
        end, position = ends_of(model, kind), int(found.position[i])
        source, _ = one.reads(path, end, lxt.attnlrp)
        a, g = other.reads(path, end, lxt.attnlrp)
        here = channels(kind, int(found.unit[i]), a.shape[1], model)
        values = source[position, here]

        def write(x: Tensor, at: int = position, here: slice = here, v: Tensor = values) -> None:
            x[at, here] = v

        effect = other.value(path, end, write) - other.value()
        assert float(found.effect[i]) == pytest.approx(effect, rel=1e-6, abs=1e-7)
        expected = float(((values - a[position, here]) * g[position, here]).sum())
        assert float(found.predicted["attnlrp"][i]) == pytest.approx(expected, rel=1e-6, abs=1e-9)


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 1000])
def test_any_batch_size_gives_the_same(size):
    model = zoo.build("llama")
    options: Any = {"composites": "gradient", "groups": 4}
    one = evaluate.ablation(model, ids(), batch_size=size, **options)
    other = evaluate.ablation(model, ids(), **options)
    torch.testing.assert_close(one.effect, other.effect, rtol=1e-7, atol=1e-9)
    assert one.site == other.site
    assert torch.equal(one.unit, other.unit)


@pytest.mark.parametrize(("stubborn", "works"), [(None, True), ("view", False), ("slice", False)])
def test_rows_begin_as_one_only_where_that_is_the_same(stubborn, works):
    plain = evaluate.ablation(TinyLM([Linear()]), IDS, components=SITES, reference="zero")
    model = TinyLM([Linear()], stubborn)
    found = evaluate.ablation(model, IDS, components=SITES, reference="zero")
    torch.testing.assert_close(found.effect, plain.effect)
    row = Row(TextCase(model, IDS[:1], target=lxt.Logit(1)))
    sharing = Sharing()
    site = lxt.Site("/layers.0")
    change = Replacement(site, slice(0, 5), torch.arange(6), torch.zeros(5, 6).double())
    row.effects([change] * 3, 2, sharing)
    assert sharing.works is works


def test_a_row_of_a_batch_is_the_row_alone_also_under_padding():
    model = zoo.build("llama")
    rows = ids()
    mask = torch.ones_like(rows)
    mask[0, :2] = 0
    options: Any = {"composites": "attnlrp", "reference": "zero", "groups": 2}
    both = evaluate.ablation(model, {"input_ids": rows, "attention_mask": mask}, **options)
    alone = evaluate.ablation(model, rows[0, 2:], **options)
    here = both.row == 0
    torch.testing.assert_close(both.effect[here], alone.effect)
    torch.testing.assert_close(both.predicted["attnlrp"][here], alone.predicted["attnlrp"])


def test_a_target_for_each_row():
    model = zoo.build("llama")
    rows, targets = ids(), [lxt.Logit(3), lxt.Contrast(4, 5)]
    options: Any = {"components": "mlp", "composites": "gradient", "reference": "zero"}
    both = evaluate.ablation(model, rows, target=targets, **options)
    for row, target in enumerate(targets):
        alone = evaluate.ablation(model, rows[row], target=target, **options)
        torch.testing.assert_close(both.effect[both.row == row], alone.effect)
        assert both.targets[row].name == alone.targets[0].name


def test_a_classifier():
    model = zoo.build("bert")
    found = evaluate.ablation(model, ids(), components="mlp", target=lxt.Label(0))
    assert len(found.targets) == 2
    assert found.effect.isfinite().all()
    assert found.effect.any()


def test_it_is_reproducible_and_leaves_no_trace():
    model = zoo.build("llama")
    before = {name: sorted(vars(module)) for name, module in model.named_modules()}
    one = evaluate.ablation(model, ids(), groups=4)
    other = evaluate.ablation(model, ids(), groups=4)
    assert torch.equal(one.effect, other.effect)
    for name in one.predicted:
        assert torch.equal(one.predicted[name], other.predicted[name])
    assert before == {name: sorted(vars(module)) for name, module in model.named_modules()}
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    with torch.inference_mode():
        assert torch.equal(evaluate.ablation(model, ids(), groups=4).effect, one.effect)


def test_a_mean_is_over_the_tokens_of_the_reference():
    model = TinyLM([Linear()])
    path, others = "layers.0.mix", torch.tensor([[1, 2, 3], [4, 5, 6]])
    kept: list[Tensor] = []
    hook = model.layers[0].mix.register_forward_hook(lambda _, args, out: kept.append(out))  # type: ignore[union-attr]
    with torch.no_grad():
        model(others)
    hook.remove()
    for reference, mean in [("mean", kept[0].mean((0, 1))), ("mean at position", kept[0].mean(0))]:
        hook = model.layers[0].mix.register_forward_hook(  # type: ignore[union-attr]
            lambda _, args, out, mean=mean: mean.expand_as(out)
        )
        with torch.no_grad():
            ablated = float(model(IDS[:1, :3])[0, -1, 4])
            hook.remove()
            plain = float(model(IDS[:1, :3])[0, -1, 4])
        found = evaluate.ablation(
            model, IDS[0, :3], components=path, reference=reference, reference_inputs=others,
            target=lxt.Logit(4),
        )  # fmt: skip
        assert found.effect.item() == pytest.approx(plain - ablated)
