"""The backward passes of one forward pass: relevance of several targets at once.

The rules make a backward pass linear in its seed, so those of several targets run as one, with one
more dimension (`is_grads_batched`, a `vmap` over the graph).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lxt.composite import Composite
from lxt.errors import NonFiniteRelevance, SequentialBackwardWarning
from lxt.gradients import compute_dtype
from lxt.text_case import Reading

__all__ = ["Backward"]

Weights = Callable[[int], Tensor]
"""The weights of a target in its slot's logits [batch, vocabulary], by the target's number."""


class Backward:
    """Backward passes under a composite: relevance Σ x · ∂(w · z)/∂x over the channels of x.

    In the explicit formulation a backward pass takes w · z and returns relevance as it is.

    The backward pass of a float16 model starts from a scaled seed, for each target the largest
    power of 2 under which nothing overflows, so that small gradients don't vanish.

    Args:
        composite: whose rules made the graph.
        name: of the model, for the warning.

    """

    def __init__(self, composite: Composite, name: str) -> None:
        self._explicit = composite.formulation == "relevance"
        self._name = name
        self._at_once = True
        self._by_position: bool | None = None

    def one(self, reading: Reading, weights: Tensor) -> Tensor:
        """Relevance [batch, tokens] of Σ weights · logits, both [batch, slots, vocabulary].

        The graph is gone afterwards.

        Raises:
            NonFiniteRelevance: it overflows.

        """
        seed = self._seed(weights, reading.logits)
        narrow = reading.leaf.dtype is torch.float16
        return _scaled(
            1,
            lambda _, scale: torch.autograd.grad(
                reading.logits, reading.leaf, seed * scale, retain_graph=narrow
            )[0][None],
            self._factor(reading),
            reading.leaf.dtype,
        )[0]

    def many(self, reading: Reading, targets: Sequence[int], weights: Weights) -> Tensor:
        """Relevance [targets, batch, tokens] of several targets; the graph stays.

        Warns:
            SequentialBackwardWarning: the graph can't be gone through for several at once.

        Raises:
            NonFiniteRelevance: it overflows.

        """

        def gradients(chosen: list[int], scale: float) -> Tensor:
            outputs, seeds = self._start(
                reading, [targets[number] for number in chosen], lambda t: weights(t) * scale
            )
            return self._gradients(outputs, reading.leaf, seeds)

        return _scaled(len(targets), gradients, self._factor(reading), reading.leaf.dtype)

    def _factor(self, reading: Reading) -> Tensor | None:
        """What a gradient is multiplied by."""
        leaf = reading.leaf.detach()
        return None if self._explicit else leaf.to(compute_dtype(leaf.dtype))

    def _seed(self, weights: Tensor, logits: Tensor) -> Tensor:
        return weights * logits.detach() if self._explicit else weights

    def _start(
        self, reading: Reading, targets: Sequence[int], weights: Weights
    ) -> tuple[Tensor, Tensor]:
        """Where the backward passes start, and their seeds [targets, *its shape].

        The head maps each position by itself. So targets at different positions share one backward
        pass through it, and go on from its input: vectors of channels and not of the vocabulary.
        """
        logits, hidden = reading.logits, reading.hidden
        slots = [reading.slots[target] for target in targets]
        if hidden is None or len(set(slots)) == 1 or not self._maps_by_position(reading):
            seeds = logits.new_zeros(len(targets), *logits.shape)
            for number, (target, slot) in enumerate(zip(targets, slots, strict=True)):
                seeds[number, :, slot] = weights(target)
            return logits, self._seed(seeds, logits)
        seeds = hidden.new_zeros(len(targets), *hidden.shape)
        for together in _apart(slots, reading.columns):
            seed = torch.zeros_like(logits)
            for number in together:
                seed[:, slots[number]] = weights(targets[number])
            at_head = self._at_head(reading, seed)
            for number in together:
                for row, columns in enumerate(reading.columns):
                    column = columns[slots[number]]
                    seeds[number, row, column] = at_head[row, column]
        return hidden, seeds

    def _at_head(self, reading: Reading, weights: Tensor) -> Tensor:
        assert reading.hidden is not None
        seed = self._seed(weights, reading.logits)
        return torch.autograd.grad(reading.logits, reading.hidden, seed, retain_graph=True)[0]

    def _maps_by_position(self, reading: Reading) -> bool:
        """Whether logits come from the head's input alone, each from its own position.

        The first is a matter of the graph, the second is tried with the logits of one slot.
        """
        if self._by_position is None:
            hidden = reading.hidden
            assert hidden is not None
            self._by_position = False
            if _is_only_way(hidden, reading):
                seed = torch.zeros_like(reading.logits)
                seed[:, 0] = 1
                gradient = self._at_head(reading, seed)
                for row, columns in enumerate(reading.columns):
                    gradient[row, columns[0]] = 0
                self._by_position = not gradient.any()
        return self._by_position

    def _gradients(self, outputs: Tensor, leaf: Tensor, seeds: Tensor) -> Tensor:
        """The gradient [targets, batch, tokens, channels] for each seed."""
        if self._at_once and len(seeds) > 1:
            try:
                return torch.autograd.grad(
                    outputs, leaf, seeds, retain_graph=True, is_grads_batched=True
                )[0]
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._at_once = False
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            warnings.warn(
                f"the backward pass of {self._name} can't take several targets at once, so they "
                f"run one at a time, which takes longer: {reason}",
                SequentialBackwardWarning,
                stacklevel=2,
            )
        return torch.stack(
            [torch.autograd.grad(outputs, leaf, seed, retain_graph=True)[0] for seed in seeds]
        )


def _scaled(
    count: int,
    gradients: Callable[[list[int], float], Tensor],
    factor: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Relevance [count, batch, tokens] from gradients [some, batch, tokens, channels].

    `gradients` takes the numbers of those that are left, and what their seeds are scaled by.

    Raises:
        NonFiniteRelevance: they overflow under every scale.

    """
    left = list(range(count))
    found: list[Any] = [None] * count
    for exponent in range(14, -11, -4) if dtype is torch.float16 else (0,):
        gradient = gradients(left, 2.0**exponent)
        fine = gradient.flatten(1).isfinite().all(1).tolist()
        for number, one, is_fine in zip(left, gradient, fine, strict=True):
            if is_fine:
                wide = one.to(compute_dtype(dtype))
                wide = wide if factor is None else wide * factor
                found[number] = wide.sum(-1) * 2.0**-exponent
        left = [number for number, is_fine in zip(left, fine, strict=True) if not is_fine]
        if not left:
            return torch.stack(found)
    raise NonFiniteRelevance(
        "the backward pass overflows: run the model in a wider dtype, such as bfloat16 or float32"
    )


def _apart(slots: Sequence[int], columns: Sequence[Sequence[int]]) -> list[list[int]]:
    """Targets in groups, by number, within which no two have the same column of a row."""
    groups: list[list[int]] = []
    taken: list[set[tuple[int, int]]] = []
    for number, slot in enumerate(slots):
        places = {(row, columns[row][slot]) for row in range(len(columns))}
        for group, full in zip(groups, taken, strict=True):
            if not full & places:
                group.append(number)
                full |= places
                break
        else:
            groups.append([number])
            taken.append(places)
    return groups


def _is_only_way(hidden: Tensor, reading: Reading) -> bool:
    """Whether all paths of the graph from the logits to the leaf go through `hidden`."""
    goal, leaf = hidden.grad_fn, reading.leaf
    if goal is None or reading.logits.grad_fn is None:
        return False
    seen: set[Any] = set()
    pending: list[tuple[Any, int]] = [(reading.logits.grad_fn, reading.logits.output_nr)]
    while pending:
        node, number = pending.pop()
        if node is None or (node is goal and number == hidden.output_nr) or node in seen:
            continue
        if getattr(node, "variable", None) is leaf:
            return False
        seen.add(node)
        pending += node.next_functions
    return True
