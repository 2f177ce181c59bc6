"""Explanations as HTML: one page that needs nothing else, or a fragment for a notebook."""

from functools import cache
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from lxt.views import colour
from lxt.views.summary import headings, summarise

if TYPE_CHECKING:
    from lxt.explanation import Explanation

MOST_IN_A_FRAGMENT = 8
"""Of more explanations for many targets, a fragment shows only so many."""


def page(explanation: "Explanation") -> str:
    """Return a complete HTML5 document, light or dark as the reader's system is set."""
    return _render(explanation, complete=True)


def fragment(explanation: "Explanation") -> str:
    """Return one ``<div>`` for use inside other pages.

    It is always light, as a page does not tell what background it has, and its style rules
    apply to nothing outside of it.
    """
    return _render(explanation, complete=False)


def _render(explanation: "Explanation", *, complete: bool) -> str:
    rows, names = explanation.rows(), headings(explanation, counted=False)
    if explanation.is_many and not complete:
        rows = rows[:MOST_IN_A_FRAGMENT]
    return _template().render(
        rows=[summarise(row) for row in rows],
        headings=[name[:1].upper() + name[1:] for name in names[: len(rows)]],
        left_out=len(names) - len(rows),
        title=_title(explanation, len(names)),
        complete=complete,
        levels=range(-colour.LEVELS, colour.LEVELS + 1),
        light=colour.LIGHT,
        dark=colour.DARK,
    )


def _title(explanation: "Explanation", count: int) -> str:
    """Return the title of a page of several explanations; empty for a single one's own."""
    if explanation.is_many:
        return f"Relevance for {count} targets"
    return f"Relevance in a batch of {count}" if explanation.is_batch else ""


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("lxt", "views"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("explanation.html.jinja")
