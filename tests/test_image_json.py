"""Pictures in JSON: not a bit is lost; schema and reader refuse the same broken documents."""

import base64
import copy
import io
import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from jsonschema import Draft202012Validator
from PIL import Image

import lxt
from explained import single
from lxt import image_json
from lxt.errors import InvalidFile, InvalidInput
from lxt.explained import KINDS
from lxt.image_explanation import ImageExplanation
from pictured import photo, pictured, same_picture, stored

DATA = Path(__file__).parent / "data"
SCHEMA = Draft202012Validator(image_json.schema())
PREFIX = "data:image/png;base64,"
# What a schema can't say.
UNSAID = re.compile(
    "given where there are|PNG|not base64|holds nothing of a picture|is not top, left|"
    "relevance has shape"
)


def read_back(document):
    return ImageExplanation.from_json(json.dumps(document))


def refused(document, message):
    with pytest.raises(InvalidFile, match=re.escape(message)) as caught:
        read_back(document)
    assert str(caught.value).startswith("the text is not an explanation of a picture in JSON: ")


def written(explanation=None):
    return json.loads((stored() if explanation is None else explanation).to_json())


def uri(data):
    return PREFIX + base64.b64encode(data).decode()


def png(image, **options):
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


# What is written


def test_the_schema_is_one_and_says_what_each_field_is():
    Draft202012Validator.check_schema(image_json.schema())
    fields = image_json.schema()["properties"]
    for part in (fields, fields["target"]["properties"], fields["geometry"]["properties"]):
        for name, field in part.items():
            assert field["description"], name
    assert tuple(fields["target"]["properties"]["kind"]["enum"]) == KINDS


def test_the_documentation_names_every_field_and_its_example_is_valid():
    text = (DATA.parents[1] / "docs" / "explanation-format.md").read_text("utf-8")
    part = text[text.index("# Explanations of pictures") :]
    (example,) = re.findall(r"^```jsonc?\n(.*?)^```", part, re.DOTALL | re.MULTILINE)
    SCHEMA.validate(json.loads(example))
    assert ImageExplanation.from_json(example).relevance.tolist() == [[0.5, -2.0]]
    fields = image_json.schema()["properties"]
    for name in [*fields, *fields["geometry"]["properties"]]:
        assert f"| `{name}` |" in part, name


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from([torch.float32, torch.float64]),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.integers(0, 2**31),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
)
def test_what_is_written_fits_the_schema_and_reads_back_to_the_bit(
    dtype, image, grid, seed, provenance
):
    generator = torch.Generator().manual_seed(seed)
    relevance = torch.randn(grid, generator=generator, dtype=torch.float64) ** 21
    picture = torch.randint(256, (*image, 3), generator=generator, dtype=torch.uint8)
    e = pictured(
        relevance.to(dtype),
        image=image,
        pixels=(grid[0] * 2, grid[1]),
        box=(-1 / 3, 0.1, image[0], image[1] + 0.7),
        provenance=provenance,
    )
    e = ImageExplanation(e.relevance, picture, e.geometry, e.target, e.provenance)
    text = e.to_json()
    assert text.isascii()
    SCHEMA.validate(json.loads(text, parse_constant=pytest.fail))
    same_picture(ImageExplanation.from_json(text), e)
    assert ImageExplanation.from_json(text).to_json() == text


@pytest.mark.parametrize("kind", ["json", "safetensors"])
def test_files_of_every_version_are_read(kind):
    same_picture(ImageExplanation.load(DATA / f"image_explanation_v1.{kind}"), stored())


def test_a_file_of_this_version_is_what_is_written_today():
    document = json.loads((DATA / "image_explanation_v1.json").read_text("utf-8"))
    assert {key: document[key] for key in document if key != "image"} == {
        key: value
        for key, value in written().items()
        if key != "image"  # zlib's own choice
    }
    SCHEMA.validate(document)


def test_a_text_a_path_and_a_file_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "{x}.json"
    path.write_text(stored().to_json(), "utf-8-sig")
    for read in (ImageExplanation.from_json, ImageExplanation.load):
        same_picture(read(path), stored())
        same_picture(read(str(path)), stored())
    same_picture(ImageExplanation.from_json("\n " + stored().to_json()), stored())
    assert stored().to_json(path) is None
    assert path.read_text("utf-8") == stored().to_json()


# What is refused


def places(document, place=()):
    yield place
    if isinstance(document, dict | list):
        for key in document if isinstance(document, dict) else range(len(document)):
            yield from places(document[key], (*place, key))


def at(document, place):
    *path, last = place
    for key in path:
        document = document[key]
    return document, last


NUMBERS = [0, 1, 2, 1.0, -1, 0.5, 1e9, -1e9, 1e39, 10**400, 2**31, 3.0]
LISTS = [[], [0.5], [[0.5]], [[]], [[0.5], [1, 2]], [1, 2], [1, 2, 3, 4]]
OTHERS = [None, True, "", "sum", "float32", "float64", PREFIX, PREFIX + "AA==", {}, {"model": 1}]
ODD = st.sampled_from([*NUMBERS, *LISTS, *OTHERS]).map(copy.deepcopy)


@settings(deadline=None, max_examples=400)
@given(st.data())
def test_schema_and_reader_refuse_the_same_documents(data):
    documents = [written(), written(pictured(torch.ones(2, 2, dtype=torch.float64)))]
    document = copy.deepcopy(data.draw(st.sampled_from(documents)))
    for _ in range(data.draw(st.integers(1, 2))):
        inside = [place for place in places(document) if place]
        if not inside:
            break
        parent, key = at(document, data.draw(st.sampled_from(inside)))
        match data.draw(st.sampled_from(["change", "remove", "add"])):
            case "change":
                parent[key] = data.draw(ODD)
            case "remove":
                del parent[key]
            case "add" if isinstance(parent, dict):
                parent[data.draw(st.sampled_from(["extra", "layers"]))] = data.draw(ODD)
            case "add":
                parent.append(copy.deepcopy(parent[key]))
    try:
        read_back(document)
        reason = ""
    except InvalidFile as error:
        reason = str(error)
    assert UNSAID.search(reason) or SCHEMA.is_valid(document) == (not reason), reason


def test_what_a_schema_can_not_say_it_lets_pass():
    """So that the comparison above compares, and does not only look away."""
    for change in (
        {"relevance": [[1.0, 2.0], [3.0]]},
        {"relevance": [[1.0] * 5]},
        {"image": PREFIX + "AA=="},
        {"geometry": {"image": [5, 7], "pixels": [4, 6], "box": [5, 0, 0, 7]}},
    ):
        document = written() | change
        assert SCHEMA.is_valid(document)
        with pytest.raises(InvalidFile):
            read_back(document)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (["format"], "pt", 'format: "pt" is not one of "lxt.image_explanation"'),
        (["format"], "lxt.explanation", "it is one of text, which lxt.Explanation.load and"),
        (["version"], 2, "version: 2 is not 1, all that this version of lxt reads"),
        (["version"], True, "version: true is not 1"),
        (["extra"], 1, 'it has "extra", and should have only format, version'),
        (["dtype"], "float16", 'dtype: "float16" is not one of "float32", "float64"'),
        (["relevance"], [], "relevance: [] is not a list of one row or more"),
        (["relevance"], {}, "relevance: {} is not a list"),
        (["relevance", 0], [], "relevance[0]: [] is not a list of one number or more"),
        (["relevance", 1], [1.0], "relevance[1]: 1 given where there are 3 columns"),
        (["relevance", 1, 2], "x", 'relevance[1][2]: "x" is not a number'),
        (["relevance", 1, 2], 1e39, "relevance[1][2]: 1e+39 is not a number of at most 3.4"),
        (["relevance"], [[1.0] * 5], "relevance has shape [1, 5], and geometry has 4 × 6"),
        (["geometry"], [], "geometry: [] is not an object of image, pixels, box"),
        (["geometry", "image"], [5], "geometry.image: [5] is not a list of a height and a width"),
        (["geometry", "pixels", 0], 0, "geometry.pixels[0]: 0 is not an integer from 1 to"),
        (["geometry", "pixels", 0], 2.5, "geometry.pixels[0]: 2.5 is not an integer from 1 to"),
        (["geometry", "box", 3], 1e9, "geometry.box[3]: 1000000000.0 is not a number below"),
        (["geometry", "box", 3], None, "geometry.box[3]: null is not a number"),
        (["geometry", "box"], [1], "geometry.box: [1] is not a list of top, left, bottom and"),
        (["geometry", "box"], [5, 0, 0, 7], "geometry: box (5, 0, 0, 7) is not top, left,"),
        (["geometry", "box"], [9, 0, 12, 7], "geometry: box (9.0, 0.0, 12.0, 7.0) holds nothing"),
        (["target", "kind"], "x", 'target.kind: "x" is not one of "prediction"'),
        (["provenance", "model"], 3, 'provenance["model"]: 3 is not a string'),
        (["image"], None, "image: null is not a string"),
        (["image"], "cat.png", 'image: "cat.png" is not data:image/png;base64, and a PNG in'),
        (["image"], "data:image/jpeg;base64,AAAA", "is not data:image/png;base64, and a PNG"),
        (["image"], PREFIX + "AAAAA", "image: it is not base64"),
        (["image"], PREFIX + "AAAA", "image: it is not a PNG"),
        (["image"], uri(b"\xff\xd8" + bytes(99)), "image: it is not a PNG"),
        (["image"], uri(png(photo(7, 5))), "image: the PNG has 7 × 5 pixels, and geometry.image"),
        (["image"], uri(png(photo(5, 7).convert("L"))), "image: the PNG has 8 bits of colour type"),
        (["image"], uri(png(photo(5, 7).convert("RGBA"))), "colour type 6, not 8 of type 2"),
        (["image"], uri(png(photo(5, 7).convert("P"))), "colour type 3, not 8 of type 2"),
        (["image"], uri(png(photo(5, 7))[:60]), "image: the PNG can't be read"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path, place, value, message):
    document = written()
    parent, key = at(document, place)
    parent[key] = value
    refused(document, message)
    path = tmp_path / "file"
    path.write_text(json.dumps(document))
    with pytest.raises(InvalidFile, match=re.escape(message)) as caught:
        ImageExplanation.load(path)
    assert repr(str(path)) in str(caught.value)


def _bomb(height, width):
    """A PNG of few bytes that says that it is of that size, and is black as far as it goes."""

    def chunk(kind, data):
        whole = kind + data
        return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1_000_000))
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_picture_that_would_fill_memory_is_refused_by_its_first_bytes(monkeypatch):
    def opened(*arguments, **options):
        raise AssertionError("a picture was opened")

    monkeypatch.setattr("PIL.Image.open", opened)
    document = written(pictured(torch.ones(1, 1), image=(5, 7), pixels=(1, 1), box=(0, 0, 5, 7)))
    document["image"] = uri(_bomb(50_000, 60_000))
    refused(document, "image: the PNG has 50000 × 60000 pixels, and geometry.image is [5, 7]")
    document["geometry"] |= {"image": [50_000, 60_000], "box": [0, 0, 50_000, 60_000]}
    refused(document, "image: the PNG has 50000 × 60000 pixels, more than 67108864")


def test_pictures_that_would_not_be_read_are_not_written(monkeypatch):
    monkeypatch.setattr(image_json, "MOST_PIXELS", 34)
    with pytest.raises(InvalidInput, match="the picture has 5 × 7 pixels, and JSON holds up to 34"):
        stored().to_json()


def test_what_else_a_png_holds_is_left_out():
    """Transparency, gamma and further frames are no part of the colours that are stored."""
    document = written()
    pixels = Image.fromarray(stored().image.numpy())
    for options in (
        {"transparency": tuple(stored().image[0, 0].tolist())},
        {"save_all": True, "append_images": [photo(5, 7, seed=9)], "default_image": True},
        {"dpi": (300, 300)},
    ):
        document["image"] = uri(png(pixels, **options))
        assert np.array_equal(read_back(document).image, stored().image)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "it is not JSON: "),
        ('{"format": NaN}', "NaN is no number"),
        ('{"a": ' * 100_000, "nested too deeply|not JSON"),
        ("{}", "it lacks format, version"),
    ],
)
def test_texts_that_are_refused(text, reason):
    with pytest.raises(InvalidFile, match=f"^the text is not an explanation of a .*({reason})"):
        ImageExplanation.from_json(text)


@pytest.mark.parametrize("form", ["json", "safetensors"])
def test_files_of_the_other_kind_are_named(tmp_path, form):
    picture, text = tmp_path / f"picture.{form}", tmp_path / f"text.{form}"
    for explanation, path in ((stored(), picture), (single(), text)):
        explanation.to_json(path) if form == "json" else explanation.save(path)
    with pytest.raises(
        InvalidFile, match="it is one of a picture, which lxt.ImageExplanation.load"
    ):
        lxt.Explanation.load(picture)
    with pytest.raises(InvalidFile, match="it is one of text, which lxt.Explanation.load and"):
        lxt.ImageExplanation.load(text)
    if form == "json":
        with pytest.raises(InvalidFile, match="and lxt.ImageExplanation.from_json read"):
            lxt.Explanation.from_json(picture.read_text())
