"""Relevance of all targets of some rows: few forward passes, batched backward passes.

In a causal model a target at position t needs no token after t. So targets are sorted by position,
and each stretch of them gets a forward pass of its own over the tokens up to its last position,
where that is cheaper than to go back through all tokens for each target. That a model is causal is
proved for every stretch: its logits there must be those of the pass over all tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from lxt.backward import Arrived, Backward
from lxt.batching import Footprint, Halving, tokens_at_once
from lxt.explained import ExplainedTarget
from lxt.gradients import compute_dtype
from lxt.targets import summed
from lxt.text_case import Reading, TextCase

__all__ = ["ManyTargets", "chunk_size"]

Found = list[list[ExplainedTarget]]
"""What was explained, by row and target."""

Explained = dict[int, list[ExplainedTarget | None]]
"""What was explained, by the target's number and row; None where a row lacks it."""

Keep = Callable[[TextCase, Sequence[int], Tensor], None]
"""Takes relevance [targets, batch, tokens] of some targets."""

# How far the logits of a shorter pass may be from those of the whole, relative to the largest:
# rounding differs with the length. (Norms and softmax are float32 in many float64 models.)
_SAME_LOGITS = {
    torch.float64: 1e-6,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 6e-2,
}

_BYTES_TOLD = 16
"""Of each number that a tap is told, with what it is made of."""

_BYTES_REDUCED = 40
"""Of each number of which only the strongest, or sums, are told: a float32, and four float64."""

# What starting a pass takes, in the time of so many tokens.
_START = {"cpu": 48}
_START_ON_ACCELERATORS = 2048


class ManyTargets:
    """Explains the targets of cases of one model, within a memory budget.

    Args:
        backward: the backward passes.
        footprint: of the model.
        budget: bytes.
        tick: told of each number of targets of rows that is done.
        latent: takes what taps were told.

    """

    def __init__(
        self,
        backward: Backward,
        footprint: Footprint,
        budget: int,
        tick: Callable[[int], None],
        latent: Callable[[TextCase, Sequence[int], Reading, Arrived], None],
    ) -> None:
        self._backward = backward
        self._footprint = footprint
        self._budget = budget
        self._tick = tick
        self._latent = latent
        self._looks_ahead = False
        self._in_halves = Halving()

    def total(self, case: TextCase) -> tuple[Tensor, Found]:
        """Relevance [1, batch, width] of the sum of all targets, in one backward pass."""
        targets = range(case.count)
        reading = case.read(targets)
        case.require_path(reading)
        weights = torch.zeros_like(reading.logits)
        for target in targets:
            slot = reading.slots[target]
            weights[:, slot] += case.weights(target, reading.logits[:, slot].detach())
        found = _found(case, targets, reading)
        arrived = self._backward.one(reading, weights)
        self._latent(case, [0], reading, arrived)
        self._tick(len(found))
        totals = found if case.count == 1 else [[summed(row)] for row in found]
        return case.batch.as_given(arrived.tokens[0].cpu())[None], totals

    def each(self, case: TextCase) -> tuple[Tensor, Found]:
        """Relevance [targets, batch, width] of each target.

        Rows that have fewer targets end with zeros.
        """
        found: Explained = {}
        result: list[Tensor | None] = [None] * case.count

        def keep(part: TextCase, targets: Sequence[int], relevance: Tensor) -> None:
            rows = part.batch.as_given(relevance.movedim(0, -1).cpu())
            for number, target in enumerate(targets):
                result[target] = rows[..., number]
            self._tick(len(targets) * len(case.aims))

        order = sorted(range(case.count), key=case.last_position)
        for group in _groups(order, self._most_slots(case)):
            found |= self._group(case, group, keep)
        by_row = [
            [explained for target in range(case.count) if (explained := found[target][row])]
            for row in range(len(case.aims))
        ]
        assert all(one is not None for one in result), "each target was in a group"
        return torch.stack([one for one in result if one is not None]), by_row

    def _most_slots(self, case: TextCase) -> int:
        """How many positions' logits may be held at a time."""
        each = 2 * self._footprint.logits * len(case.aims)
        return max(1, self._budget // 4 // each)

    def _group(self, case: TextCase, group: Sequence[int], keep: Keep) -> Explained:
        """Explain targets in the order of their positions."""
        stretches = self._stretches(case, group) if self._may_shorten(case) else None
        if stretches is None:
            return self._on_all_tokens(case, group, keep)
        with torch.no_grad():
            whole = case.read(group)
        left: list[int] = []
        for stretch in stretches:
            if self._looks_ahead or not self._up_to(case, stretch, whole, keep):
                left.extend(stretch)
        if left:
            self._on_all_tokens(case, left, keep)
        return _by_target(case, group, whole)

    def _may_shorten(self, case: TextCase) -> bool:
        return (
            case.readout.task == "causal"
            and not self._looks_ahead
            and case.inside is None  # what is told of tokens after a target counts too
            and not any(isinstance(value, Tensor) for value in case.batch.other.values())
        )

    def _on_all_tokens(self, case: TextCase, targets: Sequence[int], keep: Keep) -> Explained:
        """Explain targets from one forward pass over all tokens."""
        reading = case.read(targets)
        case.require_path(reading)
        self._chunks(case, targets, reading, _weights(case, reading), keep)
        return _by_target(case, targets, reading)

    def _up_to(self, case: TextCase, targets: Sequence[int], whole: Reading, keep: Keep) -> bool:
        """Explain targets from a pass over the tokens up to them, unless the model looks ahead."""
        part = case.up_to(case.last_position(targets[-1]) + 1)
        reading = part.read(targets)
        case.require_path(reading)
        self._looks_ahead = not all(_same(reading, whole, target) for target in targets)
        if not self._looks_ahead:
            self._chunks(part, targets, reading, _weights(case, whole), keep)
        return not self._looks_ahead

    def _chunks(
        self,
        case: TextCase,
        targets: Sequence[int],
        reading: Reading,
        weights: Callable[[int], Tensor],
        keep: Keep,
    ) -> None:
        """The backward passes of one forward pass."""

        def work(chunk: Sequence[int]) -> None:
            arrived = self._backward.many(reading, chunk, weights)
            self._latent(case, chunk, reading, arrived)
            keep(case, chunk, arrived.tokens)

        length = max(case.batch.lengths())
        told = sum(math.prod(one.shape) for one in reading.told)
        # What is reduced as it is read is there as a whole for a moment, one tap after the other.
        units = max((one.units for one in reading.told if one.parts.is_reduced), default=0)
        told = told * _BYTES_TOLD + units * length * len(case.aims) * _BYTES_REDUCED
        self._in_halves(_groups(targets, self._chunk(case, length, told)), work)

    def _chunk(self, case: TextCase, length: int, told: int = 0) -> int:
        """How many targets one backward pass takes, over so many tokens.

        `told`: the bytes that taps are told of each.
        """
        fit = chunk_size(self._footprint, self._budget, len(case.aims), length, _device(case))
        return max(1, min(fit, self._budget // told)) if told else fit

    def _stretches(self, case: TextCase, group: Sequence[int]) -> list[Sequence[int]] | None:
        """The targets in stretches, each to get a pass as long as its last position, or None.

        A forward pass takes as long as a backward pass of one target, and both as long as they have
        tokens. So with n targets at n positions the best stretch has about √n of them, and all
        takes little more than half the time of passes over all tokens. None where those are
        cheaper, the pass that proves causality included.
        """
        rows, length = len(case.aims), max(case.batch.lengths())
        start = _START.get(_device(case).type, _START_ON_ACCELERATORS)
        ends = [case.last_position(target) + 1 for target in group]

        def cost(count: int, tokens: int) -> int:
            """Of the passes of so many targets over so many tokens of each row."""
            backward = -(-count // self._chunk(case, tokens))
            return rows * tokens * (1 + count) + start * (1 + backward)

        best, result = cost(len(group), length), None
        for power in range(len(group).bit_length()):
            stretches = _groups(group, 2**power)
            stops = accumulate(map(len, stretches))
            each = zip(stretches, stops, strict=True)
            total = rows * length + start
            total += sum(cost(len(stretch), ends[stop - 1]) for stretch, stop in each)
            if total < best:
                best, result = total, stretches
        return result


def chunk_size(
    footprint: Footprint, budget: int, rows: int, length: int, device: torch.device
) -> int:
    """How many targets one backward pass takes at a time."""
    tokens = rows * length
    left = budget - tokens * footprint.saved
    by_memory = left // (tokens * footprint.gradients)
    return max(1, min(by_memory, tokens_at_once(device) // tokens))


def _groups(targets: Sequence[int], size: int) -> list[Sequence[int]]:
    """Consecutive chunks of equal size, as far as that goes."""
    count = -(-len(targets) // size)
    bounds = [len(targets) * number // count for number in range(count + 1)]
    return [targets[a:b] for a, b in pairwise(bounds)]


def _device(case: TextCase) -> torch.device:
    return next(case.model.parameters()).device


def _same(reading: Reading, whole: Reading, target: int) -> bool:
    """Whether the logits of a target are those of the pass over all tokens."""
    here = reading.logits[:, reading.slots[target]].detach()
    there = whole.logits[:, whole.slots[target]]
    tolerance = _SAME_LOGITS.get(reading.leaf.dtype, 1e-4)
    return bool(((here - there).abs().amax(-1) <= tolerance * there.abs().amax(-1)).all())


def _weights(case: TextCase, reading: Reading) -> Callable[[int], Tensor]:
    return lambda target: case.weights(
        target, reading.logits[:, reading.slots[target]].detach()
    ).to(compute_dtype(reading.logits.dtype))


def _by_target(case: TextCase, targets: Sequence[int], reading: Reading) -> Explained:
    """What was explained."""
    result: Explained = {}
    for target in targets:
        logits = reading.logits[:, reading.slots[target]].detach().cpu()
        result[target] = [
            case.explained(row, target, values) if target < len(case.aims[row]) else None
            for row, values in enumerate(logits)
        ]
    return result


def _found(case: TextCase, targets: Sequence[int], reading: Reading) -> Found:
    columns = _by_target(case, targets, reading)
    rows = range(len(case.aims))
    return [[one for target in targets if (one := columns[target][row])] for row in rows]
