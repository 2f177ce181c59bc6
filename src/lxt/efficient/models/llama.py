"""Patch maps for `transformers.models.llama`."""

from transformers.models.llama import modeling_llama

from lxt.efficient.models import maps

attnLRP, cp_LRP = maps(modeling_llama)  # noqa: N816 - LXT's names
