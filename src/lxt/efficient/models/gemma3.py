"""Patch maps for `transformers.models.gemma3`."""

from transformers.models.gemma3 import modeling_gemma3

from lxt.efficient.models import maps

attnLRP, cp_LRP = maps(modeling_gemma3)  # noqa: N816 - LXT's names
