"""`transformers.models.qwen2`, and the composites to register on its models."""

from typing import Any

from transformers.models.qwen2 import modeling_qwen2

from lxt.explicit.models import presets

attnlrp, cp_lrp = presets()


def __getattr__(name: str) -> Any:
    return getattr(modeling_qwen2, name)
