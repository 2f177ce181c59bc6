"""Recurrent networks a second time: gates as constants, secants for signals, one unit at a time.

With the gates and the slopes of the secants held, a network is linear in its input and its first
states, so that its Jacobian is that of one step of each number.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from operations import Call, base_name

NETWORKS = (
    *("lstm", "gru", "rnn_tanh", "rnn_relu"),
    *("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"),
)


class Trace:
    """A network's non-linear numbers in order: taken down in a first run, constants in others."""

    def __init__(self) -> None:
        self.numbers: list[Tensor] = []
        self.at: int | None = None

    def constant(self, number: Tensor) -> Tensor:
        if self.at is None:
            self.numbers.append(number)
            return number
        self.at += 1
        return self.numbers[self.at - 1]

    def gate(self, z: Tensor) -> Tensor:
        return self.constant(1 / (1 + torch.exp(-z)))

    def tanh(self, z: Tensor) -> Tensor:
        return self.constant(torch.tanh(z) / z) * z

    def relu(self, z: Tensor) -> Tensor:
        return self.constant((z > 0).double()) * z


def recurrent_step(trace: Trace, kind: str, x: Tensor, state: list[Tensor], w: list[Any]) -> Any:
    from_x, from_h = w[0] @ x + w[2], w[1] @ state[0] + w[3]
    if kind == "lstm":
        i, f, z, o = (from_x + from_h).chunk(4)
        c = trace.gate(f) * state[1] + trace.gate(i) * trace.tanh(z)
        return [trace.gate(o) * trace.tanh(c), c]
    if kind == "gru":
        (r_x, u_x, z_x), (r_h, u_h, z_h) = from_x.chunk(3), from_h.chunk(3)
        r, u = trace.gate(r_x + r_h), trace.gate(u_x + u_h)
        return [(1 - u) * trace.tanh(z_x + r * z_h) + u * state[0]]
    return [(trace.tanh if kind == "rnn_tanh" else trace.relu)(from_x + from_h)]


def recurrent(call: Call, g: list[Tensor]) -> dict[int, Tensor]:
    """Gates constant, secants for the rest (Arras et al.): linear, so finite differences again."""
    kind = base_name(call.operation).removesuffix("_cell")
    is_cell = base_name(call.operation).endswith("_cell")
    states = 2 if kind == "lstm" else 1
    _, *weights = call.tensors[states:]
    args = call.arguments[0]
    biased, layers, both_ways, batch_first = (
        (True, 1, False, False) if is_cell else (args[3], args[4], args[7], args[8])
    )
    trace = Trace()

    def network(x: Tensor, *hidden: Tensor) -> list[Tensor]:
        trace.at = 0 if trace.numbers else None
        if is_cell:
            rows = [
                recurrent_step(trace, kind, x[b], [h[b] for h in hidden], weights)
                for b in range(len(x))
            ]
            return [torch.stack(each) for each in zip(*rows, strict=True)]
        x = x.transpose(0, 1) if batch_first else x
        ends: list[list[Tensor]] = []
        for layer in range(layers):
            sides = []
            for n in range(2 * layer, 2 * layer + 2) if both_ways else (layer,):
                each = 4 if biased else 2
                w = weights[n * each : (n + 1) * each]
                w = w if biased else [*w, torch.zeros(len(w[0])), torch.zeros(len(w[0]))]
                ys, last = torch.zeros(*x.shape[:2], w[1].shape[1]).double(), []
                for b in range(x.shape[1]):
                    state = [h[n, b] for h in hidden]
                    times = range(len(x))
                    for time in reversed(times) if both_ways and n % 2 else times:
                        state = recurrent_step(trace, kind, x[time, b], state, w)
                        ys[time, b] = state[0]
                    last.append(state)
                sides.append(ys)
                ends.append([torch.stack(each) for each in zip(*last, strict=True)])
            x = torch.cat(sides, -1)
        y = x.transpose(0, 1) if batch_first else x
        return [y, *(torch.stack(each) for each in zip(*ends, strict=True))]

    operands = [x.double() for x in call.tensors[: states + 1]]
    network(*operands)
    before = network(*operands)
    result = {}
    for n, operand in enumerate(operands):
        result[n] = torch.zeros_like(operand)
        for place in itertools.product(*map(range, operand.shape)):
            moved = [x.clone() for x in operands]
            moved[n][place] += 1
            pairs = zip(network(*moved), before, g, strict=True)
            result[n][place] = sum(((y - y0) * g_y).sum() for y, y0, g_y in pairs)
    return result
