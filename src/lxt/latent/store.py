"""Puts together what taps were told of groups of rows and of chunks of targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lxt.backward import Arrived
from lxt.errors import InvalidTap
from lxt.latent.probes import Told
from lxt.latent.relevance import Latent, names_of
from lxt.text_case import Reading, TextCase

__all__ = ["Store"]


class Store:
    """Takes relevance and activation of each site, in the layout of the rows that were given."""

    def __init__(self, rows: int, targets: int, width: int) -> None:
        self._size = rows, targets
        self._width = width
        self._sites: dict[str, list[_OfSite]] = {}

    def put(
        self, case: TextCase, targets: Sequence[int], reading: Reading, arrived: Arrived
    ) -> None:
        """What was told of some rows, and arrived for some targets."""
        each = iter(arrived.told)
        for key, calls in reading.taps.items():
            sites = self._sites.setdefault(key, [])
            if not sites:
                sites.extend(_OfSite(told, *self._size, self._width) for told in calls)
            if len(sites) != len(calls):
                raise InvalidTap(
                    f"the tap {key!r} saw {len(calls)} tensors pass, and {len(sites)} in other "
                    "rows: explain rows of one length at a time"
                )
            for site, told in zip(sites, calls, strict=True):
                site.put(case, targets, told, next(each))

    def latents(self, *, is_many: bool, is_batch: bool) -> dict[str, Latent]:
        """All of it, with or without axes of targets and rows."""
        return {
            key: _together(sites, is_many=is_many, is_batch=is_batch)
            for key, sites in self._sites.items()
        }


class _OfSite:
    """Relevance [rows, targets, …] and activation [rows, …] of one site."""

    def __init__(self, told: Told, rows: int, targets: int, width: int) -> None:
        self.site, self.units, self.parts = told.site, told.units, told.parts
        inner = list(told.shape[1:])
        if self.parts.top is not None:
            inner = [self.parts.top, 3]
        elif "tokens" in self.parts.axes:
            inner[0] = width
        self.dtype = told.dtype
        wide = torch.float64 if self.parts.top is not None else told.dtype
        self.relevance = torch.zeros(rows, targets, *inner, dtype=wide)
        if self.parts.top is not None:
            self.relevance[..., 1] = -1
        self.activation = torch.zeros(rows, *inner, dtype=wide)

    def put(self, case: TextCase, targets: Sequence[int], told: Told, found: Tensor) -> None:
        """`found`: [targets, rows, *what is told]."""
        rows = list(case.numbers)
        found, activation = found.detach().movedim(0, 1).cpu(), told.activation
        if self.parts.top is None and "tokens" in self.parts.axes:
            found = case.batch.as_given(found.movedim(1, -1)).movedim(-1, 1)
            activation = None if activation is None else case.batch.as_given(activation.cpu())
        for row, values in zip(rows, found, strict=True):
            if self.parts.top is None:
                self.relevance[row, list(targets)] = values.to(self.relevance.dtype)
            else:
                self.relevance[row, list(targets), : values.shape[1]] = values
        if activation is not None:
            self.activation[rows] = activation.cpu().to(self.activation.dtype)


def _together(sites: list[_OfSite], *, is_many: bool, is_batch: bool) -> Latent:
    parts = sites[0].parts
    units = [site.units for site in sites]
    relevance = torch.stack([_padded(site.relevance, sites) for site in sites], 2)
    activation = torch.stack([_padded(site.activation, sites) for site in sites], 1)
    index = None
    if parts.top is not None:
        relevance, number, activation = relevance.unbind(-1)
        number = number.long()
        each = torch.tensor(units)[:, None]
        position = number.new_full((), -1) if parts.summed else number // each
        index = torch.stack(torch.broadcast_tensors(position, number % each), -1)
        index[number < 0] = -1
        # Among so few that relevance is 0, padding may have been picked.
        index[relevance == 0] = -1
        activation[relevance == 0] = 0
        wide = sites[0].dtype
        relevance, activation = relevance.to(wide), activation.to(wide)
    if not is_many:
        relevance = relevance[:, 0]
        index = None if index is None else index[:, 0]
        activation = activation[:, 0] if parts.top is not None else activation
    if not is_batch:
        relevance, activation = relevance[0], activation[0]
        index = None if index is None else index[0]
    present: Mapping[str, bool] = {"batch": is_batch, "targets": is_many, "layers": True}
    axes = (*(axis for axis, there in present.items() if there), *parts.axes)
    names = names_of([site.site for site in sites])
    return Latent(relevance, activation, axes, names, units, parts.kind, index)


def _padded(x: Tensor, sites: list[_OfSite]) -> Tensor:
    """With zeros for the units that other sites have more of."""
    if sites[0].parts.top is not None or sites[0].parts.kind == "tokens":
        return x
    more = max(site.units for site in sites) - x.shape[-1]
    return torch.nn.functional.pad(x, (0, more)) if more else x
