"""Explanations as HTML: one page that needs nothing else, or a fragment without scripts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lxt.tokens import printable
from lxt.views import colour, payload
from lxt.views.grouping import direction
from lxt.views.summary import headings, summarise

if TYPE_CHECKING:
    from lxt.explanation import Explanation

__all__ = ["fragment", "page_of"]

MOST_TARGETS = 8
"""Of more explanations for many targets, only so many are shown where no script runs."""
MOST_TOKENS = 30_000
"""Of longer ones, only those are shown where no script runs that fit into so many tokens."""
MOST_IN_A_TABLE = 300
"""More tokens get no table where no script runs."""

# In the order in which they build on each other; one script, in a scope of its own.
_SCRIPTS = ("elements", "data", "text", "table", "map", "comparison", "copy", "main")


def page_of(entries: Sequence[tuple[str, Explanation]]) -> str:
    """Return a complete HTML5 document of named explanations; a single one's name may be empty.

    They can be compared where their tokens are the same. It is light or dark as the reader's
    system is set.
    """
    items = [
        payload.item(_joined(name, row), one)
        for name, explanation in entries
        for row, one in zip(_rows(explanation), explanation.inputs(), strict=True)
    ]
    style, script = _style(), script_of(_SCRIPTS)
    policy = (
        f"default-src 'none'; style-src {source(style)}; script-src {source(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            title=_title(entries),
            policy=policy,
            style=style,
            script=script,
            data=payload.as_json(items),
            **_static(entries, inline=False),
        )
    )


def fragment(entries: Sequence[tuple[str, Explanation]]) -> str:
    """Return one ``<div>`` for use inside other pages, which needs no script.

    It is always light, as a page does not tell what background it has, and its style rules
    apply to nothing outside of it.
    """
    variables = _static(entries, inline=True)
    return _environment().get_template("fragment.html.jinja").render(variables)


def _static(entries: Sequence[tuple[str, Explanation]], *, inline: bool) -> dict[str, Any]:
    """What is seen where no script runs."""
    rows: list[tuple[str, Explanation]] = []
    for name, explanation in entries:
        titles = headings(explanation, counted=False)
        shown = MOST_TARGETS if explanation.is_many else None
        rows += [
            (_joined(name, title, _layer(row)), row)
            for title, row in list(zip(titles, explanation.rows(), strict=True))[:shown]
        ]
    count = sum(len(headings(explanation, counted=False)) for _, explanation in entries)
    lengths = accumulate(len(row.token_ids) for _, row in rows)
    rows = [row for row, so_far in zip(rows, lengths, strict=True) if so_far <= MOST_TOKENS]
    titles = [title[:1].upper() + title[1:] for title, _ in rows]
    return {
        "inline": inline,
        "rows": [summarise(row) for _, row in rows],
        "headings": titles,
        "left_out": count - len(rows),
        "most_in_a_table": MOST_IN_A_TABLE,
    }


def _joined(name: str, *parts: str) -> str:
    return ", ".join(part for part in (printable(name), *parts) if part)


def _layer(row: Explanation) -> str:
    """Say which layer's relevance is summarised, of several."""
    if row.layers is None:
        return ""
    return f"at layer {printable(row.layers[0])}, the first of {len(row.layers)}"


def _rows(explanation: Explanation) -> list[str]:
    count = len(explanation) if explanation.is_batch else 0
    return [f"row {i}" for i in range(count)] if explanation.is_batch else [""]


def _title(entries: Sequence[tuple[str, Explanation]]) -> str:
    count = sum(len(headings(explanation, counted=False)) for _, explanation in entries)
    if len(entries) > 1:
        return f"Relevance: {len(entries)} explanations"
    (explanation,) = (explanation for _, explanation in entries)
    if explanation.is_many:
        return f"Relevance for {count} targets"
    if explanation.is_batch:
        return f"Relevance in a batch of {count}"
    return summarise(explanation).headline


def source(text: str) -> str:
    """Name an inline style sheet or script in a Content Security Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lxt", "views/browser"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "levels": range(-colour.LEVELS, colour.LEVELS + 1),
        "light": colour.LIGHT,
        "dark": colour.DARK,
        "direction": direction,
        "name": lambda level: f"{'p' if level > 0 else 'n'}{abs(level)}",
    }
    return environment


@cache
def _style() -> str:
    return "\n" + _environment().get_template("style.css.jinja").render()


@cache
def script_of(names: tuple[str, ...]) -> str:
    """Return files of ``browser/`` as one script, in this order and in a scope of its own."""
    loader = _environment().loader
    assert loader is not None
    parts = [loader.get_source(_environment(), f"{name}.js")[0] for name in names]
    return '\n"use strict";\n{\n' + "\n".join(parts) + "}\n"
