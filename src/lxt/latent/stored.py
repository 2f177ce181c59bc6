"""Latent relevance in files: tensors by number, and what they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lxt.errors import InvalidInput
from lxt.latent.relevance import Latent

__all__ = ["described", "restored", "tensors_of"]

_FIELDS = ("name", "axes", "sites", "units", "kind", "tensors")
_TENSORS = ("relevance", "activation", "index")


def described(latent: Mapping[str, Latent]) -> list[dict[str, Any]]:
    """What there is, in the order of its tensors."""
    return [
        {
            "name": name,
            "axes": list(one.axes),
            "sites": one.sites,
            "units": one.units,
            "kind": one.kind,
            "tensors": [field for field in _TENSORS if getattr(one, field) is not None],
        }
        for name, one in latent.items()
    ]


def tensors_of(latent: Mapping[str, Latent]) -> dict[str, Tensor]:
    """The tensors, as ``latent.0.relevance``."""
    return {
        f"latent.{number}.{field}": getattr(one, field).contiguous()
        for number, one in enumerate(latent.values())
        for field in _TENSORS
        if getattr(one, field) is not None
    }


def restored(
    content: Any, tensors: Callable[[Sequence[str]], Mapping[str, Tensor]]
) -> dict[str, Latent]:
    """Read what these gave.

    Args:
        content: the description.
        tensors: reads tensors by their names.

    Raises:
        InvalidInput: it is something else.

    """
    if not isinstance(content, list):
        raise InvalidInput("its latent is no list")
    found: dict[str, Latent] = {}
    for number, one in enumerate(content):
        if not isinstance(one, dict) or set(one) != set(_FIELDS):
            raise InvalidInput(f"its latent[{number}] does not hold exactly {', '.join(_FIELDS)}")
        texts = [
            one["name"],
            one["kind"],
            *_list(one, "axes"),
            *_list(one, "sites"),
            *_list(one, "tensors"),
        ]
        numbers = _list(one, "units")
        if not all(isinstance(text, str) for text in texts):
            raise InvalidInput(f"its latent[{number}] has names that are no texts")
        if not all(isinstance(count, int) and not isinstance(count, bool) for count in numbers):
            raise InvalidInput(f"its latent[{number}] has units that are no numbers")
        if [field for field in _TENSORS if field in one["tensors"]] != one["tensors"]:
            raise InvalidInput(f"its latent[{number}] has the tensors {one['tensors']!r}")
        there = tensors([f"latent.{number}.{field}" for field in one["tensors"]])
        given = {field: there[f"latent.{number}.{field}"] for field in one["tensors"]}
        if not {"relevance", "activation"} <= set(given):
            raise InvalidInput(f"its latent[{number}] lacks relevance or activation")
        if one["name"] in found:
            raise InvalidInput(f"its latent has two called {one['name']!r}")
        found[one["name"]] = Latent(
            axes=tuple(one["axes"]), sites=one["sites"], units=numbers, kind=one["kind"], **given
        )
    return found


def _list(fields: Mapping[str, Any], name: str) -> list[Any]:
    if not isinstance(fields[name], list):
        raise InvalidInput(f"its latent has {name} {fields[name]!r}, and no list")
    return fields[name]
