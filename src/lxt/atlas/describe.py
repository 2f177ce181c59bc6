"""What a unit means: its contexts, attributed to it, its vocabulary, and where it acts."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lxt.atlas import naming
from lxt.atlas.contexts import Context, UnitStatistics
from lxt.atlas.lens import Lens, lens_of
from lxt.composites import as_composite
from lxt.errors import InvalidInput
from lxt.explanation import Explanation
from lxt.latent.units import Unit
from lxt.storage import write
from lxt.targets import task_of

if TYPE_CHECKING:
    from lxt.atlas.atlas import Atlas

__all__ = ["Described", "Description", "describe"]

_SAME = 1e-2
"""How far the activation of a row that is cut after its peak may be from that of the whole."""


@dataclass(frozen=True, eq=False)
class Described:
    """A context, and what in it made the unit what it is there.

    Attributes:
        context: the context.
        attribution: relevance of the row's tokens for the unit at the peak; None without a model.

    """

    context: Context
    attribution: Explanation | None


@dataclass(frozen=True, eq=False, repr=False)
class Description:
    """What an atlas tells of a unit. `print` shows it, `to_html` writes a page.

    Attributes:
        name: of the unit.
        unit: to be explained, steered or tapped; None of an expert, and of a feature without its
            autoencoder.
        statistics: over the corpus.
        contexts: by what they are ranked by, the first first.
        lens: what vocabulary it promotes and suppresses; None without a model.
        note: why contexts have no attribution though there is a model; else empty.
        tokens: the tokens at the peaks of all contexts that the atlas has, with how often they are.
        classes: kinds of these tokens, with the share of each.
        positions: of these peaks in their rows, sorted.
        provenance: of what model and corpus.

    """

    name: str
    unit: Unit | None
    statistics: UnitStatistics
    contexts: dict[str, list[Described]]
    lens: Lens | None
    note: str
    tokens: dict[str, list[tuple[str, int]]]
    classes: dict[str, list[tuple[str, float]]]
    positions: dict[str, list[int]]
    provenance: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        from lxt.views.atlas_terminal import text

        return text(self)

    def __repr__(self) -> str:
        return f"<Description of {self.name}>"

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """Write a page that needs nothing else; without a path return it.

        Raises:
            UnwritableFile: it can't be written.

        """
        from lxt.views.atlas_html import unit_page

        page = unit_page(self)
        if path is None:
            return page
        write(path, page.encode())
        return None


def describe(
    atlas: Atlas,
    unit: Any,
    model: nn.Module | None,
    tokenizer: Any,
    count: int,
    composite: Any,
    sae: Any,
) -> Description:
    """Describe a unit; see `Atlas.describe`."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InvalidInput(f"contexts={count!r} is no number of contexts, from 1")
    if model is not None:
        atlas.require(model)
    number, index = naming.find(atlas.sites, unit)
    site = atlas.sites[number]
    name = naming.name_of(site, index)
    is_unit = site.kind != "experts"
    if site.kind == "features":
        if isinstance(unit, Unit) and sae is None:
            sae = unit.sae
        is_unit = model is not None or sae is not None
    unit = naming.unit_of(site, index, sae) if is_unit else None
    found = {by: atlas.top(name, by) for by in atlas.by}
    lens, note = None, ""
    attributed: dict[str, list[Explanation | None]] = {by: [None] * count for by in found}
    if model is not None:
        rules = composite or atlas.manifest["settings"]["composite"] or "attnlrp"
        flat = [context for by in found for context in found[by][:count]]
        if unit is None:
            note = "of contexts to an expert there is none: its activation is the router's weight"
        else:
            explanations = iter(attributions(model, tokenizer, unit, flat, as_composite(rules)))
            attributed = {by: [next(explanations) for _ in found[by][:count]] for by in found}
        ids = flat[0].ids if flat else [0]  # of a feature that never fires there is no context
        lens = lens_of(model, tokenizer, site, index, ids, sae=sae)
    return Description(
        name,
        unit,
        atlas.statistics(name),
        {by: list(map(Described, found[by][:count], attributed[by])) for by in found},
        lens,
        note,
        {by: Counter(map(_peak, found[by])).most_common() for by in found},
        {by: _classes(list(map(_peak, found[by]))) for by in found},
        {by: sorted(context.place for context in found[by]) for by in found},
        provenance_of(atlas),
    )


def provenance_of(atlas: Atlas) -> dict[str, str]:
    """Of what model, corpus and settings an atlas is, in words."""
    manifest = atlas.manifest
    progress = manifest["progress"]
    return {
        "model": manifest["identity"]["model"],
        "corpus": f"{progress['texts']} texts, {progress['tokens']} tokens",
        "contexts": f"of {manifest['settings']['context']} tokens",
        "composite": manifest["settings"]["composite"] or "none",
        **manifest["versions"],
    }


def attributions(
    model: nn.Module, tokenizer: Any, unit: Unit, contexts: list[Context], composite: Any
) -> list[Explanation]:
    """Relevance of each context's tokens for the unit at its peak.

    In a causal model nothing after the peak counts, so rows end there and run in one batch; where
    that changes the activation, and in other models, rows run whole, those with the same place of
    the peak together.
    """
    from lxt.explain import explain

    def run(rows: list[list[int]], place: int) -> list[Explanation]:
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
        inputs = {"input_ids": ids, "attention_mask": mask.long()}
        e = explain(model, inputs, tokenizer=tokenizer, target=unit.at(place), composite=composite)
        return [e[i] for i in range(len(rows))]

    left = list(range(len(contexts)))
    found: dict[int, Explanation] = {}
    if contexts and task_of(model) == "causal":
        cut = run([context.ids[: context.place + 1] for context in contexts], -1)
        for i, e in enumerate(cut):
            value: Any = e.target
            if abs(value.value - contexts[i].activation) <= _SAME * abs(contexts[i].activation):
                found[i] = e
        left = [i for i in left if i not in found]
    for place in sorted({contexts[i].place for i in left}):
        here = [i for i in left if contexts[i].place == place]
        found |= zip(here, run([contexts[i].ids for i in here], place), strict=True)
    return [found[i] for i in range(len(contexts))]


def _peak(context: Context) -> str:
    return context.tokens[context.peak]


def _classes(tokens: list[str]) -> list[tuple[str, float]]:
    counts = Counter(map(_class, tokens))
    return [(name, count / len(tokens)) for name, count in counts.most_common()]


def _class(token: str) -> str:
    text = token.strip()
    if not text:
        return "white space"
    if any(unicodedata.category(char)[0] == "N" for char in text):
        return "number"
    if all(unicodedata.category(char)[0] in "PS" for char in text):
        return "punctuation"
    return "word, or its start" if token[0].isspace() else "inside of a word, or a text's start"
