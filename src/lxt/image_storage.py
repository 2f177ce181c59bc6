"""How explanations of pictures are stored: safetensors to read back, JSON to hand on."""

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lxt.errors import InvalidFile, InvalidInput
from lxt.explained import ExplainedTarget
from lxt.geometry import Geometry

if TYPE_CHECKING:
    from lxt.image_explanation import ImageExplanation

FORMAT = "lxt.image_explanation"
VERSION = 1
"""Of what is written, and all that is read."""

_TENSORS = ("relevance", "image")


def to_safetensors(explanation: "ImageExplanation") -> bytes:
    """Return the tensors, with all else as JSON in the header of the safetensors format."""
    header = {"format": FORMAT, "version": str(VERSION), "content": json.dumps(_rest(explanation))}
    tensors = {name: getattr(explanation, name).contiguous() for name in _TENSORS}
    return save(tensors, metadata=header)


def to_json(explanation: "ImageExplanation") -> str:
    """Return all but the picture as JSON of ASCII characters only."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "relevance": explanation.relevance.tolist(),
    }
    return json.dumps(content | _rest(explanation), allow_nan=False) + "\n"


def read(path: str | os.PathLike[str]) -> "ImageExplanation":
    """Read an explanation that was written as ``to_safetensors`` gives it.

    Raises:
        InvalidFile: the file can't be read, or holds something else; quotes path and reason.

    """
    from lxt.image_explanation import ImageExplanation

    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            content = _content(file.metadata() or {})
            missing = set(_TENSORS) - set(file.keys())
            if missing:
                raise InvalidInput(f"it lacks {', '.join(sorted(missing))}")
            # A tensor that was read may be a view of the file, which others may overwrite.
            tensors = {name: file.get_tensor(name).clone() for name in _TENSORS}
        geometry = _exactly(content["geometry"], {"image", "pixels", "box"}, "geometry")
        target = _exactly(
            content["target"], {"kind", "name", "value", "position", "prediction"}, "target"
        )
        return ImageExplanation(
            **tensors,
            geometry=Geometry(**geometry),
            target=ExplainedTarget(**target),
            provenance=content["provenance"],
        )
    except (OSError, ValueError, SafetensorError, RecursionError) as error:
        raise InvalidFile(
            f"{os.fspath(path)!r} is not a saved explanation of a picture: {error}"
        ) from error


def _rest(explanation: "ImageExplanation") -> dict[str, Any]:
    return {
        "geometry": asdict(explanation.geometry),
        "target": asdict(explanation.target),
        "provenance": explanation.provenance,
    }


def _content(header: dict[str, str]) -> dict[str, Any]:
    if header.get("format") != FORMAT:
        raise InvalidInput(f"its header does not name the format {FORMAT}")
    version = header.get("version", "")
    if version != str(VERSION):
        raise InvalidInput(
            f"it has format version {version!r}, and this version of lxt reads {VERSION}"
        )
    try:
        content = json.loads(header.get("content", ""))
    except ValueError as error:
        raise InvalidInput(f"its header is not JSON: {error}") from error
    return _exactly(content, {"geometry", "target", "provenance"}, "header")


def _exactly(fields: Any, names: set[str], what: str) -> dict[str, Any]:
    if not isinstance(fields, dict) or set(fields) != names:
        raise InvalidInput(f"its {what} does not hold exactly {', '.join(sorted(names))}")
    return fields
