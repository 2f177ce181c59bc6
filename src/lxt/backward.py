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
from lxt.errors import InvalidModel, NonFiniteRelevance, SequentialBackwardWarning
from lxt.gradients import compute_dtype
from lxt.text_case import Reading

__all__ = ["Arrived", "Backward"]

Weights = Callable[[int], Tensor]
"""The weights of a target in its slot's logits [batch, vocabulary], by the target's number."""


class Arrived:
    """Relevance that arrived, of some targets.

    Attributes:
        tokens: [targets, batch, tokens].
        told: of each site that a tap reads, [targets, *what is told].

    """

    def __init__(self, tokens: Tensor, *told: Tensor) -> None:
        self.tokens = tokens
        self.told = told


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

    def one(self, reading: Reading, weights: Tensor) -> Arrived:
        """Relevance of Σ weights · logits, both [batch, slots, vocabulary], as one target.

        The graph is gone afterwards.

        Raises:
            NonFiniteRelevance: it overflows.

        """
        seed = self._seed(weights, reading.logits)[None]
        keep = reading.leaf.dtype is torch.float16 or bool(reading.waypoints)

        def gradients(_: list[int], scale: float) -> list[Tensor]:
            start = reading.logits, seed * scale
            return arrived_at(reading, *start, lambda *way: _each(*way, keep=keep))

        return self._scaled(1, gradients, reading)

    def many(self, reading: Reading, targets: Sequence[int], weights: Weights) -> Arrived:
        """Relevance of several targets; the graph stays.

        Warns:
            SequentialBackwardWarning: the graph can't be gone through for several at once.

        Raises:
            NonFiniteRelevance: it overflows.

        """

        def gradients(chosen: list[int], scale: float) -> list[Tensor]:
            start = self._start(
                reading, [targets[number] for number in chosen], lambda t: weights(t) * scale
            )
            return arrived_at(reading, *start, self._gradients)

        return self._scaled(len(targets), gradients, reading)

    def _seed(self, weights: Tensor, logits: Tensor) -> Tensor:
        return weights * logits.detach() if self._explicit else weights

    def _start(
        self, reading: Reading, targets: Sequence[int], weights: Weights
    ) -> tuple[Tensor, Tensor]:
        """Where the backward passes start, and their seeds [targets, *its shape].

        The head maps each position by itself. So targets at different positions share one backward
        pass through it, and go on from its input: vectors of channels and not of the vocabulary.
        """
        logits, hidden = reading.logits, _before_head(reading)
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

    def _gradients(self, outputs: Any, inputs: Sequence[Any], seeds: Tensor) -> list[Tensor | None]:
        """The gradients [targets, *shape] of each input for each seed; None where none arrives."""
        if self._at_once and len(seeds) > 1:
            try:
                return list(
                    torch.autograd.grad(
                        outputs,
                        inputs,
                        seeds,
                        retain_graph=True,
                        is_grads_batched=True,
                        allow_unused=True,
                    )
                )
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
        return _each(outputs, inputs, seeds)

    def _scaled(
        self, count: int, gradients: Callable[[list[int], float], list[Tensor]], reading: Reading
    ) -> Arrived:
        """Relevance of targets from gradients [some, *shape] of the leaf, and of what taps read.

        `gradients` takes the numbers of those that are left, and what their seeds are scaled by.

        Raises:
            NonFiniteRelevance: they overflow under every scale.

        """
        leaf = reading.leaf.detach()
        factor = None if self._explicit else leaf.to(compute_dtype(leaf.dtype))
        left = list(range(count))
        found: list[Any] = [None] * count
        for exponent in range(14, -11, -4) if leaf.dtype is torch.float16 else (0,):
            each = gradients(left, 2.0**exponent)
            # A sum of what is not finite isn't either, and takes no memory.
            sums = [g.reshape(len(g), -1).sum(1, dtype=torch.float64) for g in each]
            fine = torch.stack(sums).isfinite().all(0)
            for place, number in enumerate(left):
                if fine[place]:
                    wide = each[0][place].to(compute_dtype(leaf.dtype))
                    wide = wide if factor is None else wide * factor
                    told = [g[place] for g in each[1:]]
                    found[number] = [wide.sum(-1) * 2.0**-exponent]
                    for g, one in zip(told, reading.told, strict=True):
                        found[number].append(one.parts.scaled(g, 2.0**-exponent))
            left = [number for place, number in enumerate(left) if not fine[place]]
            if not left:
                return Arrived(*map(_stacked, zip(*found, strict=True)))
        raise NonFiniteRelevance(
            "the backward pass overflows: run the model in a wider dtype, such as bfloat16 or "
            "float32"
        )


def _each(
    outputs: Any, inputs: Sequence[Any], seeds: Tensor, *, keep: bool = True
) -> list[Tensor | None]:
    """The gradients [targets, *shape] of each input, by a backward pass for each seed."""
    passes = [
        torch.autograd.grad(outputs, inputs, seed, retain_graph=keep, allow_unused=True)
        for seed in seeds
    ]
    return [None if each[0] is None else _stacked(each) for each in zip(*passes, strict=True)]


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """`torch.stack`, without a copy of a single one."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tuple(tensors))


def arrived_at(
    reading: Reading,
    outputs: Any,
    seeds: Tensor,
    gradients: Callable[[Any, Sequence[Any], Tensor], list[Tensor | None]],
) -> list[Tensor]:
    """The gradients [targets, *shape] of the leaf, and of the leaf of each tap.

    Where relevance must go through units, a backward pass goes up to them, and starts again from
    what arrives at these alone. Taps after them see all of the first.

    Raises:
        InvalidModel: nothing arrives at the leaf, though no unit stands in the way.

    """
    leaves = [reading.leaf, *(told.leaf for told in reading.told)]
    numbers = [-1, *(told.number for told in reading.told)]
    found: list[Tensor | None] = [None] * len(leaves)
    left = [place for place, leaf in enumerate(leaves) if leaf is not None]
    for waypoint in reading.waypoints:
        captured = waypoint.captured
        here = [place for place in left if numbers[place] >= captured.number]
        left = [place for place in left if place not in here]
        goals = [leaves[place] for place in here]
        if captured.edge is None:
            left = []
            break
        g, *others = gradients(outputs, [captured.edge, *goals], seeds)
        for place, one in zip(here, others, strict=True):
            found[place] = one
        if g is None:
            left = []
            break
        outputs, seeds = waypoint.onward(g)
    if left:
        for place, one in zip(
            left, gradients(outputs, [leaves[place] for place in left], seeds), strict=True
        ):
            found[place] = one
    if found[0] is None and not reading.waypoints:
        raise InvalidModel(
            "what is explained does not come from the input embeddings [batch, tokens, channels]: "
            "explain it with `with composite.context(model):`"
        )
    return [
        one
        if one is not None
        else reading.leaf.new_zeros(
            len(seeds),
            *(reading.leaf.shape if place == 0 else reading.told[place - 1].shape),
        )
        for place, one in enumerate(found)
    ]


def _before_head(reading: Reading) -> Tensor | None:
    """The input of the head, unless a tap or a unit lies behind it."""
    hidden = reading.hidden
    if hidden is None or hidden.grad_fn is None:
        return hidden
    number = hidden.grad_fn._sequence_nr()
    behind = [told.number for told in reading.told]
    behind += [waypoint.captured.number for waypoint in reading.waypoints]
    return None if any(one > number for one in behind) else hidden


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
