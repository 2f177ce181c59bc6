"""Exceptions: module classes and operators that need a rule of their own, by qualified name.

Architectures normally need no entry here: their operations have rules. What stands here is a
composition of operations that is one mathematical function, or an operator that is none of torch's
functions. Nothing is imported to name them.
"""

from lxt.architectures.activations import UNITS
from lxt.architectures.operators import OPERATORS
from lxt.architectures.quantized import QUANTIZED
from lxt.architectures.recurrent import RECURRENT
from lxt.architectures.training import TRAINING

__all__ = ["OPERATORS", "QUANTIZED", "RECURRENT", "TRAINING", "UNITS"]
