"""Explanations of pictures: sums are kept, and what goes in is checked."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import lxt
from lxt.errors import InvalidInput, InvalidTarget
from lxt.geometry import Geometry
from lxt.image_explanation import ImageExplanation, Patch
from pictured import TARGET, photo, pictured

# Sums


BOXES = st.tuples(st.floats(-20, 20), st.floats(-20, 20), st.floats(1, 80), st.floats(1, 80))


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    BOXES,
    st.integers(0, 99),
)
def test_the_picture_has_the_sum_of_what_lies_in_it(image, grid, cell, box, seed):
    top, left, high, wide = box
    if top >= image[0] or left >= image[1] or top + high <= 0 or left + wide <= 0:
        return
    pixels = grid[0] * cell[0], grid[1] * cell[1]
    relevance = torch.randn(grid, generator=torch.Generator().manual_seed(seed)).double()
    e = pictured(relevance, image=image, pixels=pixels, box=(top, left, top + high, left + wide))
    spread = e.relevance_in_image()
    assert spread.shape == image
    wanted = 0.0
    for (row, column), value in np.ndenumerate(relevance.numpy()):
        y, x = top + row * high / grid[0], left + column * wide / grid[1]
        down = min(y + high / grid[0], image[0]) - max(y, 0)
        across = min(x + wide / grid[1], image[1]) - max(x, 0)
        inside = max(down, 0) * max(across, 0) / (high / grid[0] * wide / grid[1])
        wanted += value * inside
    scale = relevance.abs().sum().item()
    assert spread.sum().item() == pytest.approx(wanted, abs=1e-9 * scale)
    assert e.outside == pytest.approx(e.total - wanted, abs=1e-9 * scale)
    if (top, left) >= (0, 0) and top + high <= image[0] and left + wide <= image[1] and left >= 0:
        assert spread.sum().item() == pytest.approx(e.total, abs=1e-9 * scale)


def test_a_pixel_goes_where_it_came_from():
    relevance = torch.zeros(16, 16, dtype=torch.float64)
    relevance[2, 5] = 6.0
    spread = pictured(relevance).relevance_in_image()
    wanted = torch.zeros(48, 60, dtype=torch.float64)
    wanted[6:9, 21:24] = 6 / 9
    assert torch.allclose(spread, wanted, atol=1e-12)
    assert torch.equal(spread == 0, wanted == 0)


def test_what_is_cropped_away_has_none():
    spread = pictured().relevance_in_image()
    assert not spread[:, :6].any()
    assert not spread[:, 54:].any()
    assert spread[:, 6:54].all()


def test_padding_is_counted_outside():
    e = pictured(torch.ones(4, 4), pixels=(4, 4), box=(0, 0, 96, 60))
    assert e.total == 16
    assert e.relevance_in_image().sum().item() == pytest.approx(8)
    assert e.outside == pytest.approx(8)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5))
def test_patches_are_exact_sums(rows, columns, height, width):
    relevance = torch.arange(rows * height * columns * width, dtype=torch.float32)
    relevance = relevance.reshape(rows * height, columns * width)
    e = pictured(relevance, pixels=relevance.shape, box=(0, 0, 48, 60))
    sums = e.patches((height, width))
    for row in range(rows):
        for column in range(columns):
            part = relevance[
                row * height : (row + 1) * height, column * width : (column + 1) * width
            ]
            assert sums[row, column] == part.sum()
    grid = e.by_patches((height, width))
    assert (grid.relevance.shape, grid.cell) == ((rows, columns), (height, width))
    assert grid.total == e.total
    assert torch.equal(grid.patches((height, width)), sums)
    assert torch.equal(grid.patches((height * rows, width)), sums.sum(0, keepdim=True))


def test_top_patches():
    relevance = torch.zeros(4, 4)
    relevance[0, 0], relevance[3, 3], relevance[1, 2] = 1.0, -2.0, 1.0
    e = pictured(relevance, pixels=(4, 4), box=(0, 0, 48, 60))
    assert e.top(3) == [
        Patch(3, 3, -2.0, (36, 45, 48, 60)),
        Patch(0, 0, 1.0, (0, 0, 12, 15)),
        Patch(1, 2, 1.0, (12, 30, 24, 45)),
    ]
    assert e.top(1, 2) == [Patch(1, 1, -2.0, (24, 30, 48, 60))]
    assert len(e.top(99)) == 16
    assert e.top(0) == []
    with pytest.raises(InvalidInput, match="top takes a count of patches, not -1"):
        e.top(-1)


@pytest.mark.parametrize("size", [0, -4, 3, 32, True, 2.0, (4, 5), (4,), "4", None])
def test_patches_that_do_not_divide_are_refused(size):
    with pytest.raises(InvalidInput, match="16 × 16 pixels can't be divided into patches of"):
        pictured().patches(size)


def test_patches_of_patches_are_whole():
    e = pictured(torch.ones(4, 4))
    with pytest.raises(InvalidInput, match="of whole patches of 4 × 4"):
        e.patches(2)


# From a run by hand


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    names = {0: "tabby cat", 1: "tiger cat", 2: "<b>dog</b>"}
    config = ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        id2label=names,
        label2id={name: i for i, name in names.items()},
    )
    return ViTForImageClassification(config).eval()


@pytest.fixture(scope="module")
def clip():
    return CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size=32)


def run(model, picture, processor, index=None):
    x = processor(picture, return_tensors="pt").pixel_values.requires_grad_()
    with lxt.attnlrp.context(model):
        logits = model(pixel_values=x).logits
    (logits.max() if index is None else logits[0, index]).backward()
    return x, logits


def test_a_vision_transformer_end_to_end(vit, clip):
    picture = photo(45, 70)
    x, logits = run(vit, picture, clip)
    e = ImageExplanation.from_pixels(
        picture, x, clip, logits=logits, model=vit, composite=lxt.attnlrp
    )
    wanted = (x * x.grad).sum((0, 1)).detach()
    assert torch.allclose(e.relevance, wanted, atol=1e-7)
    assert e.relevance.abs().sum() > 0
    assert e.total == pytest.approx(wanted.double().sum().item(), rel=1e-6)
    assert e.relevance_in_image().sum().item() == pytest.approx(e.total, rel=1e-6)
    assert e.geometry == Geometry.of(clip, (45, 70))
    assert (e.target.kind, e.target.name) == (
        "prediction",
        ["tabby cat", "tiger cat", "<b>dog</b>"][logits.argmax()],
    )
    assert e.target.value == pytest.approx(logits.max().item())
    assert e.provenance["composite"] == "attnlrp"
    assert e.provenance["class"] == "ViTForImageClassification"
    assert torch.equal(e.image, torch.from_numpy(np.array(picture)))
    # Each patch of the model's has what its pixels have.
    assert e.patches(8).sum().item() == pytest.approx(e.total, rel=1e-6)


def test_gradients_labels_and_geometries_may_be_given(vit, clip):
    picture = photo(45, 70)
    x, logits = run(vit, picture, clip, 2)
    one = ImageExplanation.from_pixels(
        picture, x, clip, logits=logits[0], label="<B>DOG</B>", model=vit
    )
    assert (one.target.kind, one.target.name) == ("label", "<b>dog</b>")
    geometry = Geometry.of(clip, (45, 70))
    other = ImageExplanation.from_pixels(
        np.array(picture), x.detach()[0], geometry, gradient=x.grad[0], target=one.target
    )
    assert torch.equal(one.relevance, other.relevance)
    third = ImageExplanation.from_relevance(
        picture, x * x.grad, clip, target=one.target, provenance=one.provenance
    )
    assert torch.allclose(third.relevance, one.relevance, atol=1e-9)
    assert third.geometry == geometry
    number = ImageExplanation.from_pixels(picture, x, geometry, logits=logits, label=1)
    assert (number.target.name, number.target.value) == ("1", logits[0, 1].item())


def test_low_precision_is_summed_in_high():
    x = torch.randn(1, 3, 16, 16, dtype=torch.bfloat16).requires_grad_()
    (x.float() * 3).sum().backward()
    e = ImageExplanation.from_pixels(photo(), x, Geometry.whole((48, 60), (16, 16)), target=TARGET)
    assert e.relevance.dtype == torch.float32
    assert e.total == pytest.approx(3 * x.double().sum().item(), abs=1e-4)
    assert e.provenance["dtype"] == "bfloat16"


def test_wrong_runs_are_refused(vit, clip):
    picture = photo(45, 70)
    x, logits = run(vit, picture, clip)

    def refused(message, *arguments, **options):
        options = {"logits": logits} | options
        with pytest.raises(InvalidInput, match=message):
            ImageExplanation.from_pixels(*arguments, **options)

    refused("has no gradient: call pixel_values.requires_grad_", picture, x.detach(), clip)
    refused("has no gradient", picture, x * 1, clip)
    refused(
        "gradient is \\[3, 32, 32\\], and pixel_values has", picture, x, clip, gradient=x.grad[0]
    )
    refused(
        "several pictures: give one",
        picture,
        torch.cat([x, x]),
        clip,
        gradient=x.repeat(2, 1, 1, 1),
    )
    refused("not \\[1, channels", picture, x[0, 0], clip, gradient=x.grad[0, 0])
    refused("not a tensor of floating", picture, x.long(), clip, gradient=x.grad)
    refused("not a tensor of floating", picture, x.tolist(), clip)
    refused("not what the processor makes of this picture", photo(45, 70, seed=1), x, clip)
    refused("not what the processor makes", picture.rotate(180), x, clip)
    other = ViTImageProcessorPil(size={"height": 16, "width": 16})
    refused("the processor makes \\[3, 16, 16\\]", picture, x, other)
    refused("geometry has 16 × 16 pixels", picture, x, Geometry.whole((45, 70), (16, 16)))
    refused("geometry says \\[70, 45, 3\\]", picture, x, Geometry.whole((70, 45), (32, 32)))
    refused("what was explained", picture, x, clip, logits=None)
    refused("in its place", picture, x, clip, target=TARGET)
    refused("logits are \\[2, 3\\]", picture, x, clip, logits=logits.repeat(2, 1))
    refused("holds NaN or infinity", picture, x, clip, gradient=x.grad * float("nan"))
    refused("target value nan", picture, x, clip, logits=logits * float("nan"))
    refused("can't be called", picture, x, "clip")
    with pytest.raises(InvalidTarget, match="there is no label 'cow'"):
        ImageExplanation.from_pixels(picture, x, clip, logits=logits, label="cow", model=vit)
    with pytest.raises(InvalidTarget, match="there is no label 3"):
        ImageExplanation.from_pixels(picture, x, clip, logits=logits, label=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relevance": torch.ones(16, 15)}, "relevance has shape [16, 15], and geometry has 16 ×"),
        ({"relevance": torch.ones(5, 4)}, "[rows, columns] that divide them"),
        ({"relevance": torch.ones(0, 16)}, "relevance has shape [0, 16]"),
        ({"relevance": torch.ones(1, 16, 16)}, "relevance has shape [1, 16, 16]"),
        ({"relevance": torch.ones(16, 16, dtype=torch.float16)}, "relevance is torch.float16"),
        ({"relevance": np.ones((16, 16))}, "relevance is a ndarray, not a Tensor"),
        ({"relevance": torch.full((16, 16), torch.inf)}, "NaN or infinity"),
        ({"relevance": torch.ones(16, 16).requires_grad_()}, "give relevance.detach()"),
        ({"image": torch.ones(48, 60, 3)}, "image is not a tensor of uint8"),
        ({"image": torch.ones(3, 48, 60, dtype=torch.uint8)}, "image has shape [3, 48, 60]"),
        ({"image": photo()}, "image is not a tensor of uint8 on the CPU: from_relevance"),
        ({"geometry": (16, 16)}, "geometry is a tuple, not an lxt.Geometry"),
        ({"target": "cat"}, "target is a str"),
        ({"provenance": {"a": 1}}, "is not a dict of strings"),
        ({"provenance": None}, "is not a dict of strings"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, message):
    e = pictured()
    with pytest.raises(InvalidInput) as caught:
        replace(e, **changes)
    assert message in str(caught.value)


def test_names():
    assert repr(pictured()) == (
        "<ImageExplanation of tabby cat: 16 × 16 pixels of a picture of 48 × 60>"
    )
    assert "4 × 4 patches" in repr(pictured().by_patches(4))
    text = str(pictured())
    assert "explained         label tabby cat\n" in text
    assert "60 × 48, shown to the model as 16 × 16; it saw 80% of it" in text
