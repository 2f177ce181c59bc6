"""Patch maps for `transformers.models.gpt2`."""

from transformers.models.gpt2 import modeling_gpt2

from lxt.efficient.models import maps

attnLRP, cp_LRP = maps(modeling_gpt2)  # noqa: N816 - LXT's names
