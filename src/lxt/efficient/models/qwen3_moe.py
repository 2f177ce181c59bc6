"""Patch maps for `transformers.models.qwen3_moe`."""

from transformers.models.qwen3_moe import modeling_qwen3_moe

from lxt.efficient.models import maps

attnLRP, cp_LRP = maps(modeling_qwen3_moe)  # noqa: N816 - LXT's names
