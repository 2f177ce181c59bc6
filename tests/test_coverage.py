"""A part of the sweep over the model types of `transformers`: one of each kind there is.

The whole of it is `python -m lxt.coverage`, whose result is docs/coverage.md.
"""

import pytest

from lxt.coverage import Size, build, example, model_types
from lxt.coverage.checks import check

TYPES = [
    "llama",
    "qwen3",
    "gemma3_text",
    "gpt_oss",
    "mixtral",
    "deepseek_v3",
    "deepseek_v2",
    "phi",
    "cohere2",
    "diffllama",
    "bloom",
    "gpt_neo",
    "ctrl",
    "xlnet",
    "bert",
    "albert",
    "deberta-v2",
    "longformer",
    "big_bird",
    "funnel",
    "nystromformer",
    "t5",
    "bart",
    "mamba",
    "falcon_mamba",
    "jamba",
    "falcon_h1",
    "zamba2",
    "qwen3_next",
    "minimax",
    "lfm2",
    "xlstm",
    "vit",
    "swin",
    "convnext",
    "dinov2",
    "detr",
    "segformer",
    "mlcd",
    "wav2vec2",
    "whisper",
    "hubert",
    "clip",
    "llava",
    "qwen2_vl",
    "paligemma",
    "blip-2",
    "time_series_transformer",
    "patchtst",
    "decision_transformer",
]


@pytest.mark.parametrize("name", TYPES)
def test_a_type_keeps_every_contract(name: str) -> None:
    """Forward, trace, eager and SDPA, experts, both formulations, conservation."""
    row = check(name, Size())
    assert row.status == "covered", row.reason
    assert row.operations > 5
    assert "float32" in row.forward


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit", "mamba2", "clip"])
def test_sizes_are_the_callers(name: str) -> None:
    row = check(name, Size(hidden=48, layers=3, heads=6, tokens=7, batch=1, seed=5))
    assert row.status == "covered", row.reason


def test_every_type_of_transformers_has_a_row() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    assert [row.name for row in model_types()] == sorted(CONFIG_MAPPING_NAMES)


def test_models_are_the_same_each_time_and_differ_by_seed() -> None:
    import torch

    state = torch.random.get_rng_state()
    first, again = (build("gpt2", Size()).state_dict() for _ in range(2))
    other = build("gpt2", Size(seed=1)).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    assert torch.equal(state, torch.random.get_rng_state())
    model = build("gpt2", Size())
    sample = example(model, "gpt2", Size())
    assert sample.run(model).shape == (Size().batch, Size().tokens, Size().vocabulary)
