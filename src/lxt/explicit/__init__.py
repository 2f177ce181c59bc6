"""LRP written out: every operation's backward pass takes and returns relevance, not gradients.

The gradient of any tensor *is* its relevance. Slower than `lxt.efficient`, and its proof: the two
formulations share no mathematics, and agree on every architecture.

>>> with lxt.explicit.attnlrp.context(model):
...     logits = model(inputs_embeds=x).logits
>>> logit = logits[0, -1].max()
>>> logit.backward(logit)
>>> relevance = x.grad.sum(-1)
"""

from lxt.explicit.composites import attnlrp, cp_lrp, explicit_form

__all__ = ["attnlrp", "cp_lrp", "explicit_form"]
