"""Explanations of pictures as JSON: the picture as PNG within, and every mistake named.

What the fields are is said by ``image_explanation.schema.json`` beside this file, and in
``docs/explanation-format.md``. ``parse`` refuses what the schema refuses, and what no schema can
say: a picture that is none or of another size, lists of different lengths, a box that has nothing
of the picture in it.
"""

import base64
import binascii
import io
import json
import re
import struct
from dataclasses import asdict
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lxt import json_format, kinds
from lxt.errors import InvalidInput
from lxt.geometry import Geometry
from lxt.json_node import Node, document_of

if TYPE_CHECKING:
    from lxt.image_explanation import ImageExplanation

FORMAT = kinds.IMAGE
VERSION = 1
"""Of what is written, and all that is read."""

MOST_PIXELS = 2**26
"""Of a picture in JSON. A PNG of a few bytes may ask for any amount of memory."""

_FIELDS = (
    *("format", "version", "dtype", "relevance", "image", "geometry", "target", "provenance"),
)
_PREFIX = "data:image/png;base64,"
_URI = re.compile(re.escape(_PREFIX) + r"[A-Za-z0-9+/]+={0,2}")
_LARGEST_SIZE = 2**31 - 1  # of a PNG
_FARTHEST = 1e9  # of a box, as lxt.Geometry has it
_PNG = struct.Struct(">8sI4sIIBB")
_SIGNATURE, _RGB = b"\x89PNG\r\n\x1a\n", 2


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of what ``ImageExplanation.to_json`` writes."""
    file = resources.files("lxt") / "image_explanation.schema.json"
    return json.loads(file.read_text("utf-8"))


def to_json(explanation: "ImageExplanation") -> str:
    """Return all of it as JSON of ASCII characters only.

    Raises:
        InvalidInput: the picture has more pixels than are read back.

    """
    height, width = explanation.geometry.image
    if height * width > MOST_PIXELS:
        raise InvalidInput(
            f"the picture has {height} × {width} pixels, and JSON holds up to {MOST_PIXELS}: "
            "save(path) writes any"
        )
    content = {
        "format": FORMAT,
        "version": VERSION,
        "dtype": str(explanation.relevance.dtype).removeprefix("torch."),
        "target": json_format.target_fields(explanation.target),
        "provenance": explanation.provenance,
        "geometry": asdict(explanation.geometry),
        "relevance": explanation.relevance.tolist(),
        "image": _uri(explanation.image),
    }
    fields = [f'"{name}": {json.dumps(content[name], allow_nan=False)}' for name in content]
    return "{\n " + ",\n ".join(fields) + "\n}\n"


def parse(text: str) -> "ImageExplanation":
    """Read what ``to_json`` wrote.

    Raises:
        InvalidInput: it is something else; says where, as ``relevance[3][0]``.

    """
    return read(document_of(text))


def read(document: Node) -> "ImageExplanation":
    """Read a document as ``parse`` does."""
    from lxt.image_explanation import ImageExplanation

    kinds.check(document.fields(("format", "version"), others=True)["format"].value, FORMAT)
    document["format"].one_of((FORMAT,))
    version = document["version"].value
    if isinstance(version, bool) or version != VERSION:
        raise document["version"].is_not(f"{VERSION}, all that this version of lxt reads")
    document.fields(_FIELDS)
    geometry = _geometry(document["geometry"])
    dtype = getattr(torch, document["dtype"].one_of(("float32", "float64")))
    return ImageExplanation(
        relevance=_relevance(document["relevance"], dtype),
        image=_picture(document["image"], geometry.image),
        geometry=geometry,
        target=json_format.target_of(document["target"]),
        provenance=document["provenance"].strings(),
    )


def _geometry(node: Node) -> Geometry:
    node.fields(("image", "pixels", "box"))
    sizes = {}
    for name in ("image", "pixels"):
        _has_length(node[name], 2, "a height and a width")
        sizes[name] = [size.integer(1, _LARGEST_SIZE) for size in node[name].items()]
    _has_length(node["box"], 4, "top, left, bottom and right")
    box = [edge.number() for edge in node["box"].items()]
    for edge in node["box"].items():
        if abs(edge.value) >= _FARTHEST:
            raise edge.is_not(f"a number below {_FARTHEST:.0f} in size")
    try:
        return Geometry(**sizes, box=(box[0], box[1], box[2], box[3]))
    except InvalidInput as error:
        raise node.wrong(str(error)) from None


def _has_length(node: Node, length: int, what: str) -> None:
    if len(node.list()) != length:
        raise node.is_not(f"a list of {what}")


def _relevance(node: Node, dtype: torch.dtype) -> Tensor:
    rows = node.list()
    if not rows:
        raise node.is_not("a list of one row or more")
    columns = len(Node(rows[0], f"{node.place}[0]").list())
    if not columns:
        raise Node(rows[0], f"{node.place}[0]").is_not("a list of one number or more")
    sizes = [("rows", len(rows)), ("columns", columns)]
    values = json_format.nested(node, sizes, torch.finfo(dtype).max)
    return torch.tensor(values, dtype=torch.float64).to(dtype)


def _uri(picture: Tensor) -> str:
    file = io.BytesIO()
    Image.fromarray(picture.numpy()).save(file, "PNG")
    return _PREFIX + base64.b64encode(file.getvalue()).decode()


def _picture(node: Node, size: tuple[int, int]) -> Tensor:
    """Return a PNG's pixels, uint8 ``[height, width, 3]``, if it is of this size."""
    if not _URI.fullmatch(node.string()):
        raise node.is_not(f"{_PREFIX} and a PNG in base64")
    try:
        data = base64.b64decode(node.value.removeprefix(_PREFIX), validate=True)
    except binascii.Error as error:
        raise node.wrong(f"it is not base64: {error}") from None
    _check_header(node, data, size)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            pixels = np.array(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise node.wrong(f"the PNG can't be read: {error}") from None
    return torch.from_numpy(pixels)


def _check_header(node: Node, data: bytes, size: tuple[int, int]) -> None:
    """Refuse other kinds and sizes by the first bytes, before there is memory for any pixel."""
    if len(data) < _PNG.size:
        raise node.wrong("it is not a PNG")
    signature, _, kind, width, height, bits, colours = _PNG.unpack_from(data)
    if signature != _SIGNATURE or kind != b"IHDR":
        raise node.wrong("it is not a PNG")
    if (bits, colours) != (8, _RGB):
        raise node.wrong(f"the PNG has {bits} bits of colour type {colours}, not 8 of type {_RGB}")
    if (height, width) != size:
        raise node.wrong(
            f"the PNG has {height} × {width} pixels, and geometry.image is {list(size)}"
        )
    if height * width > MOST_PIXELS:
        raise node.wrong(f"the PNG has {height} × {width} pixels, more than {MOST_PIXELS}")
