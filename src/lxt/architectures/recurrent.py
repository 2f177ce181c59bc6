"""Recurrent layers, found by what they hold and what their functions take.

The names are those of `transformers`, mamba_ssm, flash-linear-attention, and of the plain copies
that people write after the papers.
"""

from __future__ import annotations

from lxt.entries import Rule, Target
from lxt.rules.elementary import constant
from lxt.rules.recurrent import recurrence, short_convolution, value_only_split, whole_mixer
from lxt.rules.registry import spelled
from lxt.structure import Having, Signature, Within

__all__ = ["RECURRENT", "recurrent"]

SELECTIVE_SCAN = Signature("A", "B", "C", "dt|delta", "hidden_states|x|u")
"""Mamba and Mamba-2: h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t x_t, y_t = C_t h_t + D x_t."""

_QUERY_KEY_VALUE = ("q|query", "k|key", "v|value")
DELTA_RULE = Signature(*_QUERY_KEY_VALUE, "g|gk|g_gamma|beta|decay|initial_state")
"""Linear attention, gated or not, and the delta rule: y_t = S_tᵀ q_t with
S_t = α_t (I − β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ."""

MLSTM = Signature(*_QUERY_KEY_VALUE, "i|igate", "f|fgate")
"""xLSTM's matrix memory, whose normaliser is made of keys, queries and gates."""

RWKV = Signature("time_decay", "k|key", "v|value")
"""RWKV-4: a mean of values with weights exp(k_s + decay), Σ_s w_s v_s / Σ_s w_s."""

RWKV_6 = Signature("r", "k", "v", "w")
"""RWKV-6 and 7: the receptance is the query."""

SHORT_CONVOLUTION = Signature("x|hidden_states", "weight", "bias", "activation")
WHOLE_MIXER = Signature("xz|zxbcdt", "A")

SELECTIVE_STATE_SPACE = Having("A_log", "D")
DELTA_NET = Having("A_log", "o_proj|out_proj")
DECAY_GATE = Having("A_log")
"""A module that makes decays only, as Kimi's; what else has an `A_log` is one of the above."""

REAL_GATED_LRU = Having("input_gate_weight", "recurrent_gate_weight")
"""Griffin: h_t = a_t h_{t−1} + √(1 − a_t²) (i_t ⊙ x_t), with a_t and i_t sigmoids of x_t."""

LIGHTNING_ATTENTION = Having("slope_rate", "query_decay", "key_decay")

_STATES = ("state", "initial_state", "initial_states", "ssm_state")


def recurrent(*, with_kernels: bool = True) -> dict[Target, Rule]:
    """The rules of recurrent layers; `with_kernels` is for rules of gradients."""
    scan = recurrence("hidden_states", "x", "u", *_STATES, gate="z", with_kernels=with_kernels)
    value = recurrence("v", "value", "c_initial", *_STATES, with_kernels=with_kernels)
    decays = dict.fromkeys(spelled("exp", "log", "softplus"), constant)
    return {
        SELECTIVE_SCAN: scan,
        DELTA_RULE: value,
        MLSTM: value,
        RWKV: value,
        RWKV_6: value,
        SHORT_CONVOLUTION: short_convolution,
        WHOLE_MIXER: whole_mixer,
        DECAY_GATE: Within(decays),
        DELTA_NET: Within(decays, recurrence=(SELECTIVE_SCAN, DELTA_RULE)),
        SELECTIVE_STATE_SPACE: Within(decays, recurrence=(SELECTIVE_SCAN,)),
        REAL_GATED_LRU: Within(dict.fromkeys(spelled("sigmoid"), constant)),
        LIGHTNING_ATTENTION: Within(dict.fromkeys(spelled("split"), value_only_split)),
    }


RECURRENT = recurrent()
