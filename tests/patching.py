"""What tests of `monkey_patch` share: relevance with and without, and what a patch may change."""

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import lxt
import zoo


def modeling(name: str) -> ModuleType:
    """The Python module that defines the architecture `name` of the zoo."""
    return importlib.import_module(zoo.ARCHITECTURES[name].type.__module__)


def relevance(model: nn.Module, example: zoo.Example) -> Tensor:
    logits = example.run(model)
    (gradient,) = torch.autograd.grad(logits[example.output_mask].sum(), example.leaf)
    return (example.leaf * gradient).detach()


def under(composite: lxt.Composite, model: nn.Module, example: zoo.Example) -> Tensor:
    with composite.context(model):
        return relevance(model, example)


def difference(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def attributes(*targets: Any) -> list[dict[str, int]]:
    return [{name: id(value) for name, value in vars(target).items()} for target in targets]


def classes_of(module: ModuleType) -> list[type]:
    return [value for value in vars(module).values() if isinstance(value, type)]
