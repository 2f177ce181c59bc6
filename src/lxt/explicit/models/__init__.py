"""Models of `transformers` with composites to register on them, under LXT's names.

>>> from lxt.explicit.models.llama import LlamaForCausalLM, attnlrp
>>> attnlrp.register(model)

Any other model does as well: `lxt.explicit.attnlrp.register(model)`.
"""

from lxt import explicit
from lxt.explicit.core import Composite

__all__ = ["presets"]


def presets() -> tuple[Composite, Composite]:
    """AttnLRP and CP-LRP in the explicit formulation, each a table of its own to register."""
    return Composite(explicit.attnlrp), Composite(explicit.cp_lrp)
