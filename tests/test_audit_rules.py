"""Removing any single rule from a preset makes the audit of some model red: none is idle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.bloom.modeling_bloom import BloomGelu

import lxt
import operations
from audited import Net, X, example, kinds
from lxt.architectures import QUANTIZED, UNITS, recurrent
from lxt.architectures.quantized import refused_layer
from lxt.errors import InvalidModel, UnknownOperation
from operations import Call, Model


class Beside(nn.Module):
    """One call of an operation, and a path beside it, which stays if its result is a constant."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.part = Model(call, call.precise).requires_grad_(False)

    def operands(self) -> tuple[Tensor, ...]:
        return tuple(
            torch.view_as_real(x.detach()).clone() if x.is_complex() else x.detach()
            for x in self.part.explained
        )

    def forward(self, *operands: Tensor) -> Tensor:
        given = [
            torch.view_as_complex(x) if like.is_complex() else x
            for x, like in zip(operands, self.part.explained, strict=True)
        ]
        total = sum((x.sum() for x in operands), torch.zeros(()))
        for y in self.part(*given):
            total = total + (y.real if y.is_complex() else y).double().sum()
        return total


def is_red(model: nn.Module, inputs: Any, composite: lxt.Composite) -> bool:
    """Whether an audit finds what a composite lacks, or can't even begin for it."""
    try:
        return not lxt.audit(model, inputs, composite=composite).ok
    except (UnknownOperation, InvalidModel) as error:
        text = str(error)
        return "no gradient of its own" in text or "nothing can be explained" in text


ENTRIES = operations.all_entries()
CALLED = sorted(set(ENTRIES) - {"torch.Tensor.cuda"})


@pytest.mark.parametrize("name", CALLED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_without_any_rule_the_audit_is_red(name: str) -> None:
    entry = ENTRIES[name]
    model = Beside(operations.entry_calls(entry)[0])
    report = lxt.audit(model, model.operands())
    assert report.ok, report.findings
    assert is_red(model, model.operands(), lxt.attnlrp.without(entry.operation))


def class_at(path: str, forward: Callable[[Tensor], Tensor]) -> type[nn.Module]:
    """A class of modules of that qualified name."""
    members = {"forward": lambda _, x: forward(x), "weight": None}
    cls = type("Part", (nn.Module,), members)
    cls.__module__, _, cls.__qualname__ = path.rpartition(".")
    return cls


WRITTEN_OUT = {
    "GELUActivation": (True,),
    "GELUTanh": (True,),
    "ClippedGELUActivation": (-0.5, 1.0),
}
"""Of those that are one torch function by default, the form that is several."""


@pytest.mark.parametrize("target", UNITS, ids=str)
def test_without_any_unit_the_audit_is_red(target: lxt.ClassPath) -> None:
    package, _, name = target.path.rpartition(".")
    if package == "transformers.activations":
        unit = getattr(transformers.activations, name)(*WRITTEN_OUT.get(name, ()))
    elif name == "BloomGelu":
        unit = BloomGelu()
    else:
        unit = class_at(target.path, lambda x: x * torch.sigmoid(1.702 * x))()
    model = Net(unit)
    assert lxt.audit(model, X).ok
    assert is_red(model, X, lxt.attnlrp.without(target))


QUANTISED_LAYERS = [target for target in QUANTIZED if isinstance(target, lxt.ClassPath)]


@pytest.mark.parametrize("target", QUANTISED_LAYERS, ids=str)
def test_without_the_rule_of_any_quantised_layer_the_audit_is_red(target: lxt.ClassPath) -> None:
    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g * 2

    model = Net(class_at(target.path, Kernel.apply)())
    refused = QUANTIZED[target] is refused_layer
    assert kinds(lxt.audit(model, X)) == (["call that a rule refuses"] if refused else [])
    assert "unknown operation" in kinds(lxt.audit(model, X, composite=lxt.attnlrp.without(target)))


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("mamba", recurrent.SELECTIVE_SCAN),
        ("qwen3_5", recurrent.DELTA_RULE),
        ("recurrent_gemma", recurrent.REAL_GATED_LRU),
    ],
)
def test_without_the_rule_of_a_recurrence_the_audit_is_red(name: str, target: Any) -> None:
    model, one = example(name)
    inputs = {**one.kwargs, one.leaf_name: one.leaf}
    assert is_red(model, inputs, lxt.attnlrp.without(target))
