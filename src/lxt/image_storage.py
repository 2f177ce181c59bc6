"""How explanations of pictures are stored: safetensors, or JSON, and read from either."""

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from safetensors.torch import save

from lxt import image_json, kinds, storage
from lxt.errors import InvalidInput
from lxt.geometry import Geometry
from lxt.image_json import FORMAT, VERSION
from lxt.json_node import Node

if TYPE_CHECKING:
    from lxt.image_explanation import ImageExplanation

_TENSORS = ("relevance", "image")


def to_safetensors(explanation: "ImageExplanation") -> bytes:
    """Return the tensors, with all else as JSON in the header of the safetensors format."""
    content = {
        "geometry": asdict(explanation.geometry),
        "target": asdict(explanation.target),
        "provenance": explanation.provenance,
    }
    header = {"format": FORMAT, "version": str(VERSION), "content": json.dumps(content)}
    tensors = {name: getattr(explanation, name).contiguous() for name in _TENSORS}
    return save(tensors, metadata=header)


def read(path: str | os.PathLike[str]) -> "ImageExplanation":
    """Read an explanation of a picture in safetensors or JSON, whichever the file holds.

    Raises:
        InvalidFile: the file can't be read, or holds something else; quotes path and reason.

    """
    with storage.reading(repr(os.fspath(path)), "a saved explanation of a picture"):
        found = storage.opened(path)
        return image_json.read(found) if isinstance(found, Node) else of_stored(found)


def read_json(source: str | os.PathLike[str]) -> "ImageExplanation":
    """Read one from JSON: the text itself, which begins with a brace, or a file of it.

    Raises:
        InvalidFile: the file can't be read, or it is something else; quotes path and place.

    """
    with storage.reading(storage.name_of(source), "an explanation of a picture in JSON"):
        return image_json.parse(storage.json_text(source))


def of_stored(file: storage.Stored) -> "ImageExplanation":
    """Read what ``to_safetensors`` gave.

    Raises:
        InvalidInput: it is something else.

    """
    from lxt.image_explanation import ImageExplanation

    content = _content(file.header)
    geometry = storage.with_keys(content["geometry"], {"image", "pixels", "box"}, "geometry")
    return ImageExplanation(
        **file.tensors(_TENSORS),
        geometry=Geometry(**geometry),
        target=storage.target_of(content["target"]),
        provenance=content["provenance"],
    )


def _content(header: dict[str, str]) -> dict[str, Any]:
    kinds.check(header.get("format"), FORMAT)
    if header.get("format") != FORMAT:
        raise InvalidInput(f"its header does not name the format {FORMAT}")
    version = header.get("version", "")
    if version != str(VERSION):
        raise InvalidInput(
            f"it has format version {version!r}, and this version of lxt reads {VERSION}"
        )
    fields = {"geometry", "target", "provenance"}
    return storage.with_keys(storage.content_of(header), fields, "header")
