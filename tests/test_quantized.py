"""Quantised linear layers: the same relevance as the dequantised ones, or a refusal.

The first part runs stand-ins, which have the name and the manners of a layer that can't run here.
The second runs bitsandbytes and torchao themselves, where they are installed:

    pip install bitsandbytes torchao
"""

from __future__ import annotations

import copy
import itertools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lxt
import zoo
from lxt.architectures import QUANTIZED
from lxt.architectures.quantized import linear_4bit, linear_layer, refused_layer
from lxt.composite import ClassPath
from lxt.errors import UnknownOperation

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


# --- the libraries themselves --------------------------------------------------------------------


@pytest.fixture
def bnb(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.ERROR)  # its 8-bit layers warn of each conversion
    return pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


@pytest.fixture
def torchao() -> Any:
    return pytest.importorskip("torchao.quantization", reason="torchao is not installed")


def llama(dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Of sizes that the libraries' kernels take."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "attention_bias": True}
    return zoo.build("llama", dtype=dtype, **sizes | options)


def replaced(model: nn.Module, make: Callable[[nn.Linear], nn.Module | None]) -> nn.Module:
    """A copy of a model whose linear layers are what `make` makes of them."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, make(module) or module)
    return model.eval()


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(*weight.shape[::-1], bias=bias is not None, dtype=weight.dtype)
    linear.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone().to(weight.dtype))
    return linear


def in_4bit(bnb: Any, linear: nn.Linear, kind: str, nested: bool, compute: torch.dtype) -> Any:
    layer = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=compute,
        compress_statistics=nested,
        quant_type=kind,
    )
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu").eval()


def in_8bit(bnb: Any, linear: nn.Linear, threshold: float) -> Any:
    layer = bnb.nn.Linear8bitLt(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        has_fp16_weights=False,
        threshold=threshold,
    )
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu").eval()


def from_4bit(layer: Any) -> Tensor:
    from bitsandbytes import functional

    state = layer.weight.quant_state
    return functional.dequantize_4bit(layer.weight.data, state).to(torch.float32)


def from_8bit(layer: Any) -> Tensor:
    holder = layer.weight if layer.weight.CB is not None else layer.state
    return holder.CB.float() * holder.SCB.float()[:, None] / 127


def explained(model: nn.Module, composite: lxt.Composite) -> Tensor:
    return lxt.explain(
        model, [5, 6, 7, 8, 9, 10], target=lxt.Logit(17), composite=composite
    ).relevance


def assert_left_as_it_was(
    model: nn.Module, composite: lxt.Composite, *, gradients: bool = True
) -> None:
    """The forward is bit-identical, and types, flags and instances' attributes stay.

    To the forward without gradients where it fails with them, as a repacked 4-bit layer does.
    """
    x = random(2, 5, 64).to(next(model.parameters()).dtype)
    kwargs = {"inputs_embeds": x.requires_grad_()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    kinds = {name: (type(p), id(p)) for name, p in model.named_parameters()}
    with torch.set_grad_enabled(gradients):
        plain = model(**kwargs).logits
    forwards = ["forward" in module.__dict__ for module in model.modules()]
    with composite.context(model):
        ruled = model(**kwargs).logits
        assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert torch.equal(ruled, plain)
    assert {name: (type(p), id(p)) for name, p in model.named_parameters()} == kinds
    assert ["forward" in module.__dict__ for module in model.modules()] == forwards


TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@over_composites
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_4bit_layers(bnb: Any, dtype: torch.dtype, composite: lxt.Composite) -> None:
    for kind, nested, bias in itertools.product(("nf4", "fp4"), (False, True), (False, True)):
        linear = nn.Linear(64, 96, bias=bias)
        layer = in_4bit(bnb, linear, kind, nested, dtype)
        x = random(2, 3, 64, dtype=torch.float32)
        plain = nn.Sequential(linear_of(from_4bit(layer), linear.bias))
        expected = gradient(plain, x, composite)
        model = nn.Sequential(layer)
        assert differing(gradient(model, x, composite), expected) <= TOLERANCES[dtype]
        with torch.no_grad():  # after which some CPUs use another kernel, in bfloat16
            y = model(x)
        assert differing(gradient(model, x, composite), expected) <= 1e-2
        with composite.context(model):
            assert torch.equal(model(x.requires_grad_()), y) or dtype != torch.bfloat16
        with pytest.raises(UnknownOperation):
            gradient(
                nn.Sequential(in_4bit(bnb, linear, kind, nested, dtype)),
                x,
                composite.without(ClassPath("bitsandbytes.nn.modules.Linear4bit")),
            )


@over_composites
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_8bit_layers(bnb: Any, dtype: torch.dtype, composite: lxt.Composite) -> None:
    """With inputs over the threshold, that run apart, and under it."""
    for threshold, bias, training in itertools.product((0.0, 6.0), (False, True), (False, True)):
        linear = nn.Linear(64, 96, bias=bias)
        layer = in_8bit(bnb, linear, threshold).train(training)
        x = random(2, 3, 64)
        x[..., 3] *= 10
        plain = nn.Sequential(linear_of(from_8bit(layer), linear.bias))
        expected = gradient(plain, x.float(), composite)
        actual = gradient(nn.Sequential(layer), x.to(dtype), composite)
        assert differing(actual, expected) <= TOLERANCES[dtype]
        with pytest.raises(UnknownOperation, match="MatMul8bit"):
            gradient(
                nn.Sequential(layer),
                x.to(dtype),
                composite.without(ClassPath("bitsandbytes.nn.modules.Linear8bitLt")),
            )


@over_composites
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_a_4bit_model(bnb: Any, kind: str, composite: lxt.Composite) -> None:
    model = replaced(llama(), lambda m: in_4bit(bnb, m, kind, True, torch.float32))
    plain = replaced(model, lambda m: linear_of(from_4bit(m), m.bias))
    assert not any(isinstance(m, bnb.nn.Linear4bit) for m in plain.modules())
    expected = explained(plain, composite)
    assert_left_as_it_was(model, composite)
    assert differing(explained(model, composite), expected) <= 1e-5
    assert differing(expected, explained(llama(), composite)) > 1e-2
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7]]))
    assert_left_as_it_was(model, composite, gradients=False)
    assert differing(explained(model, composite), expected) <= 5e-2  # forward in bfloat16 now


@over_composites
@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_an_8bit_model(bnb: Any, threshold: float, composite: lxt.Composite) -> None:
    """In training mode it multiplies by the dequantised weight; else it rounds activations too."""
    model = replaced(llama(), lambda m: in_8bit(bnb, m, threshold))
    plain = replaced(model, lambda m: linear_of(from_8bit(m), m.bias))
    assert not any(isinstance(m, bnb.nn.Linear8bitLt) for m in plain.modules())
    expected = explained(plain, composite)
    assert_left_as_it_was(model, composite)
    assert differing(explained(model, composite), expected) <= 0.2
    assert differing(explained(model.train(), composite), expected) <= 1e-5


@pytest.mark.parametrize("kind", ["4 bit", "8 bit", "torchao"])
def test_models_that_transformers_quantises(
    bnb: Any, torchao: Any, kind: str, tmp_path: Path
) -> None:
    import transformers

    llama().save_pretrained(tmp_path)
    configuration, weight_of, tolerance = {
        "4 bit": (
            transformers.BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=torch.float32,
                bnb_4bit_use_double_quant=True,
            ),
            from_4bit,
            1e-5,
        ),
        "8 bit": (transformers.BitsAndBytesConfig(load_in_8bit=True), from_8bit, 0.2),
        "torchao": (
            transformers.TorchAoConfig(torchao.Int8WeightOnlyConfig()),
            lambda layer: layer.weight.dequantize(),
            1e-5,
        ),
    }[kind]
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=configuration, device_map="cpu", dtype=torch.float32
    )
    plain = replaced(model, lambda m: linear_of(weight_of(m), m.bias))
    assert {type(p) for p in plain.parameters()} == {nn.Parameter}
    for composite in (lxt.attnlrp, lxt.cp_lrp):
        actual, expected = explained(model, composite), explained(plain, composite)
        assert differing(actual, expected) <= tolerance


def test_an_adapter_over_a_4bit_model(bnb: Any) -> None:
    import peft

    model: Any = replaced(llama(), lambda m: in_4bit(bnb, m, "nf4", True, torch.float32))
    plain: Any = replaced(model, lambda m: linear_of(from_4bit(m), m.bias))

    def adapted(model: Any) -> Any:
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], lora_dropout=0.1)
        model = peft.get_peft_model(model, config)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        return model

    without = explained(plain, lxt.attnlrp)
    model.is_loaded_in_4bit = True  # by which peft chooses its own layer
    model, plain = adapted(model), adapted(plain)
    assert type(model.base_model.model.model.layers[0].mlp.down_proj).__module__.endswith(".bnb")
    for training in (False, True):
        expected = explained(plain.train(training), lxt.attnlrp)
        assert differing(explained(model.train(training), lxt.attnlrp), expected) <= 1e-5
        assert differing(expected, without) > 1e-2


def test_a_4bit_model_offloaded(bnb: Any) -> None:
    from accelerate import dispatch_model

    model = replaced(llama(), lambda m: in_4bit(bnb, m, "nf4", False, torch.float32))
    expected = explained(model, lxt.attnlrp)
    dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)
    assert hasattr(model, "_hf_hook")
    assert torch.equal(explained(model, lxt.attnlrp), expected)


TORCHAO: dict[str, tuple[Callable[[Any], Any], float]] = {
    "int8": (lambda q: q.Int8WeightOnlyConfig(), 1e-5),
    "int8 in groups": (lambda q: q.Int8WeightOnlyConfig(granularity=q.PerGroup(32)), 1e-5),
    "int4": (
        lambda q: q.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=q.PerGroup(32)),
        1e-5,
    ),
    "float8": (lambda q: q.Float8WeightOnlyConfig(), 1e-5),
    # these two round activations, so what flows through them is only near
    "int8, activations too": (lambda q: q.Int8DynamicActivationInt8WeightConfig(), 0.2),
    "int4, activations too": (
        lambda q: q.Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int4, weight_granularity=q.PerGroup(32)
        ),
        0.2,
    ),
}


@over_composites
@pytest.mark.parametrize("name", TORCHAO)
def test_torchao_models(torchao: Any, name: str, composite: lxt.Composite) -> None:
    make, tolerance = TORCHAO[name]
    model = llama()
    torchao.quantize_(model, make(torchao))
    plain = replaced(model, lambda m: linear_of(m.weight.dequantize(), m.bias))
    plain.lm_head = linear_of(model.lm_head.weight.dequantize(), None)
    assert {type(p) for p in plain.parameters()} == {nn.Parameter}
    assert_left_as_it_was(model, composite)
    expected = explained(plain, composite)
    assert differing(explained(model, composite), expected) <= tolerance
    assert differing(expected, explained(llama(), composite)) > 1e-4


@pytest.mark.parametrize("name", TORCHAO)
def test_torchao_layers(torchao: Any, name: str) -> None:
    """The rule itself is exact, whatever becomes of activations."""
    for bias, dtype in itertools.product((False, True), (torch.float32, torch.bfloat16)):
        layer = nn.Linear(64, 96, bias=bias, dtype=dtype)
        model = nn.Sequential(layer)
        torchao.quantize_(model, TORCHAO[name][0](torchao))
        weight = layer.weight.dequantize()
        for flag in (False, True):
            layer.weight.requires_grad_(flag)
            x = random(2, 3, 64, dtype=dtype)
            expected = gradient(nn.Sequential(linear_of(weight, layer.bias)), x, lxt.attnlrp)
            assert differing(gradient(model, x, lxt.attnlrp), expected) <= TOLERANCES[dtype]
            assert layer.weight.requires_grad is flag


def test_smollm2_quantised(smollm2: Any, bnb: Any, torchao: Any) -> None:
    model, tokenizer, _ = smollm2
    four = replaced(model, lambda m: in_4bit(bnb, m, "nf4", True, torch.float32))
    eight = copy.deepcopy(model)
    torchao.quantize_(
        eight,
        torchao.Int8WeightOnlyConfig(),
        filter_fn=lambda m, name: type(m) is nn.Linear and name != "lm_head",
    )
    for quantised, weight_of in ((four, from_4bit), (eight, lambda m: m.weight.dequantize())):
        plain = replaced(quantised, lambda m, f=weight_of: linear_of(f(m), m.bias))
        for composite in (lxt.attnlrp, lxt.cp_lrp):
            actual, expected, full = (
                lxt.explain(m, "The capital of France is", tokenizer=tokenizer, composite=composite)
                for m in (quantised, plain, model)
            )
            assert actual.target.name == expected.target.name == '" Paris"'
            assert differing(actual.relevance, expected.relevance) <= 1e-5
            both = torch.stack([actual.relevance, full.relevance])
            assert float(both.corrcoef()[0, 1]) > 0.98
