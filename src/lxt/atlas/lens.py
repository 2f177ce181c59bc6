"""The vocabulary that a unit's output direction promotes and suppresses: the logit lens of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lxt.atlas.naming import unit_of
from lxt.atlas.passes import SiteOfAtlas
from lxt.engine.segments import layers_of
from lxt.heads import output_embeddings
from lxt.inputs import input_embeddings
from lxt.tokens import readable_tokens

__all__ = ["Lens", "lens_of"]


@dataclass(frozen=True)
class Lens:
    """What a unit writes, read as logits: the head times the final norm's weight times direction.

    Attributes:
        promoted: tokens with the change of their logit for one unit of activation, before the final
            norm divides by the size of the residual stream; the largest first.
        suppressed: the smallest first.
        note: how the direction was found; or why there is none, and then both are empty.

    """

    promoted: list[tuple[str, float]]
    suppressed: list[tuple[str, float]]
    note: str


class _NoDirectionError(Exception):
    pass


@torch.no_grad()
@torch.inference_mode(False)
def lens_of(
    model: nn.Module, tokenizer: Any, site: SiteOfAtlas, index: int, ids: list[int], k: int = 10
) -> Lens:
    """The lens of a unit; `ids` are some tokens to run the model on, to see where its head is."""
    try:
        head = output_embeddings(model)
        weight = getattr(head, "weight", None)
        if head is None or not isinstance(weight, Tensor) or weight.dim() != 2:
            raise _NoDirectionError(f"{type(model).__name__} has no output embeddings")
        direction, note = _direction(model, site, index, weight.shape[1])
        direction = direction.to(weight.device).double()
        scaled, norm = _through_norm(model, head, direction, ids)
    except _NoDirectionError as error:
        return Lens([], [], f"No logit lens: {error}.")
    logits = weight.double() @ scaled
    k = min(k, len(logits))
    best, worst = logits.topk(k), logits.topk(k, largest=False)

    def named(found: Any) -> list[tuple[str, float]]:
        return [
            (readable_tokens(tokenizer, [token], continues=True)[0], value)
            for token, value in zip(found.indices.tolist(), found.values.tolist(), strict=True)
        ]

    return Lens(named(best), named(worst), f"{note}, {norm}.")


def _direction(model: nn.Module, site: SiteOfAtlas, index: int, width: int) -> tuple[Tensor, str]:
    """What one unit of activation adds to the residual stream [width]."""
    if site.kind != "neurons":
        raise _NoDirectionError(
            "a head writes into a subspace, and not in one direction"
            if site.kind == "heads"
            else "a whole vector has no direction of its own"
        )
    place = unit_of(site, index).place
    module = place.the_module(model)
    if place.end == "input":
        column = _column(module, index, site.units, width)
        if column is None:
            raise _NoDirectionError(
                f"{site.name} feeds no linear map from {site.units} units to the {width} channels "
                "of the residual stream"
            )
        return column, f"Its column of {site.name.partition(':')[0]}"
    if site.units == width and any(module in stack for stack in layers_of(model)):
        channel = torch.zeros(width)
        channel[index] = 1
        return channel, "Its channel of the residual stream"
    path = place.module.removeprefix("/")
    parent = path.rpartition(".")[0]
    siblings = [
        (name, part)
        for name, part in model.get_submodule(parent).named_children()
        if part is not module
    ]
    found = [
        (name, column)
        for name, part in siblings
        if (column := _column(part, index, site.units, width)) is not None
    ]
    if len(found) == 1:
        ((name, column),) = found
        gates = [n for n, part in siblings if _column(part, 0, width, site.units) is not None]
        note = f"Its column of {parent}.{name}"
        if len(gates) > 1:
            note += " (the activation is multiplied by another factor first, which may be negative)"
        return column, note
    raise _NoDirectionError(
        f"beside {site.name} there is not one linear map from {site.units} units to the {width} "
        "channels of the residual stream"
    )


def _column(module: nn.Module, index: int, given: int, made: int) -> Tensor | None:
    """What a linear map of so many channels makes of one of them."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or weight.is_meta:
        return None
    # Square weights tell no direction by their shape; GPT-2's Conv1D has [in, out].
    is_turned = type(module).__name__ == "Conv1D"
    if tuple(weight.shape) != ((given, made) if is_turned else (made, given)):
        return None
    return weight.detach()[index] if is_turned else weight.detach()[:, index]


def _through_norm(
    model: nn.Module, head: nn.Module, direction: Tensor, ids: list[int]
) -> tuple[Tensor, str]:
    """The direction behind the module that makes the head's input, if that is a norm."""
    norm = _before(model, head, ids)
    if norm is None:
        return direction, "without a final norm, as none was found before the head"
    weight: Any = next(norm.parameters(), head.weight)
    # Of a vector of ±1, half of each, a norm gives its own weight back, whatever it is called.
    signs = torch.ones(1, 1, len(direction), dtype=weight.dtype, device=weight.device)
    signs[..., ::2] = -1
    try:
        scale = ((norm(signs) - norm(-signs)) / 2 / signs)[0, 0].double()
        shifted = norm(signs + 1)
        is_centred = torch.allclose(shifted, norm(signs), atol=1e-2, rtol=1e-2)
    except (RuntimeError, TypeError):
        return direction, "without the final norm, which can't be run by itself"
    if is_centred:
        direction = direction - direction.mean()
    return direction * scale.to(direction.device), "the final norm's weight and the head"


def _before(model: nn.Module, head: nn.Module, ids: list[int]) -> nn.Module | None:
    """The last module without others in it whose output goes into the head as it is."""
    outputs: list[tuple[nn.Module, Tensor]] = []
    inputs: list[Tensor] = []

    def keep(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs.append((module, output))

    leaves = [part for part in model.modules() if not part._modules and part is not head]
    handles = [part.register_forward_hook(keep) for part in leaves]
    handles.append(
        head.register_forward_pre_hook(
            lambda _, args: inputs.extend(x for x in args[:1] if isinstance(x, Tensor))
        )
    )
    try:
        device = input_embeddings(model).weight.device
        model(input_ids=torch.tensor([ids[:2]], device=device))
    finally:
        for handle in handles:
            handle.remove()
    if not inputs:
        return None
    goal = inputs[-1]
    for module, output in reversed(outputs):
        if output.data_ptr() == goal.data_ptr() and output.shape == goal.shape:
            return module
    return None
