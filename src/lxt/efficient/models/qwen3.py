"""Patch maps for `transformers.models.qwen3`."""

from transformers.models.qwen3 import modeling_qwen3

from lxt.efficient.models import maps

attnLRP, cp_LRP = maps(modeling_qwen3)  # noqa: N816 - LXT's names
