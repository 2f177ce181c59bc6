"""Where a model's pixels lie in a picture: measured on processors, and compared with pictures."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from lxt.errors import InvalidInput
from lxt.geometry import Geometry
from lxt.probing import pixels_of
from pictured import photo

SIZES = st.integers(1, 40)
RANDOM = np.random.default_rng(0)


def processor(name, **options):
    module = {"ViT": "vit", "CLIP": "clip", "ConvNext": "convnext", "Owlv2": "owlv2"}
    folder = module.get(name, name.lower())
    found = __import__(
        f"transformers.models.{folder}.image_processing_pil_{folder}", fromlist=["x"]
    )
    return getattr(found, f"{name}ImageProcessorPil")(**options)


CASES = {
    "resized": (processor("ViT"), (224, 224)),
    "not resized": (processor("ViT", do_resize=False), None),
    "enlarged": (processor("ViT", size={"height": 300, "width": 500}), (300, 500)),
    "nearest": (processor("ViT", resample=0), (224, 224)),
    "cubic": (processor("ViT", resample=3), (224, 224)),
    "cropped after": (processor("CLIP"), (224, 224)),
    "only cropped": (processor("CLIP", do_resize=False, crop_size=30), (30, 30)),
    "cropped to more than there is": (processor("CLIP", do_resize=False), (224, 224)),
    "crop_pct": (processor("ConvNext", size={"shortest_edge": 224}), (224, 224)),
    "both edges": (processor("DeiT"), (224, 224)),
    "cropped before": (processor("Perceiver"), (224, 224)),
    "padded to a square before": (
        processor("Owlv2", size={"height": 224, "width": 224}),
        (224, 224),
    ),
    "padded after": (processor("Janus"), (384, 384)),
    "channels reversed": (processor("MobileViT"), (256, 256)),
    "of its own size": (processor("Yolos", size={"shortest_edge": 64, "longest_edge": 128}), None),
}


def expected(geometry, picture):
    """What the model sees, sampled at the centres of its pixels: PIL's own affine transform."""
    (height, width), (down, across) = geometry.pixels, geometry.scale
    top, left = geometry.box[:2]
    # Smoothed first, as it is when it is made smaller.
    if max(down, across) > 1:
        small = (round(picture.width / max(across, 1)), round(picture.height / max(down, 1)))
        small = picture.resize(small, Image.Resampling.BILINEAR)
        picture = small.resize(picture.size, Image.Resampling.BICUBIC)
    data = (across, 0, left, 0, down, top)
    method = Image.Transform.AFFINE, data, Image.Resampling.BILINEAR
    return np.asarray(picture.transform((width, height), *method))


def inside(geometry, margin=2.0):
    """Which of the model's pixels lie within the picture, away from its edges."""
    masks = []
    for axis in (0, 1):
        start, length = geometry.box[axis], geometry.image[axis]
        centres = start + (np.arange(geometry.pixels[axis]) + 0.5) * geometry.scale[axis]
        away = margin * max(1.0, geometry.scale[axis])
        masks.append((centres > away) & (centres < length - away))
    return masks[0][:, None] & masks[1]


@pytest.mark.parametrize("size", [(120, 91), (75, 200), (300, 300), (64, 64)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_the_geometry_of_a_processor_shows_what_it_shows(name, size):
    processor, pixels = CASES[name]
    geometry = Geometry.of(processor, size)
    assert geometry.image == size
    assert geometry.pixels == (pixels or geometry.pixels)
    picture = photo(*size)
    made = pixels_of(processor, torch.from_numpy(np.array(picture))).movedim(0, -1).numpy()
    low, high = (
        pixels_of(processor, torch.full((*size, 3), value, dtype=torch.uint8)).movedim(0, -1)
        for value in (0, 255)
    )
    within = inside(geometry)
    assert within.sum() > 100
    low, high = low.numpy()[within], high.numpy()[within]
    seen = (made[within] - low) / (high - low) * 255
    if name == "channels reversed":
        seen = seen[..., ::-1]

    def error(down, across):
        # By a pixel of the model's or of the picture, whichever is larger.
        high, wide = (max(1.0, step) for step in geometry.scale)
        top, left, bottom, right = geometry.box
        moved = (top + down * high, left + across * wide)
        moved += (bottom + down * high, right + across * wide)
        return np.abs(expected(replace(geometry, box=moved), picture)[within] - seen).mean()

    least = min(error(*move) for move in [(-1, 0), (1, 0), (0, -1), (0, 1)])
    # The nearest pixel may be half of one away.
    assert error(0, 0) < min(5 if name == "nearest" else 2.5, 0.8 * least)


@pytest.mark.parametrize(
    ("name", "size", "box"),
    [
        ("resized", (333, 500), (0, 0, 333, 500)),
        ("not resized", (333, 500), (0, 0, 333, 500)),
        ("nearest", (333, 500), (0, 0, 333, 500)),
        ("cropped after", (300, 600), (0, 150, 300, 450)),
        ("only cropped", (100, 50), (35, 10, 65, 40)),
        ("only cropped", (1000, 3001), (485, 1485, 515, 1515)),
        ("cropped to more than there is", (100, 60), (-62, -82, 162, 142)),
        ("crop_pct", (256, 256), (16, 16, 240, 240)),
        ("padded to a square before", (333, 500), (0, 0, 500, 500)),
        ("padded after", (200, 400), (-100, 0, 300, 400)),
        ("cropped before", (333, 500), (21, 104, 312, 395)),
    ],
)
def test_geometries_known_by_arithmetic_are_found_exactly(name, size, box):
    assert Geometry.of(CASES[name][0], size).box == pytest.approx(box, abs=1e-9)


@pytest.mark.parametrize("size", [(900, 611), (611, 900), (401, 400), (50, 71)])
def test_others_are_found_to_a_tenth_of_a_pixel_of_the_model(size):
    geometry = Geometry.of(CASES["padded to a square before"][0], size)
    assert geometry.box == pytest.approx((0, 0, max(size), max(size)), abs=0.15 * geometry.scale[0])


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (5, 5), (2, 1500), (1500, 3)])
def test_tiny_and_elongated_pictures(size):
    assert Geometry.of(CASES["resized"][0], size).box == (0, 0, *size)


@settings(deadline=None, max_examples=25)
@given(st.integers(8, 300), st.integers(8, 300), st.integers(8, 64), st.integers(8, 64))
def test_any_size_to_any_size(height, width, rows, columns):
    resized = processor("ViT", size={"height": rows, "width": columns})
    geometry = Geometry.of(resized, (height, width))
    assert geometry == Geometry.whole((height, width), (rows, columns))


@settings(deadline=None, max_examples=25)
@given(st.integers(8, 300), st.integers(8, 300), st.integers(20, 64))
def test_any_size_cropped(height, width, side):
    """After the rule of such processors: the shorter edge, then the middle."""
    clip = processor("CLIP", size={"shortest_edge": side}, crop_size=side)
    geometry = Geometry.of(clip, (height, width))
    short, long = sorted((height, width))
    edges = {short: side, long: int(side * long / short)}
    for axis, length in enumerate((height, width)):
        step = length / edges[length]
        start = int((edges[length] - side) / 2) * step
        found = geometry.box[axis], geometry.box[axis + 2]
        assert found == pytest.approx((start, start + side * step), abs=0.3 * max(step, 0.2))


def test_functions_and_processors_of_several_kinds():
    vit = CASES["resized"][0]
    smaller = functools.partial(vit, size={"height": 32, "width": 32})
    assert Geometry.of(smaller, (50, 60)).pixels == (32, 32)

    class Both:
        image_processor = vit

        def __call__(self, text):
            raise AssertionError("given a picture as text")

    assert Geometry.of(Both(), (50, 60)).pixels == (224, 224)

    def like_torchvision(picture):
        small = np.asarray(picture.resize((24, 20)))
        return torch.from_numpy(small.copy()).permute(2, 0, 1) / 255

    assert Geometry.of(like_torchvision, (50, 60)) == Geometry.whole((50, 60), (20, 24))


def _array(picture):
    return np.moveaxis(np.asarray(picture, dtype=float), -1, 0)


def _reflecting(picture):
    return np.pad(_array(picture), ((0, 0), (20, 20), (20, 20)), "reflect")


REFUSED = {
    "patches": (lambda p: np.zeros((64, 588)), "makes patches"),
    "tiles": (lambda p: np.zeros((1, 7, 3, 30, 30)), "several pictures of one"),
    "turned": (lambda p: _array(p).swapaxes(1, 2), "something else than to resize"),
    "mirrored": (lambda p: _array(p)[..., ::-1], "something else than to resize"),
    "mirrored up": (lambda p: _array(p)[:, ::-1], "something else than to resize"),
    "reflected": (_reflecting, "something else than to resize"),
    "gamma": (lambda p: (_array(p) / 255) ** 2, "something else than to resize"),
    "equalised": (lambda p: _array(p) - _array(p).mean(), "in one rectangle|something else"),
    "constant": (lambda p: np.zeros((3, 30, 30)), "in one rectangle"),
    "a hole": (lambda p: _array(p) * (np.indices((60, 80)).sum(0) % 7 > 0), "in one rectangle"),
    "random": (lambda p: _array(p)[..., (k := int(RANDOM.integers(20))) : k + 50], "chance|else"),
    "trimmed": (
        lambda p: np.stack([_array(p)[0][:, : 40 + int(_array(p)[0, 0, 0] > 9)]] * 3),
        "dep",
    ),
    "failing": (lambda p: 1 / 0, "ZeroDivisionError: division by zero"),
    "no pixels": (lambda p: {"input_ids": [1]}, "it gives input_ids, no pixel_values"),
    "ragged": (lambda p: {"pixel_values": [np.zeros((3, 2, 2)), np.zeros(3)]}, "one array"),
    "text": (lambda p: "pixels", "not one array of numbers"),
    "no function": (None, "can't be called"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_resized_cropped_or_padded_is_refused(name):
    processor, reason = REFUSED[name]
    with pytest.raises(InvalidInput, match=reason) as caught:
        Geometry.of(processor, (60, 80))
    assert "lxt.Geometry(image=(60, 80), pixels=(height, width), box=(top" in str(caught.value)


@pytest.mark.parametrize("folder", ["qwen2_vl", "siglip2", "idefics3", "nougat", "zoedepth"])
def test_processors_of_patches_tiles_and_content_are_refused(folder):
    module = __import__(
        f"transformers.models.{folder}.image_processing_pil_{folder}", fromlist=["x"]
    )
    (name,) = [name for name in module.__all__ if name.endswith("Pil")]
    with pytest.raises(InvalidInput, match="can't tell where the pixels of"):
        Geometry.of(getattr(module, name)(), (120, 200))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": (0, 5)}, "image (0, 5) is not a height and a width"),
        ({"image": (5,)}, "image (5,) is not"),
        ({"image": (True, 5)}, "image (True, 5) is not"),
        ({"pixels": (2.0, 2)}, "pixels (2.0, 2) is not"),
        ({"pixels": "22"}, "pixels '22' is not"),
        ({"box": (0, 0, 0, 5)}, "box (0, 0, 0, 5) is not top, left"),
        ({"box": (0, 0, float("nan"), 5)}, "is not top, left"),
        ({"box": (0, 0, float("inf"), 5)}, "is not top, left"),
        ({"box": (0, 0, 5)}, "is not top, left"),
        ({"box": (0, 30, 5, 40)}, "holds nothing of a picture of 10 × 20"),
        ({"box": (-5, 0, 0, 5)}, "holds nothing of"),
    ],
)
def test_wrong_geometries_are_refused(fields, message):
    with pytest.raises(InvalidInput) as caught:
        Geometry(**{"image": (10, 20), "pixels": (4, 4), "box": (0, 0, 10, 20)} | fields)
    assert message in str(caught.value)


def test_scale_and_what_is_seen():
    geometry = Geometry((10, 20), (10, 5), [-5, 0, 5, 10])
    assert (geometry.scale, geometry.scaled) == ((1, 2), (False, True))
    assert geometry.seen == (0, 0, 5, 10)
    assert geometry == Geometry((10, 20), (10, 5), (-5.0, 0.0, 5.0, 10.0))


def naive_shares(start, end, cells, length, pixels):
    step, side = (end - start) / cells, length / pixels
    return [
        [
            max(0.0, min((i + 1) * side, start + (j + 1) * step) - max(i * side, start + j * step))
            / step
            for j in range(cells)
        ]
        for i in range(pixels)
    ]


@settings(deadline=None)
@given(
    st.tuples(SIZES, SIZES),
    st.tuples(SIZES, SIZES),
    st.tuples(st.floats(-30, 30), st.floats(-30, 30), st.floats(0.1, 60), st.floats(0.1, 60)),
)
def test_shares_are_overlaps(image, grid, box):
    top, left, high, wide = box
    if top >= image[0] or left >= image[1] or top + high <= 0 or left + wide <= 0:
        return
    geometry = Geometry(image, grid, (top, left, top + high, left + wide))
    for axis, shares in enumerate(geometry.shares(grid)):
        start, end = geometry.box[axis], geometry.box[axis + 2]
        wanted = naive_shares(start, end, grid[axis], image[axis], image[axis])
        assert shares.shape == (image[axis], grid[axis])
        assert torch.allclose(shares, torch.tensor(wanted, dtype=torch.float64), atol=1e-9)
        assert (shares >= 0).all()
