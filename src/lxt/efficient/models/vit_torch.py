"""Patch maps for `torchvision.models.vision_transformer`."""

from torchvision.models import vision_transformer  # pyright: ignore[reportMissingImports]

from lxt.efficient.models import maps

attnLRP, cp_LRP = maps(vision_transformer)  # noqa: N816 - LXT's names
