"""Operators of `torch.ops` that models call and that are no torch function."""

from __future__ import annotations

from lxt.rules.bilinear import product
from lxt.rules.flex import flex_attention
from lxt.rules.registry import Family
from lxt.structure import OperatorName

__all__ = ["FLEX_ATTENTION", "OPERATORS"]

FLEX_ATTENTION = OperatorName("higher_order::flex_attention")

OPERATORS: dict[OperatorName, Family] = {
    FLEX_ATTENTION: flex_attention,
    OperatorName("transformers::grouped_mm_fallback"): product,  # experts of a mixture
}
