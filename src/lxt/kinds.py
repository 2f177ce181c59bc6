"""The kinds of explanations that files hold: which one it is, and reading it whichever it is."""

import os
from typing import TYPE_CHECKING, Any

from lxt.errors import InvalidInput

if TYPE_CHECKING:
    from lxt.explanation import Explanation
    from lxt.image_explanation import ImageExplanation
    from lxt.json_node import Node
    from lxt.storage import Stored

TEXT = "lxt.explanation"
IMAGE = "lxt.image_explanation"

_READERS = {TEXT: ("text", "lxt.Explanation"), IMAGE: ("a picture", "lxt.ImageExplanation")}


def check(format: Any, wanted: str) -> None:
    """Raise where a file names another of these formats than the one that it should be of.

    Raises:
        InvalidInput: says what it holds, and what reads that.

    """
    if isinstance(format, str) and format != wanted and format in _READERS:
        what, name = _READERS[format]
        raise InvalidInput(f"it is one of {what}, which {name}.load and {name}.from_json read")


def load(path: str | os.PathLike[str]) -> "Explanation | ImageExplanation":
    """Read an explanation of any kind, in safetensors or JSON, whichever the file holds.

    Raises:
        InvalidFile: the file can't be read, or holds something else; quotes path and reason.

    """
    from lxt import storage

    with storage.reading(repr(os.fspath(path)), "a saved explanation"):
        return _explanation(storage.opened(path))


def from_json(data: bytes, name: str) -> "Explanation | ImageExplanation":
    """Read an explanation of any kind from JSON, which error messages call by that name.

    Raises:
        InvalidFile: it is something else; quotes the name and the place.

    """
    from lxt import storage
    from lxt.json_node import document_of

    with storage.reading(name, "an explanation in JSON"):
        return _explanation(document_of(storage.text_of(data)))


def _explanation(found: "Node | Stored") -> "Explanation | ImageExplanation":
    from lxt import image_json, image_storage, json_format, storage
    from lxt.json_node import Node

    if isinstance(found, Node):
        is_image = isinstance(found.value, dict) and found.value.get("format") == IMAGE
        return image_json.read(found) if is_image else json_format.read(found)
    is_image = found.header.get("format") == IMAGE
    return image_storage.of_stored(found) if is_image else storage.of_stored(found)
