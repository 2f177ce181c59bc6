"""`transformers.models.phi3`, and the composites to register on its models."""

from typing import Any

from transformers.models.phi3 import modeling_phi3

from lxt.explicit.models import presets

attnlrp, cp_lrp = presets()


def __getattr__(name: str) -> Any:
    return getattr(modeling_phi3, name)
