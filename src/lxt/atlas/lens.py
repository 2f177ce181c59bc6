"""The vocabulary that a unit's output direction promotes and suppresses: the logit lens of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lxt.atlas.naming import unit_of
from lxt.atlas.passes import SiteOfAtlas
from lxt.engine.passages import first_tensor
from lxt.engine.segments import layers_of
from lxt.errors import InvalidTap
from lxt.heads import output_embeddings
from lxt.inputs import input_embeddings
from lxt.latent.units import Unit
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
    model: nn.Module,
    tokenizer: Any,
    site: SiteOfAtlas,
    index: int,
    ids: list[int],
    k: int = 10,
    *,
    sae: Any = None,
) -> Lens:
    """The lens of a unit; `ids` are some tokens to run the model on, to see where its head is.

    Of a feature `sae` is the autoencoder.
    """
    try:
        head = output_embeddings(model)
        weight = getattr(head, "weight", None)
        if head is None or not isinstance(weight, Tensor) or weight.dim() != 2:
            raise _NoDirectionError(f"{type(model).__name__} has no output embeddings")
        direction, note, writer = _direction(model, site, index, weight.shape[1], ids, sae)
        direction = direction.to(weight.device).double()
        scaled, norms = _through_norms(model, head, writer, direction, ids)
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

    return Lens(named(best), named(worst), f"{note}, {norms}.")


def _direction(
    model: nn.Module, site: SiteOfAtlas, index: int, width: int, ids: list[int], sae: Any
) -> tuple[Tensor, str, nn.Module | None]:
    """What one unit adds to the residual stream [width]; in words; and which module does it."""
    if site.kind == "features":
        unit = unit_of(site, index, sae)
        return _of_decoder(model, unit, width), "Its direction of the decoder", None
    if site.kind != "neurons":
        raise _NoDirectionError(_WITHOUT[site.kind])
    place = unit_of(site, index).place
    module = place.the_module(model)
    if place.end == "input":
        column = _column(module, index, site.units, width)
        if column is None:
            raise _NoDirectionError(
                f"{site.name} feeds no linear map from {site.units} units to the {width} channels "
                "of the residual stream"
            )
        return column, f"Its column of {site.name.partition(':')[0]}", module
    if site.units == width and any(module in stack for stack in layers_of(model)):
        channel = torch.zeros(width)
        channel[index] = 1
        return channel, "Its channel of the residual stream", None
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
        and _is_read(model, module, part, index, ids)
    ]
    if len(found) == 1:
        ((name, column),) = found
        gates = [n for n, part in siblings if _column(part, 0, width, site.units) is not None]
        note = f"Its column of {parent}.{name}"
        if len(gates) > 1:
            note += " (the activation is multiplied by another factor first, which may be negative)"
        return column, note, model.get_submodule(f"{parent}.{name}")
    raise _NoDirectionError(
        f"beside {site.name} there is not one linear map from {site.units} units to the {width} "
        "channels of the residual stream"
    )


_WITHOUT = {
    "heads": "a head writes into a subspace, and not in one direction",
    "tokens": "a whole vector has no direction of its own",
    "experts": "an expert writes in no one direction, but what it makes of each token",
}


def _of_decoder(model: nn.Module, unit: Unit, width: int) -> Tensor:
    """What the decoder writes for a feature of the residual stream [width]."""
    place = unit.place
    module = place.the_module(model)
    if place.end == "input" or not any(module in stack for stack in layers_of(model)):
        raise _NoDirectionError(f"{str(place).removeprefix('/')} is not what a layer puts out")
    assert unit.feature is not None
    try:
        direction = unit.sae.direction(unit.feature)
    except InvalidTap as error:
        raise _NoDirectionError(str(error)) from error
    if len(direction) != width:
        raise _NoDirectionError(
            f"the decoder writes {len(direction)} channels, and the residual stream has {width}"
        )
    return direction


def _is_read(
    model: nn.Module, module: nn.Module, reader: nn.Module, index: int, ids: list[int]
) -> bool:
    """Whether a channel of what `reader` takes depends on that one alone of what `module` makes."""
    seen: list[Tensor] = []
    read: list[Tensor] = []

    def lead(_: Any, args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            seen.append(output.detach().requires_grad_())
            return seen[-1]
        return None

    handles = [
        module.register_forward_hook(lead),
        reader.register_forward_pre_hook(lambda _, args: read.extend(args[:1])),
    ]
    try:
        with torch.enable_grad():
            _run(model, ids)
    finally:
        for handle in handles:
            handle.remove()
    if len(seen) != 1 or len(read) != 1 or not read[0].requires_grad:
        return False
    (g,) = torch.autograd.grad(read[0][..., index].sum(), seen[0], allow_unused=True)
    if g is None:
        return False
    g[..., index] = 0
    return not g.any()


def _run(model: nn.Module, ids: list[int]) -> None:
    model(input_ids=torch.tensor([ids[:2]], device=input_embeddings(model).weight.device))


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


def _through_norms(
    model: nn.Module,
    head: nn.Module,
    column_of: nn.Module | None,
    direction: Tensor,
    ids: list[int],
) -> tuple[Tensor, str]:
    """The direction behind the norms that it passes: the last one, and one of its own before.

    Raises:
        _NoDirectionError: more than a norm is between the last layer and the head.

    """
    calls, streams = _calls(model, head, ids)
    goal = calls[-1][1]
    last = next((call for call in reversed(calls[:-1]) if _same(call[2], goal)), None)
    entry = goal if last is None else last[1]
    if streams and not any(_same(stream, entry) for stream in streams):
        raise _NoDirectionError("between the last layer and the head is more than a norm")
    words = "through the head, with no norm before it"
    written = next((output for part, _, output in calls if part is column_of), None)
    for part, x, output in calls:
        if written is not None and _same(x, written) and not _same(output, x):
            direction = _scaled(part, direction)
    if last is not None:
        direction, words = (
            _scaled(last[0], direction),
            "through the final norm's weight and the head",
        )
    return direction, words


def _scaled(norm: nn.Module, direction: Tensor) -> Tensor:
    """The direction times a norm's weight, without its mean if the norm takes that away."""
    # Of a vector of ±1, half of each, a norm gives its own weight back, whatever it is called.
    weight: Any = next(norm.parameters(), direction)
    signs = torch.ones(1, 1, len(direction), dtype=weight.dtype, device=weight.device)
    signs[..., ::2] = -1
    try:
        scale = ((norm(signs) - norm(-signs)) / 2 / signs)[0, 0].double()
        is_centred = torch.allclose(norm(signs + 1), norm(signs), atol=1e-2, rtol=1e-2)
    except (RuntimeError, TypeError) as error:
        raise _NoDirectionError(f"{type(norm).__name__} is no norm ({error})") from error
    if is_centred:
        direction = direction - direction.mean()
    return direction * scale.to(direction.device)


_Call = tuple[nn.Module, Tensor, Tensor]


def _calls(model: nn.Module, head: nn.Module, ids: list[int]) -> tuple[list[_Call], list[Tensor]]:
    """What went into modules without others in them, and came out, up to the head; and of layers.

    All of it is held, so that no two of these tensors can lie at one address.

    Raises:
        _NoDirectionError: the head was not called with a tensor.

    """
    calls: list[_Call] = []
    streams: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            calls.append((module, args[0], output))

    def keep_stream(module: nn.Module, _: Any, output: Any) -> None:
        streams.extend(x for x in [first_tensor(output)] if x is not None)

    leaves = [part for part in model.modules() if not part._modules]
    handles = [part.register_forward_hook(keep) for part in {*leaves, head}]
    layers = [layer for stack in layers_of(model) for layer in stack]
    handles += [layer.register_forward_hook(keep_stream) for layer in layers]
    try:
        _run(model, ids)
    finally:
        for handle in handles:
            handle.remove()
    while calls and calls[-1][0] is not head:
        calls.pop()
    if not calls:
        raise _NoDirectionError("the head is not called with a tensor")
    return calls, streams


def _same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape
