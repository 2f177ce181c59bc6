"""Patch maps for `transformers.models.qwen2`."""

from transformers.models.qwen2 import modeling_qwen2

from lxt.efficient.models import maps

attnLRP, cp_LRP = maps(modeling_qwen2)  # noqa: N816 - LXT's names
