"""Explanations of pictures to test with."""

import numpy as np
import torch
from PIL import Image

from lxt.explained import ExplainedTarget
from lxt.geometry import Geometry
from lxt.image_explanation import ImageExplanation

TARGET = ExplainedTarget("label", "tabby cat", 12.5, None, "tiger cat")


def photo(height=48, width=60, seed=0):
    """A picture without two equal parts, and without sharp edges."""
    random = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(random).resize((width, height), Image.Resampling.BICUBIC)


def pictured(relevance=None, *, image=(48, 60), pixels=(16, 16), box=(0, 6, 48, 54), **changes):
    """The middle of a picture, seen as 16 × 16 pixels."""
    if relevance is None:
        generator = torch.Generator().manual_seed(0)
        relevance = torch.randn(pixels, generator=generator, dtype=torch.float64)
    fields = {
        "relevance": relevance,
        "image": torch.from_numpy(np.array(photo(*image))),
        "geometry": Geometry(image, pixels, box),
        "target": TARGET,
        "provenance": {"model": "tiny", "composite": "attnlrp"},
    }
    return ImageExplanation(**fields | changes)


def stored():
    """What the files in tests/data hold."""
    relevance = torch.tensor([[0.5, -2.0, 0.25], [0.1, 0.0, 1e-30]])
    return pictured(
        relevance,
        image=(5, 7),
        pixels=(4, 6),
        box=(0, -0.5, 5, 7),
        target=ExplainedTarget("prediction", "tiger cat", 12.5, None, "tiger cat"),
    )


def same_picture(one, other):
    assert one.relevance.dtype == other.relevance.dtype
    assert torch.equal(one.relevance, other.relevance)
    assert one.image.dtype == other.image.dtype
    assert torch.equal(one.image, other.image)
    for name in ("geometry", "target", "provenance"):
        assert getattr(one, name) == getattr(other, name)
