"""The largest values of many units, as batches go by: exact, and the same in whatever order."""

from __future__ import annotations

import torch
from torch import Tensor

from lxt.atlas.held import Held

__all__ = ["EMPTY", "Ranking", "rows_in", "values_in"]

EMPTY = torch.iinfo(torch.int64).min
_LOW = 2**32 - 1


def _keys(values: Tensor, rows: Tensor) -> Tensor:
    """Float32 values and the numbers of rows in one integer, larger for the larger value.

    Of equal values the earlier row has the larger one, so no two keys are the same.
    """
    bits = (values + 0.0).view(torch.int32)  # which makes 0 of -0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() << 32) | (_LOW - rows)


def values_in(keys: Tensor) -> Tensor:
    """The values, float32."""
    ordered = (keys >> 32).to(torch.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)


def rows_in(keys: Tensor) -> Tensor:
    """The numbers of rows, int64."""
    return _LOW - (keys & _LOW)


class Ranking(Held):
    """For each unit of a site the rows in which its value is largest, one place in each.

    Attributes:
        keys: int64 [units, top], falling; `EMPTY` where there are fewer rows.
        places: int16 or int32 [units, top], the position of the largest value in the row, the first
            of equals.
        companions: float32 [units, top], another quantity there.
        windows: bfloat16 [units, top, before + 1 + after], the activation around; 0 outside of the
            row.

    """

    NAMES = ("keys", "places", "companions", "windows")

    def __init__(self, units: int, top: int, window: tuple[int, int]) -> None:
        self.keys = torch.full((units, top), EMPTY)
        self.places = torch.zeros(units, top, dtype=torch.int32)
        self.companions = torch.zeros(units, top)
        before, after = window
        self.windows = torch.zeros(units, top, before + 1 + after, dtype=torch.bfloat16)
        self._offsets = torch.arange(-before, after + 1)

    def offer(
        self, values: Tensor, activation: Tensor, companion: Tensor | None, numbers: Tensor
    ) -> None:
        """Take the rows that belong among the largest.

        Args:
            values: float32 [rows, tokens, units], -inf where a token doesn't count.
            activation: of the same shape, of which windows are taken.
            companion: of the same shape, if there is one.
            numbers: int64 [rows], of the rows.

        """
        peaks, at = values.max(1)
        peaks, at = peaks.T.cpu().contiguous(), at.T.cpu()
        keys = _keys(peaks, numbers).masked_fill_(peaks == -torch.inf, EMPTY)
        units = (keys > self.keys[:, -1:]).any(1).nonzero()[:, 0]
        if not len(units):
            return
        top = self.keys.shape[1]
        keys, which = keys[units].topk(min(top, keys.shape[1]))
        both, order = torch.cat((self.keys[units], keys), 1).topk(top)
        is_new = (order >= top) & (both > EMPTY)
        old = order.clamp(max=top - 1)
        for name in ("places", "companions"):
            own = getattr(self, name)
            own[units] = own[units].gather(1, old)
        self.windows[units] = self.windows[units].gather(
            1, old[..., None].expand(-1, -1, self.windows.shape[2])
        )
        self.keys[units] = both
        unit, slot = is_new.nonzero(as_tuple=True)
        row = which[unit, order[unit, slot] - top]
        unit = units[unit]
        place = at[unit, row]
        self.places[unit, slot] = place.int()
        there = [x.to(values.device) for x in (row, place, unit)]
        if companion is not None:
            self.companions[unit, slot] = companion[tuple(there)].float().cpu()
        around = place[:, None] + self._offsets
        inside = (around >= 0) & (around < values.shape[1])
        around = around.clamp(0, values.shape[1] - 1).to(values.device)
        window = activation[there[0][:, None], around, there[2][:, None]]
        self.windows[unit, slot] = window.cpu().where(inside, 0).bfloat16()
