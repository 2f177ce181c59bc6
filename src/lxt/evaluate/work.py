"""Interventions on rows, and what composites predict of them, collected one row after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lxt._version import __version__
from lxt.batching import as_batch_size
from lxt.composite import Composite
from lxt.entries import OnUnknown
from lxt.errors import InvalidInput
from lxt.evaluate.arguments import require_one_of
from lxt.evaluate.components import Component
from lxt.evaluate.interventions import Interventions
from lxt.evaluate.runs import Replacement, Row, Sharing
from lxt.explained import ExplainedTarget
from lxt.latent.units import Site

__all__ = ["Positions", "Work"]

Positions = Literal["all", "each"]

# Short passes, for rows are one up to the first replacement of a batch.
_TOKENS_AT_ONCE = {"cpu": 1024}
_TOKENS_ON_ACCELERATORS = 65536


class Work:
    """Interventions on rows, one row after another.

    Attributes:
        absolute: whether a · g is among the predictions.
        relative: whether (a − r) · g is.

    """

    def __init__(
        self,
        model: nn.Module,
        kind: str,
        parts: Sequence[Component],
        methods: Mapping[str, Composite],
        on_unknown: OnUnknown | None,
        positions: Any,
        batch_size: Any,
    ) -> None:
        require_one_of(positions, Positions, "positions")
        self._batch_size = as_batch_size(batch_size)
        self._model, self._kind, self._parts, self._methods = model, kind, parts, methods
        self._on_unknown: OnUnknown | None = on_unknown
        self._positions = positions
        self._sharing = Sharing()
        self.absolute, self.relative = False, True
        self._component: list[str] = []
        self._site: list[str] = []
        self._numbers: list[tuple[int, int, int, int]] = []
        self._effects: list[Tensor] = []
        self._predicted: dict[str, list[float]] = {}
        self._targets: list[ExplainedTarget] = []

    def put(
        self,
        number: int,
        row: Row,
        here: Mapping[Site, Tensor],
        there: Mapping[Site, Tensor],
    ) -> None:
        """Put the values `there` [tokens, channels] in the place of those `here`, part by part."""
        sign = 1 if self._kind == "patching" else -1
        changes, start = [], len(self._numbers)
        for part in self._parts:
            a, r = here[part.site], there[part.site]
            for unit, channels in part.parts(a.shape[-1]):
                channels = channels.to(a.device)
                for position, tokens in self._places(len(a)):
                    values = r[tokens][:, channels]
                    if torch.equal(values, a[tokens][:, channels]):
                        continue
                    changes.append(Replacement(part.site, tokens, channels, values))
                    self._component.append(part.kind)
                    self._site.append(part.name)
                    self._numbers.append((number, part.layer, unit, position))
        if len(self._numbers) == start:
            raise InvalidInput(
                f"row {number}: every component is already what it is to be replaced by, so there "
                "is nothing to compare"
            )
        for name, composite in self._methods.items():
            gradients = row.gradients(list(here), composite, self._on_unknown)
            self._predict(name, changes, here, gradients, sign)
        tokens = _TOKENS_AT_ONCE.get(row.weights.device.type, _TOKENS_ON_ACCELERATORS)
        at_once = self._batch_size or tokens // row.tokens
        effects = row.effects(changes, max(at_once - 1, 1), self._sharing)
        self._effects.append(sign * effects)
        self._targets.append(row.explained)

    def _places(self, tokens: int) -> list[tuple[int, slice]]:
        if self._positions == "all":
            return [(-1, slice(0, tokens))]
        return [(position, slice(position, position + 1)) for position in range(tokens)]

    def _predict(
        self,
        name: str,
        changes: Sequence[Replacement],
        here: Mapping[Site, Tensor],
        gradients: Mapping[Site, Tensor],
        sign: int,
    ) -> None:
        for change in changes:
            a = here[change.site][change.tokens][:, change.channels].double()
            g = gradients[change.site][change.tokens][:, change.channels].double()
            found = {}
            if self.absolute:
                found[name] = a * g
            if self.relative:
                key = f"{name}, difference" if self.absolute else name
                found[key] = sign * (change.values.double() - a) * g
            for key, product in found.items():
                self._predicted.setdefault(key, []).append(float(product.sum()))

    def result(self, facts: Mapping[str, str]) -> Interventions:
        """All of them."""
        import transformers

        config: Any = getattr(self._model, "config", None)
        name = getattr(config, "name_or_path", None) or type(self._model).__name__
        numbers = torch.tensor(self._numbers, dtype=torch.int64)
        row, layer, unit, position = numbers.unbind(1)
        return Interventions(
            self._kind,
            self._component,
            row,
            self._site,
            layer,
            unit,
            position,
            torch.cat(self._effects),
            {
                key: torch.tensor(values, dtype=torch.float64)
                for key, values in self._predicted.items()
            },
            self._targets,
            {
                "model": str(name),
                "class": type(self._model).__name__,
                "composites": ", ".join(self._methods),
                "positions": self._positions,
                **facts,
                "dtype": str(next(self._model.parameters()).dtype).removeprefix("torch."),
                "lxt": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        )
