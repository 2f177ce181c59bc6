"""Layers of bitsandbytes and torchao: the relevance of the dequantised ones."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from torch import Tensor, nn
from torchao import quantization as torchao_quantization

import lxt
import zoo
from lxt.errors import UnknownOperation
from lxt.structure import ClassPath
from test_quantized import differing, gradient, over_composites, random


@pytest.fixture
def bnb(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.ERROR)  # its 8-bit layers warn of each conversion
    return bitsandbytes


@pytest.fixture
def torchao() -> Any:
    return torchao_quantization


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
