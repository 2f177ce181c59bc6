"""Patch maps for some models, ready to import, and the one that any other model gets.

Each is a table over one of the composites of `lxt`, which find their rules by the operations that
a model runs: no model needs a map of its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from lxt.composite import Composite
from lxt.composites import attnlrp, cp_lrp
from lxt.efficient.patches import apply

__all__ = ["get_default_map", "maps"]

_TABLES = ("bert", "gemma3", "gpt2", "llama", "qwen2", "qwen3", "qwen3_moe", "vit_torch")

DEFAULTS: dict[str, Composite] = {
    # Attention weights as constants are easier to tune with γ-rules elsewhere.
    "torchvision.models.vision_transformer": cp_lrp,
}
"""What differs from AttnLRP, by the name of the Python module."""

PatchMap = dict[Any, Callable[[Any], Any]]


def maps(module: ModuleType) -> tuple[PatchMap, PatchMap]:
    """The patch maps of AttnLRP and of CP-LRP for a Python module with models in it."""
    return {module: apply(attnlrp)}, {module: apply(cp_lrp)}


def get_default_map(module: ModuleType) -> PatchMap:
    """The patch map that `monkey_patch` takes by default."""
    return {module: apply(DEFAULTS.get(module.__name__, attnlrp))}


def __getattr__(name: str) -> ModuleType:
    """Import a table when it is asked for: each imports the model that it is for."""
    if name in _TABLES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
