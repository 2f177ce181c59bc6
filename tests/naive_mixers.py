"""Recurrent layers of `transformers` a second time: loops over time, relevance written by hand.

Each function takes a layer and its input, [batch, position, channel] in float64, and returns what
the layer puts out, with a graph whose gradient × input is the relevance. What the rules take for a
constant is a constant here because it is detached, one step of time after the other; nothing of
lxt is used. `Rules` says how gates share.

>>> y = mamba(mixer, x, Rules(gates_are_constant=False))
>>> relevance = x * torch.autograd.grad(y, x, g)[0]
"""

# ruff: noqa: N803, N806 - A, B, C and D are what state spaces are written in

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rules:
    """How a gate shares with what it acts on: half and half (AttnLRP), or nothing (CP-LRP)."""

    gates_are_constant: bool

    def gated(self, x: Tensor, gate: Tensor) -> Tensor:
        if self.gates_are_constant:
            return x * gate.detach()
        return (x * gate + (x * gate).detach()) / 2  # half of each factor's gradient

    def shared(self, a: Tensor, b: Tensor) -> Tensor:
        """A product of two that are no gates."""
        return (a * b + (a * b).detach()) / 2


def silu(x: Tensor) -> Tensor:
    """x · σ(x), the second factor constant: the secant."""
    return x * (1 / (1 + torch.exp(-x))).detach()


def sigmoid(x: Tensor) -> Tensor:
    """½ + x · (σ(x) − ½)/x, the secant from the origin, whose ½ absorbs."""
    value = 1 / (1 + torch.exp(-x.detach()))
    return x * ((value - 0.5) / x.detach()) + 0.5


def tanh_gelu(x: Tensor) -> Tensor:
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return x * (0.5 * (1 + inner.tanh())).detach()


def rms(x: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps).detach()


def softplus(x: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(x))


def convolved(x: Tensor, conv: Any) -> Tensor:
    """A causal convolution of each channel by itself, tap by tap."""
    taps = conv.weight[:, 0]
    width = taps.shape[1]
    rows = []
    for t in range(x.shape[1]):
        row = torch.zeros_like(x[:, 0]) if conv.bias is None else conv.bias.expand_as(x[:, 0])
        for lag in range(min(width, t + 1)):
            row = row + taps[:, width - 1 - lag] * x[:, t - lag]
        rows.append(row)
    return torch.stack(rows, 1)


def state_space(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t u_t and y_t = C_t h_t + D u_t, in which only u carries.

    Shapes: u and dt [batch, position, channel], A [channel, state], B and C [batch, position,
    channel, state], D [channel].
    """
    dt, B, C = dt.detach(), B.detach(), C.detach()
    state = torch.zeros(*u[:, 0].shape, A.shape[1], dtype=u.dtype)
    outputs = []
    for t in range(u.shape[1]):
        decay = torch.exp(dt[:, t, :, None] * A)
        state = decay * state + dt[:, t, :, None] * B[:, t] * u[:, t, :, None]
        outputs.append((state * C[:, t]).sum(-1) + D * u[:, t])
    return torch.stack(outputs, 1)


# --- Mamba ---------------------------------------------------------------------------------------


def mamba(mixer: Any, x: Tensor, rules: Rules, norm_eps: float | None = None) -> Tensor:
    """Mamba; with `norm_eps` Falcon-Mamba, which normalises Δ, B and C, constants though they are.

    Shapes: one Δ for each channel, B and C shared by all.
    """
    signal, gate = mixer.in_proj(x).chunk(2, -1)
    u = silu(convolved(signal, mixer.conv1d))
    rank, size = mixer.time_step_rank, mixer.ssm_state_size
    dt, B, C = mixer.x_proj(u).split([rank, size, size], -1)
    if norm_eps is not None:
        dt, B, C = (rms(part, norm_eps) for part in (dt, B, C))
    dt = softplus(dt @ mixer.dt_proj.weight.T + mixer.dt_proj.bias)
    B, C = (part[:, :, None].expand(*u.shape, size) for part in (B, C))
    y = state_space(u, dt, -mixer.A_log.exp(), B, C, mixer.D)
    return mixer.out_proj(rules.gated(y, silu(gate)))


def mamba2(mixer: Any, x: Tensor, rules: Rules) -> Tensor:
    """Mamba-2: one Δ and A for each head, B and C for each group; a norm after the gate."""
    inner, groups, size = mixer.intermediate_size, mixer.n_groups, mixer.ssm_state_size
    heads = mixer.num_heads
    gate, mixed, dt = mixer.in_proj(x).split([inner, mixer.conv_dim, heads], -1)
    mixed = silu(convolved(mixed, mixer.conv1d))
    u, B, C = mixed.split([inner, groups * size, groups * size], -1)
    wide = inner // heads
    dt = softplus(dt + mixer.dt_bias).repeat_interleave(wide, -1)
    B, C = (
        part.unflatten(-1, (groups, size)).repeat_interleave(inner // groups, 2) for part in (B, C)
    )
    A = -mixer.A_log.exp().repeat_interleave(wide)[:, None].expand(-1, size)
    y = state_space(u, dt, A, B, C, mixer.D.repeat_interleave(wide))
    y = rules.gated(y, silu(gate))
    y = rms(y.unflatten(-1, (groups, -1)), mixer.norm.variance_epsilon).flatten(-2)
    return mixer.out_proj(y * mixer.norm.weight)


# --- delta rule ----------------------------------------------------------------------------------


def delta_rule(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> Tensor:
    """S_t = α_t S_{t−1} + β_t k_t (v_t − (α_t S_{t−1})ᵀ k_t)ᵀ and y_t = S_tᵀ q_t; only v carries.

    Shapes: q and k [batch, position, head, key], v [batch, position, head, value], decay α as k or
    with one number for all keys, beta [batch, position, head].
    """
    q, k, decay, beta = (part.detach() for part in (q, k, decay, beta))
    q, k = (part / torch.sqrt((part * part).sum(-1, keepdim=True) + 1e-6) for part in (q, k))
    q = q / math.sqrt(q.shape[-1])
    state = torch.zeros(*v[:, 0].shape[:2], k.shape[-1], v.shape[-1], dtype=v.dtype)
    outputs = []
    for t in range(v.shape[1]):
        state = decay[:, t, :, :, None] * state
        known = (k[:, t, :, :, None] * state).sum(-2)
        change = beta[:, t, :, None] * (v[:, t] - known)
        state = state + k[:, t, :, :, None] * change[:, :, None]
        outputs.append((q[:, t, :, :, None] * state).sum(-2))
    return torch.stack(outputs, 1)


def gated_delta_net(mixer: Any, x: Tensor, rules: Rules) -> Tensor:
    """Qwen3-Next's: one decay for each head."""
    q, k, v, z, b, a = mixer.fix_query_key_value_ordering(
        mixer.in_proj_qkvz(x), mixer.in_proj_ba(x)
    )
    mixed = torch.cat([part.flatten(2) for part in (q, k, v)], -1)
    mixed = silu(convolved(mixed, mixer.conv1d))
    q, k, v = mixed.split([mixer.key_dim, mixer.key_dim, mixer.value_dim], -1)
    q, k = (part.unflatten(-1, (-1, mixer.head_k_dim)) for part in (q, k))
    v = v.unflatten(-1, (-1, mixer.head_v_dim))
    q, k = (part.repeat_interleave(mixer.num_v_heads // mixer.num_k_heads, 2) for part in (q, k))
    decay = torch.exp(-mixer.A_log.exp() * softplus(a + mixer.dt_bias))[..., None]
    y = delta_rule(q, k, v, decay, 1 / (1 + torch.exp(-b)))
    y = mixer.norm.weight * rms(y, mixer.norm.variance_epsilon)
    return mixer.out_proj(rules.gated(y, silu(z)).flatten(2))


def kimi_delta_attention(mixer: Any, x: Tensor, rules: Rules) -> Tensor:
    """Kimi's: one decay for each channel of the keys, and a sigmoid for output gate."""
    mixed = torch.cat([mixer.q_proj(x), mixer.k_proj(x), mixer.v_proj(x)], -1)
    mixed = silu(convolved(mixed, mixer.conv1d))
    q, k, v = (part.unflatten(-1, (-1, mixer.head_dim)) for part in mixed.chunk(3, -1))
    forget = mixer.forget_gate
    a = forget.f_b_proj(forget.f_a_proj(x)) + forget.dt_bias
    decay = torch.exp(-forget.A_log.exp() * softplus(a.unflatten(-1, (-1, mixer.head_dim))))
    y = delta_rule(q, k, v, decay, 1 / (1 + torch.exp(-mixer.b_proj(x))))
    y = mixer.o_norm.weight * rms(y, mixer.o_norm.variance_epsilon)
    gate = mixer.g_b_proj(mixer.g_a_proj(x)).unflatten(-1, (-1, mixer.head_dim))
    return mixer.o_proj(rules.gated(y, sigmoid(gate)).flatten(2))


# --- others --------------------------------------------------------------------------------------


def lightning_attention(mixer: Any, x: Tensor, rules: Rules) -> Tensor:
    """MiniMax's: y_t = Σ_{s ≤ t} λ^{t−s} (q_t · k_s) v_s, with λ = exp(−slope) for each head."""
    qkv = silu(mixer.qkv_proj(x)).unflatten(-1, (mixer.num_attention_heads, 3 * mixer.head_dim))
    q, k, v = qkv.chunk(3, -1)
    q, k = q.detach(), k.detach()
    rate = torch.exp(-mixer.slope_rate.flatten()).to(x.dtype)
    outputs = []
    for t in range(x.shape[1]):
        y = torch.zeros_like(v[:, 0])
        for s in range(t + 1):
            weight = (q[:, t] * k[:, s]).sum(-1) * rate ** (t - s)
            y = y + weight[..., None] * v[:, s]
        outputs.append(y)
    y = torch.stack(outputs, 1).flatten(2)
    y = mixer.norm.weight * rms(y, mixer.norm.variance_epsilon)
    return mixer.out_proj(rules.gated(y, sigmoid(mixer.output_gate(x))))


def rwkv(mixer: Any, x: Tensor, rules: Rules) -> Tensor:
    """RWKV-4: Σ_s w_ts v_s / Σ_s w_ts, a mean of values whose weights are constants.

    With w_ts = exp(k_s − (t − s − 1) decay) for s < t and w_tt = exp(k_t + first).
    """
    before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)

    def mixed(share: Tensor) -> Tensor:
        return x * share + before * (1 - share)

    k = mixer.key(mixed(mixer.time_mix_key)).detach()
    v = mixer.value(mixed(mixer.time_mix_value))
    receptance = sigmoid(mixer.receptance(mixed(mixer.time_mix_receptance)))
    decay = torch.exp(mixer.time_decay)
    outputs = []
    for t in range(x.shape[1]):
        weights = [torch.exp(k[:, s] - (t - s - 1) * decay) for s in range(t)]
        weights.append(torch.exp(k[:, t] + mixer.time_first))
        total = sum(weight * v[:, s] for s, weight in enumerate(weights))
        outputs.append(total / sum(weights))
    return mixer.output(rules.gated(torch.stack(outputs, 1), receptance))


def mlstm(layer: Any, x: Tensor, rules: Rules) -> Tensor:
    """xLSTM: C_t = σ(f_t) C_{t−1} + exp(i_t) k_t v_tᵀ, read by q_t; only v carries."""
    config = layer.config

    def heads(y: Tensor) -> Tensor:
        return y.unflatten(-1, (config.num_heads, -1))

    def capped(y: Tensor) -> Tensor:
        return config.gate_soft_cap * torch.tanh(y / config.gate_soft_cap)

    q, k, v = heads(layer.q(x)).detach(), heads(layer.k(x)).detach(), heads(layer.v(x))
    log_i = capped(layer.igate_preact(x)).detach()
    log_f = -softplus(-capped(layer.fgate_preact(x))).detach()
    memory = torch.zeros(*v[:, 0].shape[:2], q.shape[-1], v.shape[-1], dtype=x.dtype)
    normaliser = torch.zeros_like(q[:, 0])
    log_scale = torch.zeros_like(log_i[:, 0])  # the normaliser's ε is relative to it
    outputs = []
    for t in range(x.shape[1]):
        f, i = log_f[:, t, :, None].exp(), log_i[:, t, :, None].exp()
        memory = f[..., None] * memory + (i * k[:, t])[..., None] * v[:, t, :, None]
        normaliser = f * normaliser + i * k[:, t]
        log_scale = torch.maximum(log_f[:, t] + log_scale, log_i[:, t])
        read = q[:, t] / math.sqrt(q.shape[-1])
        size = (read * normaliser).sum(-1).abs().clamp(min=1) + config.eps * log_scale.exp()
        outputs.append((read[..., None] * memory).sum(-2) / size[..., None])
    h = torch.stack(outputs, 1)
    h = h - h.mean(-1, keepdim=True)
    h = h / torch.sqrt((h * h).mean(-1, keepdim=True) + layer.multihead_norm.eps).detach()
    h = h.flatten(2) * layer.multihead_norm.weight
    return layer.out_proj(rules.gated(h, sigmoid(layer.ogate_preact(x))))


def griffin(block: Any, x: Tensor, rules: Rules) -> Tensor:
    """RecurrentGemma: h_t = a_t h_{t−1} + √(1 − a_t²) i_t u_t with constant a_t and i_t."""
    lru = block.rg_lru
    u = convolved(block.linear_x(x), block.conv_1d)

    def gate(weight: Tensor, bias: Tensor) -> Tensor:
        blocks = u.detach().unflatten(-1, bias.shape)
        return 1 / (1 + torch.exp(-(torch.einsum("bthi,hij->bthj", blocks, weight) + bias)))

    open_input = gate(lru.input_gate_weight, lru.input_gate_bias).flatten(2)
    remember = gate(lru.recurrent_gate_weight, lru.recurrent_gate_bias).flatten(2)
    a = torch.exp(-8 * remember * softplus(lru.recurrent_param))
    state = torch.zeros_like(u[:, 0])
    outputs = []
    for t in range(u.shape[1]):
        scale = torch.ones_like(a[:, t]) if t == 0 else torch.sqrt(1 - a[:, t] ** 2)
        state = (a[:, t] * state if t else 0) + scale * open_input[:, t] * u[:, t]
        outputs.append(state)
    gated = rules.gated(torch.stack(outputs, 1), tanh_gelu(block.linear_y(x)))
    return block.linear_out(gated)


def short_convolution(mixer: Any, x: Tensor, rules: Rules) -> Tensor:
    """LFM2: C ⊙ conv(B ⊙ x), in which B and C are linear in the input: no gates, but factors."""
    B, C, u = mixer.in_proj(x).chunk(3, -1)
    return mixer.out_proj(rules.shared(C, convolved(rules.shared(B, u), mixer.conv)))
