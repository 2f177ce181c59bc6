"""Patch maps for `transformers.models.bert`."""

from transformers.models.bert import modeling_bert

from lxt.efficient.models import maps

attnLRP, cp_LRP = maps(modeling_bert)  # noqa: N816 - LXT's names
