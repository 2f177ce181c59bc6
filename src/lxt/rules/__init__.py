"""The rules: what stands in for an operation's backward pass, one family of operations a file.

`REGISTRY` is the table of them all. To add an operation, write its rule in the file of its family,
with sample calls beside it.
"""

from typing import TYPE_CHECKING, Any

# Importing a file of rules enters them into the registry.
from lxt.rules import (
    activation,
    addition,
    attention,
    bilinear,
    constants,
    dropout,
    exponential,
    gated,
    indexing,
    linear,
    losses,
    moves,
    multilinear,
    normalization,
    powers,
    recurrent,
    softmax,
    spectral,
)
from lxt.rules.bilinear import gated_product, product, quotient
from lxt.rules.declared import rule
from lxt.rules.elementary import composed, constant, passthrough
from lxt.rules.registry import REGISTRY, Family, family, sample, spelled
from lxt.rules.secants import elementwise, unit

__all__ = [
    "REGISTRY",
    "Family",
    "activation",
    "addition",
    "attention",
    "bilinear",
    "composed",
    "constant",
    "constants",
    "dropout",
    "elementwise",
    "exponential",
    "family",
    "gated",
    "gated_product",
    "indexing",
    "linear",
    "losses",
    "moves",
    "multilinear",
    "normalization",
    "passthrough",
    "powers",
    "product",
    "quotient",
    "recurrent",
    "rule",
    "sample",
    "softmax",
    "spectral",
    "spelled",
    "unit",
]

# Rules of LXT 2.1, which are asked for here by mistake.
_EXPLICIT = (
    "EpsilonRule",
    "IdentityRule",
    "StopRelevanceRule",
    "TaylorDecompositionRule",
    "UniformEpsilonRule",
    "UniformRule",
    "WrapModule",
    "epsilon_lrp",
    "epsilon_lrp_fn",
    "identity",
    "identity_fn",
    "stop_relevance_fn",
    "taylor_decomposition_fn",
    "uniform_epsilon_lrp_fn",
    "uniform_rule_fn",
)


if not TYPE_CHECKING:  # a checker would take any name for one of this package

    def __getattr__(name: str) -> Any:
        where = f": it is lxt.explicit.rules.{name}" if name in _EXPLICIT else ""
        raise AttributeError(f"module 'lxt.rules' has no attribute {name!r}{where}")
