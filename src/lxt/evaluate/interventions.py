"""The result: what interventions did, what was predicted of them, and how far both agree."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lxt import correlation
from lxt.errors import InvalidInput, MissingPackage
from lxt.explained import ExplainedTarget

if TYPE_CHECKING:
    import pandas
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["Agreement", "Interventions"]


@dataclass(frozen=True)
class Agreement:
    """How well a method predicts the effects of interventions on one kind of component.

    Attributes:
        component: the kind.
        method: of prediction.
        rows: of how many rows correlations are the mean; those in which one is defined.
        interventions: how many there are in all rows.
        pearson: the mean of the rows' correlations; NaN if there is none.
        pearson_error: its standard error over rows; NaN of fewer than two.
        spearman: the same by ranks.
        spearman_error: its standard error.

    """

    component: str
    method: str
    rows: int
    interventions: int
    pearson: float
    pearson_error: float
    spearman: float
    spearman_error: float


@dataclass(frozen=True, eq=False, repr=False)
class Interventions:
    """One entry for each intervention, in the order of rows; `print` shows how far both agree.

    Raises:
        InvalidInput: these are not as many of each.

    """

    kind: str
    """``"ablation"`` or ``"patching"``."""
    component: Sequence[str]
    """What was changed: ``"heads"``, ``"mlp"``, …, or a site's name."""
    row: Tensor
    """Of which row, int64."""
    site: Sequence[str]
    """Where it was changed: the path of a module, with ``:input`` where it is what goes in."""
    layer: Tensor
    """The site's number among those of its kind, int64."""
    unit: Tensor
    """The head, or group of neurons; -1 for all of the site's vector. Int64."""
    position: Tensor
    """The token, counted without padding; -1 for all. Int64."""
    effect: Tensor
    """What the component did for the target, in its units, float64. In an ablation: its value as it
    is less that with the component ablated. In patching: its value with the component patched less
    that of the corrupt run."""
    predicted: Mapping[str, Tensor]
    """The same as each method predicts it, float64."""
    targets: Sequence[ExplainedTarget]
    """What was read in each row, with its value before any intervention."""
    provenance: Mapping[str, str]
    """Of which model, how, and with which versions."""

    def __post_init__(self) -> None:
        columns: Mapping[str, Any] = {
            "effect": self.effect,
            "component": self.component,
            "row": self.row,
            "site": self.site,
            "layer": self.layer,
            "unit": self.unit,
            "position": self.position,
            **self.predicted,
        }
        sizes = {name: len(column) for name, column in columns.items()}
        if len(set(sizes.values())) > 1:
            raise InvalidInput(f"interventions have as many entries of each, and these are {sizes}")

    def __len__(self) -> int:
        return len(self.effect)

    @property
    def components(self) -> list[str]:
        """The kinds of components that were changed."""
        return list(dict.fromkeys(self.component))

    def of(self, component: str) -> Interventions:
        """Those on one kind of component.

        Raises:
            InvalidInput: there are none.

        """
        if component not in self.components:
            raise InvalidInput(f"no {component!r} among the components {self.components}")
        return self._some([i for i, kind in enumerate(self.component) if kind == component])

    def agreements(self) -> list[Agreement]:
        """For each kind of component and method, correlations within each row, and their mean."""
        found = []
        for component in self.components:
            part = self.of(component)
            rows = [part.row == row for row in part.row.unique().tolist()]
            for method, predicted in part.predicted.items():
                pairs = [(predicted[here], part.effect[here]) for here in rows]
                p, p_error, count = _mean([correlation.pearson(*pair) for pair in pairs])
                s, s_error, _ = _mean([correlation.spearman(*pair) for pair in pairs])
                found.append(Agreement(component, method, count, len(part), p, p_error, s, s_error))
        return found

    def averaged(self) -> Interventions:
        """The mean over rows of each intervention, as one row.

        For prompts of one template, in which a position has one meaning: a correlation of these is
        what is published of patching. Interventions that some of the rows lack are left out.
        """
        places: dict[tuple[Any, ...], list[int]] = {}
        units, positions = self.unit.tolist(), self.position.tolist()
        for i, key in enumerate(zip(self.component, self.site, units, positions, strict=True)):
            places.setdefault(key, []).append(i)
        rows = len(self.row.unique())
        kept = [entries for entries in places.values() if len(entries) == rows]
        index = torch.tensor(kept, dtype=torch.int64).reshape(len(kept), rows)
        first = self._some(index[:, 0].tolist() if rows else [])
        return replace(
            first,
            row=torch.zeros_like(first.row),
            effect=self.effect[index].mean(1),
            predicted={name: values[index].mean(1) for name, values in self.predicted.items()},
        )

    def _some(self, entries: list[int]) -> Interventions:
        index = torch.tensor(entries, dtype=torch.int64)
        return replace(
            self,
            component=[self.component[i] for i in entries],
            site=[self.site[i] for i in entries],
            row=self.row[index],
            layer=self.layer[index],
            unit=self.unit[index],
            position=self.position[index],
            effect=self.effect[index],
            predicted={name: values[index] for name, values in self.predicted.items()},
        )

    def to_dataframe(self) -> pandas.DataFrame:
        """Return a table with one line for each intervention.

        Its columns are ``row``, ``component``, ``site``, ``layer``, ``unit``, ``position`` and
        ``effect``, as here, then one for each method.

        Raises:
            MissingPackage: pandas can't be imported.
            InvalidInput: a method has the name of another column.

        """
        try:
            import pandas
        except ImportError as error:
            raise MissingPackage(
                f"pandas can't be imported ({error}): pip install lxt[pandas]"
            ) from error
        columns: dict[str, Any] = {
            "row": self.row.numpy(),
            "component": list(self.component),
            "site": list(self.site),
            "layer": self.layer.numpy(),
            "unit": self.unit.numpy(),
            "position": self.position.numpy(),
            "effect": self.effect.numpy(),
        }
        for name, values in self.predicted.items():
            if name in columns:
                raise InvalidInput(f"a method is called {name!r}, as another column is: rename it")
            columns[name] = values.numpy()
        return pandas.DataFrame(columns)

    def __str__(self) -> str:
        from lxt.evaluate import table
        from lxt.views import terminal

        return terminal.printed(table.render(self))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from lxt.evaluate import table

        yield table.render(self)

    def __repr__(self) -> str:
        kinds = ", ".join(f"{kind} {self.component.count(kind)}" for kind in self.components)
        return f"<Interventions by {self.kind}: {kinds}; predicted by {', '.join(self.predicted)}>"


def _mean(values: list[float]) -> tuple[float, float, int]:
    """Mean, standard error and count of those that are numbers."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return math.nan, math.nan, 0
    error = statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else math.nan
    return statistics.fmean(known), error, len(known)
