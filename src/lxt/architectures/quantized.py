"""Linear layers with quantised weights: relevance goes back through the weight that they stand for.

y = W x + b with W dequantised, whatever the layer does to compute it: the ε-rule with ε → 0,
R = x · g with g = Wᵀ g_y (AttnLRP Eq. 8). Rounding activations is a step without a slope, so a
layer that does it too is taken for the linear map that it approximates.

Weights come as tensor subclasses, which `F.linear` shows (torchao, quanto), or as layers of their
own (bitsandbytes, gptqmodel, autoawq, …), whose kernels no torch function shows. A layer's own
gradient is used where it has one. Many have none, and would let relevance vanish in silence: they
are named here so that they are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import Node

from lxt.entries import Rule, Target
from lxt.gradients import carries_relevance, substitute
from lxt.rules.bilinear import weighted
from lxt.rules.registry import Operation, Refusal, family, require_constant
from lxt.structure import ClassPath

__all__ = ["QUANTIZED", "linear", "linear_4bit", "linear_layer", "refused_layer"]


@family
def linear(operation: Operation, *args: Any, **kwargs: Any) -> Tensor:
    """`F.linear`, by the dequantised weight if the weight is a quantised tensor subclass."""
    weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
    if type(weight) in (nn.Parameter, Tensor):
        if not weight.requires_grad:  # pyright: ignore[reportOptionalMemberAccess]
            return operation(*args, **kwargs)
        return weighted.function(operation, *args, **kwargs)
    if _dequantises(weight):
        return _by_dequantised_weight(operation, *args, **kwargs)
    y = weighted.function(operation, *args, **kwargs)
    if args and carries_relevance(args[0]) and not carries_relevance(y):
        raise Refusal(
            f"its weight is a {_name(type(weight))}, whose linear map has no backward pass and "
            "which can't be dequantised: load the model in another format"
        )
    return y


def _dequantises(weight: Any) -> bool:
    return isinstance(weight, Tensor) and type(weight).dequantize is not Tensor.dequantize


def _by_dequantised_weight(
    operation: Operation, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    if not carries_relevance(input):
        return operation(input, weight, bias)
    require_constant(weight=weight, bias=bias)

    def forward(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return operation(x, weight, bias), ()

    def backward(g: Tensor) -> Tensor:
        gradient = g @ weight.dequantize().to(g.dtype)
        scale = getattr(weight, "act_pre_scale", None)  # of torchao, for AWQ and SmoothQuant
        return gradient if scale is None else gradient * scale

    return substitute(input, forward, backward)


def linear_layer(module: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    """A layer that is linear in its input, by its own backward pass, which it must have.

    Raises:
        Refusal: no gradient gets from its output to its input.
    """
    y = module.forward(*args, **kwargs)
    inputs = [x for x in (*args, *kwargs.values()) if carries_relevance(x)]
    if inputs and not _gradient_flows(y, inputs):
        raise Refusal(
            f"the quantised layer {_name(type(module))} has no backward pass as it runs now, so "
            "relevance would end there. Load the model with a backend that has one (for GPTQ and "
            'AWQ: GPTQConfig(backend="torch") and AwqConfig(backend="torch")), put these layers in '
            "training mode if they have one for training, or dequantise the model"
        )
    return y


def refused_layer(module: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    """A layer that rounds its activations and whose own gradient is none of a linear map's.

    Raises:
        Refusal: the input carries relevance.
    """
    if any(map(carries_relevance, (*args, *kwargs.values()))):
        raise Refusal(
            f"the layer {_name(type(module))} rounds its activations, and its gradient is not that "
            "of the linear map which it stands for: dequantise the model, or give the layer a rule"
        )
    return module.forward(*args, **kwargs)


def linear_4bit(module: nn.Module, x: Tensor) -> Tensor:
    """bitsandbytes' 4-bit layer: its own backward pass, or ours where its weight is repacked.

    On a CPU with AVX-512 BF16 the first run without gradients repacks the weight for a kernel that
    has no backward pass.
    """
    if not carries_relevance(x) or not _is_repacked(module):
        return linear_layer(module, x)

    def forward(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return module.forward(x), ()

    def backward(g: Tensor) -> Tensor:
        return g @ _weight_as_multiplied(module).to(g.dtype)

    return substitute(x, forward, backward)


def _is_repacked(module: nn.Module) -> bool:
    state = getattr(module.weight, "quant_state", None)
    return getattr(state, "packing_format_for_cpu", False)


def _weight_as_multiplied(module: nn.Module) -> Tensor:
    """The weight [out, in] with which a 4-bit layer multiplies: what it makes of unit vectors."""
    import bitsandbytes  # pyright: ignore[reportMissingImports]

    weight: Any = module.weight
    state = weight.quant_state
    with torch.no_grad():
        unit = torch.eye(state.shape[1], dtype=torch.bfloat16)
        return bitsandbytes.matmul_4bit(unit, weight, quant_state=state).t()


_UNDIFFERENTIABLE = frozenset({"NotImplemented", "WarnNotImplemented"})


def _gradient_flows(output: Tensor, inputs: list[Tensor]) -> bool:
    """Whether autograd's graph leads from the output to an input, by differentiable nodes."""
    ends = {_node(x) for x in inputs}
    seen: set[Node] = set()
    reached = False
    nodes = [_node(output)] if output.requires_grad else []
    while nodes:
        node = nodes.pop()
        if node in ends:
            reached = True
        elif node not in seen:
            seen.add(node)
            if node.name().rpartition("::")[2] in _UNDIFFERENTIABLE:
                return False
            nodes.extend(source for source, _ in node.next_functions if source is not None)
    return reached


def _node(x: Tensor) -> Node:
    return torch.autograd.graph.get_gradient_edge(x).node


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _paths(root: str, names: str) -> Iterator[ClassPath]:
    for name in names.split():
        yield ClassPath(f"{root}.{name}")


# Each has a forward of its own, so each is named; both names where a class was renamed.
_GPTQMODEL = """
    torch.TorchLinear torch.TorchQuantLinear torch_fused.TorchFusedLinear
    torch_fused.TorchFusedQuantLinear torch_aten_kernel.TorchAtenLinear torch_int8.TorchInt8Linear
    tritonv2.TritonV2Linear tritonv2.TritonV2QuantLinear marlin.MarlinLinear
    marlin.MarlinQuantLinear machete.MacheteLinear exllamav2.ExllamaV2Linear
    exllamav2.ExllamaV2QuantLinear swordfish.SwordfishLinear bitblas.BitblasBaseQuantLinear
    torch_awq.AwqTorchLinear torch_fused_awq.TorchFusedAwqLinear
    torch_aten_kernel_awq.TorchAtenAwqLinear torch_cpu_avx512_awq.TorchCpuAvx512AwqLinear
    gemm_awq.AwqGEMMLinear gemm_awq_triton.AwqGEMMTritonLinear gemv_awq.AwqGEMVLinear
    gemv_fast_awq.AwqGEMVFastLinear marlin_awq.AwqMarlinLinear machete_awq.AwqMacheteLinear
    exllamav2_awq.AwqExllamaV2Linear swordfish.AwqSwordfishLinear
"""
_AUTOAWQ = """
    gemm.WQLinear_GEMM gemm_ipex.WQLinear_IPEX gemv.WQLinear_GEMV gemv_fast.WQLinear_GEMVFast
    exllama.WQLinear_Exllama exllamav2.WQLinear_ExllamaV2 marlin.WQLinear_Marlin
"""
_TRANSFORMERS = """
    finegrained_fp8.FP8Linear eetq.EetqLinear fbgemm_fp8.FbgemmFp8Linear higgs.HiggsLinear
    metal_quantization.MetalLinear compressed_tensors.CompressedTensorsFP8Linear
"""
_ROUNDING = (
    *_paths("gptqmodel.nn_modules.qlinear", "qqq.QQQLinear qqq.QQQTorchLinear"),
    *_paths("gptqmodel.nn_modules.qlinear", "w4a_floatx.W4AFP8Linear w4a_nvfp4.W4ANVFP4Linear"),
    *_paths("transformers.integrations", "bitnet.BitLinear nvfp4.NVFP4Linear"),
)

QUANTIZED: dict[Target, Rule] = {
    F.linear: linear,
    ClassPath("bitsandbytes.nn.modules.Linear4bit"): linear_4bit,
    ClassPath("bitsandbytes.nn.modules.Linear8bitLt"): linear_layer,
    **dict.fromkeys(_paths("gptqmodel.nn_modules.qlinear", _GPTQMODEL), linear_layer),
    **dict.fromkeys(_paths("awq.modules.linear", _AUTOAWQ), linear_layer),
    **dict.fromkeys(_paths("transformers.integrations", _TRANSFORMERS), linear_layer),
    **dict.fromkeys(_ROUNDING, refused_layer),
}
