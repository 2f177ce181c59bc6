"""Pictures of any kind are read; what is saved comes back, and nothing else does."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from lxt.errors import InvalidFile, InvalidInput, UnwritableFile
from lxt.image_explanation import ImageExplanation
from lxt.pictures import read_picture
from pictured import TARGET, photo, pictured, same_picture

# Pictures


def test_pictures_of_every_mode_are_read():
    rgb = photo()
    deep = np.asarray(rgb.convert("L")).astype(np.uint16) * 257
    images = [rgb.convert(mode) for mode in ("1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr")]
    images += [rgb, rgb.convert("HSV"), Image.fromarray(deep)]
    for image in images:
        read = read_picture(image)
        assert (read.dtype, list(read.shape)) == (torch.uint8, [48, 60, 3])
        wanted = rgb.convert("L").convert("RGB") if image.mode in ("L", "LA", "I;16") else None
        if image.mode in ("RGBA", "CMYK", "RGB"):
            wanted = rgb
        if wanted is not None:
            assert np.abs(read.numpy().astype(int) - np.asarray(wanted)).max() <= 1
    assert images[-1].mode == "I;16"


def test_arrays_and_tensors_are_read_and_copied():
    array = np.array(photo())
    read = read_picture(array)
    array[:] = 0
    assert read.any()
    grey = torch.arange(12, dtype=torch.uint8).reshape(3, 4)
    for one in (grey, grey[..., None], grey.numpy()):
        assert torch.equal(read_picture(one), grey[..., None].repeat(1, 1, 3))


def test_a_rotation_in_exif_is_left_as_image_processors_leave_it():
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(20, 30).save(file, "PNG", exif=exif)
    image = Image.open(io.BytesIO(file.getvalue()))
    read = read_picture(image)
    assert list(read.shape) == [20, 30, 3]
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
    x = processor(image, return_tensors="pt").pixel_values
    e = ImageExplanation.from_pixels(image, x, processor, gradient=x, target=TARGET)
    assert e.geometry.image == (20, 30)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("cat.png", "image is a str, not a PIL image"),
        (None, "image is a NoneType"),
        (np.ones((4, 4, 3)), "image is float64 [4, 4, 3], not uint8"),
        (torch.ones(4, 4, 3), "image is float32 [4, 4, 3], not uint8"),
        (np.ones((3, 4, 5), np.uint8), "image.transpose(1, 2, 0) is that"),
        (torch.ones(3, 4, 5, dtype=torch.uint8), "image.permute(1, 2, 0) is that"),
        (np.ones((4, 4, 4), np.uint8), "image is uint8 [4, 4, 4], not [height, width, 3]"),
        (np.ones((1, 4, 4, 3), np.uint8), "image is uint8 [1, 4, 4, 3]"),
        (np.ones(4, np.uint8), "image is uint8 [4]"),
        (np.ones((0, 4, 3), np.uint8), "image has no pixels"),
        (np.array([["a"]]), "not uint8"),
        (Image.fromarray(np.ones((4, 4), np.float32)), "PIL's mode 'F'"),
        (Image.fromarray(np.ones((4, 4), np.int32)), "PIL's mode 'I'"),
        (Image.new("RGB", (0, 4)), "image has no pixels"),
    ],
)
def test_what_is_no_picture_is_refused(image, message):
    with pytest.raises(InvalidInput) as caught:
        read_picture(image)
    assert message in str(caught.value)


def test_a_broken_file_is_refused():
    file = io.BytesIO()
    photo(200, 200).save(file, "PNG")
    broken = Image.open(io.BytesIO(file.getvalue()[:2000]))
    with pytest.raises(InvalidInput, match="can't be read as RGB"):
        read_picture(broken)


# Files


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path, dtype):
    e = pictured(torch.randn(4, 8, dtype=dtype), provenance={"\ud800</script>": "\x00"})
    e.save(tmp_path / "e.safetensors")
    same_picture(ImageExplanation.load(tmp_path / "e.safetensors"), e)


def _saved(tmp_path, tensors=None, content=None, **header):
    path = tmp_path / "e.safetensors"
    pictured().save(path)
    with safe_open(path, "pt") as file:
        meta = file.metadata()
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    changed = json.loads(meta["content"])
    for key, value in (content or {}).items():
        changed[key] = value
    meta["content"] = json.dumps(changed)
    kept = {k: v for k, v in (kept | (tensors or {})).items() if v is not None}
    path.write_bytes(save(kept, metadata=meta | header))
    return path


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "pt"}, "does not name the format lxt.image_explanation"),
        ({"format": "lxt.explanation"}, "it is one of text, which lxt.Explanation.load and"),
        ({"version": "2"}, "format version '2'"),
        ({"tensors": {"image": None}}, "it lacks image"),
        ({"tensors": {"relevance": torch.full((16, 16), torch.nan)}}, "NaN or infinity"),
        ({"tensors": {"relevance": torch.ones(3, 16)}}, "relevance has shape [3, 16]"),
        ({"tensors": {"image": torch.ones(4, 4, 3, dtype=torch.uint8)}}, "image has shape"),
        ({"content": {"geometry": {"image": [1]}}}, "its geometry does not hold exactly"),
        (
            {"content": {"geometry": {"image": [48, 60], "pixels": [16, 16], "box": "a"}}},
            "box 'a' is not top",
        ),
        ({"content": {"target": None}}, "its target does not hold exactly"),
        ({"content": {"provenance": [1]}}, "is not a dict of strings"),
        ({"content": {"more": 1}}, "its header does not hold exactly"),
    ],
)
def test_hostile_files_are_refused(tmp_path, changes, reason):
    path = _saved(tmp_path, **changes)
    with pytest.raises(InvalidFile) as caught:
        ImageExplanation.load(path)
    assert reason in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"x" * 100, b"\xff" * 8 + b"{}"])
def test_other_files_are_refused(tmp_path, data):
    path = tmp_path / "e.safetensors"
    path.write_bytes(data)
    with pytest.raises(InvalidFile, match="is not a saved explanation of a picture"):
        ImageExplanation.load(path)
    with pytest.raises(InvalidFile, match="is not a saved explanation of a picture"):
        ImageExplanation.load(tmp_path / "missing")


@pytest.mark.parametrize("method", ["save", "to_json", "to_image", "to_pdf", "to_html"])
def test_files_are_whole_or_not_at_all(tmp_path, method):
    e = pictured()
    write = getattr(e, method)
    with pytest.raises(UnwritableFile):
        write(tmp_path / "missing" / "e.png")
    path = tmp_path / "e.png"
    path.write_text("old")
    write(path)
    assert path.read_bytes() != b"old"
    assert os.listdir(tmp_path) == ["e.png"]  # noqa: PTH208
    assert Path(path).stat().st_size > 100
