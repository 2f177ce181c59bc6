"""Each kind of finding is found where it is, and not in a sound twin.

What a finding says is in `test_audit_report.py`; what the books say of sound models, in
`test_ledger.py`; that no rule is idle, in `test_audit_rules.py`.
"""

from __future__ import annotations

import copy
import ctypes
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lxt
from audited import Cube, CubeGate, Net, X, audited, kinds


class Tripled(torch.autograd.Function):
    """A linear map with a gradient that is not its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 3 * g


def by_memory(x: Tensor) -> Tensor:
    """x · a scale that C computes from x."""
    out, source = torch.zeros(6), x.detach().contiguous()
    ctypes.memmove(out.data_ptr(), source.data_ptr(), 24)
    return x * out


def by_numpy(x: Tensor) -> Tensor:
    return x * torch.from_numpy(x.detach().numpy() ** 2)


def by_number(x: Tensor) -> Tensor:
    return x / (float(x.detach().abs().max()) + 1.0)


def overwriting(x: Tensor) -> Tensor:
    out = x.new_empty(x.shape)
    out[:] = 2.0
    return x * out


def looking(x: Tensor) -> Tensor:
    return x * 2 if x.sum().item() > 1e9 else x * 3


# --- each kind of finding, and its sound twin -----------------------------------------------------


class Averaging(nn.Module):
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.data.mul_(0.9).add_(x.detach().mean(0) * 0.1)
        return x - self.mean


UNSOUND = {
    "an unknown torch function": ("unknown operation", torch.special.i1, None),
    "an unknown product": ("unknown operation", lambda x: torch.special.xlog1py(x, x.abs()), None),
    "an autograd Function": ("unknown operation", Cube.apply, None),
    "an autograd Function in a module": ("unknown operation", CubeGate(), None),
    "a rule that does not conserve": (
        "relevance lost or made",
        F.relu,
        lxt.attnlrp | {F.relu: lambda x, inplace=False: F.relu(x) + (x - x.detach())},
    ),
    "a softmax with a rule that does not conserve": (
        "relevance lost or made",
        lambda x: F.softmax(x, -1),
        lxt.attnlrp | {F.softmax: lambda x, *a, **k: F.softmax(x, *a, **k) + (x - x.detach())},
    ),
    "passthrough where it is not linear": (
        "relevance lost or made",
        lambda x: torch.special.i1(x),
        lxt.attnlrp | {torch.special.i1: lxt.rules.passthrough},
    ),
    "plain gradients of attention": (
        "relevance lost or made",
        lambda x: F.scaled_dot_product_attention(x, x, x),
        lxt.attnlrp | {F.scaled_dot_product_attention: lxt.rules.passthrough},
    ),
    "passthrough of a Function with another gradient": (
        "relevance lost or made",
        nn.Sequential(type("Part", (nn.Module,), {"forward": lambda _, x: Tripled.apply(x)})()),
        lxt.attnlrp | {"function.0": lxt.rules.passthrough},
    ),
    "a rule of another value": (
        "other forward",
        torch.relu,
        lxt.attnlrp | {torch.relu: lambda x: torch.relu(x) * (1 + 1e-6)},
    ),
    "noise": ("random forward", lambda x: x + torch.randn_like(x), None),
    "a number": ("hidden dependence", by_number, None),
    "a number that is torch's": ("values out of sight", lambda x: x * x.abs().max().item(), None),
    "a number that is only looked at": ("values out of sight", looking, None),
    "a moving average": ("state that changes", Averaging(), None),
    "numpy": ("hidden dependence", by_numpy, None),
    "memory": ("hidden dependence", by_memory, None),
    "memory handed out": ("values out of sight", by_memory, None),
    "a function without a derivative": (
        "hidden dependence",
        lambda x: x * torch.special.bessel_j0(x),
        None,
    ),
}

SOUND = {
    "an element-wise function with a rule": (
        torch.special.i1,
        lxt.attnlrp | {torch.special.i1: lxt.rules.unit},
    ),
    "an autograd Function in a module with a rule": (
        CubeGate(),
        lxt.attnlrp | {CubeGate: lxt.rules.unit},
    ),
    "a product with a rule": (lambda x: x * x.abs(), None),
    "a rule that conserves": (
        F.relu,
        lxt.attnlrp | {F.relu: lambda x, inplace=False: x * (x > 0)},
    ),
    "softmax": (lambda x: F.softmax(x, -1), None),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), None),
    "dropout in evaluation": (nn.Dropout(0.5).eval(), None),
    "a constant by its author's word": (lambda x: x * x.detach().abs().amax(-1, True), None),
    "a number that is none of the input's": (lambda x: x * (1 / math.sqrt(x.shape[-1])), None),
    "a number of what is detached": (lambda x: x / float(x.detach().abs().max()), None),
    "an item of what is detached": (lambda x: x * x.detach().abs().max().item(), None),
    "a list of what is detached": (lambda x: x * max(x.detach()[0].tolist()), None),
    "a mask of what is positive": (lambda x: x * (x > 0).float(), None),
    "constants of the shape of the input": (lambda x: x + torch.ones_like(x), None),
    "memory that is written over": (overwriting, None),
    "compiled": (torch.compile(F.silu, backend="eager"), None),
    "a sparse constant": (
        lambda x: torch.sparse.mm(torch.eye(4).to_sparse_csr() * 2.0, x),
        lxt.attnlrp | {torch.sparse.mm: lxt.rules.passthrough},
    ),
    "constants from numpy": (lambda x: x * torch.from_numpy(X[0].numpy()), None),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_what_is_not_sound_is_found(name: str) -> None:
    kind, function, composite = UNSOUND[name]
    report = audited(function, composite)
    assert not report.ok
    assert kind in kinds(report), report.findings
    assert report.ledger.imbalance() <= 1e-4 * max(abs(report.target), report.gross)


@pytest.mark.parametrize("name", SOUND)
def test_its_sound_twin_has_no_findings(name: str) -> None:
    function, composite = SOUND[name]
    report = audited(function, composite)
    assert report.ok, report.findings
    assert report.counts()["unknown"] == 0


class Softmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x, -1)


class Flipped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flip(-1) ** 3


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x + x.mean())


class Cubed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor, power: int = 3) -> Tensor:
        return (x * self.scale) ** power


NO_UNITS = (Softmax(), Flipped(), Centred(), nn.Linear(6, 6))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("module", NO_UNITS, ids=lambda module: type(module).__name__)
def test_a_unit_that_mixes_elements(module: nn.Module, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.ReLU(), copy.deepcopy(module)).to(dtype)
    composite = lxt.attnlrp | {type(module): lxt.rules.unit}
    report = lxt.audit(model, X.to(dtype) * 4, composite=composite)
    (finding,) = (f for f in report.findings if f.kind == "unit that is not element-wise")
    assert type(module).__name__ in finding.text
    assert finding.line is not None
    if dtype.itemsize > 2:  # in which linear functions are
        assert ("passthrough" in finding.line) == isinstance(module, nn.Linear)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_unit_that_mixes_none(dtype: torch.dtype) -> None:
    model = Net(Cubed(), dtype).to(dtype)
    report = lxt.audit(model, X.to(dtype), composite=lxt.attnlrp | {Cubed: lxt.rules.unit})
    assert "unit that is not element-wise" not in kinds(report), report.findings
    pair = Net(lambda x: torch.special.xlogy(torch.ones(6, dtype=dtype), x.abs()), dtype)
    composite = lxt.attnlrp | {torch.special.xlogy: lxt.rules.unit}
    assert "unit that is not element-wise" not in kinds(
        lxt.audit(pair, X.to(dtype), composite=composite)
    )


# --- other measures -------------------------------------------------------------------------------


def test_relevance_that_explodes() -> None:
    class Difference(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[0] - x[1]

    near, far = torch.tensor([1.0, 1 + 2**-20]), torch.tensor([1.0, 2.0])
    (finding,) = lxt.audit(Difference(), near).findings
    assert finding.kind == "relevance explodes"
    assert "2.1e+06 times" in finding.text
    assert lxt.audit(Difference(), far).ok


def test_relevance_that_is_large_and_right() -> None:
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -1.0]]))
    near = torch.tensor([[1.0, 1 + 2**-20]])
    report = lxt.audit(model, near)
    assert report.gross > 1e6 * abs(report.target)
    assert report.float64 is not None
    assert report.ok, report.findings


def test_too_few_digits() -> None:
    def cancelling(x: Tensor) -> Tensor:
        return (x + 300) - 300

    assert "too few digits" in kinds(
        lxt.audit(Net(lambda x: F.silu(cancelling(x)) * x, torch.bfloat16), X.bfloat16())
    )
    report = lxt.audit(Net(lambda x: F.silu(x) * x, torch.bfloat16), X.bfloat16())
    assert report.ok, report.findings
    assert report.float64 is not None
    assert report.float64.correlation > 0.99


class _Attending(nn.Module):
    """A fake model of `transformers`, whose two implementations need not agree."""

    def __init__(self, eager_scale: float) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.config = SimpleNamespace(_attn_implementation="sdpa")
        self.eager_scale = eager_scale

    def set_attn_implementation(self, name: str) -> None:
        self.config._attn_implementation = name

    def forward(self, x: Tensor) -> Tensor:
        eager = self.config._attn_implementation == "eager"
        return self.layer(F.silu(x) * (x * self.eager_scale if eager else x))


def test_implementations_of_attention_that_disagree() -> None:
    report = lxt.audit(_Attending(1.5), X)
    assert kinds(report) == ["attention disagrees"]
    assert report.attention is not None
    assert (report.attention.implementation, report.attention.other) == ("sdpa", "eager")
    model = _Attending(1.0)
    assert lxt.audit(model, X).ok
    assert model.config._attn_implementation == "sdpa"


def test_a_trace_that_is_left() -> None:
    class Counting(nn.Module):
        """It keeps a mode of its own for as long as something runs in place of its forward."""

        def forward(self, x: Tensor) -> Tensor:
            if "forward" in vars(self):
                self.last = x
            return x * 2

    (finding,) = lxt.audit(Counting(), X, composite=lxt.attnlrp).findings
    assert finding.kind == "trace left"
    assert "attributes of ''" in finding.text


def test_relevance_on_padding() -> None:
    class Careless(nn.Module):
        """It means over all positions, padding too."""

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 6), nn.Linear(6, 9)
            self.config = SimpleNamespace(vocab_size=9)

        def get_input_embeddings(self) -> nn.Embedding:
            return self.embed

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            h = self.embed(input_ids)
            weights = torch.ones_like(attention_mask) if careless else attention_mask
            mean = (h * weights[..., None]).sum(1, keepdim=True) / weights.sum(1)[:, None, None]
            return SimpleNamespace(logits=self.head(h + mean))

    batch = {
        "input_ids": torch.tensor([[1, 2, 3], [4, 5, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    }
    careless = True
    report = lxt.audit(Careless(), batch)
    assert kinds(report) == ["relevance on padding"]
    assert report.sinks is not None
    assert report.sinks.padding > 0
    careless = False
    report = lxt.audit(Careless(), batch)
    assert report.ok, report.findings
    assert report.sinks is not None
    assert report.sinks.padding == 0
