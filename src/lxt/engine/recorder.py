"""Records a forward pass under rules, and how much relevance each operation handed on.

Autograd's graph is the ledger's skeleton. A value is an edge of it, the output of a node, and stays
the same value when the tensor is written to in place, which makes a new edge. So a recorder keeps
what each edge's value was, and in which call each node was made; in the backward pass the gradients
at the edges between two calls are the relevance that one hands to the other, whatever happens
within.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lxt.engine.callsite import callsite, module_names
from lxt.engine.nodes import Formulation, formulation_of
from lxt.engine.opaque import is_seen_through, next_number, tensors_in
from lxt.engine.records import (
    HANDED_ON,
    INPUT,
    TARGET,
    UNSEEN,
    Call,
    Escape,
    Flow,
    Settlement,
    head_of,
    kept,
)
from lxt.engine.zeroed import values_at_zero
from lxt.entries import Rule, rule_name, target_name
from lxt.rules.declared import declarations_of
from lxt.rules.registry import REGISTRY, Absorbs, family_of
from lxt.rules.secants import Elementwise

__all__ = ["Recorder", "wide"]

Edge = tuple[Any, int]
"""A node of autograd's graph, or the identity of a leaf, and the number of the output."""


@dataclass
class _Running:
    call: Call
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    at_zero: list[list[Tensor]]
    first: int = field(default_factory=next_number)


class Recorder:
    """Watches the calls of one forward pass of `model`; `settle` runs the backward pass.

    It keeps a copy of every value that relevance runs through, so it is for looking into a model,
    not for explaining with it.
    """

    def __init__(self, model: nn.Module, formulation: Formulation) -> None:
        self.calls: list[Call] = []
        self.escaped: list[Escape] = []
        self._model = model
        self._names = module_names(model)
        self._explicit = formulation == "relevance"
        self._values: dict[Edge, Tensor] = {}
        self._at_zero: dict[Edge, Tensor] = {}
        self._running: _Running | None = None
        self._units: set[Any] = set()
        self._closed = False
        self._end = 0
        self._unseen: str | None = None

    # --- the forward pass ------------------------------------------------------------------------

    def starts(self) -> None:
        """The forward pass begins: what was computed before is input."""
        if not self._closed:
            self._end = next_number()

    def begins(
        self,
        target: Any,
        operation: Callable[..., Any],
        rule: Rule | None,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> None:
        """Keep the values of the operands of an operation that is about to run.

        `target` is what the composite knows it by, a torch function or a class of modules.
        """
        if self._closed:
            return
        carriers = [t for t in (*tensors_in(args), *tensors_in(kwargs)) if t.requires_grad]
        for tensor in carriers:
            self._keep(tensor)
        self._note_unseen()
        name = target.__name__ if isinstance(target, type) else target_name(target)
        call = Call(
            name,
            None if rule is None else rule_name(rule),
            family_of(target, rule),
            callsite(self._model, self._names),
            target,
            len(carriers),
            absorbs=_declared(rule, target),
        )
        if carriers:
            first = carriers[0]
            one = torch.empty((), dtype=first.dtype, device=first.device)
            call.operand = one.expand(first.shape)
        call.constants = tuple(
            tuple(t.shape)
            for t in (*tensors_in(args), *tensors_in(kwargs))
            if t.is_floating_point() and not t.requires_grad
        )
        if len(carriers) == 1 and target not in self._units and _is_unit(rule, target):
            self._units.add(target)
            call.as_unit, call.arguments = operation, kept((tuple(args), dict(kwargs)))
        at_zero = list(values_at_zero(operation, args, kwargs)) if carriers else []
        self._running = _Running(call, (tuple(args), dict(kwargs)), at_zero)

    def left_plain(self, what: str) -> None:
        """The running operation, or if none runs one that was not seen, has no rule.

        A module or function in the open, of which no one operation runs, comes with its reason.
        """
        if self._running is None and not what.endswith(")"):
            self._unseen = what
            return
        if self._running is None:
            if not self._closed:
                self._note_unseen()
                name, site = what.partition(" (")[0], callsite(self._model, self._names)
                call = Call(name, None, "", site, carriers=1, carries=True, refusal=what)
                call.numbers = range(self._end, self._end)
                self.calls.append(call)
            return
        call = self._running.call
        if call.rule is not None:
            call.refusal = what
        call.rule = call.as_unit = None
        call.arguments = self._running.arguments

    def escapes(self, function: Any, reason: str) -> None:
        """A torch function hands values to where no rule sees them."""
        if not self._closed:
            site = callsite(self._model, self._names)
            self.escaped.append(Escape(target_name(function), reason, site))

    def ends(self, result: Any) -> None:
        """The operation has run."""
        running, self._running = self._running, None
        if self._closed or running is None:
            return
        call = running.call
        results = list(tensors_in(result))
        if result is None:  # it wrote to its operand, if it did anything
            results = [x for x in running.arguments[0][:1] if isinstance(x, Tensor)]
        elif not results:  # a shape, a number
            return
        call.carries = any(tensor.requires_grad for tensor in results)
        call.shape = tuple(results[0].shape) if results else ()
        for tensor in results:
            if tensor.requires_grad:
                self._keep(tensor)
        for candidate in running.at_zero:
            pairs = list(zip(results, candidate, strict=False))
            if all(at_zero.isfinite()[y.detach().isfinite()].all() for y, at_zero in pairs):
                for tensor, at_zero in pairs:
                    if tensor.requires_grad:
                        self._keep_at_zero(tensor, at_zero, running.first)
                break
        call.numbers = range(running.first, next_number())
        self._end = call.numbers.stop
        self.calls.append(call)

    def stopped(self, result: Any) -> None:
        """Without gradients, nothing hands relevance on."""

    def _keep(self, tensor: Tensor) -> None:
        edge = _edge(tensor)
        if edge not in self._values:
            self._values[edge] = tensor.detach().clone()

    def _keep_at_zero(self, tensor: Tensor, at_zero: Tensor, first: int) -> None:
        if tensor.grad_fn is not None and tensor.grad_fn._sequence_nr() >= first:
            self._at_zero[_edge(tensor)] = at_zero
        base = tensor._base
        # Where a view was written to, or will be, the whole is what goes on.
        if base is not None and base.grad_fn is not None:
            edge = _edge(base)
            if base.grad_fn._sequence_nr() >= first and edge not in self._at_zero:
                self._keep(base)
                whole = torch.zeros_like(base)
                part = whole.as_strided(
                    tensor.shape, tensor.stride(), tensor.storage_offset() - base.storage_offset()
                )
                part.copy_(at_zero)
                self._at_zero[edge] = whole

    def _note_unseen(self) -> None:
        """Nodes made since the last call belong to an operation that no one saw."""
        now = next_number()
        name, self._unseen = self._unseen, None
        if now != self._end:
            rule = None if self._closed and name else HANDED_ON
            site = callsite(self._model, self._names)
            call = Call(name or UNSEEN, rule, "", site, carriers=1, carries=True)
            call.numbers = range(self._end, now)
            self.calls.append(call)
            self._end = now

    def _name_unseen(self, call: Call, node: Any) -> None:
        """Take a note that such an operation did more than to hand on what it got."""
        is_rule = formulation_of(node) == ("relevance" if self._explicit else "gradient")
        if call.rule == HANDED_ON and not is_rule and not is_seen_through(node):
            call.rule, call.operation = None, node.name().removesuffix("Backward")

    # --- the backward pass -----------------------------------------------------------------------

    def settle(self, output: Tensor, seed: Tensor, leaves: Mapping[str, Tensor]) -> Settlement:
        """Run the backward pass from the gradient `seed` of `output` and account for relevance."""
        if self._explicit:
            seed = seed * output.detach()
        self._keep(output)
        within = len(self.calls)  # what comes after was made of the model's output
        self._closed = True
        self._note_unseen()
        starts = [call.numbers.start for call in self.calls]

        def call_of(node: Any) -> int:
            if hasattr(node, "variable"):
                return INPUT
            number = node._sequence_nr()
            place = bisect_right(starts, number) - 1
            # What was made before the first call was made outside, from the leaves.
            return place if place >= 0 and number in self.calls[place].numbers else INPUT

        count = len(self.calls)
        gross, constant = [0.0] * count, [0.0] * count
        flows: list[Flow] = []
        joined = list(range(count))

        def arrives(node: Any, own: int) -> Callable[[Any], None]:
            def hook(gradients: Any) -> None:
                for output_nr, g in enumerate(gradients):
                    v = self._values.get((node, output_nr))
                    if g is None or v is None:
                        continue
                    gross[own] += self._relevance(v, g).abs().sum().item()
                    at_zero = self._at_zero.get((node, output_nr))
                    if at_zero is not None:
                        constant[own] += self._share(at_zero, v, g).sum().item()

            return hook

        def leaves_for(edges: list[tuple[int, int, Edge]], own: int) -> Callable[..., None]:
            def hook(gradients: Any, _: Any) -> None:
                for place, source, edge in edges:
                    g = gradients[place]
                    if g is None:
                        continue
                    v = self._values.get(edge)
                    if v is not None:
                        r = self._relevance(v, g)
                        flows.append(Flow(own, source, r.sum().item(), r.abs().sum().item()))
                    elif source >= 0:
                        _join(joined, own, source)

            return hook

        handles = []
        for node in _nodes(_edge(output)[0]):
            own = call_of(node)
            if own == INPUT:
                continue
            self.calls[own].rest = getattr(node, "rest", "") or self.calls[own].rest
            if own < within:
                self._name_unseen(self.calls[own], node)
            # What passes on to another value of the same call, as a view's to what was written to,
            # arrives there.
            if not any(
                source is not None and call_of(source) == own and (source, nr) in self._values
                for source, nr in node.next_functions
            ):
                handles.append(node.register_prehook(arrives(node, own)))
            outward = [
                (place, call_of(source), _edge_of(source, output_nr))
                for place, (source, output_nr) in enumerate(node.next_functions)
                if source is not None and call_of(source) != own
            ]
            if outward:
                handles.append(node.register_hook(leaves_for(outward, own)))
        try:
            tensors = list(leaves.values())
            gradients = torch.autograd.grad(
                output, tensors, seed, allow_unused=True, materialize_grads=True
            )
        finally:
            for handle in handles:
                handle.remove()
        r = self._relevance(output.detach(), seed)
        target = r.sum().item()
        flows.append(Flow(TARGET, call_of(_edge(output)[0]), target, r.abs().sum().item()))
        kept = [self._relevance(x.detach(), g) for x, g in zip(tensors, gradients, strict=True)]
        return Settlement(
            gross,
            constant,
            flows,
            joined,
            sum(r.sum().item() for r in kept),
            sum(r.abs().sum().item() for r in kept),
            list(gradients),
            target,
        )

    def _relevance(self, value: Tensor, gradient: Tensor) -> Tensor:
        return _parts(gradient).sum(-1) if self._explicit else _times(value, gradient)

    def _share(self, part: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        """The relevance of a part of a value."""
        if not self._explicit:
            return _times(part, gradient)
        part, value, gradient = (_parts(x) for x in (part, value, gradient))
        part = torch.where(value == 0, 0.0, part / torch.where(value == 0, 1.0, value))
        return _times(part, gradient)


def _is_unit(rule: Rule | None, target: Any) -> bool:
    """Whether a rule is for element-wise functions, and this library has not tried its target."""
    entry = REGISTRY.get(target)
    return isinstance(rule, Elementwise) and (entry is None or entry.rule is not rule)


def _declared(rule: Rule | None, target: Any) -> Absorbs | None:
    """What a rule of one's own declares that it keeps of this operation's relevance."""
    entries = declarations_of(rule)
    own = [entry for entry in entries if entry.operation is target]
    return next((entry.absorbs for entry in (*own, *entries)), None)


def _times(value: Tensor, gradient: Tensor) -> Tensor:
    """Their product, where an infinite value of a mask that no gradient reaches counts nothing.

    Of complex numbers, that of their real and imaginary parts, added up.
    """
    g = wide(gradient)
    r = torch.where(g == 0, 0.0, wide(value).conj() * g)
    return r.real if r.is_complex() else r


def _parts(x: Tensor) -> Tensor:
    """In float64, with one more axis: of the real and imaginary part, or of the number alone."""
    x = wide(x)
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x[..., None]


def wide(x: Tensor) -> Tensor:
    """In float64, or complex128."""
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def _edge(tensor: Tensor) -> Edge:
    if tensor.grad_fn is None:
        return id(tensor), 0  # a leaf: its node is made when it is first asked for
    return tensor.grad_fn, tensor.output_nr


def _edge_of(node: Any, output_nr: int) -> Edge:
    """The same edge, seen from an operation that uses the value."""
    variable = getattr(node, "variable", None)
    return (node, output_nr) if variable is None else (id(variable), 0)


def _nodes(node: Any) -> Iterator[Any]:
    """All that a node depends on, and itself."""
    seen, stack = {node}, [node]
    while stack:
        node = stack.pop()
        yield node
        for source, _ in node.next_functions:
            if source is not None and source not in seen:
                seen.add(source)
                stack.append(source)


def _join(joined: list[int], one: int, other: int) -> None:
    """Make two calls, and those that they count with, count as one."""
    one, other = head_of(joined, one), head_of(joined, other)
    joined[max(one, other)] = min(one, other)
