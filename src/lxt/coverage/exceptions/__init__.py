"""What no generic rule can know about a model type: tables of data, one file per kind of input.

An entry is a `Tweak`, keyed by model type, with a short reason. Its values may be functions: those
in `config` of `Size`, the others of `Making`, which holds the model, the size, and helpers that
draw tensors (see `lxt.coverage.making`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Tweak:
    """What is peculiar to one model type.

    Attributes:
        reason: why the generic rules are not enough, or why the type can't be built.
        unbuildable: whether there is no model or example to make; `reason` says why.
        init: keyword arguments of the configuration class, where its default doesn't work.
        config: values set after the generic rules, keyed by dotted path
            ("vision_config.hidden_size"); a value may be a function of `Size`. Where the path's
            first part is "*", it is set in every (sub-)configuration that has the attribute.
        model_class: name of another model class than the catalogue's.
        leaves: shape of each float input that is explained, keyed by the argument's name, as a
            function of `Making`, or a function that makes the tensor. "embedding" stands for the
            output of the model's input embedding. None takes a generic leaf away.
        kwargs: further arguments of the model's forward; functions of `Making` are called. None
            takes a generic argument away.
        output: attribute of the model's output that is explained, dotted.
        attention: the attention implementation, where the default one doesn't work.
        embedding: dotted path of the module whose output is the leaf "embedding", where
            `get_input_embeddings()` isn't it; what it returns is found by running the model.
        by_ids: whether the model wants `input_ids` though it has `inputs_embeds`, so that the leaf
            is "embedding".
        training: whether the model is left in training mode (all dropout is 0).
        without_explicit: why the explicit formulation can't tell under AttnLRP, if it can't.
        gain: factor on the standard deviation of all matrices.
    """

    reason: str
    unbuildable: bool = False
    init: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    model_class: str = ""
    leaves: Mapping[str, Any] = field(default_factory=dict)
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    output: str = ""
    attention: str = ""
    embedding: str = ""
    by_ids: bool = False
    training: bool = False
    without_explicit: str = ""
    gain: float = 1.0


NONE = Tweak("the generic rules are enough")


@cache
def tweaks() -> dict[str, Tweak]:
    """All entries, by model type.

    Raises:
        ValueError: two files have an entry for the same type.
    """
    from lxt.coverage.exceptions import (
        audio,
        codecs,
        documents,
        image_text,
        keypoints,
        multimodal,
        series,
        text,
        vision,
    )

    result: dict[str, Tweak] = {}
    for module in (
        text,
        vision,
        keypoints,
        documents,
        audio,
        codecs,
        series,
        multimodal,
        image_text,
    ):
        for name, tweak in module.TWEAKS.items():
            if name in result:
                raise ValueError(f"{name!r} has two entries, the second in {module.__name__}")
            result[name] = tweak
    return result


def tweak_of(name: str) -> Tweak:
    """The entry of the model type `name`, or one that changes nothing."""
    return tweaks().get(name, NONE)
