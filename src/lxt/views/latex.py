"""Text as a heat map by LaTeX, where it is installed: a document, and a run of it."""

import os
import re
import subprocess
import tempfile
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lxt.tokens import printable
from lxt.views.colour import contrast

PROGRAMS = ("xelatex", "pdflatex", "lualatex")
TIMEOUT = 120.0
"""Seconds after which a run counts as failed."""

_LONGEST_BOX = 40
_LOG_LINES = 12

_HEAD = r"""\documentclass[varwidth=200mm,border=2mm]{standalone}
\usepackage{iftex}
\ifpdftex
  \usepackage[T1]{fontenc}
  \usepackage[utf8]{inputenc}
  \usepackage{textcomp}
\fi
\usepackage{xcolor}
\tracinglostchars=3
\setlength{\parindent}{0pt}
\setlength{\fboxsep}{0pt}
\newcommand{\lxttoken}[3]{\colorbox[HTML]{#1}{\textcolor[HTML]{#2}{\strut#3}}}
\newcommand{\lxtsplit}{\penalty500\hskip0pt\relax}
\begin{document}
\raggedright
"""
_TAIL = "\\end{document}\n"

# Each is one command that is closed in itself: no character of a token reaches TeX with a meaning
# of its own, and no two of them become one (`--`, `!``, `^^5c`).
_COMMANDS = {
    " ": "\\ ",
    "\\": "\\textbackslash{}",
    "{": "\\{",
    "}": "\\}",
    "$": "\\$",
    "&": "\\&",
    "#": "\\#",
    "%": "\\%",
    "_": "\\_",
    "^": "\\textasciicircum{}",
    "~": "\\textasciitilde{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "|": "\\textbar{}",
    '"': "\\textquotedbl{}",
    "`": "\\textasciigrave{}",
    "'": "\\textquotesingle{}",
    "-": "-{}",
    ",": ",{}",
    "!": "!{}",
    "?": "?{}",
    "↵": "\\ensuremath{\\hookleftarrow}",
    "⇥": "\\ensuremath{\\mapsto}",
    "◌": "\\ensuremath{\\circ}",
    "␡": "\\textbackslash{}x7F",
}
_COMMANDS |= {chr(0x2400 + code): f"\\textbackslash{{}}x{code:02X}" for code in range(0x20)}


def escape(text: str) -> str:
    """Return TeX that sets exactly this text, invisible characters as ``printable`` has them."""
    return "".join(_COMMANDS.get(char, char) for char in printable(text))


def document(tokens: Sequence[str], colours: Sequence[str]) -> str:
    """Return a LaTeX document with each token on its colour (``#rrggbb``), 200 mm wide."""
    body = [
        line
        for token, colour in zip(tokens, colours, strict=True)
        for line in _boxes(token, colour)
    ]
    return _HEAD + "".join(f"{line}%\n" for line in body) + _TAIL


def _boxes(token: str, colour: str) -> list[str]:
    ink = max("#000000", "#ffffff", key=lambda candidate: contrast(candidate, colour))
    lines: list[str] = []
    for part in re.findall("[^\n]*\n|[^\n]+", token):
        text = part
        if text[0] == " " and text[1:2] not in ("", " "):
            text = text[1:]
            lines.append("\\space{}")
        else:
            lines.append("\\lxtsplit{}")
        for piece in _pieces(text):
            lines.append(f"\\lxttoken{{{colour[1:]}}}{{{ink[1:]}}}{{{escape(piece)}}}")
            lines.append("\\lxtsplit{}")
        lines[-1] = "\\newline{}" if part.endswith("\n") else ""
    return [line for line in lines if line]


def _pieces(text: str) -> list[str]:
    """Cut what is too long for a box, which can't be broken, but not before a combining mark."""
    pieces = [""]
    for char in text:
        if len(pieces[-1]) >= _LONGEST_BOX and not unicodedata.category(char).startswith("M"):
            pieces.append("")
        pieces[-1] += char
    return pieces


@dataclass(frozen=True)
class Run:
    """What a run of LaTeX left."""

    pdf: bytes | None
    """The file; None if the run failed."""
    log: str
    """All that it printed, or why it was ended."""

    @property
    def end_of_log(self) -> str:
        """The last lines."""
        return "\n".join(self.log.strip().splitlines()[-_LOG_LINES:])


def run(program: str, source: str, *, timeout: float = TIMEOUT) -> Run:
    """Run a program of ``PROGRAMS`` on a document, in a folder of its own, without shell escape.

    A character that its fonts lack counts as a failure, as the text would lack it.
    """
    with tempfile.TemporaryDirectory(prefix="lxt-latex-") as folder:
        Path(folder, "heatmap.tex").write_text(source, encoding="utf-8")
        command = [
            program,
            "-no-shell-escape",
            "-interaction=nonstopmode",
            "-halt-on-error",
            "heatmap.tex",
        ]
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                check=False,
                # Its date goes into the file: the same input is to give the same bytes.
                env={**os.environ, "SOURCE_DATE_EPOCH": "0", "FORCE_SOURCE_DATE": "1"},
            )
        except subprocess.TimeoutExpired:
            return Run(None, f"it did not end within {timeout:g} seconds")
        except OSError as error:
            return Run(None, f"it could not be started: {error}")
        printed = done.stdout.decode("utf-8", errors="replace")
        log_file, pdf_file = Path(folder, "heatmap.log"), Path(folder, "heatmap.pdf")
        log = log_file.read_bytes().decode("utf-8", errors="replace") if log_file.exists() else ""
        log = log or printed
        if done.returncode != 0 or "Missing character:" in log or not pdf_file.exists():
            return Run(None, log or f"it ended with exit status {done.returncode}")
        return Run(pdf_file.read_bytes(), log)
