"""Recognises softmax, log-softmax and their sums where a model writes them out.

    e = exp(u);  e / e.sum(-1, keepdim=True)        exp(u − logsumexp(u))        log(softmax(u))

Each step has a rule of its own, but the rule of softmax (Achtibat et al. 2024, Prop. 3.1) is not
made of them: a secant for the exponential and a constant denominator are another thing. So the
quotient and the exponential look at the graph behind their operands. What they find is proven, by
pulling a probe back through the denominator; what only resembles it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lxt.engine.nodes import kind_of
from lxt.gradients import TRANSPARENT, carries_relevance, compute_dtype, curve_of, operand_of
from lxt.rules.registry import Refusal

__all__ = [
    "WrittenSoftmax",
    "exponential_over_slope",
    "is_log_probability",
    "is_probability",
    "refuse_exponential",
    "refuse_exponential_of_logsumexp",
    "refuse_sum_of_exponentials",
    "softmax_quotient_gradient",
    "written_softmax",
]

_COPY = "torch::autograd::CopyBackwards"
_TURNS = frozenset(("TBackward0", "TransposeBackward0", "TransposeBackward1", "PermuteBackward0"))
_IDENTITIES = frozenset({"CloneBackward0", "ToCopyBackward0", "AliasBackward0", _COPY})
_SOFTMAXES = frozenset({"SoftmaxBackward0", "softmax_fnBackward"})
_SUMS = frozenset(
    {"SumBackward0", "SumBackward1", "MeanBackward0", "MeanBackward1", "CumsumBackward0"}
    | {"MmBackward0", "BmmBackward0", "MvBackward0", "NansumBackward0"}
)
# What may happen to a denominator, or to an exponential before it is summed.
_SHIFTS = frozenset(
    f"{name}Backward0" for name in ("Add", "Sub", "Mul", "Div", "Maximum", "NanToNum", "Where")
)
_SHARES = frozenset({"_ScaleBackward"})  # a factor, among others
_NEGATIONS = frozenset({"NegBackward0", "RsubBackward0", "RsubBackward1"})


def _sources(node: Any) -> list[Any]:
    sources = [source for source, _ in node.next_functions if source is not None]
    if node.name() == _COPY:  # what was copied, not what it was copied into
        return sources[-1:]
    return sources


def _is_exponential(node: Any) -> bool:
    curve = curve_of(node)
    return curve is not None and curve.kind in ("exponential", "exponential less 1")


def _is_clamp(node: Any) -> bool:
    curve = curve_of(node)
    return curve is not None and curve.kind == "clamp"


def _summed_exponentials(x: Tensor) -> list[Any]:
    """The nodes of exponentials whose sum `x` is, shifted, scaled, weighted or clamped at most."""
    found, seen = [], set()
    waiting = [(x.grad_fn, False)]
    while waiting:
        node, summed = waiting.pop()
        if node is None or (node, summed) in seen:
            continue
        seen.add((node, summed))
        if _is_exponential(node):
            if summed:
                found.append(node)
            continue
        name = kind_of(node)
        if name not in TRANSPARENT | _SUMS | _SHIFTS | _SHARES and not _is_clamp(node):
            continue
        waiting += [(source, summed or name in _SUMS) for source in _sources(node)]
    return found


def _comes_from(node: Any, origins: list[Any]) -> bool:
    """Whether the graph behind `node` holds one of `origins`."""
    oldest = min(origin._sequence_nr() for origin in origins)
    waiting, seen = [node], set()
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        if node in origins:
            return True
        if node not in seen and node._sequence_nr() > oldest:
            seen.add(node)
            waiting += _sources(node)
    return False


def _same_value(a: Any, b: Any, depth: int = 8) -> bool:
    """Whether two nodes put out the same: they are one, or the same step from the same."""
    if a is b:
        return True
    if depth == 0 or kind_of(a) != kind_of(b):
        return False
    pairs = list(zip(_sources(a), _sources(b), strict=False))
    same_number = len(_sources(a)) == len(_sources(b)) > 0
    return same_number and all(_same_value(x, y, depth - 1) for x, y in pairs)


def _pulled(g: Tensor, node: Any, end: Any) -> Tensor | None:
    """The gradient of the output of `end`, where the only way from `node` leads to it."""
    while node is not end:
        sources = [(n, s) for n, (s, _) in enumerate(node.next_functions) if s is not None]
        if node.name() == _COPY:
            node = sources[-1][1]
            continue
        if len(sources) != 1:
            return None
        if _is_clamp(node):
            x = operand_of(node)
            g = g * (node.function(x) == x)
        elif hasattr(node, "leaves"):  # an explicit rule, around a graph of its own
            (g,) = torch.autograd.grad(node.output, node.leaves, g, retain_graph=True)
        elif curve_of(node) is not None or hasattr(node, "_forward_cls"):
            return None
        else:
            gradients = node(g)
            g = gradients[sources[0][0]] if isinstance(gradients, tuple) else gradients
        node = sources[0][1]
    return g


@dataclass(frozen=True)
class WrittenSoftmax:
    """A quotient n / d with n = exp(u), masked perhaps, and d = Σ n + constant.

    Attributes:
        logits: u, of the shape of n.
        log_base: the logarithm of the base of the exponential.
        summed: of the shape of n, where an element is in the sum; None if all are. One isn't where
            the denominator is clamped.
    """

    logits: Tensor
    log_base: float
    summed: Tensor | None

    def tensors(self) -> tuple[Tensor, ...]:
        """What `softmax_quotient_gradient` needs of it."""
        return (self.logits,) if self.summed is None else (self.logits, self.summed)


def written_softmax(numerator: Any, denominator: Any) -> WrittenSoftmax | None:
    """The softmax that a quotient completes, if it is one.

    Raises:
        Refusal: exponentials are divided by a sum of theirs in another way.
    """
    if not carries_relevance(numerator) or not carries_relevance(denominator):
        return None
    exponentials = _summed_exponentials(denominator)
    if not exponentials:
        exponentials = [node for node in _chain(numerator) if _is_exponential(node)]
        if exponentials and _comes_from(denominator.grad_fn, exponentials):
            raise Refusal(_RESEMBLES)
        return None
    found = _proven(numerator, denominator, exponentials)
    if found is None and _comes_from(numerator.grad_fn, exponentials):
        raise Refusal(_RESEMBLES)
    return found


_RESEMBLES = (
    "exponentials are divided by what is made of them, in a way that is not plainly a softmax: "
    "write torch.softmax, or e / e.sum(dim, keepdim=True) with e = torch.exp(…)"
)


def _proven(
    numerator: Tensor, denominator: Tensor, exponentials: list[Any]
) -> WrittenSoftmax | None:
    node, candidates, turned = numerator.grad_fn, [], False
    while node is not None:  # back to the exponential, over masks and transpositions at most
        if all(kind_of(n) in _IDENTITIES for n in candidates):
            candidates.append(node)
        if _is_exponential(node):
            break
        name, sources = kind_of(node), _sources(node)
        masks = name.startswith(("MaskedFill", "Where", "Mul")) or name in _IDENTITIES
        turned |= name in _TURNS
        node = sources[0] if (masks or name in _TURNS) and len(sources) == 1 else None
    if node is None:
        return None
    curve: Any = curve_of(node)
    if curve.kind != "exponential":
        return None
    # Turned as the numerator is; where that is 0 by a mask or underflow, nothing flows.
    logits = numerator.detach().log() / curve.log_base if turned else operand_of(node)
    twins = [e for e in exponentials if e is node or _is_twin(e, node)]
    if len(twins) != len(exponentials) or logits.shape != numerator.shape:
        return None
    if twins != [node]:
        if candidates[-1] is not node:
            return None
        candidates = twins if len(twins) == 1 else []
    with torch.no_grad():
        for candidate in candidates:
            summed = _membership(numerator, denominator, candidate)
            if summed is not None:
                every = None if bool(summed.all()) else summed
                return WrittenSoftmax(logits.detach(), curve.log_base, every)
    return None


def _is_twin(a: Any, b: Any) -> bool:
    """Whether two exponentials are the same, computed twice."""
    x, y = operand_of(a), operand_of(b)
    return (
        curve_of(a) == curve_of(b)
        and x.shape == y.shape
        and torch.equal(x, y)
        and _same_value(_sources(a)[0], _sources(b)[0])
    )


def _membership(numerator: Tensor, denominator: Tensor, end: Any) -> Tensor | None:
    """Which elements the denominator sums up, if it is their sum over what it is broadcast over."""
    try:
        torch.broadcast_to(denominator, numerator.shape)
    except RuntimeError:
        return None
    places = torch.arange(denominator.numel(), device=denominator.device)
    probe = (places % 7 + 1).reshape(denominator.shape).to(denominator.dtype)
    ones = _pulled(torch.ones_like(denominator), denominator.grad_fn, end)
    pulled = _pulled(probe, denominator.grad_fn, end)
    if ones is None or pulled is None or ones.shape != numerator.shape:
        return None
    ones, pulled = ones.to(probe.dtype), pulled.to(probe.dtype)
    # A mean times the number of its elements is a sum but for rounding.
    tolerance = 4 * torch.finfo(probe.dtype).eps
    is_sum = torch.allclose(pulled, ones * probe, rtol=tolerance, atol=0)
    is_zero_or_one = (((ones - 1).abs() <= tolerance) | (ones == 0)).all()
    return ones > 0.5 if is_sum and is_zero_or_one else None


def refuse_sum_of_exponentials(x: Any, instead: str) -> None:
    """Refuse an operation that makes one half of a written softmax, of which the other isn't seen.

    Raises:
        Refusal: `x` is a sum of exponentials.
    """
    if carries_relevance(x) and _summed_exponentials(x):
        raise Refusal(f"its operand is a sum of exponentials, as in a softmax: write {instead}")


def refuse_exponential(x: Any, instead: str) -> None:
    """Refuse an operation that sums exponentials up by itself.

    Raises:
        Refusal: `x` is an exponential, masked perhaps.
    """
    if carries_relevance(x) and any(_is_exponential(node) for node in _chain(x)):
        raise Refusal(f"its operand is an exponential, as in a softmax: write {instead}")


def refuse_exponential_of_logsumexp(x: Any) -> None:
    """Refuse to make a sum of exponentials of its logarithm, which is half of a written softmax.

    Raises:
        Refusal: `x` is a logsumexp, negated, shifted, scaled or masked at most.
    """
    waiting, seen = [x.grad_fn] if carries_relevance(x) else [], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = kind_of(node)
        if name == "LogsumexpBackward0":
            raise Refusal("its operand is a logsumexp, as in a softmax: write torch.softmax")
        if name in TRANSPARENT | _SHIFTS | _NEGATIONS or _is_clamp(node):
            waiting += _sources(node)


def _chain(x: Tensor) -> Iterator[Any]:
    """The nodes behind `x`, as long as each only hands values on, shifts, masks or clamps them."""
    node = x.grad_fn
    while node is not None:
        yield node
        sources = _sources(node)
        walked = kind_of(node) in TRANSPARENT | _SHIFTS or _is_clamp(node)
        node = sources[0] if walked and len(sources) == 1 else None


def is_probability(x: Tensor) -> bool:
    """Whether `x` came out of softmax: moved, masked, shifted by a constant at most."""
    return any(kind_of(node) in _SOFTMAXES for node in _chain(x))


def is_log_probability(x: Tensor) -> bool:
    """Whether `x` is log_softmax(u) or u − logsumexp(u), moved or masked at most.

    Raises:
        Refusal: it is u − logsumexp(v) with another v.
    """
    for node in _chain(x):
        if kind_of(node) == "LogSoftmaxBackward0":
            return True
        if kind_of(node) == "SubBackward0" and len(sources := _sources(node)) == 2:
            return _is_difference(*sources)
    return False


def _is_difference(u: Any, total: Any) -> bool:
    while kind_of(total) in TRANSPARENT and len(_sources(total)) == 1:
        (total,) = _sources(total)
    if kind_of(total) != "LogsumexpBackward0":
        return False
    (operand,) = _sources(total)
    u, operand = _origin(u), _origin(operand)
    if u is not operand:
        raise Refusal(
            "it is exp(u − logsumexp(v)) with a v that is not plainly u: write torch.softmax"
        )
    return True


def _origin(node: Any) -> Any:
    while kind_of(node) in _IDENTITIES and len(_sources(node)) == 1:
        (node,) = _sources(node)
    return node


def softmax_quotient_gradient(
    g: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    log_base: float,
    logits: Tensor,
    summed: Tensor | None = None,
) -> Tensor:
    """What a numerator e hands to its exponential, so that this hands on a softmax's gradient.

    That is e · (g − Σ g y) / d; and as the exponential multiplies by its secant slope, this is
    divided by it: v / (1 − e⁻ᵛ) · (g − Σ g y) / d at v = u · ln(base).
    """
    n, d, upstream = (x.to(compute_dtype(g.dtype)) for x in (numerator, denominator, g))
    ratio = exponential_over_slope(logits.to(upstream.dtype) * log_base)
    return (ratio * softmax_share(upstream, upstream * n / d, summed, d.shape) / d).to(g.dtype)


def exponential_over_slope(v: Tensor) -> Tensor:
    """The derivative of exp at v over its secant slope: v / (1 − e⁻ᵛ)."""
    ratio = torch.where(v == 0, 1.0, v / -torch.expm1(-v))
    return torch.where(v.isneginf(), 0.0, ratio)


def softmax_share(
    g: Tensor, relevance: Tensor, summed: Tensor | None, shape: Sequence[int]
) -> Tensor:
    """The gradient `g` less the relevance summed to the `shape` of the denominator."""
    total = relevance.sum_to_size(shape)
    return g - (total if summed is None else total * summed)
