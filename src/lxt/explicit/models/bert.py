"""`transformers.models.bert`, and the composites to register on its models."""

from typing import Any

from transformers.models.bert import modeling_bert

from lxt.explicit.models import presets

attnlrp, cp_lrp = presets()


def __getattr__(name: str) -> Any:
    return getattr(modeling_bert, name)
