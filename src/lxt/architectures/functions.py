"""Autograd Functions of other libraries that hand on their operands as they are."""

from __future__ import annotations

__all__ = ["TRANSPARENT"]

TRANSPARENT = frozenset(
    {
        "zennit.core.Identity",  # where zennit's hooks take hold; their rule is the user's choice
    }
)
