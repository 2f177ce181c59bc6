"""Third-party module classes that must be one unit, by qualified name: nothing is imported.

Architectures normally need no entry here: their operations have rules. What stands here is a
composition of operations that is one mathematical function.
"""

from lxt.architectures.activations import UNITS

__all__ = ["UNITS"]
