"""Explanations as HTML: one page that needs nothing else, or a fragment for a notebook."""

from functools import cache
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from lxt.views import colour
from lxt.views.summary import summarise

if TYPE_CHECKING:
    from lxt.explanation import Explanation


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
    return _template().render(
        rows=[summarise(row) for row in explanation.rows()],
        batch=explanation.is_batch,
        complete=complete,
        levels=range(-colour.LEVELS, colour.LEVELS + 1),
        light=colour.LIGHT,
        dark=colour.DARK,
    )


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
