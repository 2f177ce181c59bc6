"""Quantised linear layers: the same relevance as the dequantised ones, or a refusal.

These are stand-ins, which have the name and the manners of a layer that can't run here.
bitsandbytes and torchao themselves run in `peers/test_quantized_libraries.py`.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lxt
from lxt.architectures import QUANTIZED
from lxt.architectures.quantized import linear_4bit, linear_layer, refused_layer
from lxt.errors import UnknownOperation
from lxt.structure import ClassPath

over_composites = pytest.mark.parametrize(
    "composite", [lxt.attnlrp, lxt.cp_lrp], ids=lambda composite: composite.name
)


def differing(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm())


def gradient(model: nn.Module, x: Tensor, composite: lxt.Composite | None) -> Tensor:
    """Of a weighted sum of the output, under a composite or none."""
    x = x.detach().clone().requires_grad_()
    if composite is None:
        y = model(x)
    else:
        with composite.context(model):
            y = model(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad(y, x, weights.to(y.dtype))[0]


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(
        dtype
    )


class Block(nn.Module):
    """A layer beside a residual, through which relevance gets by though the layer stops it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.layer(x * 2))


# --- stand-ins: layers ---------------------------------------------------------------------------


class DequantisedInBackward(torch.autograd.Function):
    """As MatMul4Bit, WQLinearMMFunction and their kin."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, g):
        (weight,) = ctx.saved_tensors
        return g @ weight, None


torch.library.define("lxt_tests::inference_only", "(Tensor x, Tensor weight) -> Tensor")
torch.library.impl(
    "lxt_tests::inference_only", "CPU", lambda x, weight: x.detach() @ weight.detach().T
)


def with_backward(x: Tensor, weight: Tensor) -> Tensor:
    return DequantisedInBackward.apply(x, weight)  # type: ignore[return-value]


def without_gradients(x: Tensor, weight: Tensor) -> Tensor:
    with torch.no_grad():
        return with_backward(x, weight)


def in_inference_mode(x: Tensor, weight: Tensor) -> Tensor:
    with torch.inference_mode():
        return with_backward(x, weight)


def without_derivative(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.lxt_tests.inference_only(x, weight)


def class_at(path: str, kernel: Callable[[Tensor, Tensor], Tensor]) -> type[nn.Module]:
    """A layer class of that qualified name, which keeps its weight in a buffer as most do."""

    class Layer(nn.Module):
        weight = None

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("qweight", random(4, 4))
            self.register_buffer("bias", random(4))

        def forward(self, x: Tensor) -> Tensor:
            out_shape = (*x.shape[:-1], 4)
            y = kernel(x.reshape(-1, 4), self.get_buffer("qweight"))
            return (y + self.bias).reshape(out_shape)

    Layer.__module__, _, Layer.__qualname__ = path.rpartition(".")
    return Layer


def dequantised(layer: nn.Module) -> nn.Linear:
    linear = nn.Linear(4, 4, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(layer.get_buffer("qweight"))
        linear.bias.copy_(layer.get_buffer("bias"))
    return linear


def paths(*rules: Any) -> list[str]:
    return [str(t) for t, rule in QUANTIZED.items() if isinstance(t, ClassPath) and rule in rules]


@over_composites
@pytest.mark.parametrize("path", paths(linear_layer, linear_4bit))
def test_a_layer_with_a_backward_pass_of_its_own(path: str, composite: lxt.Composite) -> None:
    layer = class_at(path, with_backward)()
    x = random(2, 3, 4)
    expected = gradient(Block(dequantised(layer)), x, composite)
    assert differing(gradient(Block(layer), x, composite), expected) <= 1e-12
    derived = type("Derived", (type(layer),), {})()
    assert differing(gradient(Block(derived), x, composite), expected) <= 1e-12
    with pytest.raises(UnknownOperation, match="(?s)DequantisedInBackward.*MyModule.*passthrough"):
        gradient(Block(layer), x, composite.without(ClassPath(path)))


@pytest.mark.filterwarnings("ignore:.*an autograd kernel was not registered")
@pytest.mark.parametrize("kernel", [without_gradients, in_inference_mode, without_derivative])
@pytest.mark.parametrize("path", paths(linear_layer, linear_4bit)[::5])
def test_a_layer_without_a_backward_pass_is_refused(
    path: str, kernel: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Relevance would run by it through the residual, and nobody would know."""
    layer = class_at(path, kernel)()
    x = random(2, 3, 4)
    around = gradient(nn.SiLU(), x + layer(x * 2).detach(), None)
    assert torch.allclose(gradient(Block(layer), x, None), around)
    for composite in (lxt.attnlrp, lxt.cp_lrp):
        with pytest.raises(UnknownOperation, match=f"{path} has no backward pass.*backend"):
            gradient(Block(layer), x, composite)


def test_a_layer_before_the_explained_tensor_needs_no_backward_pass() -> None:
    """Its input is a constant, and so is its output."""
    model = nn.Sequential(class_at("awq.modules.linear.gemv.WQLinear_GEMV", without_gradients)())
    leaf = random(3, 4).requires_grad_()
    whole = SimpleNamespace(leaf=leaf)

    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = model

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + whole.leaf

    outer = Adds()
    with lxt.attnlrp.context(outer):
        y = outer(random(3, 4))
    (received,) = torch.autograd.grad(y.sum(), leaf)
    assert torch.equal(received, torch.ones_like(received))


def test_an_unlisted_layer_with_a_function_of_its_own_is_refused() -> None:
    layer = class_at("somewhere.QuantLinear", with_backward)()
    with pytest.raises(UnknownOperation, match="(?s)DequantisedInBackward.*MyModule.*passthrough"):
        gradient(Block(layer), random(3, 4), lxt.attnlrp)
    mine = lxt.attnlrp | {type(layer): lxt.rules.passthrough}
    expected = gradient(Block(dequantised(layer)), random(3, 4), lxt.attnlrp)
    assert differing(gradient(Block(layer), random(3, 4), mine), expected) <= 1e-12


def test_a_listed_class_whose_child_has_a_forward_of_its_own_does_not_cover_it() -> None:
    base = class_at("gptqmodel.nn_modules.qlinear.marlin.MarlinLinear", with_backward)
    child = type("Child", (base,), {"forward": lambda self, x: base.forward(self, x) ** 3})
    with pytest.raises(UnknownOperation, match="DequantisedInBackward"):
        gradient(Block(child()), random(3, 4), lxt.attnlrp)


@pytest.mark.parametrize("path", paths(refused_layer))
def test_a_layer_that_rounds_its_activations_is_refused(path: str) -> None:
    def rounding(x: Tensor, weight: Tensor) -> Tensor:
        scale = 127 / x.abs().amax(-1, keepdim=True)
        return (x * scale).round() @ weight.T / scale

    model = Block(class_at(path, rounding)())
    with pytest.raises(UnknownOperation, match=f"{path} rounds its activations.*dequantise"):
        gradient(model, random(3, 4), lxt.attnlrp)


def test_the_fp8_layer_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its forward is a kernel for GPUs, given here as what it computes; its backward is its own."""
    from transformers.integrations import finegrained_fp8

    def kernel(x: Tensor, weight: Tensor, scale: Tensor, block: Any, bias: Any, *_: Any) -> Tensor:
        return F.linear(x, finegrained_fp8._dequantize_fp8_weight(weight, scale, block, x.dtype))

    monkeypatch.setattr(finegrained_fp8, "fp8_linear", kernel)
    layer = finegrained_fp8.FP8Linear(32, 32, block_size=(16, 16))
    layer.weight = nn.Parameter(random(32, 32).to(torch.float8_e4m3fn), requires_grad=False)
    layer.weight_scale_inv = nn.Parameter(random(2, 2, dtype=torch.float32).abs())
    plain = nn.Linear(32, 32, bias=False)
    plain.weight = nn.Parameter(
        finegrained_fp8._dequantize_fp8_weight(
            layer.weight.data, layer.weight_scale_inv.data, (16, 16), torch.float32
        )
    )
    x = random(3, 32, dtype=torch.float32)
    expected = gradient(Block(plain), x, lxt.attnlrp)
    assert differing(gradient(Block(layer), x, lxt.attnlrp), expected) <= 1e-6
    assert layer.weight_scale_inv.requires_grad


class Repacked(nn.Module):
    """As a Linear4bit that once ran without gradients on a CPU with AVX-512 BF16."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(random(3, 4), requires_grad=False)
        self.weight.quant_state = SimpleNamespace(  # type: ignore[attr-defined]
            shape=self.weight.shape, packing_format_for_cpu=True
        )

    def forward(self, x: Tensor) -> Tensor:
        return without_gradients(x, self.weight)


Repacked.__module__, Repacked.__qualname__ = "bitsandbytes.nn.modules", "Linear4bit"


def test_a_repacked_4bit_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    library = ModuleType("bitsandbytes")

    def matmul_4bit(x: Tensor, weight: Tensor, quant_state: Any) -> Tensor:
        return x.to(weight.dtype) @ weight.T

    library.matmul_4bit = matmul_4bit  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)
    model = nn.Sequential(Repacked())
    x = random(2, 4)
    y = gradient(model, x, lxt.attnlrp)
    weights = torch.randn(2, 3, generator=torch.Generator().manual_seed(1)).double()
    assert differing(y, weights @ random(3, 4)) <= 1e-12


# --- stand-ins: weights --------------------------------------------------------------------------


class QuantisedWeight(Tensor):
    """A weight that runs `F.linear` by a kernel without a backward pass, as torchao's int8."""

    codes: Tensor
    act_pre_scale: Tensor | None = None

    @staticmethod
    def of(weight: Tensor) -> QuantisedWeight:
        quantised = weight.detach().as_subclass(QuantisedWeight)
        quantised.codes = weight.detach().clone()
        return quantised

    def dequantize(self) -> Tensor:  # type: ignore[override]
        return self.codes

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is not F.linear:
            return super().__torch_function__(func, types, args, kwargs or {})
        x, weight, bias = (*args, *(kwargs or {}).values(), None)[:3]
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            x = x if weight.act_pre_scale is None else x * weight.act_pre_scale
            return F.linear(x, weight.codes, bias)


class Opaque(QuantisedWeight):
    dequantize = Tensor.dequantize  # type: ignore[assignment]


def with_weight(kind: type[QuantisedWeight]) -> tuple[nn.Linear, nn.Linear]:
    """A linear layer with a quantised weight, and the same one dequantised."""
    plain = nn.Linear(4, 4, dtype=torch.float64)
    quantised = copy.deepcopy(plain)
    weight = QuantisedWeight.of(plain.weight).as_subclass(kind)
    weight.codes = plain.weight.detach().clone()
    quantised.weight = nn.Parameter(weight, requires_grad=False)
    quantised.weight.codes = weight.codes
    assert type(quantised.weight) is kind
    return quantised, plain


@over_composites
def test_a_quantised_weight_goes_back_dequantised(composite: lxt.Composite) -> None:
    quantised, plain = with_weight(QuantisedWeight)
    x = random(2, 3, 4)
    expected = gradient(Block(plain), x, composite)
    model = Block(quantised)
    assert differing(gradient(model, x, None), expected) > 1e-2  # by itself it lets nothing through
    assert differing(gradient(model, x, composite), expected) <= 1e-12
    by_name = Block(quantised)
    quantised.forward = lambda x: F.linear(  # type: ignore[method-assign]
        x, weight=quantised.weight, bias=quantised.bias
    )
    assert differing(gradient(by_name, x, composite), expected) <= 1e-12


def test_a_scale_of_the_activations_goes_back_too() -> None:
    quantised, plain = with_weight(QuantisedWeight)
    quantised.weight.act_pre_scale = scale = random(4)
    with torch.no_grad():
        plain.weight.mul_(scale)
    x = random(2, 3, 4)
    expected = gradient(Block(plain), x, lxt.attnlrp)
    assert differing(gradient(Block(quantised), x, lxt.attnlrp), expected) <= 1e-12


def test_a_quantised_weight_is_a_constant_and_handed_back() -> None:
    quantised, plain = with_weight(QuantisedWeight)
    quantised.weight.requires_grad_(True)
    x = random(2, 3, 4)
    expected = gradient(Block(plain), x, lxt.attnlrp)
    assert differing(gradient(Block(quantised), x, lxt.attnlrp), expected) <= 1e-12
    assert quantised.weight.requires_grad
    other, _ = with_weight(QuantisedWeight)
    other.weight.requires_grad_(True)
    model = Block(nn.Identity())
    model.forward = lambda x: F.linear(x, other.weight)  # type: ignore[method-assign]
    with pytest.raises(UnknownOperation, match="'weight' depends on the explained input"):
        gradient(model, x, lxt.attnlrp)


def test_a_weight_that_can_not_be_dequantised_is_refused() -> None:
    quantised, _ = with_weight(Opaque)
    model = Block(quantised)
    plain = model(random(2, 3, 4)).detach()
    with pytest.raises(UnknownOperation, match=r"Opaque.*no backward pass(.|\n)*'layer'"):
        gradient(model, random(2, 3, 4), lxt.attnlrp)
    with torch.no_grad(), lxt.attnlrp.context(model):
        assert torch.equal(model(random(2, 3, 4)), plain)
