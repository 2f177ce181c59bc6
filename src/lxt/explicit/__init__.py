"""LRP written out: every operation's backward pass takes and returns relevance, not gradients.

The gradient of any tensor *is* its relevance. Slower than `lxt.efficient`, and its proof: the two
formulations share no mathematics, and agree on every architecture.

Presets for every model are here. `functional` has operations whose gradient is relevance, `rules`
and `modules` the same for modules, `core` has LXT's `Composite`, `check` a test of conservation.
(`functions`, `rule_functions` and `special` hold what these are made of; `operations` and
`composites` make presets of them; `registration`, `replacing` and `survey` serve `core`.)

>>> with lxt.explicit.attnlrp.context(model):
...     logits = model(inputs_embeds=x).logits
>>> logit = logits[0, -1].max()
>>> logit.backward(logit)
>>> relevance = x.grad.sum(-1)
"""

from lxt.explicit.composites import attnlrp, cp_lrp, explicit_form

__all__ = ["attnlrp", "cp_lrp", "explicit_form"]
