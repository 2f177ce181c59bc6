"""timm's, torchvision's and open_clip's vision transformers, put to the checks of coverage."""

import pytest
import timm
import torch
from test_torchvision import clip
from torch import nn
from torchvision import models

from lxt.coverage.build import randomise
from lxt.coverage.checks import Row, examine
from lxt.coverage.inputs import Example

_SMALL = {"img_size": 32, "embed_dim": 24, "num_classes": 5}
_BLOCKS = {**_SMALL, "patch_size": 8, "depth": 2, "num_heads": 4}
_ROTARY = {**_BLOCKS, "embed_dim": 32}  # pairs of channels for each of two axes

TIMM = {
    "vit_tiny_patch16_224": _BLOCKS,
    "vit_base_patch16_siglip_224": _BLOCKS,
    "vit_base_patch16_rope_224": _ROTARY,
    "vit_srelpos_small_patch16_224": _BLOCKS,
    "deit_tiny_distilled_patch16_224": _BLOCKS,
    "deit3_small_patch16_224": _BLOCKS,
    "beit_base_patch16_224": _BLOCKS,
    "beitv2_base_patch16_224": _BLOCKS,
    "eva02_tiny_patch14_224": _ROTARY,
    "cait_xxs24_224": _BLOCKS,
    "xcit_nano_12_p16_224": _BLOCKS,
    "mixer_s16_224": {"img_size": 32, "num_classes": 5},
    "swin_tiny_patch4_window7_224": {
        **_SMALL,
        "window_size": 4,
        "depths": (2, 2),
        "num_heads": (2, 4),
    },
    "swinv2_tiny_window8_256": {
        **_SMALL,
        "window_size": 4,
        "depths": (2, 2),
        "num_heads": (2, 4),
    },
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32), "num_classes": 5},
    "resnet18": {"num_classes": 5},
}

TORCHVISION = {
    "vit": lambda: models.VisionTransformer(32, 8, 2, 4, 24, 48, num_classes=5),
    "swin": lambda: models.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=5),
    "resnet": lambda: models.resnet18(num_classes=5),
}


def build(name: str) -> nn.Module:
    library, _, kind = name.partition(" ")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if library == "timm":
            model = timm.create_model(kind, **TIMM[kind])
        elif library == "torchvision":
            model = TORCHVISION[kind]()
        else:
            model = clip().visual
    model = model.double().eval().requires_grad_(False)
    randomise(model, seed=0)
    return model


@pytest.mark.parametrize(
    "name",
    [*(f"timm {n}" for n in TIMM), *(f"torchvision {n}" for n in TORCHVISION), "open_clip visual"],
)
def test_vision_models_keep_the_contracts(name: str) -> None:
    model = build(name)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=generator)
    row = Row(name)
    examine(row, model, Example({"x": images.requires_grad_()}))
    assert row.status == "covered", row.reason
