"""What is compared: the plain gradient, this library's presets, and peers used as they say.

Each method is made for a case in the environment it needs, and imports its package there.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from works import Case

Position = int | None


@dataclass(frozen=True)
class Method:
    """One way to explain the explained number.

    Attributes:
        explain: relevance [1, tokens], with the position that is explained, None for the last.
        forward: its forward pass alone, whose result holds the graph; None where there is no such
            thing.

    """

    explain: Callable[[Position], Tensor]
    forward: Callable[[], object] | None


def method(name: str, case: Case) -> Method:
    """A method by name: `plain`, a preset of lxt, one with `/checkpoint=…`, or a peer's.

    Raises:
        ValueError: there is none of that name.

    """
    if name in PEERS:
        return PEERS[name](case)
    if name == "plain":
        return _gradient(case, contextlib.nullcontext)
    preset, _, option = name.partition("/checkpoint=")
    import lxt

    composite = getattr(lxt, preset, None)
    if not isinstance(composite, lxt.Composite):
        raise ValueError(f"lxt has no preset {preset!r}")
    options: dict[str, Any] = (
        {"checkpoint": int(option) if option.isdigit() else option} if option else {}
    )
    return _gradient(case, lambda: composite.context(case.model, **options))


def _gradient(
    case: Case, around: Callable[[], AbstractContextManager[Any]], *, every: bool = False
) -> Method:
    """Gradient times input, the forward pass within a context."""

    def forward(position: Position = None) -> tuple[Tensor, Tensor]:
        leaf = case.leaf()
        with around():
            logits = case.logits(leaf, position=position, every=every)
        return leaf, logits[0].max()

    def explain(position: Position) -> Tensor:
        leaf, value = forward(position)
        (gradient,) = torch.autograd.grad(value, leaf)
        return (leaf.detach() * gradient).sum(-1)

    return Method(explain, forward)


# --- LXT 2.1


def _lxt21(case: Case, *, every: bool) -> Method:
    """`monkey_patch` on the module of the model's class, then gradient times input.

    It changes classes for good; here its changes are put in and out around each forward pass, so
    that the plain model can be measured by turns in the same process.
    """
    from lxt.efficient import monkey_patch
    from lxt.efficient.models import get_default_map

    module = importlib.import_module(type(case.model).__module__)
    targets = list(get_default_map(module))
    before = [dict(vars(target)) for target in targets]
    monkey_patch(module)
    after = [dict(vars(target)) for target in targets]
    _put(targets, after, before)

    @contextlib.contextmanager
    def patched() -> Iterator[None]:
        _put(targets, before, after)
        try:
            yield
        finally:
            _put(targets, after, before)

    return _gradient(case, patched, every=every)


def _put(targets: list[Any], old: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
    """Change the attributes of classes and modules from one state to another."""
    for target, here, there in zip(targets, old, new, strict=True):
        for name in here.keys() - there.keys():
            delattr(target, name)
        for name, value in there.items():
            if name not in here or here[name] is not value:
                setattr(target, name, value)


# --- others


def _autolrp(case: Case) -> Method:
    """A wrapped input, then `.lrp()` with its AttnLRP configuration."""
    import autolrp

    config = autolrp.LRPConfig.attnlrp()

    def forward(position: Position = None) -> tuple[Any, Any]:
        wrapped = autolrp.tensor(case.embedded.clone())
        logits = case.logits(wrapped, position=position)
        return wrapped, logits[0, int(logits[0].argmax())]

    def explain(position: Position) -> Tensor:
        wrapped, value = forward(position)
        value.lrp(config=config)
        return wrapped.relevance.sum(-1)

    return Method(explain, forward)


def _captum(case: Case, attribution: str, **options: Any) -> Method:
    """One of Captum's attributions on the embeddings, for the model's own top logit."""
    import captum.attr

    def explain(position: Position) -> Tensor:
        def logits(embedded: Tensor) -> Tensor:
            return case.logits(embedded, position=position)

        with torch.no_grad():
            target = int(logits(case.embedded)[0].argmax())
        attribute = getattr(captum.attr, attribution)(logits).attribute
        return attribute(case.leaf(), target=target, **options).sum(-1)

    return Method(explain, None)


def _zennit(case: Case) -> Method:
    """The ε-rule on linear layers; every other operation keeps autograd's gradient."""
    from zennit.composites import LayerMapComposite
    from zennit.rules import Epsilon

    composite = LayerMapComposite(layer_map=[(torch.nn.Linear, Epsilon(epsilon=1e-6))])

    def forward(position: Position = None) -> tuple[Tensor, Tensor]:
        leaf = case.leaf()
        logits = case.logits(leaf, position=position)
        return leaf, logits[0].max()

    def explain(position: Position) -> Tensor:
        with composite.context(case.model):  # its rules are hooks of the backward pass too
            leaf, value = forward(position)
            (relevance,) = torch.autograd.grad(value, leaf, value.detach())
        return relevance.sum(-1)

    def forward_alone() -> object:
        with composite.context(case.model):
            return forward()

    return Method(explain, forward_alone)


PEERS: Mapping[str, Callable[[Case], Method]] = {
    "lxt-2.1": lambda case: _lxt21(case, every=False),
    "lxt-2.1-quickstart": lambda case: _lxt21(case, every=True),
    "autolrp": _autolrp,
    "captum-ig20": lambda case: _captum(
        case, "IntegratedGradients", n_steps=20, internal_batch_size=1
    ),
    "captum-input-x-gradient": lambda case: _captum(case, "InputXGradient"),
    "zennit-epsilon": _zennit,
}
