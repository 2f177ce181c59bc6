"""How good relevance is: as a prediction of what happens when a model is changed within.

>>> found = lxt.evaluate.ablation(model, texts, tokenizer=tokenizer)
>>> print(found)
>>> found = lxt.evaluate.patching(model, clean, corrupt, tokenizer=tokenizer, target=targets)
"""

from lxt.evaluate.causal import ablation, patching
from lxt.evaluate.interventions import Agreement, Interventions

__all__ = ["Agreement", "Interventions", "ablation", "patching"]
