"""The ledger: who received relevance, who handed it on, and who absorbed what in between.

For each operation of one forward pass

    R(out) = Σ R(operands) + absorbed,      absorbed = R(of what it puts out for operands 0) + rest

and the sums telescope: the target = the relevance of the input + all that was absorbed. What an
operation puts out for operands 0, a bias or a position embedding, belongs to no operand. The rest
is 0 for all that is linear under the rules (Achtibat et al. 2024, Eq. 8 and 9; Prop. 3.3, 3.4) and
the remainder of the Taylor expansion for softmax (Prop. 3.1). Anything else is unexplained: a rule
that does not conserve, or none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from lxt.engine.records import Call, Flow, Settlement, head_of

__all__ = ["Account", "Boundary", "Ledger"]

UNEXPLAINED = "unexplained"
NO_RULE = "no rule"

_CONSTANT_PARTS = {
    "linear": "biases",
    "bilinear": "biases",
    "quantized": "biases",
    "normalization": "norm shifts",
    "activation": "values at 0",
    "activations": "values at 0",
}
_RESTS = {
    "softmax": "softmax",
    "attention": "softmax",
    "flex": "softmax",
    "exponential": "softmax",  # of a log-probability
    "quantized": "rounding of activations",
    "gated": "biases",  # within a recurrent network
    "losses": "other constants",  # a target, within a square
}
_RESTS_OF_RULES = {
    "gated_linear_unit": "values at 0",  # of its gate, a half of its operand
    "polar": "values at 0",  # of its cosine
}


@dataclass(frozen=True)
class Account:
    """What one operation did with relevance.

    Attributes:
        call: the operation.
        received: Σ R at its outputs.
        passed: Σ R handed on to its operands.
        gross_received: Σ|R| at its outputs.
        gross_passed: Σ|R| handed on to its operands, each of them by itself.
        constant: Σ R of what it puts out for operands 0.
        branches: how many values it handed relevance to.
    """

    call: Call
    received: float
    passed: float
    gross_received: float
    gross_passed: float
    constant: float
    branches: int

    @property
    def absorbed(self) -> float:
        """Σ R that came and was not handed on."""
        return self.received - self.passed

    @property
    def rest(self) -> float:
        """What it absorbed beyond its constant part."""
        return self.absorbed - self.constant

    @property
    def absorber(self) -> str:
        """What the constant part of this operation is called."""
        call = self.call
        if call.family == "addition":
            # a number for each channel, or for each position too
            axes = [sum(n > 1 for n in shape) for shape in call.constants]
            return "positions and other constants" if max(axes, default=0) > 1 else "biases"
        return _CONSTANT_PARTS.get(call.family, "other constants")

    @property
    def rest_absorber(self) -> str:
        """What the rest is called."""
        if self.call.rule is None:
            return NO_RULE
        if self.call.absorbs == "anything":
            return f"the rule {self.call.rule}"
        if self.call.rest:
            return self.call.rest
        explained = _RESTS_OF_RULES.get(self.call.rule) or _RESTS.get(self.call.family)
        return explained or UNEXPLAINED

    @property
    def is_unexplained(self) -> bool:
        """Whether nothing accounts for the rest."""
        return self.rest_absorber == UNEXPLAINED


@dataclass(frozen=True)
class Boundary:
    """Relevance that enters a module from above and leaves it towards the input."""

    module: str
    received: float
    passed: float
    gross_received: float
    gross_passed: float

    @property
    def absorbed(self) -> float:
        """Σ R that stayed inside."""
        return self.received - self.passed


class Ledger:
    """Accounts of every operation on the path of relevance, for one model and input.

    Attributes:
        accounts: in the order in which the operations ran; those that relevance reached.
        calls: all that ran, also those whose result is a constant.
        target: what is explained.
        relevance: Σ R of the input.
        gross: Σ|R| of the input.
        epsilon_of_input: the relative distance of neighbouring numbers of its type.
    """

    def __init__(self, calls: list[Call], settlement: Settlement, *, epsilon: bool = False) -> None:
        self.calls = calls
        self.target = settlement.target
        self._epsilon = epsilon
        self.epsilon_of_input = max(torch.finfo(g.dtype).eps for g in settlement.gradients)
        heads = [head_of(settlement.joined, number) for number in range(len(calls))]

        def party(number: int) -> int:
            return heads[number] if number >= 0 else number

        merged: dict[tuple[int, int], Flow] = {}
        for flow in settlement.flows:
            pair = party(flow.sink), party(flow.source)
            if pair[0] == pair[1]:
                continue
            known = merged.get(pair)
            merged[pair] = Flow(
                *pair,
                flow.relevance + (known.relevance if known else 0),
                flow.gross + (known.gross if known else 0),
            )
        self.flows = list(merged.values())
        self.relevance = settlement.relevance
        self.gross = settlement.relevance_gross
        self.accounts = self._accounts(settlement, heads)

    def _accounts(self, settlement: Settlement, heads: list[int]) -> list[Account]:
        incoming: dict[int, list[Flow]] = defaultdict(list)
        outgoing: dict[int, list[Flow]] = defaultdict(list)
        for flow in self.flows:
            incoming[flow.source].append(flow)
            outgoing[flow.sink].append(flow)
        members: dict[int, list[int]] = defaultdict(list)
        for number, head in enumerate(heads):
            members[head].append(number)
        accounts = []
        for head, numbers in members.items():
            if not incoming[head] and not outgoing[head]:
                continue
            called = next(
                (n for n in numbers if self.calls[n].rule is None),
                next((n for n in numbers if self.calls[n].function is not None), head),
            )
            account = Account(
                self.calls[called],
                sum(flow.relevance for flow in incoming[head]),
                sum(flow.relevance for flow in outgoing[head]),
                settlement.gross[head]
                if len(numbers) == 1
                else sum(flow.gross for flow in incoming[head]),
                sum(flow.gross for flow in outgoing[head]),
                sum(settlement.constant[n] for n in numbers),
                len(outgoing[head]),
            )
            accounts.append(account if _has_constant(account) else replace(account, constant=0.0))
        return accounts

    def absorbed(self) -> dict[str, float]:
        """Σ R that each kind of absorber kept, the largest first.

        With `relevance` they add up to `target`.
        """
        totals: dict[str, float] = defaultdict(float)
        for account in self.accounts:
            totals[account.absorber] += account.constant
            rest = "ε" if self._epsilon and account.call.rule else account.rest_absorber
            totals[rest] += account.rest
        return dict(sorted(totals.items(), key=lambda item: -abs(item[1])))

    def imbalance(self) -> float:
        """How far the books are from closing: |target − relevance − Σ absorbed|."""
        return abs(self.target - self.relevance - sum(self.absorbed().values()))

    def by(self, key: Callable[[Account], str]) -> dict[str, Account]:
        """Accounts added up by a name for each: the operation, the module, the rule."""
        totals: dict[str, Account] = {}
        for account in self.accounts:
            name = key(account)
            known = totals.get(name)
            totals[name] = (
                account
                if known is None
                else replace(
                    known,
                    received=known.received + account.received,
                    passed=known.passed + account.passed,
                    gross_received=known.gross_received + account.gross_received,
                    gross_passed=known.gross_passed + account.gross_passed,
                    constant=known.constant + account.constant,
                    branches=known.branches + account.branches,
                )
            )
        return totals

    def boundary(self, module: str) -> Boundary:
        """What crosses the bounds of a module, given by its path."""
        inside = [_is_within(call.callsite.module, module) for call in self.calls]
        into = [f for f in self.flows if _at(inside, f.source) and not _at(inside, f.sink)]
        out = [f for f in self.flows if _at(inside, f.sink) and not _at(inside, f.source)]
        return Boundary(
            module,
            sum(flow.relevance for flow in into),
            sum(flow.relevance for flow in out),
            sum(flow.gross for flow in into),
            sum(flow.gross for flow in out),
        )

    def residual_additions(self) -> list[Account]:
        """Sums of two values that both carry relevance."""
        return [
            account
            for account in self.accounts
            if account.call.family == "addition" and account.branches == 2
        ]


def _has_constant(account: Account) -> bool:
    """Whether what an operation puts out for operands 0 is a part of what it absorbs."""
    if account.call.absorbs == "nothing":
        return False
    if account.rest_absorber != "softmax":
        return True
    # A softmax is linearised where it is, so that its value at 0 is nobody's; but an exponential
    # that makes no probability absorbs its 1.
    scale = max(account.gross_received, account.gross_passed)
    return account.call.family == "exponential" and abs(account.rest) <= 1e-3 * scale


def _at(inside: list[bool], party: int) -> bool:
    """Whether the party of a flow is a call that is inside; input and target are not."""
    return party >= 0 and inside[party]


def _is_within(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.")
