"""How explanations are stored: safetensors to read back, JSON to hand on, whole files or none."""

import contextlib
import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lxt import json_format, kinds
from lxt.errors import InvalidFile, InvalidInput, UnwritableFile
from lxt.explained import ExplainedTarget
from lxt.json_format import FORMAT, READ, VERSION
from lxt.json_node import Node, document_of
from lxt.latent import stored

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
    if explanation.latent:
        content["latent"] = stored.described(explanation.latent)
    header = {"format": FORMAT, "version": str(VERSION), "content": json.dumps(content)}
    tensors = {name: getattr(explanation, name).contiguous() for name in _TENSORS}
    return save(tensors | stored.tensors_of(explanation.latent), metadata=header)


def read(path: str | os.PathLike[str]) -> "Explanation":
    """Read an explanation in safetensors or JSON, whichever the file holds.

    Raises:
        InvalidFile: the file can't be read, or holds something else; quotes path and reason.

    """
    with reading(repr(os.fspath(path)), "a saved explanation"):
        found = opened(path)
        return json_format.read(found) if isinstance(found, Node) else of_stored(found)


def read_json(source: str | os.PathLike[str]) -> "Explanation":
    """Read an explanation from JSON: the text itself, which begins with a brace, or a file of it.

    Raises:
        InvalidFile: the file can't be read, or it is something else; quotes path and place.

    """
    with reading(name_of(source), "an explanation in JSON"):
        return json_format.parse(json_text(source))


class Stored(NamedTuple):
    """A file in the safetensors format, of whatever it may be."""

    path: str
    header: dict[str, str]

    def tensors(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Return those of these names.

        Raises:
            InvalidInput: it lacks one.

        """
        with safe_open(self.path, framework="pt") as file:
            missing = set(names) - set(file.keys())
            if missing:
                raise InvalidInput(f"it lacks {', '.join(sorted(missing))}")
            # A tensor that was read may be a view of the file, which others may overwrite.
            return {name: file.get_tensor(name).clone() for name in names}


@contextlib.contextmanager
def reading(name: str, what: str) -> Iterator[None]:
    """Turn what goes wrong on the way from a file, or text, into one error.

    Raises:
        InvalidFile: quotes the name, which says what is read, and the reason.

    """
    try:
        yield
    except (OSError, ValueError, SafetensorError, RecursionError) as error:
        raise InvalidFile(f"{name} is not {what}: {error}") from error


def opened(path: str | os.PathLike[str]) -> Node | Stored:
    """Return a document of JSON, or a file of safetensors, whichever it is.

    Raises:
        OSError: the file can't be read.
        ValueError: it is neither.
        SafetensorError: it is a broken one of these.

    """
    with Path(path).open("rb") as file:
        head = file.read(8)
        # A safetensors file begins with the length of its header, in eight bytes of which the
        # last are 0, since it is limited; and text holds no NUL.
        if b"\0" not in head:
            return document_of(text_of(head + file.read()))
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            # From a pipe, the first bytes are gone, and to open it again may wait for ever.
            raise InvalidInput("it is no regular file, and of others only JSON is read")
    with safe_open(os.fspath(path), framework="pt") as file:
        return Stored(os.fspath(path), file.metadata() or {})


def name_of(source: str | os.PathLike[str]) -> str:
    """Return what messages call JSON that is given as itself, or by its path."""
    return "the text" if _is_json(source) else repr(os.fspath(source))


def json_text(source: str | os.PathLike[str]) -> str:
    """Return JSON that is given as itself, which begins with a brace, or by its path.

    Raises:
        OSError: the file can't be read.
        ValueError: it is no text.

    """
    return str(source) if _is_json(source) else text_of(Path(source).read_bytes())


def _is_json(source: str | os.PathLike[str]) -> bool:
    return isinstance(source, str) and source.lstrip().startswith("{")


def text_of(data: bytes) -> str:
    """Return a text in UTF-8.

    Raises:
        InvalidInput: it is something else.

    """
    try:
        return data.decode("utf-8-sig")  # some editors put a byte order mark before a text
    except UnicodeDecodeError:
        raise InvalidInput("it is neither safetensors nor JSON") from None


def of_stored(file: Stored) -> "Explanation":
    """Read what ``to_safetensors`` gave.

    Raises:
        InvalidInput: it is something else.

    """
    from lxt.explanation import Explanation

    content, tensors = _content(file.header), file.tensors(_TENSORS)
    return Explanation(
        relevance=tensors["relevance"],
        token_ids=tensors["token_ids"],
        mask=tensors["mask"],
        tokens=content["tokens"],
        target=_targets(content["target"]),
        provenance=content["provenance"],
        layers=content["layers"],
        latent=stored.restored(content["latent"], file.tensors),
    )


def _content(header: dict[str, str]) -> dict[str, Any]:
    kinds.check(header.get("format"), FORMAT)
    if header.get("format") != FORMAT:
        raise InvalidInput(f"its header does not name the format {FORMAT}")
    version = header.get("version", "")
    known = [str(number) for number in READ]
    if version not in known:
        raise InvalidInput(
            f"it has format version {version!r}, and this version of lxt reads "
            f"{', '.join(known[:-1])} and {known[-1]}"
        )
    content = content_of(header)
    if isinstance(content, dict):
        content = {"latent": []} | ({} if version == str(VERSION) else {"layers": None}) | content
    return with_keys(content, {"tokens", "target", "provenance", "layers", "latent"}, "header")


def content_of(header: dict[str, str]) -> Any:
    """Return what the header of a safetensors file holds as JSON.

    Raises:
        InvalidInput: it is no JSON.

    """
    try:
        return json.loads(header.get("content", ""))
    except ValueError as error:
        raise InvalidInput(f"its header is not JSON: {error}") from error


def _targets(fields: Any) -> Any:
    return [_targets(one) for one in fields] if isinstance(fields, list) else target_of(fields)


def target_of(fields: Any) -> ExplainedTarget:
    """Read a target from a header.

    Raises:
        InvalidInput: it is something else.

    """
    names = {"kind", "name", "value", "position", "prediction"}
    return ExplainedTarget(**with_keys(fields, names, "target"))


def with_keys(fields: Any, names: set[str], what: str) -> dict[str, Any]:
    """Return an object of exactly these fields.

    Raises:
        InvalidInput: it is something else; ``what`` is its name.

    """
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
