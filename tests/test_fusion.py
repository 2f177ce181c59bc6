"""Fused units: the same forward to the bit, the same relevance, and where they must stand aside."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

import lxt
import zoo
from lxt.coverage.exact import ExactFloat64
from lxt.testing import check_model

WIDTH, INNER = 6, 10
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
over_composites = pytest.mark.parametrize(
    "composite", [lxt.attnlrp, lxt.cp_lrp], ids=lambda c: c.name
)


class Gated(nn.Module):
    """A gated MLP with names that say nothing, its layers in an order that says nothing."""

    def __init__(self, act: Any = F.silu, bias: bool = False) -> None:
        super().__init__()
        self.c = nn.Linear(INNER, WIDTH, bias)
        self.b = nn.Linear(WIDTH, INNER, bias)
        self.a = nn.Linear(WIDTH, INNER, bias)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(x) * self.act(self.b(x)))


class Joined(nn.Module):
    """One layer for gate and up."""

    def __init__(self, order: str, bias: bool = True) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(WIDTH, 2 * INNER, bias), nn.Linear(INNER, WIDTH, bias)
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        both = self.both(x)
        if self.order == "interleaved":
            gate, up = both[..., ::2], both[..., 1::2]
        else:
            gate, up = both.chunk(2, dim=-1)
        if self.order == "swapped":
            gate, up = up, gate
        return self.down(up * F.gelu(gate))


class Plain(nn.Module):
    def __init__(self, act: nn.Module, layer: Any = nn.Linear) -> None:
        super().__init__()
        first = (INNER, WIDTH) if layer is Conv1D else (WIDTH, INNER)
        self.into, self.out = layer(*first), layer(*first[::-1])
        self.act, self.dropout = act, nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.out(self.act(self.into(x))))


class Norm(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH) / 4)
        self.eps, self.kind = 1e-5, kind

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.kind == "rounds first":
            return self.weight * normed.to(x.dtype)
        if self.kind == "rounds last":
            return (self.weight * normed).to(x.dtype)
        return (normed * (1.0 + self.weight.float())).type_as(x)


MODULES = {
    "gated": lambda: Gated(),
    "gated, gelu, biases": lambda: Gated(F.gelu, bias=True),
    "gated, a unit": lambda: Gated(ACT2FN["gelu_new"]),
    "gated, from values": lambda: Gated(nn.Softplus()),
    "gated, f(0) is not 0": lambda: Gated(nn.Sigmoid()),
    "joined": lambda: Joined("halves"),
    "joined, swapped": lambda: Joined("swapped"),
    "joined, interleaved": lambda: Joined("interleaved", bias=False),
    "plain": lambda: Plain(nn.ReLU()),
    "plain, in place": lambda: Plain(nn.ReLU(inplace=True)),
    "plain, GPT-2": lambda: Plain(ACT2FN["gelu_new"], Conv1D),
    "norm, rounds first": lambda: Norm("rounds first"),
    "norm, rounds last": lambda: Norm("rounds last"),
    "norm, one more": lambda: Norm("one more"),
}


class Model(nn.Module):
    """Two parts, so that each gets what the other hands on."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.first, self.second = make(), make()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x + self.first(x))


def model_of(name: str, dtype: torch.dtype = torch.float32) -> Model:
    torch.manual_seed(0)
    return Model(MODULES[name]).eval().to(dtype)


def relevance(
    model: nn.Module, x: Tensor, composite: lxt.Composite, fuse: bool
) -> tuple[Tensor, Tensor, dict[str, str]]:
    leaf = x.clone().requires_grad_()
    with composite.context(model, fuse=fuse) as propagation:
        output = model(leaf)
        fused = propagation.fused
    (gradient,) = torch.autograd.grad(output, leaf, torch.ones_like(output))
    return output.detach(), leaf.detach() * gradient, fused


@over_composites
@pytest.mark.parametrize("name", MODULES)
def test_a_unit_is_what_it_stands_for(name: str, composite: lxt.Composite) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 3, WIDTH)
    kinds = {"norm": "RMS norm", "plai": "MLP"}
    for dtype in DTYPES:
        model = model_of(name, dtype)
        exact = ExactFloat64() if dtype is torch.float64 else contextlib.nullcontext()
        with exact:
            plain = model(x.to(dtype))
            y, fused_relevance, fused = relevance(model, x.to(dtype), composite, fuse=True)
            y_of_rules, by_rules, none = relevance(model, x.to(dtype), composite, fuse=False)
        assert set(fused) == {"first", "second"}
        assert set(fused.values()) == {kinds.get(name[:4], "gated MLP")}
        assert not none
        assert torch.equal(y, plain)
        assert torch.equal(y, y_of_rules)
        distance = float((fused_relevance - by_rules).abs().max() / by_rules.abs().max())
        assert distance <= {torch.float64: 1e-12, torch.float32: 1e-6}.get(dtype, 0.05)


@over_composites
@pytest.mark.parametrize("name", zoo.NAMES + zoo.RECURRENT)
def test_models_are_the_same_with_and_without(name: str, composite: lxt.Composite) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        model = zoo.build(name, dtype=dtype)
        example = zoo.example(name, model)
        exact = ExactFloat64() if dtype is torch.float64 else contextlib.nullcontext()
        found = []
        with exact:
            for fuse in (True, False):
                with composite.context(model, fuse=fuse):
                    logits = example.run(model)
                kept = logits[example.output_mask]
                (gradient,) = torch.autograd.grad(kept.sum(), example.leaf)
                found.append((logits.detach(), example.leaf.detach() * gradient))
        (fused, relevance), (rules, expected) = found
        assert torch.equal(fused, rules)
        # A sum of large terms that cancel, in float32: relative to the largest
        assert float((relevance - expected).abs().max() / expected.abs().max()) <= tolerance


def counts(model: nn.Module, composite: lxt.Composite = lxt.attnlrp) -> Counter[str]:
    handle = composite.register(model)
    try:
        return Counter(handle.fused.values())
    finally:
        handle.remove()


def test_what_is_found_in_models() -> None:
    settings = {"dtype": torch.float32}
    assert counts(zoo.build("llama", **settings)) == {"gated MLP": 2, "RMS norm": 5}
    assert counts(zoo.build("phi3", **settings)) == {"gated MLP": 2, "RMS norm": 5}
    assert counts(zoo.build("gemma3", **settings)) == {"gated MLP": 2, "RMS norm": 13}
    assert counts(zoo.build("gpt2", **settings)) == {"MLP": 2}
    assert counts(zoo.build("t5", **settings))["MLP"] == 4
    assert counts(zoo.build("llama", **settings), lxt.gradient) == {}
    assert counts(zoo.build("llama", **settings), lxt.explicit.attnlrp) == {}


def test_an_mlp_as_the_model_itself() -> None:
    model = MODULES["gated"]().eval()
    check_model(model, torch.randn(2, 3, WIDTH))
    assert counts(model) == {"gated MLP": 1}


class Clamped(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(x).clamp(-5, 5) * self.act(self.b(x)))


class Scaled(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * super().forward(x)


class Twice(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.act(self.a(x)) * self.act(self.b(x)))


class OfTwo(Gated):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x) + y


class LayerNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(WIDTH)), 1e-5

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


@pytest.mark.parametrize(
    "make", [Clamped, Scaled, Twice, OfTwo, LayerNorm], ids=lambda c: c.__name__
)
def test_what_only_resembles_a_unit_is_none(make: Any) -> None:
    assert counts(Model(make)) == {}


def test_a_subclass_of_a_layer_is_none() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = model_of("gated")
    model.first.b = Doubled(WIDTH, INNER)
    assert list(lxt.attnlrp.register(model).fused) == ["second"]


def test_a_users_rule_takes_the_unit_away() -> None:
    calls = []

    def silu(x: Tensor, inplace: bool = False) -> Tensor:
        calls.append(x.shape)
        return F.silu(x)

    model = model_of("gated")
    composite = lxt.attnlrp | {F.silu: silu}
    assert counts(model, composite) == {}
    calls.clear()
    with composite.context(model):
        model(torch.randn(2, WIDTH, requires_grad=True))
    assert calls
    by_name = lxt.attnlrp | {"first.b": lxt.rules.passthrough}
    assert list(by_name.register(model).fused) == ["second"]


def test_another_share_is_not_taken_for_ours() -> None:
    """The products of attnlrp under the rest of cp_lrp: the backward pass tells."""
    from lxt.rules.bilinear import ELEMENTWISE, product
    from lxt.rules.elementary import passthrough

    model = model_of("gated")
    assert counts(model, lxt.cp_lrp | dict.fromkeys(ELEMENTWISE, product)) == {"gated MLP": 2}
    assert counts(model, lxt.attnlrp | dict.fromkeys(ELEMENTWISE, passthrough)) == {}


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_who_looks_within_sees_everything(kind: str) -> None:
    """A hook on a part takes the unit away, and is called as ever."""
    model = model_of("gated")
    seen = []
    part = model.first.act = nn.SiLU()
    x = torch.randn(2, 3, WIDTH)
    _, expected, fused = relevance(model, x, lxt.attnlrp, fuse=True)
    assert set(fused) == {"first", "second"}
    handle = getattr(part, f"register_{kind}_hook")(lambda *_: seen.append(1))
    _, found, fused = relevance(model, x, lxt.attnlrp, fuse=True)
    assert set(fused) == {"second"}
    assert seen
    torch.testing.assert_close(found, expected)
    handle.remove()
    assert set(relevance(model, x, lxt.attnlrp, fuse=True)[2]) == {"first", "second"}


def test_hooks_of_the_module_itself_see_it_whole() -> None:
    model = model_of("gated")
    kept = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    model.first.register_forward_hook(keep)
    with lxt.attnlrp.context(model) as propagation:
        assert set(propagation.fused) == {"first", "second"}
        model(torch.randn(2, WIDTH, requires_grad=True)).sum().backward()
    assert kept[0].grad.abs().sum() > 0


def test_a_model_that_changes_is_looked_at_again() -> None:
    model = model_of("gated")
    x = torch.randn(2, WIDTH)
    handle = lxt.attnlrp.register(model)
    assert set(handle.fused) == {"first", "second"}
    model.first.act = F.gelu
    assert set(handle.fused) == {"first", "second"}
    leaf = x.clone().requires_grad_()
    y = model(leaf)
    (found,) = torch.autograd.grad(y.sum(), leaf)
    handle.remove()
    assert torch.equal(y, model(x))
    _, expected, _ = relevance(model, x, lxt.attnlrp, fuse=False)
    torch.testing.assert_close(leaf.detach() * found, expected)


def test_in_training_mode_dropout_is_off() -> None:
    model = model_of("plain").train()
    x = torch.randn(2, 3, WIDTH)
    _, found, fused = relevance(model, x, lxt.attnlrp, fuse=True)
    assert set(fused) == {"first", "second"}
    _, expected, _ = relevance(model.eval(), x, lxt.attnlrp, fuse=False)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("call", ["keyword", "autocast", "wider", "constant"])
def test_other_calls_run_by_the_rules(call: str) -> None:
    class Caller(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = MODULES["gated"]()

        def forward(self, x: Tensor) -> Tensor:
            if call == "keyword":
                return self.mlp(x=x)
            if call == "constant":
                return x + self.mlp(x.detach())
            return self.mlp(x)

    torch.manual_seed(0)
    model = Caller().eval()
    x = torch.randn(2, 3, WIDTH)
    around = contextlib.nullcontext()
    if call == "autocast":
        around = torch.autocast("cpu", dtype=torch.bfloat16)
    if call == "wider":
        model.mlp.double()
        lxt.attnlrp.register(model).remove()
        x = x.double()
    with around:
        plain = model(x)
        y, found, _ = relevance(model, x, lxt.attnlrp, fuse=True)
        _, expected, _ = relevance(model, x, lxt.attnlrp, fuse=False)
    assert torch.equal(y, plain)
    torch.testing.assert_close(found, expected)


def test_proofs_leave_the_random_state_alone() -> None:
    model = model_of("plain")
    composite = lxt.attnlrp | {}
    torch.manual_seed(3)
    expected = torch.randn(3)
    torch.manual_seed(3)
    composite.register(model).remove()
    counts(model, composite)
    assert torch.equal(torch.randn(3), expected)


def test_one_proof_for_modules_that_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    from lxt.fusion import finding

    proofs = []
    reference = finding.reference
    monkeypatch.setattr(
        finding, "reference", lambda *args: (proofs.append(args[0]), reference(*args))[1]
    )
    model = zoo.build("llama", dtype=torch.float32)
    composite = lxt.attnlrp | {}
    for _ in range(3):
        with composite.context(model):
            zoo.example("llama", model).run(model)
    assert len(proofs) == 2  # one norm, one MLP


def saved_bytes(model: nn.Module, x: Tensor, composite: lxt.Composite) -> int:
    kept: dict[int, tuple[Any, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = weakref.ref(tensor), storage.nbytes()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    leaf = x.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), composite.context(model):
        output = model(leaf)
    gc.collect()
    total = sum(n for key, (ref, n) in kept.items() if key not in own and ref() is not None)
    assert output.requires_grad
    return total


def test_what_is_kept_is_what_is_needed() -> None:
    """Gate and up, or the operand in one unit of six; one of them where the gate is constant; one
    number for each token."""
    x = torch.randn(1, 7, WIDTH)
    row = 7 * 4  # bytes of one channel
    for name, composite, channels in (
        ("gated", lxt.cp_lrp, INNER),
        ("plain", lxt.attnlrp, INNER),
        ("norm, rounds first", lxt.attnlrp, 1),
    ):
        model = nn.Sequential(MODULES[name]()).eval()
        assert saved_bytes(model, x, composite) == channels * row, (name, composite.name)
    for name in ("gated", "joined"):
        seven = nn.Sequential(*(MODULES[name]() for _ in range(7))).eval()
        assert saved_bytes(seven, x, lxt.attnlrp) == (5 * 2 * INNER + 2 * WIDTH) * row, name


def test_products_of_a_non_linearity_keep_its_operand_only() -> None:
    """The experts of a mixture: no unit, and no third tensor either."""

    class Expert(nn.Module):
        def forward(self, gate: Tensor) -> Tensor:
            return F.silu(gate * 2) * (gate * 3)

    x = torch.randn(1, 7, INNER)
    assert saved_bytes(Expert(), x, lxt.attnlrp) == 2 * x.numel() * 4


def test_the_audit_says_what_is_fused_and_what_is_not() -> None:
    model = nn.Sequential(Gated(), Clamped(), Norm("rounds first")).eval()
    report = lxt.audit(model, torch.randn(1, 3, WIDTH))
    assert report.ok
    assert report.fused.units == {"gated MLP": 1, "RMS norm": 1}
    assert report.fused.others == ("Clamped",)
    assert report.fused.forward_identical
    assert report.fused.agreement.relative_error < 1e-6
    text = " ".join(str(report).split())
    assert "1 × gated MLP, 1 × RMS norm" in text
    assert "for want of a proof: Clamped" in text


def test_the_audit_finds_a_unit_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proofs that prove anything take the first candidate, whose order of parts is another."""
    from lxt.fusion import finding

    class Swapped(Gated):
        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(x) * self.act(self.a(x)))

    model = nn.Sequential(Swapped()).eval()
    x = torch.randn(1, 3, WIDTH)
    assert lxt.audit(model, x, composite=lxt.attnlrp | {}).ok
    monkeypatch.setattr(finding, "agrees", lambda *_: True)
    report = lxt.audit(model, x, composite=lxt.attnlrp | {})
    assert [one.kind for one in report.findings] == ["a fused unit disagrees"]
    assert not report.fused.forward_identical
