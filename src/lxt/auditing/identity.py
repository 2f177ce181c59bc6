"""What must be the same: the forward pass, the model afterwards, other kernels, other precision."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lxt.composite import Composite
from lxt.latent.steering import steer_likewise
from lxt.passes import Case, Pass

__all__ = [
    "Agreement",
    "agreement",
    "attention_of",
    "fits_in_float64",
    "in_float64",
    "other_attention",
    "relevance_of",
    "state_of",
]


@dataclass(frozen=True)
class Agreement:
    """How near one relevance is to another.

    Attributes:
        correlation: Pearson's, over the elements; where all are the same, the cosine.
        relative_error: ‖a − b‖ / ‖b‖.
    """

    correlation: float
    relative_error: float


def agreement(a: Tensor, b: Tensor) -> Agreement:
    """How near `a` is to `b`, both of one shape."""
    a, b = a.detach().double().flatten().cpu(), b.detach().double().flatten().cpu()
    scale = b.norm().clamp_min(1e-300)
    pair = torch.stack([a - a.mean(), b - b.mean()])
    if (pair.norm(dim=1) == 0).any():
        pair = torch.stack([a, b])
    spread = pair.norm(dim=1)
    if (spread == 0).any():
        correlation = 1.0 if torch.equal(a, b) else 0.0
    else:
        correlation = (pair[0] @ pair[1] / spread.prod()).item()
    return Agreement(correlation, ((a - b).norm() / scale).item())


def relevance_of(run: Pass, composite: Composite) -> Tensor:
    """The relevance of all leaves in one row; of tokens [batch, tokens, channels] one each."""
    leaves = list(run.leaves.values())
    seed = run.seed
    if composite.formulation == "relevance":
        seed = seed * run.output.detach()
    gradients = torch.autograd.grad(run.output, leaves, seed, allow_unused=True)
    parts = []
    for leaf, gradient in zip(leaves, gradients, strict=True):
        g = torch.zeros_like(leaf) if gradient is None else gradient
        r = g.double() if composite.formulation == "relevance" else leaf.detach().double() * g
        parts.append((r.sum(-1) if r.dim() == 3 else r).flatten())
    return torch.cat(parts)


def state_of(model: nn.Module) -> dict[str, Any]:
    """What of a model a composite could leave a trace in."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        state[f"attributes of {name!r}"] = frozenset(vars(module))
        state[f"class of {name!r}"] = type(module)
        state[f"forward of {name!r}"] = (
            vars(module).get("forward"),
            getattr(type(module), "forward", None),  # which scripted classes don't have
        )
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        state[f"hooks of {name!r}"] = tuple(map(len, hooks))
        state[f"mode of {name!r}"] = module.training
    for name, parameter in model.named_parameters():
        state[f"requires_grad of {name!r}"] = parameter.requires_grad
        state[f"gradient of {name!r}"] = parameter.grad is None
    return state


def attention_of(model: nn.Module) -> str | None:
    """The implementation of attention that a model of `transformers` runs; None for others."""
    config = getattr(model, "config", None)
    name = getattr(config, "_attn_implementation", None)
    return name if callable(getattr(model, "set_attn_implementation", None)) else None


@contextmanager
def other_attention(model: Any) -> Iterator[str | None]:
    """Run a model under its other implementation of attention, eager or SDPA, for a while.

    Yields:
        The name of the other, or None if the model has no other.

    """
    now = attention_of(model)
    other = {"sdpa": "eager", "eager": "sdpa"}.get(now or "")
    configs = {
        id(c): c for m in model.modules() if hasattr(c := getattr(m, "config", None), "__dict__")
    }
    before = [(config, dict(vars(config))) for config in configs.values()]
    nested = [(c, dict(vars(c))) for config, _ in before for c in _nested(config)]
    try:
        if other is not None:
            try:
                model.set_attn_implementation(other)
            except (ValueError, ImportError, NotImplementedError, AttributeError):
                other = None
        yield other if other and attention_of(model) == other else None
    finally:
        for config, attributes in (*before, *nested):
            vars(config).clear()
            vars(config).update(attributes)


def _nested(config: Any) -> Iterator[Any]:
    for name in getattr(config, "sub_configs", ()):
        inner = getattr(config, name, None)
        if hasattr(inner, "__dict__"):
            yield inner
            yield from _nested(inner)


def fits_in_float64(model: nn.Module, limit: int) -> bool:
    """Whether a copy of the model in float64 takes less than `limit` bytes."""
    tensors = (*model.parameters(), *model.buffers())
    return (
        all(not tensor.is_meta for tensor in tensors)
        and sum(tensor.numel() for tensor in tensors) * 8 <= limit
    )


def in_float64(case: Case) -> Case:
    """The case of a copy of its model in float64, steered as it is."""
    model = copy.deepcopy(case.model).double()
    steer_likewise(model, case.model)
    return case.on(model)
