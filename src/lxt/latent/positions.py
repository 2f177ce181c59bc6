"""Which tokens a forward pass holds: where each stands in its row, counted without padding.

A pass may hold a whole row, or continue one whose beginning is in a cache. What tells is what the
model is called with: the mask, which covers the cache too, and the cache's length. Where they
don't, nothing is assumed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lxt.errors import InvalidTap
from lxt.structure import parameter_names

__all__ = ["Ends", "Tokens", "host_of"]

_TOKENS = ("input_ids", "inputs_embeds", "input_embeds")


def host_of(module: nn.Module, model: nn.Module) -> nn.Module:
    """The innermost module around `module` that is called with rows of tokens; else the model.

    Raises:
        InvalidTap: tokens come to the module in an order of their own, or of two sequences.

    """
    path = next(name for name, part in model.named_modules() if part is module)
    names = path.split(".") if path else []
    if "experts" in names:
        raise InvalidTap(
            f"{path!r} is within a mixture's experts, which get tokens in an order of their own: "
            "leave out position=, or edit what comes out of the mixture"
        )
    for length in range(len(names), -1, -1):
        around = model.get_submodule(".".join(names[:length]))
        taken = parameter_names(around)
        if "decoder_input_ids" in taken:
            raise InvalidTap(
                f"{path or 'the model'!r} is part of {type(around).__name__}, which has tokens of "
                "an encoder and of a decoder: a position is of one within either of them"
            )
        if "attention_mask" in taken and any(name in taken for name in _TOKENS):
            return around
    return model


class Ends:
    """Where prompts end in a run of generation: told by its first forward pass."""

    def __init__(self) -> None:
        self._of: dict[nn.Module, Tensor] = {}

    def told(self, host: nn.Module, tokens: Tensor) -> Tensor:
        """How many tokens each row's prompt has [batch, 1]."""
        return self._of.setdefault(host, tokens)


class Tokens:
    """The tokens of one forward pass of `host`."""

    def __init__(self, host: nn.Module) -> None:
        self.host = host
        self._positions: Tensor | None = None
        self._here: dict[int, Tensor | None] = {}
        self._past = 0

    def take_down(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        positions: Iterable[int],
        ends: Ends | None,
    ) -> None:
        """Find out where `positions` are.

        Args:
            args: what the host is called with.
            kwargs: the same, by name.
            positions: counted without padding; negative ones from the end.
            ends: of the generation that the pass is part of, if it is.

        Raises:
            InvalidTap: it can't be told.

        """
        self._positions = self._read(args, kwargs)
        for position in positions:
            here = self._where(position, self._positions, ends)
            self._here[position] = here if bool(here.any()) else None

    def here(self, position: int, x: Tensor, site: str) -> Tensor | None:
        """Bool, true at a position's tokens, as it is to be broadcast with `x`; None if at none.

        Raises:
            InvalidTap: `x` doesn't have these tokens.

        """
        positions = self._positions
        assert positions is not None
        rows, tokens = positions.shape
        if x.shape[:2] == (rows, tokens):
            lead: tuple[int, ...] = (rows, tokens)
        elif x.dim() == 2 and len(x) == rows * tokens:
            lead = (rows * tokens,)
        else:
            raise self._unclear(
                f"{site} has the shape {list(x.shape)} where {type(self.host).__name__} was called "
                f"with {rows} × {tokens} tokens"
            )
        here = self._here[position]
        if here is None:
            return None
        return here.to(x.device).reshape(*lead, *(1 for _ in x.shape[len(lead) :]))

    def _where(self, position: int, positions: Tensor, ends: Ends | None) -> Tensor:
        if position >= 0:
            return positions == position
        count = positions.amax(1, keepdim=True) + 1
        if ends is not None:
            count = ends.told(self.host, count)
        elif self._past:
            raise self._unclear(
                f"position={position} counts from the end of the prompt, and a pass that continues "
                f"a cache of {self._past} tokens doesn't tell where that was: give a position from "
                "the beginning, or call model.generate"
            )
        if len(count) != len(positions):
            raise self._unclear(
                f"the prompts of generation were {len(count)} rows, and now there are "
                f"{len(positions)}"
            )
        wanted = count + position
        return (positions == wanted) & (wanted >= 0)

    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The position of each token [batch, tokens], −1 for padding."""
        given = _arguments(self.host, args, kwargs)
        held = self._held(given)
        rows, tokens = held.shape[:2]
        past = self._past = self._cached(given.get("past_key_values"))
        start = given.get("cache_position")
        if isinstance(start, Tensor) and int(start.flatten()[0]) != past:
            raise self._unclear(
                f"cache_position starts at {int(start.flatten()[0])}, not at {past}"
            )
        other = given.get("encoder_hidden_states")
        if isinstance(other, Tensor) and other.dim() > 1 and other.shape[1] == tokens:
            raise self._unclear(f"encoder and decoder have {tokens} tokens each")
        mask = given.get("attention_mask")
        if mask is None:
            row = torch.arange(past, past + tokens, device=held.device)
            return row.expand(rows, tokens)
        if not isinstance(mask, Tensor) or mask.shape != (rows, past + tokens):
            shape = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise self._unclear(
                f"attention_mask is {shape}, and would be [{rows}, {past + tokens}], for "
                f"{past} tokens in the cache and {tokens} new ones (a static cache makes another)"
            )
        attended = mask != 0
        counted = attended.long().cumsum(1) - 1
        return counted.masked_fill(~attended, -1)[:, past:]

    def _held(self, given: Mapping[str, Any]) -> Tensor:
        """The tensor [batch, tokens, …] of what the pass holds."""
        for name, value in given.items():
            known = name in ("past_key_values", "attention_mask")
            if not known and not _is_plain(value):
                raise self._unclear(f"{name} is a {type(value).__name__}, which may be a cache")
        held = [given[name] for name in _TOKENS if isinstance(given.get(name), Tensor)]
        if not held and not any(name in parameter_names(self.host) for name in _TOKENS):
            held = [value for value in given.values() if isinstance(value, Tensor)]
        if len(held) != 1 or held[0].dim() not in (2, 3):
            raise self._unclear("it was not called with one tensor [batch, tokens, …]")
        return held[0]

    def _cached(self, cache: Any) -> int:
        if cache is None:
            return 0
        try:
            if isinstance(cache, tuple | list):
                return cache[0][0].shape[-2] if cache else 0
            return int(cache.get_seq_length())
        except (AttributeError, IndexError, TypeError, ValueError):
            raise self._unclear(
                f"past_key_values is a {type(cache).__name__}, whose length isn't known"
            ) from None

    def _unclear(self, reason: str) -> InvalidTap:
        return InvalidTap(
            f"which positions a forward pass of {type(self.host).__name__} holds can't be told: "
            f"{reason}\n  leave out position=, or call it so that they can"
        )


def _arguments(host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a module is called with, by the names of its parameters."""
    bound = inspect.signature(host.forward).bind_partial(*args, **kwargs)
    given: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            given |= value
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            given |= {f"{name}[{number}]": item for number, item in enumerate(value)}
        else:
            given[name] = value
    return given


def _is_plain(value: Any, *, within: bool = False) -> bool:
    """Whether nothing of earlier tokens can be in it: a cache is an object, or holds tensors."""
    if isinstance(value, Tensor):
        return not within
    if isinstance(value, tuple | list):
        return all(_is_plain(item, within=True) for item in value)
    if isinstance(value, Mapping):
        return all(_is_plain(item, within=True) for item in value.values())
    return value is None or isinstance(value, bool | int | float | str | torch.dtype)
