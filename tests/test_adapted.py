"""Adapters of peft, and weights that accelerate keeps elsewhere: the same relevance as without."""

import copy
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from accelerate.hooks import remove_hook_from_module
from torch import Tensor, nn

import lxt
import zoo
from lxt.coverage.exact import ExactFloat64
from lxt.errors import InvalidModel, UnusedCompositeWarning

over_composites = pytest.mark.parametrize(
    "composite", [lxt.attnlrp, lxt.cp_lrp], ids=lambda composite: composite.name
)

IDS = [5, 6, 7, 8, 9]
_SOME = ["q_proj", "v_proj", "down_proj"]

ADAPTERS: dict[str, Callable[[], peft.PeftConfig]] = {
    "lora": lambda: peft.LoraConfig(r=4, target_modules=_SOME, lora_dropout=0.1),
    "lora_everywhere": lambda: peft.LoraConfig(
        r=4, target_modules=["embed_tokens", "lm_head", *_SOME], use_rslora=True
    ),
    "lora_beside_a_trained_head": lambda: peft.LoraConfig(
        r=4, target_modules=_SOME, modules_to_save=["lm_head"]
    ),
    "dora": lambda: peft.LoraConfig(r=4, target_modules=_SOME, lora_dropout=0.1, use_dora=True),
    "ia3": lambda: peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "vera": lambda: peft.VeraConfig(target_modules=["q_proj", "v_proj"], r=4, vera_dropout=0.1),
    "adalora": lambda: peft.AdaLoraConfig(
        target_modules=_SOME, init_r=4, target_r=2, total_step=10, lora_dropout=0.1
    ),
    "loha": lambda: peft.LoHaConfig(target_modules=_SOME, r=4),
    "lokr": lambda: peft.LoKrConfig(target_modules=_SOME, r=4),
    "oft": lambda: peft.OFTConfig(target_modules=_SOME, oft_block_size=4),
    "hra": lambda: peft.HRAConfig(target_modules=_SOME, r=4),
    "layer_norms": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
}

over_adapters = pytest.mark.parametrize("adapter", ADAPTERS)


def adapted(adapter: str, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """A tiny Llama under an adapter that makes a difference."""
    base = zoo.build("llama", dtype=dtype, **options)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = peft.get_peft_model(base, ADAPTERS[adapter]())
    randomise(model)
    return model.eval()


def randomise(model: nn.Module) -> None:
    """Adapters start as doing nothing."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
                parameter.copy_(parameter.double() + 0.2 * noise)


def merged(model: Any) -> nn.Module:
    return copy.deepcopy(model).merge_and_unload()


def example(dtype: torch.dtype = torch.float64) -> zoo.Example:
    return zoo.example("llama", zoo.build("llama", dtype=dtype))


def relevance(
    model: nn.Module,
    of: zoo.Example,
    composite: lxt.Composite,
    run: Callable[[], Tensor] | None = None,
) -> Tensor:
    # A checkpoint recomputes in the backward pass, where that mode isn't active.
    recomputes = getattr(model, "is_gradient_checkpointing", False)
    with nullcontext() if recomputes else ExactFloat64(), composite.context(model):
        logits = of.run(model) if run is None else run()
    (gradient,) = torch.autograd.grad(logits[..., -1, :].sum(), of.leaf)
    assert gradient.isfinite().all()
    return (of.leaf * gradient).detach()


def differing(actual: Tensor, expected: Tensor) -> float:
    return float(((actual - expected).norm() / expected.norm()).detach())


# --- adapters ------------------------------------------------------------------------------------


@over_composites
@over_adapters
def test_an_adapted_model_agrees_with_the_merged_one(
    adapter: str, composite: lxt.Composite
) -> None:
    """In training mode too, in which both the model's and the adapter's dropout would be on."""
    model, of = adapted(adapter), example()
    expected = relevance(merged(model), of, composite)
    for training in (False, True):
        model.train(training)
        assert differing(relevance(model, of, composite), expected) <= 1e-9
    assert differing(expected, relevance(zoo.build("llama"), of, composite)) > 1e-3


ELSEWHERE: dict[str, dict[str, Any]] = {
    "gpt2": {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True},
    "bert": {"target_modules": ["query", "dense"]},
    "qwen3_moe": {
        "target_modules": ["q_proj"],
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    },
    "t5": {"target_modules": ["q", "v", "wi"]},
    "vit": {"target_modules": "all-linear"},
}


@over_composites
@pytest.mark.parametrize("name", ELSEWHERE)
def test_lora_in_other_architectures(name: str, composite: lxt.Composite) -> None:
    """The experts of a mixture too, whose weights are no layers but parameters."""
    base = zoo.build(name)
    of = zoo.example(name, base)
    plain = relevance(base, of, composite)
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, **ELSEWHERE[name]))
    randomise(model)
    model.eval()
    expected = relevance(merged(model), of, composite)
    assert differing(relevance(model, of, composite), expected) <= 1e-9
    assert differing(expected, plain) > 1e-3


@over_composites
@over_adapters
def test_an_adapted_model_is_left_as_it_was(adapter: str, composite: lxt.Composite) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model, of = adapted(adapter, dtype), example(dtype)
        flags = [(name, p.requires_grad) for name, p in model.named_parameters()]
        attributes = [dict(module.__dict__) for module in model.modules()]
        assert {flag for _, flag in flags} == {True, False}
        plain = of.run(copy.deepcopy(model).requires_grad_(False))
        with composite.context(model):
            ruled = of.run(model)
            assert [(name, p.requires_grad) for name, p in model.named_parameters()] == flags
        assert torch.equal(ruled, plain)
        ruled.sum().backward()
        assert all(parameter.grad is None for parameter in model.parameters())
        assert [dict(module.__dict__) for module in model.modules()] == attributes


def test_several_adapters_at_once_and_none() -> None:
    model, of = adapted("lora"), example()
    one = relevance(model, of, lxt.attnlrp)
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["q_proj", "o_proj"]))
    model.base_model.set_adapter(["default", "second"])
    randomise(model)
    both = relevance(model, of, lxt.attnlrp)
    assert differing(both, one) > 1e-3
    together = copy.deepcopy(model).merge_and_unload(adapter_names=["default", "second"])
    assert differing(both, relevance(together, of, lxt.attnlrp)) <= 1e-9
    with model.disable_adapter():
        off = relevance(model, of, lxt.attnlrp)
    assert differing(off, relevance(zoo.build("llama"), of, lxt.attnlrp)) <= 1e-12


def test_rows_under_different_adapters() -> None:
    model, of = adapted("lora"), example()
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["q_proj", "o_proj"]))
    model.set_adapter("second")
    randomise(model)
    names = ["second", "default"]
    together = relevance(
        model,
        of,
        lxt.attnlrp,
        lambda: model(inputs_embeds=of.leaf, adapter_names=names).logits,
    )
    for row, name in enumerate(names):
        model.set_adapter(name)
        alone = of.row(row)
        assert differing(together[row], relevance(model, alone, lxt.attnlrp)[0]) <= 1e-9


@pytest.mark.parametrize("adapter", ["lora", "dora", "lora_everywhere", "ia3"])
def test_explain_looks_through_adapters(adapter: str) -> None:
    model = adapted(adapter)
    for composite in (lxt.attnlrp, lxt.cp_lrp):
        with ExactFloat64():
            actual = lxt.explain(model, IDS, composite=composite)
            expected = lxt.explain(merged(model), IDS, composite=composite)
        assert actual.target.name == expected.target.name
        assert differing(actual.relevance, expected.relevance) <= 1e-9


def test_virtual_tokens_before_the_prompt() -> None:
    """They are constants, and they shift positions, which `explain` doesn't guess at."""
    base, of = zoo.build("llama"), example().row(0)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(copy.deepcopy(base), config).eval()
    model.prompt_encoder.double()
    randomise(model)
    actual = relevance(model, of, lxt.attnlrp)
    whole = torch.cat([model.get_prompt(1).detach(), of.leaf], 1)
    expected = relevance(base, of, lxt.attnlrp, lambda: base(inputs_embeds=whole).logits)
    assert differing(actual, expected) <= 1e-12
    assert differing(actual, relevance(base, of, lxt.attnlrp)) > 1e-3
    with pytest.raises(InvalidModel, match="at 8 positions for 5 tokens"):
        lxt.explain(model, IDS)


def test_keys_and_values_before_the_prompt() -> None:
    base, of = zoo.build("llama"), example().row(0)
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(copy.deepcopy(base), config).eval()
    model.prompt_encoder.double()
    randomise(model)
    actual = relevance(model, of, lxt.attnlrp)
    with torch.no_grad():
        past = model.get_prompt(1)
    length = 3 + of.leaf.shape[1]
    expected = relevance(
        base,
        of,
        lxt.attnlrp,
        lambda: (
            base(
                inputs_embeds=of.leaf, past_key_values=past, attention_mask=torch.ones(1, length)
            ).logits
        ),
    )
    assert differing(actual, expected) <= 1e-9
    assert differing(actual, relevance(base, of, lxt.attnlrp)) > 1e-3


# --- weights elsewhere ---------------------------------------------------------------------------

_PLACES = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "cpu",
    "lm_head": "disk",
}
_CPU = torch.device("cpu")

OFFLOADS: dict[str, Callable[[nn.Module, Path], Any]] = {
    "cpu": lambda model, _: cpu_offload(model, _CPU),
    "disk": lambda model, folder: disk_offload(model, str(folder), _CPU),
    "device_map": lambda model, folder: dispatch_model(
        model, _PLACES, main_device="cpu", offload_dir=str(folder)
    ),
}

over_offloads = pytest.mark.parametrize("offload", OFFLOADS)


def places(model: nn.Module) -> list[tuple[str, str, bool]]:
    return [(name, p.device.type, p.requires_grad) for name, p in model.named_parameters()]


@over_composites
@over_offloads
def test_offloaded_weights(offload: str, composite: lxt.Composite, tmp_path: Path) -> None:
    undivided, of = zoo.build("llama"), example()
    expected = relevance(undivided, of, composite)
    plain = of.run(undivided)
    tokens = undivided.generate(of.input_ids, max_new_tokens=3, do_sample=False)
    model = OFFLOADS[offload](zoo.build("llama"), tmp_path)
    assert "meta" in {place for _, place, _ in places(model)}
    before = places(model)
    hooks = [module._hf_hook for module in model.modules() if hasattr(module, "_hf_hook")]
    with composite.context(model):
        assert torch.equal(of.run(model), plain)
        assert torch.equal(model.generate(of.input_ids, max_new_tokens=3, do_sample=False), tokens)
        assert places(model) == before
    assert differing(relevance(model, of, composite), expected) <= 1e-12
    assert places(model) == before
    assert [m._hf_hook for m in model.modules() if hasattr(m, "_hf_hook")] == hooks
    assert torch.equal(of.run(model), plain)
    explained = lxt.explain(model, IDS, composite=composite)
    assert torch.equal(
        explained.relevance, lxt.explain(undivided, IDS, composite=composite).relevance
    )


@over_offloads
def test_offloaded_weights_are_there_again_when_a_checkpoint_recomputes(
    offload: str, tmp_path: Path
) -> None:
    of, undivided = example(), zoo.build("llama", training=True)
    undivided.gradient_checkpointing_enable()
    expected = relevance(undivided, of, lxt.attnlrp)
    model = OFFLOADS[offload](zoo.build("llama", training=True), tmp_path)
    model.gradient_checkpointing_enable()
    assert differing(relevance(model, of, lxt.attnlrp), expected) <= 1e-12
    assert all(parameter.requires_grad for parameter in model.parameters())


@over_offloads
def test_offloading_under_a_composite(offload: str, tmp_path: Path) -> None:
    """accelerate puts its own forward over ours then, and keeps it when ours goes."""
    undivided, of = zoo.build("llama"), example()
    expected = relevance(undivided, of, lxt.attnlrp)
    model = zoo.build("llama")
    handle = lxt.attnlrp.register(model)
    OFFLOADS[offload](model, tmp_path)
    with ExactFloat64():
        logits = of.run(model)
    (gradient,) = torch.autograd.grad(logits[..., -1, :].sum(), of.leaf)
    assert differing(of.leaf * gradient, expected) <= 1e-12
    handle.remove()
    assert torch.equal(of.run(model), of.run(undivided))
    (gradient,) = torch.autograd.grad(of.run(model)[..., -1, :].sum(), of.leaf)
    assert differing(of.leaf * gradient, expected) > 1e-3
    assert differing(relevance(model, of, lxt.attnlrp), expected) <= 1e-12
    assert all(required for *_, required in places(model))


def test_nothing_is_left_when_offloading_under_a_composite_ends() -> None:
    model = zoo.build("llama")
    handle = lxt.attnlrp.register(model)
    cpu_offload(model, _CPU)
    handle.remove()
    remove_hook_from_module(model, recurse=True)
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(example().run(twin), example().run(model))


def test_a_composite_put_aside_by_others_is_noticed() -> None:
    """Removing accelerate's hooks puts back the forward that was there before theirs, and ours."""
    model, of = cpu_offload(zoo.build("llama"), _CPU), example()
    with pytest.warns(UnusedCompositeWarning, match="forward"), lxt.attnlrp.context(model):  # noqa: PT031
        of.run(model)
        remove_hook_from_module(model, recurse=True)
        of.run(model)


def test_weights_that_are_nowhere() -> None:
    for model in (zoo.build("llama").to("meta"), zoo.build("llama")):
        model.model.layers[1].to("meta")
        with pytest.raises(InvalidModel, match="meta"):
            lxt.explain(model, IDS)
        with pytest.raises(InvalidModel, match="meta"):
            lxt.attnlrp.register(model)


@over_offloads
def test_adapters_over_offloaded_weights(offload: str, tmp_path: Path) -> None:
    of = example()
    expected = relevance(merged(adapted("lora")), of, lxt.attnlrp)
    model = adapted("lora")
    if offload == "device_map":
        places_of_all = {f"base_model.model.{name}": place for name, place in _PLACES.items()}
        dispatch_model(model, places_of_all, main_device="cpu", offload_dir=str(tmp_path))
    else:
        OFFLOADS[offload](model, tmp_path)
    before = places(model)
    assert "meta" in {place for name, place, _ in before if "lora_A" in name}
    assert differing(relevance(model, of, lxt.attnlrp), expected) <= 1e-9
    assert places(model) == before
