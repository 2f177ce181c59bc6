"""Softmax: linearised at its operand, with the rest of the Taylor expansion as an absorbing bias.

    R_i = x_i (R_i⁺ − s_i Σ_j R_j⁺)      Achtibat et al. 2024, Prop. 3.1

which is x · g with autograd's own g. CP-LRP takes the attention weights as constants instead.
"""

from __future__ import annotations

from lxt.rules.elementary import passthrough
from lxt.rules.registry import register, sample, spelled, t

__all__ = ["SOFTMAXES"]

SOFTMAXES = tuple(spelled("softmax", "softmin"))
register(
    [*SOFTMAXES, *spelled("log_softmax")],
    passthrough,
    source="AttnLRP Prop. 3.1",
    samples=[sample(t(2, 5), dim=-1)],
)
