"""`Atlas`: for each unit of a model the contexts of a corpus that drive it most."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lxt.atlas import naming, tables
from lxt.atlas.build import build
from lxt.atlas.contexts import Context, UnitStatistics
from lxt.atlas.folder import Folder
from lxt.atlas.identity import require_same
from lxt.atlas.passes import SiteOfAtlas
from lxt.composite import Composite
from lxt.errors import InvalidFile, InvalidInput
from lxt.latent.taps import AnyTap
from lxt.latent.units import Site, Unit

if TYPE_CHECKING:
    from lxt.atlas.describe import Description

__all__ = ["Atlas"]


class Atlas:
    """For each unit of the tapped sites its strongest contexts in a corpus, and statistics.

    >>> atlas = lxt.Atlas.build(model, texts, tokenizer=tokenizer, taps=lxt.Neurons(layer=12),
    ...                         folder="atlas")
    >>> atlas.top("layers.12.mlp.down_proj[7]")[0]
    >>> print(atlas.describe("layers.12.mlp.down_proj[7]", model=model, tokenizer=tokenizer))

    Contexts are found by activation (activation maximisation) and by relevance for the model's own
    predictions (relevance maximisation: Achtibat et al. 2023, "From attribution maps to
    human-understandable explanations through Concept Relevance Propagation"), in a row of tokens
    each at most one, where the unit is at its largest.

    Attributes:
        folder: where it is.
        manifest: of what model, corpus and settings it is, with versions.
        sites: whose units it is about, in the order of the taps and of the model.

    """

    def __init__(self, folder: Folder, manifest: dict[str, Any]) -> None:
        """Read a finished one; see `open`."""
        self.folder = folder.path
        self.manifest = manifest
        self.sites = [SiteOfAtlas(**site) for site in manifest["sites"]]
        self._groups: dict[str, tuple[int, Any]] = {}

    @classmethod
    def build(
        cls,
        model: nn.Module,
        corpus: Any,
        *,
        tokenizer: Any,
        folder: str | os.PathLike[str],
        taps: Sequence[AnyTap | Site | str] | AnyTap | Site | str | None = None,
        by: Sequence[str] = ("activation", "relevance"),
        top: int = 16,
        context: int = 64,
        window: tuple[int, int] = (24, 8),
        skip: int = 0,
        column: str | None = None,
        composite: Composite | str = "attnlrp",
        batch_size: int | None = None,
        memory_budget: int | str | None = None,
        flush: int | None = None,
        progress: bool | None = None,
    ) -> Atlas:
        """Run a corpus through a model, and keep what drives each unit most.

        A run that was killed goes on from the last state that it wrote, if it is called again in
        the same way: the corpus is read again up to there, but not run. On the same machine the
        result is the same to the bit. Memory and disk don't grow with the corpus but with units
        × top: rankings are merged as batches go by.

        Args:
            model: in eval mode, on any device; all that `lxt.explain` takes.
            corpus: texts in any iterable, a `datasets.Dataset` or a column of one, mappings with a
                text in a column, or the path of a .txt (texts apart by empty lines), .jsonl,
                .parquet or .csv file, or of a folder of them.
            tokenizer: reads texts. Texts are cut into rows of up to `context` tokens, each with
                what the tokenizer puts around a text; the model sees none of the rows before.
            folder: where the atlas goes: empty, not there yet, or one that was begun in the same
                way.
            taps: the places; by default `Neurons()` of all layers. Without `over` and `top`. Of
                `Features` the error and the bias are left out.
            by: "activation" and "relevance", the largest; "-activation" and "-relevance", the most
                negative. With activation alone nothing but forward passes run. Relevance is that
                for the sum, over all tokens of a row, of the logit that the model ranks first
                there; of a classifier, for its highest logit.
            top: how many contexts of each unit and ranking are kept; of equal values the earlier.
            context: tokens of a row.
            window: of how many tokens before and after the peak the activation is kept.
            skip: so many first tokens of each row don't count: in many models the first one draws
                activation and relevance whatever it is. What the tokenizer adds never counts.
            column: where the text is in a mapping, or a file with columns.
            composite: the rules of relevance, or the name of a preset.
            batch_size: how many rows run at a time; by default as many as fit, kept for the whole
                atlas.
            memory_budget: as in `lxt.explain`, for the default of `batch_size`.
            flush: after how many batches state is written; by default so often that it takes at
                most a twentieth of the time.
            progress: as in `lxt.explain`.

        Raises:
            InvalidInput: an argument or a text that is none, an empty corpus; or the folder is of
                another corpus or of other settings, or holds other things.
            InvalidModel: the model can't be explained, is in training mode, or the folder is of
                another one.
            InvalidTap: a tap that isn't there, or sums tokens up.
            InvalidFile: a file of the corpus, or of the folder, is damaged.
            UnwritableFile: the folder can't be written to, or another process does.
            MissingPackage: pyarrow is not installed.
            UnknownOperation, NonFiniteLogits, NonFiniteRelevance, InvalidComposite: see
                `lxt.explain`.

        """
        build(
            model,
            corpus,
            tokenizer=tokenizer,
            folder=folder,
            taps=taps,
            by=by,
            top=top,
            context=context,
            window=window,
            skip=skip,
            column=column,
            composite=composite,
            batch_size=batch_size,
            memory_budget=memory_budget,
            flush=flush,
            progress=progress,
        )
        return cls.open(folder, model=model)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, model: nn.Module | None = None) -> Atlas:
        """Open a finished atlas.

        Args:
            folder: where it is.
            model: which it should be of; by default that is not looked at.

        Raises:
            InvalidFile: there is none, it is not finished, or it is damaged.
            InvalidModel: it is of another model.
            MissingPackage: pyarrow is not installed.

        """
        place = Folder(folder)
        manifest = place.manifest()
        if manifest is None:
            raise InvalidFile(
                f"there is no atlas in {os.fspath(folder)!r}: it has no manifest.json"
            )
        if manifest["status"] != "complete":
            read = manifest["progress"]["texts"]
            raise InvalidFile(
                f"the atlas in {os.fspath(folder)!r} is not finished, it has read {read} texts: go "
                "on by building it again in the same way"
            )
        for name in tables.FILES:
            place.check(name, manifest["files"].get(name))
        atlas = cls(place, manifest)
        if model is not None:
            atlas.require(model)
        return atlas

    def __repr__(self) -> str:
        tokens = self.manifest["progress"]["tokens"]
        return (
            f"<Atlas of {self.manifest['identity']['model']}: {len(self)} units at "
            f"{len(self.sites)} sites, {tokens} tokens>"
        )

    def __len__(self) -> int:
        """How many units there are."""
        return sum(site.units for site in self.sites)

    @property
    def by(self) -> list[str]:
        """What contexts are ranked by."""
        return list(self.manifest["settings"]["by"])

    @property
    def units(self) -> list[Unit]:
        """All units, site by site.

        Raises:
            InvalidTap: some are features, which take their autoencoder (see `unit`), or experts.

        """
        return [naming.unit_of(site, i) for site in self.sites for i in range(site.units)]

    @property
    def names(self) -> list[str]:
        """The names of all units, of any kind, site by site."""
        return [naming.name_of(site, i) for site in self.sites for i in range(site.units)]

    def unit(self, unit: Unit | str, *, sae: Any = None) -> Unit:
        """A unit by its name, such as `"layers.3.mlp.act_fn[5]"`.

        Args:
            unit: the name.
            sae: of a feature, the autoencoder that the atlas was built with; or a list of several.

        Raises:
            InvalidTap: there is none, or several fit; it is an expert, which is no `lxt.Unit`; or
                a feature, and its autoencoder is missing or another.

        """
        number, index = naming.find(self.sites, unit)
        return naming.unit_of(self.sites[number], index, sae)

    def name(self, unit: Unit | str) -> str:
        """The whole name of a unit."""
        number, index = naming.find(self.sites, unit)
        return naming.name_of(self.sites[number], index)

    def require(self, model: nn.Module) -> None:
        """Make sure that the atlas is of this model.

        Raises:
            InvalidModel: it is of another one.

        """
        require_same(model, self.manifest["identity"], str(self.folder))

    def statistics(self, unit: Unit | str) -> UnitStatistics:
        """What was counted of a unit.

        Raises:
            InvalidTap: there is none, or several fit.

        """
        number, index = naming.find(self.sites, unit)
        place = sum(site.units for site in self.sites[:number]) + index
        line = self.table.slice(place, 1).to_pylist()[0]
        found: dict[str, Any] = {"relevance": None, "absolute_relevance": None}
        found |= {name: value for name, value in line.items() if name not in ("site", "unit")}
        return UnitStatistics(**found)

    def top(self, unit: Unit | str, by: str | None = None, k: int | None = None) -> list[Context]:
        """The contexts of a unit, the first first.

        Args:
            unit: an `lxt.Unit`, or its name.
            by: one of `self.by`; by default the first.
            k: the most; by default all.

        Raises:
            InvalidTap: there is no such unit, or several fit.
            InvalidInput: the atlas has no such ranking.

        """
        number, index = naming.find(self.sites, unit)
        by = self.by[0] if by is None else by
        if by not in self.by:
            listed = ", ".join(map(repr, self.by))
            raise InvalidInput(f"by={by!r}: this atlas ranks contexts by {listed}")
        group = self._group(number, by)
        first, last = group["unit"].to_numpy().searchsorted([index, index + 1]).tolist()
        last = last if k is None else min(last, first + k)
        return [self._context(group, by, line) for line in range(first, last)]

    def describe(
        self,
        unit: Unit | str,
        *,
        model: nn.Module | None = None,
        tokenizer: Any = None,
        contexts: int = 8,
        composite: Composite | str | None = None,
        sae: Any = None,
    ) -> Description:
        """Say what a unit responds to, what it promotes, and where it acts.

        Args:
            unit: an `lxt.Unit`, or its name.
            model: attributes each context to the unit, what in it made the unit fire, and tells
                what vocabulary the unit's output direction promotes and suppresses.
            tokenizer: spells that vocabulary.
            contexts: how many of each ranking.
            composite: the rules; by default those that the atlas was built with, or AttnLRP.
            sae: the autoencoder of features, which a model's part of their description takes; or a
                list of several.

        Raises:
            InvalidTap: there is no such unit, or several fit; or it is a feature, and `sae` is
                missing or another one than it was built with.
            InvalidModel: the atlas is of another model.
            InvalidInput: `contexts` is no number of them.

        """
        from lxt.atlas.describe import describe

        return describe(self, unit, model, tokenizer, contexts, composite, sae)

    def to_html(
        self,
        folder: str | os.PathLike[str],
        *,
        units: Sequence[Unit | str] | None = None,
        most: int = 100,
        model: nn.Module | None = None,
        tokenizer: Any = None,
        contexts: int = 8,
        sae: Any = None,
        progress: bool | None = None,
    ) -> None:
        """Write an index of all units, and a page for some, to be read in a browser, offline.

        Args:
            folder: where; "index.html" is the one to open.
            units: which get a page; by default `most`, those of the largest mean |relevance|, or
                of the largest activation in deviations from the mean.
            most: see `units`.
            model: see `describe`.
            tokenizer: see `describe`.
            contexts: see `describe`.
            sae: see `describe`.
            progress: as in `lxt.explain`.

        Raises:
            UnwritableFile: the folder can't be written to.
            InvalidTap, InvalidModel, InvalidInput: see `describe`.

        """
        from lxt.atlas.pages import write_pages

        write_pages(self, folder, units, most, model, tokenizer, contexts, sae, progress)

    @cached_property
    def table(self) -> Any:
        """The statistics of all units, a `pyarrow.Table`."""
        return tables.read(self.folder / "units.parquet")

    def column(self, name: str) -> Tensor:
        """One of the statistics, float64 [units]."""
        return torch.tensor(self.table.column(name).to_numpy(), dtype=torch.float64)

    def strongest(self, count: int) -> list[str]:
        """The names of units that stand out, see `to_html`."""
        if "absolute_relevance" in self.table.column_names:
            score = self.column("absolute_relevance")
        else:
            mean, most, deviation = map(self.column, ("mean", "most", "deviation"))
            score = (most - mean) / deviation.clamp(min=torch.finfo(torch.float64).tiny)
        order = score.argsort(descending=True, stable=True)[:count].tolist()
        names = self.names
        return [names[i] for i in order]

    @cached_property
    def _rows(self) -> tuple[Any, Any]:
        table = tables.read(self.folder / "rows.parquet")
        return table, table.column("row").to_numpy()

    def _group(self, site: int, by: str) -> Any:
        """The contexts of all units of a site; those that were asked for last are kept."""
        group = site * len(self.by) + self.by.index(by)
        if self._groups.get(by, (None,))[0] != group:
            self._groups[by] = group, tables.read_group(self.folder / "contexts.parquet", group)
        return self._groups[by][1]

    def _context(self, group: Any, by: str, line: int) -> Context:
        found = {name: column[line].as_py() for name, column in group.items()}
        table, numbers = self._rows
        row = table.slice(int(numbers.searchsorted(found["row"])), 1).to_pylist()[0]
        begin, place = found["begin"], found["position"]
        activations = torch.tensor(found["window"], dtype=torch.float32)
        peak = place - begin
        activations[peak] = found["activation"]
        lead = row["begin"] - self.manifest["settings"]["skip"]  # what the tokenizer put before
        return Context(
            by,
            found["value"],
            found["activation"],
            found.get("relevance"),
            row["tokens"][begin : begin + len(activations)],
            activations,
            peak,
            row["text"],
            row["start"] + place - lead,
            row["ids"],
            place,
        )
