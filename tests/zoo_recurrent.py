"""Recurrent models of the zoo: state spaces, linear attention, delta rules, RWKV, xLSTM."""

from __future__ import annotations

from typing import Any

_GROUPED = {"num_key_value_heads": 2}
_EXPERTS = _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}
_MAMBA = {"state_size": 4, "time_step_rank": 3}
_MAMBA_2 = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 4,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 4,
}
_LINEAR_THEN_FULL = {"layer_types": ["linear_attention", "full_attention"]}
_DELTA_NET = _GROUPED | {
    "head_dim": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_SPARSE = _EXPERTS | {
    "num_experts": 4,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}


def entry(
    model_class: str,
    config: dict[str, Any],
    attention: tuple[str, ...] = ("sdpa", "eager"),
    padding: tuple[str, ...] = ("left", "right"),
) -> dict[str, Any]:
    """An `Architecture`'s fields."""
    return {
        "model_class": model_class,
        "config": config,
        "attention": attention,
        "padding": padding,
    }


ENTRIES: dict[str, dict[str, Any]] = {
    "mamba": entry("MambaForCausalLM", _MAMBA, ("eager",)),
    "mamba2": entry(
        "Mamba2ForCausalLM",
        {"num_heads": 4, "head_dim": 16, "state_size": 4, "n_groups": 2, "chunk_size": 4},
        ("eager",),
    ),
    "qwen3_5": entry("Qwen3_5ForCausalLM", _DELTA_NET | _LINEAR_THEN_FULL),
    "rwkv": entry("RwkvForCausalLM", {"use_cache": False}, ("eager",), ("right",)),
    "xlstm": entry(
        "xLSTMForCausalLM",
        {"num_heads": 4, "chunk_size": 4, "use_cache": False},
        ("eager",),
        ("right",),
    ),
    "falcon_mamba": entry("FalconMambaForCausalLM", _MAMBA, ("eager",)),
    "zamba": entry(
        "ZambaForCausalLM",
        {"mamba_d_state": 4, "mamba_dt_rank": 3, "num_hidden_layers": 4}
        | {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]}
        | {"num_key_value_heads": 4},
    ),
    "zamba2": entry(
        "Zamba2ForCausalLM",
        {"mamba_d_state": 4, "n_mamba_heads": 4, "mamba_ngroups": 2, "chunk_size": 4}
        | {"num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "mamba"]}
        | {"adapter_rank": 4},
    ),
    "bamba": entry("BambaForCausalLM", _GROUPED | _MAMBA_2 | {"attn_layer_indices": [1]}),
    "falcon_h1": entry("FalconH1ForCausalLM", _GROUPED | _MAMBA_2 | {"mamba_d_ssm": 64}),
    "nemotron_h": entry(
        "NemotronHForCausalLM",
        _GROUPED
        | {"ssm_state_size": 4, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2}
        | {"chunk_size": 4, "head_dim": 8, "layers_block_type": ["mamba", "attention"]},
    ),
    "granitemoehybrid": entry(
        "GraniteMoeHybridForCausalLM",
        _SPARSE
        | _MAMBA_2
        | {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 16},
    ),
    "qwen3_next": entry("Qwen3NextForCausalLM", _DELTA_NET | _LINEAR_THEN_FULL | _SPARSE),
    "olmo_hybrid": entry("OlmoHybridForCausalLM", _DELTA_NET | _LINEAR_THEN_FULL),
    "kimi_linear": entry(
        "KimiLinearForCausalLM",
        _LINEAR_THEN_FULL
        | {"linear_head_dim": 8, "linear_num_heads": 4, "kv_lora_rank": 8, "qk_rope_head_dim": 4}
        | {"v_head_dim": 8, "qk_nope_head_dim": 4, "mlp_layer_types": ["dense", "dense"]}
        | {"num_key_value_heads": 4},
    ),
    "minimax": entry("MiniMaxForCausalLM", _SPARSE | _LINEAR_THEN_FULL | {"block_size": 4}),
    "lfm2": entry("Lfm2ForCausalLM", _GROUPED | {"layer_types": ["conv", "full_attention"]}),
}
