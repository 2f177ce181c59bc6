"""An atlas as pages: an index of all units, and one page for each of some."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lxt.atlas import naming
from lxt.atlas.describe import provenance_of
from lxt.errors import InvalidInput, UnwritableFile
from lxt.progress import as_progress, progress_of
from lxt.storage import write

if TYPE_CHECKING:
    from lxt.atlas.atlas import Atlas

__all__ = ["write_pages"]


def write_pages(
    atlas: Atlas,
    folder: Any,
    units: Sequence[Any] | None,
    most: int,
    model: Any,
    tokenizer: Any,
    contexts: int,
    sae: Any,
    progress: bool | None,
) -> None:
    """Write them; see `Atlas.to_html`."""
    from lxt.views.atlas_html import index_page, unit_page

    if not isinstance(most, int) or isinstance(most, bool) or most < 0:
        raise InvalidInput(f"most={most!r} is no number of pages")
    names = atlas.strongest(most) if units is None else [atlas.name(unit) for unit in units]
    place = Path(folder)
    try:
        (place / "units").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UnwritableFile(f"can't write to {os.fspath(folder)!r}: {reason}") from error
    numbers = {name: f"units/{_number(atlas, name)}.html" for name in names}
    # Site by site: the contexts of one are read once.
    with progress_of(len(numbers), "pages", shown=as_progress(progress)) as tick:
        for name in sorted(numbers, key=lambda name: _number(atlas, name)):
            described = atlas.describe(
                name, model=model, tokenizer=tokenizer, contexts=contexts, sae=sae
            )
            page = unit_page(described, index="../index.html")
            write(place / numbers[name], page.encode())
            tick(1)
    index = index_page(list(_columns(atlas)), _rows(atlas, numbers), provenance_of(atlas))
    write(place / "index.html", index.encode())


def _number(atlas: Atlas, name: str) -> int:
    site, index = naming.find(atlas.sites, name)
    return sum(one.units for one in atlas.sites[:site]) + index


def _columns(atlas: Atlas) -> dict[str, str]:
    columns = {
        "most": "largest activation",
        "mean": "mean",
        "deviation": "deviation",
        "active": "share above 0",
        "absolute_relevance": "mean |relevance|",
    }
    return {
        words: column for column, words in columns.items() if column in atlas.table.column_names
    }


def _rows(atlas: Atlas, pages: dict[str, str]) -> list[dict[str, Any]]:
    """Of each unit its name, page, numbers, and the tokens at its first peaks."""
    numbers = [atlas.column(column).tolist() for column in _columns(atlas).values()]
    found = []
    for name, *values in zip(atlas.names, *numbers, strict=True):
        page = pages.get(name)
        tokens = [c.tokens[c.peak] for c in atlas.top(name, k=3)] if page else []
        found.append({"name": name, "page": page, "values": values, "tokens": tokens})
    return found
