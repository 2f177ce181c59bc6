"""How explanations are stored: safetensors to read back, JSON to hand on, whole files or none."""

import contextlib
import errno
import json
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lxt import json_format
from lxt.errors import InvalidFile, InvalidInput, UnwritableFile
from lxt.explained import ExplainedTarget
from lxt.json_format import FORMAT, READ, VERSION

if TYPE_CHECKING:
    from lxt.explanation import Explanation

_TENSORS = ("relevance", "token_ids", "mask")

Data = TypeVar("Data", str, bytes)


def to_safetensors(explanation: "Explanation") -> bytes:
    """Return the tensors, with all else as JSON in the header of the safetensors format."""
    target = explanation.target
    content = {
        "tokens": explanation.tokens,
        "target": json_format.target_fields(target),
        "provenance": explanation.provenance,
        "layers": explanation.layers,
    }
    header = {"format": FORMAT, "version": str(VERSION), "content": json.dumps(content)}
    tensors = {name: getattr(explanation, name).contiguous() for name in _TENSORS}
    return save(tensors, metadata=header)


def read(path: str | os.PathLike[str]) -> "Explanation":
    """Read an explanation in safetensors or JSON, whichever the file holds.

    Raises:
        InvalidFile: the file can't be read, or holds something else; quotes path and reason.

    """
    try:
        with Path(path).open("rb") as file:
            head = file.read(8)
            # A safetensors file begins with the length of its header, in eight bytes of which the
            # last are 0, since it is limited; and text holds no NUL.
            if b"\0" not in head:
                return json_format.parse(_text(head + file.read()))
        return _read_safetensors(path)
    except (OSError, ValueError, SafetensorError, RecursionError) as error:
        raise InvalidFile(f"{os.fspath(path)!r} is not a saved explanation: {error}") from error


def read_json(source: str | os.PathLike[str]) -> "Explanation":
    """Read an explanation from JSON: the text itself, which begins with a brace, or a file of it.

    Raises:
        InvalidFile: the file can't be read, or it is something else; quotes path and place.

    """
    if isinstance(source, str) and source.lstrip().startswith("{"):
        return from_json(source, "the text")
    name = repr(os.fspath(source))
    try:
        data = Path(source).read_bytes()
    except (OSError, ValueError) as error:
        raise InvalidFile(f"{name} is not an explanation in JSON: {error}") from error
    return from_json(data, name)


def from_json(text: str | bytes, name: str) -> "Explanation":
    """Read an explanation from JSON, which error messages call by that name.

    Raises:
        InvalidFile: it is something else; quotes the name and the place.

    """
    try:
        return json_format.parse(text if isinstance(text, str) else _text(text))
    except ValueError as error:
        raise InvalidFile(f"{name} is not an explanation in JSON: {error}") from error


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")  # some editors put a byte order mark before a text
    except UnicodeDecodeError:
        raise InvalidInput("it is neither safetensors nor JSON") from None


def _read_safetensors(path: str | os.PathLike[str]) -> "Explanation":
    from lxt.explanation import Explanation

    with safe_open(os.fspath(path), framework="pt") as file:
        content = _content(file.metadata() or {})
        missing = set(_TENSORS) - set(file.keys())
        if missing:
            raise InvalidInput(f"it lacks {', '.join(sorted(missing))}")
        # A tensor that was read may be a view of the file, which others may overwrite.
        tensors = {name: file.get_tensor(name).clone() for name in _TENSORS}
    return Explanation(
        **tensors,
        tokens=content["tokens"],
        target=_targets(content["target"]),
        provenance=content["provenance"],
        layers=content["layers"],
    )


def _content(header: dict[str, str]) -> dict[str, Any]:
    if header.get("format") != FORMAT:
        raise InvalidInput(f"its header does not name the format {FORMAT}")
    version = header.get("version", "")
    known = [str(number) for number in READ]
    if version not in known:
        raise InvalidInput(
            f"it has format version {version!r}, and this version of lxt reads "
            f"{', '.join(known[:-1])} and {known[-1]}"
        )
    try:
        content = json.loads(header.get("content", ""))
    except ValueError as error:
        raise InvalidInput(f"its header is not JSON: {error}") from error
    if version != str(VERSION) and isinstance(content, dict):
        content = {"layers": None} | content
    return _with_keys(content, {"tokens", "target", "provenance", "layers"}, "header")


def _targets(fields: Any) -> Any:
    return [_targets(one) for one in fields] if isinstance(fields, list) else _target(fields)


def _target(fields: Any) -> ExplainedTarget:
    names = {"kind", "name", "value", "position", "prediction"}
    return ExplainedTarget(**_with_keys(fields, names, "target"))


def _with_keys(fields: Any, names: set[str], what: str) -> dict[str, Any]:
    if not isinstance(fields, dict) or set(fields) != names:
        raise InvalidInput(f"its {what} does not hold exactly {', '.join(sorted(names))}")
    return fields


def write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file whole or not at all: a file of that name is replaced only by the finished one.

    Raises:
        UnwritableFile: quotes the path and the system's reason.

    """
    try:
        file = _destination(path)
        if file.exists() and not file.is_file():
            file.write_bytes(data)  # a device or a pipe, such as /dev/stdout: nothing to replace
            return
        part = _part_beside(file)
        try:
            part.write_bytes(data)
            part.replace(file)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
    except (OSError, ValueError, RuntimeError) as error:
        raise _unwritable(path, error) from error


def written(data: Data, path: str | os.PathLike[str] | None) -> Data | None:
    """Return what there is no path for, else write it: a prompt would show it as well.

    Raises:
        UnwritableFile: as for ``write``.

    """
    if path is None:
        return data
    write(path, data.encode() if isinstance(data, str) else data)
    return None


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise now what writing would raise after long work; leave no file behind and change none.

    Raises:
        UnwritableFile: quotes the path and the system's reason.

    """
    try:
        file = _destination(path)
        if file.is_file() or not file.exists():
            part = _part_beside(file)
            part.touch(exist_ok=False)
            part.unlink()
    except (OSError, ValueError, RuntimeError) as error:
        raise _unwritable(path, error) from error


def _destination(path: str | os.PathLike[str]) -> Path:
    """Follow links, so that a link stays one; raise what stands in the way of replacing a file."""
    file = Path(path).resolve()  # RuntimeError for links in a circle, ValueError for a NUL
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if file.exists() and not os.access(file, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return file


def _part_beside(file: Path) -> Path:
    return file.with_name(f".lxt-{secrets.token_hex(8)}.part")


def _unwritable(path: str | os.PathLike[str], error: Exception) -> UnwritableFile:
    reason = getattr(error, "strerror", None) or error
    return UnwritableFile(f"can't write {os.fspath(path)!r}: {reason}")
