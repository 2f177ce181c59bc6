"""An atlas's folder: whole files, a manifest that names the last complete state, and one writer."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from lxt.errors import InvalidFile, InvalidInput, UnwritableFile

__all__ = ["FORMAT", "VERSION", "Folder"]

FORMAT = "lxt.atlas"
VERSION = 1
_MANIFEST = "manifest.json"
_PART = ".part"


class Folder:
    """The folder of one atlas.

    Files are written under another name, brought to the disk and then renamed. What the manifest
    names is complete; everything else is left over from a run that was killed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only one who writes here; the folder is made if it is not there.

        Raises:
            UnwritableFile: it can't be written to, or another process does.
            InvalidInput: it holds other things than an atlas.

        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            others = [f.name for f in self.path.iterdir() if not self._is_own(f.name)]
        except OSError as error:
            raise UnwritableFile(f"can't write to {str(self.path)!r}: {error.strerror}") from error
        if others and not (self / _MANIFEST).exists():
            raise InvalidInput(
                f"the folder {str(self.path)!r} holds other things, such as {min(others)!r}: give "
                "one that is empty, or not there yet"
            )
        lock = FileLock(self / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UnwritableFile(
                f"another process builds the atlas in {str(self.path)!r}: wait for it to end"
            ) from None
        except OSError as error:
            raise UnwritableFile(f"can't write to {str(self.path)!r}: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()

    @staticmethod
    def _is_own(name: str) -> bool:
        # Where a run is killed before the manifest is there, parts and the lock are.
        return name in (_MANIFEST, "lock") or name.endswith(_PART) or name.startswith("state-")

    def manifest(self) -> dict[str, Any] | None:
        """What it holds; None if there is none.

        Raises:
            InvalidFile: it is damaged, or something else.

        """
        file = self / _MANIFEST
        name = repr(str(file))
        try:
            content = json.loads(file.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise InvalidFile(f"{name} is no manifest of an atlas: {error}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InvalidFile(f"{name} is no manifest of an atlas: its format is not {FORMAT}")
        if content.get("version") != VERSION:
            raise InvalidFile(
                f"{name} has version {content.get('version')!r}, and this version of lxt reads "
                f"{VERSION}"
            )
        keys = {"status", "identity", "settings", "progress", "files", "sites", "versions"}
        missing = keys - set(content)
        if missing:
            raise InvalidFile(f"{name} is damaged: it lacks {', '.join(sorted(missing))}")
        return content

    def put_manifest(self, content: Mapping[str, Any]) -> None:
        """Write the manifest; from now on what it names is the state."""
        text = json.dumps({"format": FORMAT, "version": VERSION, **content}, indent=1) + "\n"
        self.put(_MANIFEST, lambda part: part.write_text(text, encoding="utf-8"))

    def put(self, name: str, write: Callable[[Path], object]) -> dict[str, Any]:
        """Write a file whole; its size and hash.

        Raises:
            UnwritableFile: it can't be written.

        """
        part = self / (name + _PART)
        try:
            write(part)
            with part.open("rb") as file:
                found = _described(file)
                os.fsync(file.fileno())
            part.replace(self / name)
            self._sync()
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UnwritableFile(f"can't write {str(self / name)!r}: {reason}") from error
        return found

    def put_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Write tensors whole; the file's size and hash."""
        whole = {key: value.contiguous() for key, value in tensors.items()}
        # Not save_file: it writes to a file of a name of its own first, which a kill would leave.
        return self.put(name, lambda part: part.write_bytes(save(whole)))

    def tensors(self, name: str, expected: Any) -> dict[str, Tensor]:
        """Read what `put_tensors` wrote.

        Raises:
            InvalidFile: it is damaged.

        """
        self.check(name, expected)
        try:
            return load_file(self / name)
        except (OSError, SafetensorError) as error:
            raise InvalidFile(f"{str(self / name)!r} is damaged: {error}") from error

    def check(self, name: str, expected: Any) -> None:
        """Make sure that a file is the one that was written.

        Raises:
            InvalidFile: it is not, or is not there.

        """
        try:
            with (self / name).open("rb") as file:
                found = _described(file)
        except OSError as error:
            raise InvalidFile(f"{str(self / name)!r} can't be read: {error.strerror}") from error
        if found != expected:
            raise InvalidFile(
                f"{str(self / name)!r} is damaged: it is not the file that was written, by its "
                "SHA-256. Build the atlas again, in an empty folder"
            )

    def clean(self, keep: Mapping[str, Any]) -> None:
        """Remove what a killed run left, and states that are over."""
        for file in list(self.path.iterdir()):
            stale = file.name.startswith("state-") or file.name.endswith(_PART)
            if stale and file.name not in keep:
                file.unlink(missing_ok=True)

    def _sync(self) -> None:
        """Bring names to the disk too; where a folder can't be opened, as on Windows, they are."""
        with contextlib.suppress(OSError):
            handle = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _described(file: Any) -> dict[str, Any]:
    digest = hashlib.sha256()
    size = 0
    while chunk := file.read(2**20):
        digest.update(chunk)
        size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}
