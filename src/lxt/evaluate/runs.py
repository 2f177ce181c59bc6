"""Runs of one row of tokens: as it is, seen within; under rules; and with parts of it replaced."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lxt.composite import Composite
from lxt.engine.passages import first_tensor, replaced
from lxt.entries import OnUnknown
from lxt.errors import InvalidTap, NonFiniteRelevance
from lxt.latent.parts import by_tokens
from lxt.latent.probes import Capture, Passage
from lxt.latent.units import Site
from lxt.text_case import TextCase

__all__ = ["Replacement", "Row", "Sharing"]


@dataclass(frozen=True)
class Replacement:
    """Other values for a part of what passes a site.

    Attributes:
        site: where, with the whole path of its module.
        tokens: which positions.
        channels: which channels, indices.
        values: [positions, channels], to be in their place.

    """

    site: Site
    tokens: slice
    channels: Tensor
    values: Tensor


@dataclass
class Sharing:
    """Whether rows of a batch can be one row up to where the first of them is changed.

    Attributes:
        works: None until it has been tried.

    """

    works: bool | None = None


class Row:
    """One row of tokens, a model that runs it, and a number that is read off its output.

    Attributes:
        case: of this row alone.
        tokens: how many it has.
        weights: [1, vocabulary], by which the logits count.
        explained: what is read, with its value.

    """

    def __init__(self, case: TextCase) -> None:
        self.case = case
        self.tokens = case.batch.lengths()[0]
        with torch.no_grad():
            logits = case.read([0]).logits[:, 0]
        self._logits = logits
        self.weights = case.weights(0, logits)
        self.explained = case.explained(0, 0, logits[0])

    def read_as(self, other: Row) -> Row:
        """The same, of which is read what is read of the other."""
        row = copy.copy(self)
        row.weights = other.weights
        value = float((self._logits * row.weights).sum())
        prediction = self.explained.prediction
        row.explained = replace(other.explained, value=value, prediction=prediction)
        return row

    @torch.no_grad()
    def activations(self, sites: Iterable[Site]) -> dict[Site, Tensor]:
        """What passes each site [tokens, channels]."""
        found: dict[Site, Tensor] = {}

        def keep(site: Site) -> Callable[[Tensor], None]:
            def see(x: Tensor) -> None:
                found[site] = by_tokens(x, 1, self.tokens, str(site))[0].clone()

            return see

        with _at_sites(self.case.model, {site: keep(site) for site in sites}):
            self.case.read([0])
        return found

    def gradients(
        self, sites: Sequence[Site], composite: Composite, on_unknown: OnUnknown | None
    ) -> dict[Site, Tensor]:
        """The gradient of the number at each site [tokens, channels], under a composite.

        Raises:
            InvalidTap: a site did not pass once.
            NonFiniteRelevance: it overflows.
            LxtError: see `lxt.explain`.

        """
        model, passage = self.case.model, Passage(1, self.tokens)
        captures = [Capture(str(s), _module(model, s), s.end, passage, values=False) for s in sites]
        with composite.context(model, on_unknown=on_unknown) as propagation:
            propagation.probes = captures
            reading = self.case.read([0])
            self.case.require_path(reading)
            captured = [capture.captured for capture in captures]
            edges = [one.edge for one in captured if one.edge is not None]
            seed = torch.zeros_like(reading.logits)
            seed[:, 0] = self.weights
            each = iter(torch.autograd.grad(reading.logits, edges, seed, allow_unused=True))
        found = {}
        for site, one in zip(sites, captured, strict=True):
            g = None if one.edge is None else next(each)
            g = reading.leaf.new_zeros(one.shape) if g is None else g
            if not g.isfinite().all():
                raise NonFiniteRelevance(
                    f"the backward pass overflows at {site}: run the model in a wider dtype, such "
                    "as bfloat16 or float32"
                )
            found[site] = by_tokens(g, 1, self.tokens, str(site))[0]
        return found

    @torch.no_grad()
    def effects(self, changes: Sequence[Replacement], at_once: int, sharing: Sharing) -> Tensor:
        """By how much the number grows with each replacement alone: float64 [replacements].

        Each is a row of a batch, beside one that is as it was: what a batch differs by in its last
        digits is no effect. Up to the first replacement all rows are one, where that gives the same
        numbers, which is tried once.
        """
        found = []
        for start in range(0, len(changes), at_once):
            here = changes[start : start + at_once]
            values = self._values(here, shared=sharing.works is True)
            if sharing.works is None:
                sharing.works = self._agree(here, values)
            found.append(values[1:] - values[0])
        return torch.cat(found).cpu()

    def _agree(self, changes: Sequence[Replacement], values: Tensor) -> bool:
        """Whether these are the values that rows have which begin as one."""
        try:
            shared = self._values(changes, shared=True)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # models say in many ways that they expect another number of rows
            return False
        eps = torch.finfo(next(self.case.model.parameters()).dtype).eps
        # Many models compute their norms in float32 whatever type they have.
        tolerance = max(100 * eps, 1e-5) * float(values.abs().max())
        return shared.shape == values.shape and bool(((shared - values).abs() <= tolerance).all())

    def _values(self, changes: Sequence[Replacement], *, shared: bool) -> Tensor:
        """The number as it is, and with each replacement: float64 [1 + replacements]."""
        by_site: dict[Site, list[tuple[int, Replacement]]] = {}
        for row, change in enumerate(changes, start=1):
            by_site.setdefault(change.site, []).append((row, change))
        rows = len(changes) + 1
        writers = {site: self._writer(each, rows) for site, each in by_site.items()}
        batch = self.case.of_rows([0] * (1 if shared else rows))
        with _at_sites(self.case.model, writers):
            logits = batch.read([0]).logits[:, 0]
        return (logits.double() * self.weights.double()).sum(-1)

    def _writer(
        self, changes: list[tuple[int, Replacement]], rows: int
    ) -> Callable[[Tensor], Tensor]:
        def write(x: Tensor) -> Tensor:
            many = x.shape[:2] == (rows, self.tokens) or x.shape[0] == rows * self.tokens
            here = rows if many else 1
            flat = by_tokens(x, here, self.tokens, str(changes[0][1].site))
            flat = flat.expand(rows, *flat.shape[1:]).clone(memory_format=torch.contiguous_format)
            for row, change in changes:
                flat[row, change.tokens][:, change.channels.to(x.device)] = change.values.to(x)
            return flat.reshape(x.shape[0] * rows // here, *x.shape[1:])

        return write


def _module(model: nn.Module, site: Site) -> nn.Module:
    return model.get_submodule(site.module.removeprefix("/"))


@contextmanager
def _at_sites(
    model: nn.Module, see: Mapping[Site, Callable[[Tensor], Tensor | None]]
) -> Iterator[None]:
    """While entered, each site's tensor is shown; what is returned, if anything, is in its place.

    Raises:
        InvalidTap: at the end, a site that did not pass once.

    """
    passed = dict.fromkeys(see, 0)

    def shown(site: Site, value: Any) -> Any:
        passed[site] += 1
        x = first_tensor(value)
        if x is None:
            raise InvalidTap(f"no tensor of floating-point numbers passes {site}")
        y = see[site](x)
        return None if y is None else replaced(value, x, y)

    with ExitStack() as undo:
        for site in see:
            module = _module(model, site)
            if site.end == "input":
                handle = module.register_forward_pre_hook(
                    lambda _, args, kwargs, site=site: shown(site, (args, kwargs)),
                    with_kwargs=True,
                )
            else:
                handle = module.register_forward_hook(
                    lambda _, args, output, site=site: shown(site, output)
                )
            undo.callback(handle.remove)
        yield
    for site, count in passed.items():
        if count != 1:
            raise InvalidTap(
                f"{site} ran {count} times in a forward pass, and what is intervened on runs once"
            )
