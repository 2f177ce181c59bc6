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
        self._size = rows, targets, width
        self._taps: dict[str, _OfTap] = {}

    def put(
        self, case: TextCase, targets: Sequence[int], reading: Reading, arrived: Arrived
    ) -> None:
        """What was told of some rows, and arrived for some targets."""
        each = iter(arrived.told)
        for key, calls in reading.taps.items():
            if key not in self._taps:
                self._taps[key] = _OfTap(calls, *self._size)
            tap = self._taps[key]
            if len(tap.sites) != len(calls):
                raise InvalidTap(
                    f"the tap {key!r} saw {len(calls)} tensors pass, and {len(tap.sites)} in other "
                    "rows: explain rows of one length at a time"
                )
            for layer, told in enumerate(calls):
                tap.put(case, targets, layer, told, next(each))

    def latents(self, *, is_many: bool, is_batch: bool) -> dict[str, Latent]:
        """All of it, with or without axes of targets and rows."""
        return {
            key: _together(tap, is_many=is_many, is_batch=is_batch)
            for key, tap in self._taps.items()
        }


class _OfTap:
    """Relevance [rows, targets, layers, …] and activation [rows, layers, …] of all sites of a tap.

    Of the strongest both are one: [rows, targets, layers, top, 3].
    """

    def __init__(self, calls: Sequence[Told], rows: int, targets: int, width: int) -> None:
        parts = self.parts = calls[0].parts
        self.sites = [told.site for told in calls]
        self.units = [told.units for told in calls]
        self.dtype = calls[0].dtype
        inner = [width] if "tokens" in parts.axes else []
        inner += [] if parts.kind == "tokens" else [max(self.units)]
        dtype = self.dtype
        if parts.top is not None:
            inner, dtype = [parts.top, 3], torch.float64
        self.relevance = torch.zeros(rows, targets, len(calls), *inner, dtype=dtype, device="cpu")
        self.activation = self.relevance
        if parts.top is not None:
            self.relevance[..., 1] = -1
        else:
            self.activation = torch.zeros(rows, len(calls), *inner, dtype=dtype, device="cpu")

    def put(
        self, case: TextCase, targets: Sequence[int], layer: int, told: Told, found: Tensor
    ) -> None:
        """`found`: [targets, rows, *what is told]."""
        found = found.detach().cpu()
        activation = None if told.activation is None else told.activation.cpu()
        for place, (row, keep) in enumerate(zip(case.numbers, case.batch.mask, strict=True)):
            for target, values in zip(targets, found[:, place], strict=True):
                self._write(self.relevance[row, target, layer], values, keep)
            if activation is not None:
                self._write(self.activation[row, layer], activation[place], keep)

    def _write(self, to: Tensor, values: Tensor, keep: Tensor) -> None:
        """Put what was told of one row where it belongs."""
        if self.parts.top is not None:
            to[: len(values)] = values
            return
        if self.parts.kind != "tokens":
            to = to[..., : values.shape[-1]]
        if "tokens" not in self.parts.axes:
            to.copy_(values)
        elif keep.all():
            to.copy_(values[: len(keep)])
        else:
            to[keep] = values[: int(keep.sum())].to(to.dtype)


def _together(tap: _OfTap, *, is_many: bool, is_batch: bool) -> Latent:
    parts, units, index = tap.parts, tap.units, None
    relevance, activation = tap.relevance, tap.activation
    if parts.top is not None:
        relevance, number, activation = relevance.unbind(-1)
        number = number.long()
        each = torch.tensor(units)[:, None]
        position = number.new_full((), -1) if parts.summed else number // each
        index = torch.stack(torch.broadcast_tensors(position, number % each), -1)
        # Where fewer are not 0, whatever else was picked may be padding, and is nothing.
        index[(number < 0) | (relevance == 0)] = -1
        activation = activation.where(relevance != 0, 0)
        relevance, activation = relevance.to(tap.dtype), activation.to(tap.dtype)
    if not is_many:
        relevance = relevance[:, 0]
        index = None if index is None else index[:, 0]
        activation = activation[:, 0] if parts.top is not None else activation
    if not is_batch:
        relevance, activation = relevance[0], activation[0]
        index = None if index is None else index[0]
    present: Mapping[str, bool] = {"batch": is_batch, "targets": is_many, "layers": True}
    axes = (*(axis for axis, there in present.items() if there), *parts.axes)
    names = names_of(tap.sites)
    return Latent(relevance, activation, axes, names, units, parts.kind, index)
