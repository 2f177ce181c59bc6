"""`transformers.models.llama`, and the composites to register on its models."""

from typing import Any

from transformers.models.llama import modeling_llama

from lxt.explicit.models import presets

attnlrp, cp_lrp = presets()


def __getattr__(name: str) -> Any:
    return getattr(modeling_llama, name)
