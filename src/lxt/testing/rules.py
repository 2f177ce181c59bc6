"""`check_rule`: whether a rule is one, shown on calls of its operation."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lxt.auditing.checks import same
from lxt.auditing.elementwise import is_elementwise
from lxt.auditing.ledger import Ledger
from lxt.auditing.recording import recorded
from lxt.composite import Composite
from lxt.composites import attnlrp
from lxt.engine.recorder import wide
from lxt.entries import rule_name, target_name
from lxt.errors import CheckFailed, InvalidRule, LxtError
from lxt.rules.declared import declarations_of
from lxt.rules.registry import Absorbs, Sample
from lxt.rules.secants import Elementwise
from lxt.testing.one_call import OneCall, OneCallCase, floating, require_sample, seed_for

__all__ = ["check_rule"]

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# How far gradients may be from those in float64 at the same values, as a share of their norm.
_ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.25}

# What conservation may lack, as a share of Σ|R|, by the widest type that the operation takes.
_MISSING = {torch.float64: 1e-8, torch.float32: 1e-4}


def check_rule(
    rule: Any,
    operation: Callable[..., Any] | None = None,
    *samples: Sample,
    absorbs: Absorbs | None = None,
    composite: Composite = attnlrp,
) -> None:
    """Make sure that a rule has the properties of one, on each of its sample calls.

    - Its forward is that of the operation to the bit, in float64, float32, bfloat16 and float16,
      as far as the operation takes them.
    - It hands on the relevance that it receives, but for what it may absorb.
    - Its gradients are those in float64 at the same values, up to rounding; they are the same for
      operands that lie otherwise in memory, and finite at 0.
    - The operation is element-wise, if the rule is one for such functions.
    - It leaves its operands as they are, unless the operation writes to them, and once a backward
      pass is over it keeps nothing alive.

    Args:
        rule: the rule; one that `lxt.rule` declared says the rest by itself.
        operation: what it stands for.
        samples: calls of it, as `lxt.sample(x, weight, dim=-1)`: tensors that require grad carry
            relevance, the others are constants.
        absorbs: what the rule may keep, as for `lxt.rule`; `"values at 0"` by default.
        composite: the rules that the operations within have, for a function in the open.

    Raises:
        CheckFailed: something does not hold; the message says what, with numbers.
        InvalidRule: it is not said what to check, or a sample has nothing that carries relevance.
        InvalidInput: what stands for a sample is none, or it has no arguments or elements.

    """
    problems = []
    for job in _jobs(rule, operation, samples, absorbs, composite):
        problems += [f"  {job.name}, {problem}" for problem in job.problems()]
    if problems:
        raise CheckFailed("\n".join([f"{rule_name(rule)} is no sound rule:", *problems]))


def _jobs(
    rule: Any,
    operation: Callable[..., Any] | None,
    samples: tuple[Sample, ...],
    absorbs: Absorbs | None,
    composite: Composite,
) -> list[_Job]:
    declared = declarations_of(rule)
    found: list[tuple[Callable[..., Any], tuple[Sample, ...], Absorbs]] = [
        (entry.operation, samples or entry.samples, absorbs or entry.absorbs)
        for entry in declared
        if operation in (None, entry.operation)
    ]
    if not found and operation is not None:
        found = [(operation, samples, absorbs or "values at 0")]
    if not found:
        raise InvalidRule(
            f"{rule_name(rule)} does not say what it is a rule of: declare it with "
            "@lxt.rule(operation, …), or give check_rule(rule, operation, lxt.sample(…))"
        )
    jobs = []
    for target, calls, kept in found:
        name = target.__name__ if isinstance(target, type) else target_name(target)
        if not calls:
            raise InvalidRule(
                f"there is no sample call of {name}: give lxt.sample(x), x a tensor that requires "
                "grad"
            )
        for call in calls:
            require_sample(call, target, name)
        table = composite | {target: rule}
        jobs += [
            _Job(f"{name}, sample {number}", target, sample, kept, table, rule)
            for number, sample in enumerate(calls, start=1)
        ]
    return jobs


@dataclass
class _Result:
    """What a call put out and handed back, or what it raised."""

    outputs: list[Tensor]
    gradients: list[Tensor]


@dataclass
class _Job:
    """One sample call of one operation, under a composite that has the rule."""

    name: str
    operation: Callable[..., Any]
    sample: Sample
    absorbs: Absorbs
    composite: Composite
    rule: Any

    def problems(self) -> Iterator[str]:
        """What does not hold."""
        if not self._model(torch.float64).operands:
            raise InvalidRule(
                f"{self.name} has nothing that carries relevance: give an operand that is a "
                "floating-point tensor with requires_grad=True"
            )
        dtypes = [dtype for dtype in _DTYPES if self._runs(dtype)]
        if not dtypes:
            try:
                self._model(torch.float32)()
            except Exception as error:
                yield f"the operation itself raises {_brief(error)}"
            return
        try:
            yield from self._forward(dtypes)
            yield from self._unit(dtypes[0])
            yield from self._writes(dtypes[0])
            yield from self._conservation(dtypes[0])
            yield from self._precision(dtypes)
            yield from self._layouts(dtypes[0])
            yield from self._zeros(dtypes[0])
            yield from self._keeps(dtypes[0])
        except Exception as error:
            if not isinstance(error, LxtError | RuntimeError | TypeError | ValueError):
                raise
            yield f"the rule raises {_brief(error)}"

    def _model(self, dtype: torch.dtype) -> OneCall:
        return OneCall(self.operation, self.sample, dtype)

    def _runs(self, dtype: torch.dtype) -> bool:
        try:
            model = self._model(dtype)
            if dtype.itemsize == 2 and any(x.is_complex() for x in model.operands):
                return False  # torch computes little with complex numbers of two halves
            return bool(floating(model(*model.operands)))
        except Exception:  # an operation need not take every type
            return False

    @contextmanager
    def _under(self, model: nn.Module) -> Iterator[None]:
        propagation = self.composite.register(model)
        try:
            yield
        finally:
            propagation.remove()

    def _handed_back(self, model: OneCall) -> _Result:
        """What the call puts out under the rule, and hands back to its operands."""
        with self._under(model):
            outputs = floating(model(*model.operands))
        live = [y for y in outputs if y.requires_grad]
        gradients: tuple[Tensor, ...] = tuple(map(torch.zeros_like, model.operands))
        if live:
            gradients = torch.autograd.grad(
                live,
                model.operands,
                list(map(seed_for, live)),
                allow_unused=True,
                materialize_grads=True,
            )
        return _Result([y.detach() for y in outputs], list(gradients))

    def _forward(self, dtypes: list[torch.dtype]) -> Iterator[str]:
        for dtype in dtypes:
            plain_model, again, model = (self._model(dtype) for _ in range(3))
            plain = floating(plain_model(*plain_model.operands))
            if not all(map(same, plain, floating(again(*again.operands)))):
                yield f"{_spelled(dtype)}: the operation itself draws random numbers"
                continue
            with self._under(model):
                ours = floating(model(*model.operands))
            if len(ours) != len(plain):
                yield f"{_spelled(dtype)}: it puts out {len(ours)} tensors in place of {len(plain)}"
            for y, reference in zip(ours, plain, strict=False):
                if (y.dtype, y.shape) != (reference.dtype, reference.shape):
                    yield (
                        f"{_spelled(dtype)}: it puts out {_described(y)} in place of "
                        f"{_described(reference)}"
                    )
                elif not same(reference.detach(), y):
                    off = (wide(y.detach()) - wide(reference.detach())).abs()
                    yield (
                        f"{_spelled(dtype)}: its value is not that of the operation: "
                        f"{int((off > 0).sum())} of {off.numel()} elements differ, by up to "
                        f"{off.max():.3g}"
                    )

    def _unit(self, dtype: torch.dtype) -> Iterator[str]:
        model = self._model(dtype)
        if (
            isinstance(self.rule, Elementwise)
            and is_elementwise(model, model.operands, {}) is False
        ):
            yield (
                "the rule is for element-wise functions, and the operation is none: an element of "
                "its result depends on others than the one in its place, or its shape is another"
            )

    def _conservation(self, dtype: torch.dtype) -> Iterator[str]:
        if self.absorbs == "anything":
            return
        model = self._model(dtype)
        with self._under(model):
            carries = any(y.requires_grad for y in floating(model(*model.operands)))
        if not carries:
            yield (
                "no relevance is handed on: its result is a constant (declare absorbs="
                '"anything" if that is meant)'
            )
            return
        record = recorded(OneCallCase(self._model(dtype)), self.composite)
        ledger = Ledger(
            record.calls, record.settlement, epsilon=self.composite.formulation == "relevance"
        )
        kept = sum(account.constant for account in ledger.accounts)
        allowed = kept if self.absorbs == "values at 0" else 0.0
        missing = ledger.target - ledger.relevance - allowed
        scale = max(abs(ledger.target), ledger.gross, *(a.gross_received for a in ledger.accounts))
        if abs(missing) > _MISSING.get(dtype, 5e-2) * scale:
            yield (
                f"relevance is not conserved: {ledger.target:.6g} came in, {ledger.relevance:.6g} "
                f"was handed on, and {kept:.6g} is that of the value at 0"
                f"{'' if allowed == kept else ', which it may not keep'}: {missing:.3g} "
                f"{'is lost' if missing * ledger.target > 0 else 'is made'}"
            )

    def _precision(self, dtypes: list[torch.dtype]) -> Iterator[str]:
        for dtype in dtypes:
            result = self._handed_back(self._model(dtype))
            for number, gradient in enumerate(result.gradients, start=1):
                bad = int((~gradient.isfinite()).sum())
                if bad:
                    yield (
                        f"{_spelled(dtype)}: {bad} of {gradient.numel()} gradients of operand "
                        f"{number} are NaN or infinite"
                    )
            if dtype not in _ROUNDING or dtypes[0] != torch.float64:
                continue
            reference = self._handed_back(_in_float64(self.operation, self.sample, dtype))
            yield from (
                f"{_spelled(dtype)}: its gradient of operand {number} is {error:.3g} off that in "
                "float64, relatively"
                for number, error in _differences(result, reference)
                if error > _ROUNDING[dtype]
            )

    def _layouts(self, dtype: torch.dtype) -> Iterator[str]:
        for layout, arrange in (("non-contiguous", _strided), ("expanded", _expanded)):
            plain, reference, model = (self._model(dtype) for _ in range(3))
            plain.arrange = model.arrange = arrange
            if arrange is _expanded:
                reference.arrange = lambda x: _expanded(x).contiguous()
            try:
                value = floating(plain(*plain.operands))
                contiguous = floating(reference(*reference.operands))
            except Exception:  # an operation need not take every layout
                continue
            if not all(map(torch.allclose, value, contiguous)) or any(plain.written()):
                continue  # it is about layouts, as as_strided is, or writes to where it can't
            try:
                result = self._handed_back(model)
            except Exception as error:
                yield f"operands that are {layout}: the rule raises {_brief(error)}"
                continue
            expected = self._handed_back(reference)
            yield from (
                f"operands that are {layout}: its gradient of operand {number} is {error:.3g} off "
                "that of contiguous ones, relatively"
                for number, error in _differences(result, expected)
                if error > _MISSING.get(dtype, 5e-2)
            )

    def _zeros(self, dtype: torch.dtype) -> Iterator[str]:
        for what, change in (("operands that are 0", torch.zeros_like), ("one 0", _with_a_zero)):
            plain, model = self._model(dtype), self._model(dtype)
            for one in (plain, model):
                one.operands = [change(x.detach()).requires_grad_() for x in one.operands]
            if not all(y.isfinite().all() for y in floating(plain(*plain.operands))):
                continue  # 0/0, as the operation has it
            result = self._handed_back(model)
            for number, gradient in enumerate(result.gradients, start=1):
                if not gradient.isfinite().all():
                    bad = int((~gradient.isfinite()).sum())
                    yield f"{what}: {bad} gradients of operand {number} are NaN or infinite"

    def _writes(self, dtype: torch.dtype) -> Iterator[str]:
        plain, model = self._model(dtype), self._model(dtype)
        plain(*plain.operands)
        with self._under(model):
            model(*model.operands)
        pairs = zip(plain.written(), model.written(), strict=True)
        for number, (by_itself, under_the_rule) in enumerate(pairs):
            if under_the_rule and not by_itself:
                x = model.given[number]
                what = "an operand" if number < len(model.operands) else "a constant"
                yield f"it writes to {what}, {_described(x)}"

    def _keeps(self, dtype: torch.dtype) -> Iterator[str]:
        def run() -> list[weakref.ref[Tensor]]:
            model = self._model(dtype)
            with self._under(model):
                outputs = floating(model(*model.operands))
            for y in outputs:
                if y.requires_grad:
                    y.backward(seed_for(y), retain_graph=True)
            given, model.given = model.given, []
            return [weakref.ref(x) for x in (*given, *outputs)]

        alive = sum(reference() is not None for reference in run())
        if alive:
            yield (
                f"it keeps {alive} tensors alive after the backward pass: save them with "
                "ctx.save_for_backward, and none elsewhere"
            )


def _in_float64(operation: Callable[..., Any], sample: Sample, dtype: torch.dtype) -> OneCall:
    """The call in float64 at values rounded to `dtype`."""
    model = OneCall(operation, sample, torch.float64)
    with torch.no_grad():
        for tensor in (*model.operands, *model.constants, *model.parameters()):
            if tensor.is_floating_point():
                tensor.copy_(tensor.to(dtype))
            elif tensor.is_complex():
                tensor.copy_(tensor.to(dtype.to_complex()))
    return model


def _differences(result: _Result, reference: _Result) -> Iterator[tuple[int, float]]:
    """For each operand by its number how far its gradient is off, as a share of all of them."""
    scale = max([wide(expected).norm().item() for expected in reference.gradients])
    pairs = zip(result.gradients, reference.gradients, strict=True)
    for number, (gradient, expected) in enumerate(pairs, start=1):
        if gradient.isfinite().all() and expected.isfinite().all():
            off = (wide(gradient) - wide(expected)).norm().item()
            yield number, off / max(scale, 1e-30)


def _strided(x: Tensor) -> Tensor:
    return torch.stack((x, x), -1)[..., 0]


def _expanded(x: Tensor) -> Tensor:
    """The first element along the first axis, repeated without a copy."""
    return x[:1].expand(x.shape) if x.dim() else x


def _with_a_zero(x: Tensor) -> Tensor:
    x = x.clone()
    x.view(-1)[0] = 0
    return x


def _spelled(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _described(x: Tensor) -> str:
    return f"{_spelled(x.dtype)} {list(x.shape)}"


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
