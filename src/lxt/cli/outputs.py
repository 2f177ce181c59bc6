"""Where a command puts what it has to show: the terminal, files, a browser."""

from __future__ import annotations

import os
import sys
import tempfile
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lxt.errors import InvalidInput, UnwritableFile

if TYPE_CHECKING:
    from lxt.comparison import Comparison
    from lxt.explanation import Explanation
    from lxt.image_explanation import ImageExplanation

Html = Annotated[Path | None, typer.Option(help="Write it as a page, one file.")]
Open = Annotated[
    bool, typer.Option("--open", help="Open the page in a browser; it is temporary without --html.")
]
Json = Annotated[
    str | None, typer.Option(metavar="PATH", help="Write it as JSON; - prints nothing else.")
]
Save = Annotated[Path | None, typer.Option(help="Write it to a file that load and lxt show read.")]
Pdf = Annotated[Path | None, typer.Option(help="Write a picture of it as PDF.")]
Png = Annotated[Path | None, typer.Option(help="Write a picture of it as PNG.")]
Svg = Annotated[Path | None, typer.Option(help="Write a picture of it as SVG.")]


@dataclass(frozen=True)
class Outputs:
    """The options of that name, as they were given."""

    html: Path | None
    open: bool
    json: str | None
    save: Path | None
    pdf: Path | None
    png: Path | None
    svg: Path | None

    def check(self, read: Sequence[str] = ()) -> None:
        """Raise now what writing would raise after long work; see ``check_files``.

        Args:
            read: the files that are read, which none is written over.

        """
        for name in ("html", "save", "pdf", "png", "svg"):
            if str(getattr(self, name)) == "-":
                raise InvalidInput(f"--{name} -: standard output takes --json - alone; give a file")
        files = [self.html, self.json, self.save, self.pdf, self.png, self.svg]
        check_files(files)
        sources = {Path(file).resolve(): file for file in read if file != "-"}
        for file in files:
            if file is not None and file != "-" and Path(file).resolve() in sources:
                raise InvalidInput(f"{str(file)!r} is what is read: give another file to write")

    def check_for_comparison(self) -> None:
        """Raise `InvalidInput` for what only a single explanation is written as."""
        for name in ("json", "save"):
            if getattr(self, name) is not None:
                raise InvalidInput(
                    f"--{name} takes one file to show; of several there are --html, --open, --pdf, "
                    "--png and --svg"
                )

    def put(self, explanation: Explanation | ImageExplanation) -> None:
        """Write the files, and print the explanation, or its JSON."""
        if self.save:
            explanation.save(self.save)
        self._put_views(explanation)
        if self.json == "-":
            put_text(explanation.to_json())
            return
        if self.json:
            explanation.to_json(self.json)
        put(explanation)

    def put_comparison(self, comparison: Comparison) -> None:
        """Write the page and pictures, and print the comparison."""
        self._put_views(comparison)
        put(comparison)

    def _put_views(self, shown: Explanation | ImageExplanation | Comparison) -> None:
        if self.pdf:
            shown.to_pdf(self.pdf)
        if self.png:
            shown.to_image(self.png, format="png")
        if self.svg:
            shown.to_image(self.svg, format="svg")
        self._put_page(shown)

    def _put_page(self, shown: Explanation | ImageExplanation | Comparison) -> None:
        page = self.html
        if page is None:
            if not self.open:
                return
            file, name = tempfile.mkstemp(prefix="lxt-", suffix=".html")
            os.close(file)
            page = Path(name)
        shown.to_html(page)
        if self.open and not webbrowser.open(page.resolve().as_uri()):
            typer.echo(f"no browser is there to open {str(page)!r}", err=True)


def check_files(files: Sequence[Path | str | None]) -> None:
    """Raise what stands in the way of writing these files; ``None`` and ``-`` are none.

    Raises:
        UnwritableFile: one can't be written.
        InvalidInput: two of them are the same.

    """
    from lxt.storage import check_writable

    given = [file for file in files if file is not None and file != "-"]
    for file in given:
        check_writable(file)
    if len({Path(file).resolve() for file in given}) < len(given):
        names = ", ".join(repr(str(file)) for file in given)
        raise InvalidInput(f"{names}: two of the files to write are the same")


def put(shown: Any) -> None:
    """Print something for people to read."""
    from rich.console import Console

    with _standard_output():
        Console().print(shown)


def put_text(text: str) -> None:
    """Print something for programs to read."""
    with _standard_output():
        typer.echo(text.removesuffix("\n"))


@contextmanager
def _standard_output() -> Iterator[None]:
    """Characters that its encoding lacks become ``?``; a reader that left is no error."""
    with suppress(AttributeError, ValueError):  # it may be anything, or closed
        sys.stdout.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UnwritableFile(f"can't write to standard output: {error.strerror}") from error
