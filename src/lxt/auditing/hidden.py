"""Dependence that no operation shows: values that leave torch and come back as constants.

A kernel that writes to memory by its address, a detour through NumPy, a number taken out of a
tensor: what comes back has no graph, so it passes for a constant, for plain gradients as for
relevance. But it changes with the input. So the model runs twice, the second time on an input that
is a little different, and each constant operand whose origin was not seen is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lxt.engine.callsite import Callsite, callsite, module_names
from lxt.engine.escapes import STOPS
from lxt.engine.opaque import tensors_in
from lxt.entries import Rule, target_name

__all__ = ["HiddenDependence", "Origins", "hidden_dependences", "nudged"]

Fingerprint = tuple[float, ...]


@dataclass(frozen=True)
class HiddenDependence:
    """A constant operand that depends on the input all the same.

    Attributes:
        operation: that it is an operand of.
        operand: its number among the tensors and numbers that the operation takes.
        what: that it came from nowhere, from an operation without a derivative, or was changed.
        callsite: where.
    """

    operation: str
    operand: int
    what: str
    callsite: Callsite


def nudged(leaf: Tensor) -> Tensor:
    """A leaf whose elements differ from the given ones by up to a thousandth."""
    steps = torch.arange(leaf.numel(), device=leaf.device, dtype=torch.float32).view(leaf.shape)
    return leaf * (1 + 1e-3 * steps.cos()).to(leaf.dtype) + 1e-4 * steps.sin().to(leaf.dtype)


def hidden_dependences(first: Origins, second: Origins) -> list[HiddenDependence]:
    """What differs between two passes on inputs that do, as far as they ran the same operations."""
    found = list(first.written)
    for (operation, loose, site), (other, moved, _) in zip(first.calls, second.calls, strict=False):
        if operation != other or len(loose) != len(moved):
            break  # the input made the model go another way
        for (operand, what, value), (_, _, changed) in zip(loose, moved, strict=True):
            if value != changed and site is not None:
                found.append(HiddenDependence(operation, operand, what, site))
    return found


class Origins:
    """Watches a forward pass for constant operands that no seen operation made."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names = module_names(model)
        self._own = {id(t) for t in (*model.parameters(), *model.buffers())}
        self._made: dict[int, tuple[Tensor, int, Fingerprint]] = {}
        self._underived: dict[int, tuple[Tensor, str]] = {}
        self._numbers: dict[int, float] = {}  # by their ids, which they keep while they are here
        self._without_rule: str | None = None
        self._is_constant = False
        self.calls: list[tuple[str, list[tuple[int, str, Fingerprint]], Callsite | None]] = []
        """Each call with its operands of unknown origin, and their values in brief."""
        self.written: list[HiddenDependence] = []
        """Operands that were changed since they were made, and by no operation of torch."""

    def starts(self) -> None:
        """Nothing to do: what the model is called with is the same each time."""

    def begins(
        self,
        target: Any,
        operation: Callable[..., Any],
        rule: Rule | None,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        """Look at the constants among the operands."""
        name = target.__name__ if isinstance(target, type) else target_name(target)
        carries = any(x.requires_grad for x in tensors_in((*args, *kwargs.values())))
        is_lost = rule is None and carries and target not in STOPS and not _takes_a_shape(target)
        self._without_rule = name if is_lost else None
        self._is_constant = not carries
        loose: list[tuple[int, str, Fingerprint]] = []
        site = None
        for place, operand in enumerate(_numbers_and_tensors((args, dict(kwargs)))):
            if isinstance(operand, float):
                if id(operand) not in self._numbers:
                    loose.append((place, "a number from nowhere", (operand,)))
                continue
            if operand.requires_grad or not operand.is_floating_point() or id(operand) in self._own:
                continue
            made = self._made.get(id(operand))
            value = _fingerprint(operand)
            if made is None:
                name_of_source = self._underived.get(id(operand), (None, "nowhere"))[1]
                loose.append((place, f"a tensor from {name_of_source}", value))
            elif made[1] == operand._version and made[2] != value:
                site = site or callsite(self._model, self._names)
                self.written.append(
                    HiddenDependence(name, place, "written to by no operation that was seen", site)
                )
        if loose:
            site = site or callsite(self._model, self._names)
        self.calls.append((name, loose, site))

    def ends(self, result: Any) -> None:
        """What an operation put out is of known origin.

        But not if it depends on the input and has neither a rule nor a derivative. Nor are numbers
        that were taken out of such a tensor; those of another are constants by their author's word.
        """
        if self._is_constant:
            self._numbers.update((id(x), x) for x in _floats_in(result))
        for tensor in tensors_in(result):
            if not tensor.is_floating_point() or tensor.requires_grad:
                continue
            if self._without_rule is not None:
                self._underived[id(tensor)] = (
                    tensor,
                    f"{self._without_rule}, which has neither a rule nor a derivative",
                )
            else:
                # The tensor is kept, lest another gets its place in memory and so its id.
                self._made[id(tensor)] = tensor, tensor._version, _fingerprint(tensor)

    def stopped(self, result: Any) -> None:
        """So is what was computed without gradients."""
        self._without_rule, self._is_constant = None, True
        self.ends(result)

    def escapes(self, function: Any, reason: str) -> None:
        """What comes of it is compared."""


def _takes_a_shape(target: Any) -> bool:
    """Whether a function makes a tensor like its operand, of other values: x.new_empty(3)."""
    name = getattr(target, "__name__", "")
    return name.startswith("new_") or name.endswith("_like")


def _floats_in(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _floats_in(item)


def _numbers_and_tensors(value: Any) -> list[Any]:
    if isinstance(value, Tensor | float):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [found for item in value for found in _numbers_and_tensors(item)]
    return []


def _fingerprint(tensor: Tensor) -> Fingerprint:
    """Two sums, which tell values apart and are the same for the same.

    Sparse tensors have none: what they are made of is compared.
    """
    if tensor.is_meta or tensor.layout is not torch.strided or not tensor.numel():
        return ()
    flat = tensor.detach().to(torch.float64).flatten().nan_to_num()
    weights = torch.linspace(1.0, 2.0, len(flat), dtype=torch.float64, device=flat.device)
    return flat.sum().item(), (flat * weights).sum().item()
