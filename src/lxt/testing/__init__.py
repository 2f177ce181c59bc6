"""Checks of rules and models of one's own, to be called from any suite of tests.

>>> def test_my_rule():
...     lxt.testing.check_rule(my_gate_rule)
>>> def test_my_model():
...     lxt.testing.check_model(model, x, composite=lxt.attnlrp | {my_gate: my_gate_rule})

Both raise `CheckFailed`, an AssertionError whose message says what does not hold, with numbers.
"""

from lxt.errors import CheckFailed
from lxt.testing.models import check_model
from lxt.testing.rules import check_rule

__all__ = ["CheckFailed", "check_model", "check_rule"]
