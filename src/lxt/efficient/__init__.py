"""LRP as activation · gradient, patched into models: LXT's interface to the rules of `lxt`.

>>> from transformers.models.llama import modeling_llama
>>> from lxt.efficient import monkey_patch
>>> monkey_patch(modeling_llama)
"""

from lxt.efficient.core import Patch, monkey_patch
from lxt.efficient.zennit_patches import monkey_patch_zennit

__all__ = ["Patch", "monkey_patch", "monkey_patch_zennit"]
