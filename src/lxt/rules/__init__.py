"""The rules: what stands in for an operation's backward pass, one family of operations a file.

`REGISTRY` is the table of them all. To add an operation, write its rule in the file of its family,
with sample calls beside it.
"""

# Importing a file of rules enters them into the registry.
from lxt.rules import (
    activation,
    addition,
    attention,
    bilinear,
    constants,
    dropout,
    indexing,
    linear,
    moves,
    normalization,
    softmax,
)
from lxt.rules.activation import elementwise, unit
from lxt.rules.bilinear import gated_product, product, quotient
from lxt.rules.elementary import composed, constant, passthrough
from lxt.rules.registry import REGISTRY, Family, family, rule, spelled

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
    "family",
    "gated_product",
    "indexing",
    "linear",
    "moves",
    "normalization",
    "passthrough",
    "product",
    "quotient",
    "rule",
    "softmax",
    "spelled",
    "unit",
]
