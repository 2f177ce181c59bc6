"""Pages of an atlas: a unit, and the index of all; each needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lxt.tokens import printable
from lxt.views import html, payload
from lxt.views.atlas_words import activation_tokens, context_tokens, facts, histogram, where

if TYPE_CHECKING:
    from lxt.atlas.describe import Described, Description

__all__ = ["index_page", "unit_page"]


def unit_page(description: Description, index: str | None = None) -> str:
    """Return the page of a unit, which runs no script; `index` is the address of the index."""
    bins = histogram(description.statistics)
    most = max((count for _, count in bins), default=0)
    lens = description.lens
    return _page(
        "atlas_unit.html.jinja",
        None,
        title=f"Unit {printable(description.name)}",
        index=index,
        facts=facts(description),
        rankings=[
            {
                "title": f"Largest {by}" if by[0] != "-" else f"Most negative {by[1:]}",
                "where": where(description, by),
                "contexts": [_context(one) for one in contexts],
            }
            for by, contexts in description.contexts.items()
        ],
        lens=None
        if lens is None
        else {
            "note": printable(lens.note),
            "sides": [
                (title, [(printable(token), f"{value:+.3g}") for token, value in side])
                for title, side in (("promotes", lens.promoted), ("suppresses", lens.suppressed))
                if side
            ],
        },
        bins=[(name, count, round(100 * count / (most or 1))) for name, count in bins],
        provenance=_inert(description.provenance),
    )


def _context(one: Described) -> dict[str, Any]:
    tokens, words = context_tokens(one)
    context = one.context
    return {
        "words": words,
        "tokens": tokens,
        "peak": context.peak if one.attribution is None else context.place,
        "activations": None if one.attribution is None else activation_tokens(one),
        "window_peak": context.peak,
    }


def index_page(
    columns: Sequence[str], rows: Sequence[Mapping[str, Any]], provenance: Mapping[str, str]
) -> str:
    """Return the index: of each unit its name, page, numbers and tokens, to sort and to search."""
    data = {
        "columns": list(columns),
        "names": [printable(row["name"]) for row in rows],
        "pages": [row["page"] for row in rows],
        "values": [[float(f"{value:.5g}") for value in row["values"]] for row in rows],
        "tokens": [" · ".join(map(printable, row["tokens"])) for row in rows],
    }
    return _page(
        "atlas_index.html.jinja",
        html.script_of(("elements", "atlas")),
        title=f"Atlas of {printable(provenance.get('model', 'a model'))}",
        count=len(rows),
        first=[row for row in rows if row["page"]],
        data=payload.as_json(data),
        provenance=_inert(provenance),
    )


def _page(template: str, script: str | None, **variables: Any) -> str:
    environment = html._environment()
    style = html._style() + environment.get_template("atlas_style.css.jinja").render()
    script_source = html.source(script) if script else "'none'"
    policy = (
        f"default-src 'none'; style-src {html.source(style)}; script-src {script_source}; "
        "base-uri 'none'; form-action 'none'"
    )
    return environment.get_template(template).render(
        policy=policy, style=style, script=script, inline=False, **variables
    )


def _inert(texts: Mapping[str, str]) -> dict[str, str]:
    return {printable(name): printable(text) for name, text in texts.items()}
