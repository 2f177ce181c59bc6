"""Recurrent networks: LSTM, GRU and the plain ones, a layer stack in one call or a cell.

Gates are constants, and all relevance goes to the signal that they let through: "signal takes all",
Arras et al. 2017 (arXiv:1706.07206) and 2019 (arXiv:1909.12114), whose experiments it wins. The
signals' own non-linearities are secants (AttnLRP Eq. 9):

    c_t = f ⊙ c_{t−1} + i ⊙ tanh(z),   h_t = o ⊙ tanh(c_t)            with f, i, o constant
    h_t = (1 − u) ⊙ tanh(z) + u ⊙ h_{t−1}             with u, and r within z, constant

torch's kernels compute the value. The backward pass runs the network once more, written out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lxt.gradients import carries_relevance, secant, surrogate
from lxt.rules.registry import Refusal, constant_t, require_own, rule, sample, t
from lxt.rules.secants import numeric_slope

__all__ = ["gru", "lstm", "rnn"]

SOURCE = "Arras et al. 2017, 2019"
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}

State = tuple[Tensor, ...]
Weights = Sequence[Tensor]


def _tanh(x: Tensor) -> Tensor:
    return secant(x, torch.tanh, lambda v: numeric_slope(torch.tanh, v))


def _relu(x: Tensor) -> Tensor:
    return secant(x, torch.relu, lambda v: (v > 0).to(v.dtype))


def _gate(x: Tensor) -> Tensor:
    return x.detach().sigmoid()


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(x, weight, bias)


def _lstm_step(x: Tensor, state: State, weights: Weights, biases: Weights) -> State:
    h, c = state
    z = _affine(x, weights[0], biases[0]) + _affine(h, weights[1], biases[1])
    i, f, signal, o = z.chunk(4, -1)
    c = _gate(f) * c + _gate(i) * _tanh(signal)
    h = _gate(o) * _tanh(c)
    if len(weights) == 3:  # a projection of the state
        h = _affine(h, weights[2], None)
    return h, c


def _gru_step(x: Tensor, state: State, weights: Weights, biases: Weights) -> State:
    (h,) = state
    r_x, u_x, signal_x = _affine(x, weights[0], biases[0]).chunk(3, -1)
    r_h, u_h, signal_h = _affine(h, weights[1], biases[1]).chunk(3, -1)
    u = _gate(u_x + u_h)
    return ((1 - u) * _tanh(signal_x + _gate(r_x + r_h) * signal_h) + u * h,)


def _rnn_step(activation: Callable[[Tensor], Tensor]) -> Callable[..., State]:
    def step(x: Tensor, state: State, weights: Weights, biases: Weights) -> State:
        (h,) = state
        z = _affine(x, weights[0], biases[0]) + _affine(h, weights[1], biases[1])
        return (activation(z),)

    return step


_STEPS: dict[str, Callable[..., State]] = {
    "lstm": _lstm_step,
    "gru": _gru_step,
    "rnn_tanh": _rnn_step(_tanh),
    "rnn_relu": _rnn_step(_relu),
}


def _written_out(
    kind: str,
    x: Tensor,
    states: State,
    params: Sequence[Tensor],
    *,
    has_biases: bool,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """What torch's kernel of this kind computes: outputs [time, batch, channel], last states."""
    x = x.transpose(0, 1) if batch_first and x.dim() == 3 else x
    directions = 2 if bidirectional else 1
    per_layer = len(params) // (layers * directions)
    last: list[State] = []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            n = layer * directions + direction
            mine = [p.to(x.dtype) for p in params[n * per_layer : (n + 1) * per_layer]]
            # input, hidden, their biases if there are any, a projection if there is one
            weights = [*mine[:2], *(mine[4:] if has_biases else mine[2:])]
            biases = mine[2:4] if has_biases else (None, None)
            state, ys = tuple(s[n] for s in states), []
            for x_t in x.flip(0) if direction else x:
                state = _STEPS[kind](x_t, state, weights, biases)
                ys.append(state[0])
            outputs.append(torch.stack(ys[::-1] if direction else ys))
            last.append(state)
        x = torch.cat(outputs, -1)
    y = x.transpose(0, 1) if batch_first and x.dim() == 3 else x
    return y, *(torch.stack(each) for each in zip(*last, strict=True))


def _network(
    kind: str,
    operation: Callable[..., Any],
    input: Tensor,
    hx: Any,
    params: Any,
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Any:
    states = (hx,) if isinstance(hx, Tensor) else tuple(hx)
    _require_constant_weights(params)
    rest = (params, has_biases, num_layers, 0.0, False, bidirectional, batch_first)
    alone = isinstance(hx, Tensor)
    if not any(map(carries_relevance, (input, *states))):
        return operation(input, hx, *rest)
    constants = [p.detach() for p in params]  # they require grad again when the backward pass runs

    def value(x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():  # torch takes another kernel, with other bits, if nothing does
            x = x.detach().requires_grad_()
            outputs = operation(x, states[0] if alone else states, *rest)
        return tuple(y.detach() for y in outputs)

    def stand_in(x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        return _written_out(
            kind,
            x,
            states,
            constants,
            has_biases=has_biases,
            layers=num_layers,
            bidirectional=bidirectional,
            batch_first=batch_first,
        )

    return surrogate(value, stand_in, (input, *states))


def _require_constant_weights(params: Any) -> None:
    for parameter in params:
        require_own(parameter)
        if carries_relevance(parameter):
            raise Refusal("its weights depend on the explained input")


def _weights(gates: int, inputs: int, hidden: int) -> list[Any]:
    rows = gates * hidden
    return [
        constant_t(rows, inputs, positive=True),
        constant_t(rows, hidden, positive=True),
        constant_t(rows),
        constant_t(rows),
    ]


_two_layers = [*_weights(4, 3, 2), *_weights(4, 3, 2), *_weights(4, 4, 2), *_weights(4, 4, 2)]
_lstm_state, _states = [t(1, 2, 2), t(1, 2, 2)], [t(4, 2, 2), t(4, 2, 2)]


@rule(
    torch.lstm,
    source=SOURCE,
    samples=[
        sample(t(3, 2, 3), _lstm_state, _weights(4, 3, 2), True, 1, 0.0, False, False, False),
        sample(t(2, 3, 3), _states, _two_layers, True, 2, 0.0, False, True, True),
    ],
)
def lstm(input: Tensor, hx: Any, *args: Any) -> Any:
    """LSTM: input, forget and output gates are constants; dropout is off."""
    return _network("lstm", torch.lstm, input, hx, *_padded(hx, args))


@rule(
    torch.gru,
    source=SOURCE,
    samples=[
        sample(t(3, 2, 3), t(1, 2, 2), _weights(3, 3, 2), True, 1, 0.0, False, False, False),
        sample(t(3, 2, 3), t(1, 2, 2), _weights(3, 3, 2)[:2], False, 1, 0.0, False, False, False),
    ],
)
def gru(input: Tensor, hx: Any, *args: Any) -> Any:
    """GRU: update and reset gates are constants; dropout is off."""
    return _network("gru", torch.gru, input, hx, *_padded(hx, args))


def rnn(kind: str, operation: Callable[..., Any]) -> Callable[..., Any]:
    """The rule of a network without gates: secants and linear maps; dropout is off."""

    def plain(input: Tensor, hx: Any, *args: Any) -> Any:
        return _network(kind, operation, input, hx, *_padded(hx, args))

    return plain


for _kind, _operation in (("rnn_tanh", torch.rnn_tanh), ("rnn_relu", torch.rnn_relu)):
    _call = sample(t(3, 2, 3), t(1, 2, 2), _weights(1, 3, 2), True, 1, 0.0, False, False, False)
    rule(_operation, source=SOURCE, samples=[_call])(rnn(_kind, _operation))


def _padded(hx: Any, args: tuple[Any, ...]) -> Any:
    """The arguments after the states, of a call that isn't for packed sequences."""
    if isinstance(hx, Tensor) and not hx.is_floating_point():  # the sizes of their batches
        raise Refusal("its sequences are packed: give the module padded ones")
    return args


def _cell(kind: str, operation: Callable[..., Any]) -> Callable[..., Any]:
    def cell(
        input: Tensor,
        hx: Any,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        alone = isinstance(hx, Tensor)
        states = (hx,) if alone else tuple(hx)
        _require_constant_weights([w for w in (w_ih, w_hh, b_ih, b_hh) if w is not None])
        if not any(map(carries_relevance, (input, *states))):
            return operation(input, hx, w_ih, w_hh, b_ih, b_hh)
        weights, biases = (
            [None if w is None else w.detach() for w in pair]
            for pair in ((w_ih, w_hh), (b_ih, b_hh))
        )

        def value(x: Tensor, *states: Tensor) -> Any:
            return operation(x, states[0] if alone else states, w_ih, w_hh, b_ih, b_hh)

        def stand_in(x: Tensor, *states: Tensor) -> State:
            wide = ([None if w is None else w.to(x.dtype) for w in p] for p in (weights, biases))
            return _STEPS[kind](x, states, *wide)

        return surrogate(value, stand_in, (input, *states))

    return cell


for _kind, _gates in GATES.items():
    _operation = getattr(torch, f"{_kind}_cell")
    _hx = [t(2, 2), t(2, 2)] if _kind == "lstm" else t(2, 2)
    rule(_operation, source=SOURCE, samples=[sample(t(2, 3), _hx, *_weights(_gates, 3, 2))])(
        _cell(_kind, _operation)
    )
