"""The presets: each a short table over the rules, and a composite like any of yours."""

from __future__ import annotations

import difflib

import torch.nn.functional as F

from lxt.architectures import OPERATORS, QUANTIZED, RECURRENT, TRAINING, UNITS
from lxt.architectures.operators import FLEX_ATTENTION
from lxt.composite import Composite
from lxt.errors import InvalidComposite
from lxt.rules.attention import (
    attention_without_dropout,
    value_only_attention,
)
from lxt.rules.bilinear import GATED_PRODUCTS, QUOTIENTS_WITHOUT_SOFTMAX, glu
from lxt.rules.dropout import DROPOUTS, off
from lxt.rules.elementary import constant
from lxt.rules.exponential import EXPONENTIALS_WITHOUT_SOFTMAX
from lxt.rules.flex import value_only_flex_attention
from lxt.rules.registry import REGISTRY
from lxt.rules.softmax import SOFTMAXES

__all__ = ["PRESETS", "as_composite", "attnlrp", "by_name", "cp_lrp", "gradient"]

attnlrp = Composite(
    {operation: entry.rule for operation, entry in REGISTRY.items()}
    | UNITS
    | OPERATORS
    | QUANTIZED
    | RECURRENT
    | TRAINING,
    name="attnlrp",
)
"""AttnLRP (Achtibat et al. 2024): relevance flows through attention weights and gates too."""

cp_lrp = Composite(
    {
        **attnlrp,
        **dict.fromkeys(SOFTMAXES, constant),
        **GATED_PRODUCTS,
        **QUOTIENTS_WITHOUT_SOFTMAX,
        **EXPONENTIALS_WITHOUT_SOFTMAX,
        F.scaled_dot_product_attention: value_only_attention,
        FLEX_ATTENTION: value_only_flex_attention,
        F.glu: glu(gate_is_constant=True),
    },
    name="cp_lrp",
)
"""CP-LRP (Ali et al. 2022): attention weights and gates are constants."""

gradient = Composite(
    {
        **dict.fromkeys(DROPOUTS, off),
        F.scaled_dot_product_attention: attention_without_dropout,
    },
    name="gradient",
    on_unknown="gradient",
)
"""Gradient × input: autograd's own gradient everywhere, for comparison."""

PRESETS = {composite.name: composite for composite in (attnlrp, cp_lrp, gradient)}


def by_name(name: str) -> Composite:
    """The preset called `name`.

    Raises:
        InvalidComposite: there is none; the message names the nearest.

    """
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InvalidComposite(f"no composite {name!r}: {hint}there are {', '.join(PRESETS)}")


def as_composite(composite: Composite | str) -> Composite:
    """A composite, or the preset of that name.

    Raises:
        InvalidComposite: it is neither.

    """
    if isinstance(composite, str):
        return by_name(composite)
    if not isinstance(composite, Composite):
        raise InvalidComposite(f"{composite!r} is no composite: give lxt.attnlrp, or its name")
    return composite
