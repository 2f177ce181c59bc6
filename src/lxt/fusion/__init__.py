"""Modules that run as one operation, where that is proven to be the same and costs less.

The rules make most of a network linear, so that most of what autograd keeps and computes isn't
needed: a norm's backward pass needs one number for each token, a gated MLP's the gate and what the
other factor can be computed from. A *unit* here stands for a module's forward and computes just
that. It is found by structure, whatever a class is called: a module with three linear layers and
one element-wise function may be a gated MLP, in one of a few orders. What decides is a proof: on
probes, the unit's forward must equal the module's own to the bit, and its backward that of the
rules of the operations within. So a rule of a user's, in a composite, for one of these operations
takes the unit away by itself.

A unit stands aside for calls that it wasn't proven for, and for modules whose parts have hooks:
somebody is looking at what runs within.
"""

from lxt.fusion.finding import Fusions
from lxt.fusion.unit import FusedUnit

__all__ = ["FusedUnit", "Fusions"]
