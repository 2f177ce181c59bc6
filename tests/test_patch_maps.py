"""Patch maps of LXT's kind, and the rules that they are written with."""

import copy
import importlib
import json
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert import modeling_bert
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.llama import modeling_llama
from transformers.models.qwen2 import modeling_qwen2

import lxt
import zoo
from lxt.efficient import monkey_patch
from lxt.efficient.models import get_default_map
from lxt.efficient.patches import (
    apply,
    check_already_patched,
    cp_gated_mlp_forward,
    dropout_forward,
    gated_mlp_forward,
    layer_norm_forward,
    mlp_forward,
    non_linear_forward,
    patch_attention,
    patch_cp_attention,
    patch_method,
    replace_module,
    rms_norm_forward,
)
from lxt.efficient.rules import divide_gradient, identity_rule_implicit, stop_gradient
from lxt.errors import (
    InvalidComposite,
    InvalidModel,
    UnknownOperation,
)
from patching import attributes, difference, modeling, relevance, under

DATA = Path(__file__).parent / "data" / "golden"
CASES = sorted(path.stem for path in DATA.glob("*-*-*.json"))


# --- maps as LXT's --------------------------------------------------------------------------------


def gpt2_mlp_forward(self: Any, hidden_states: Tensor) -> Tensor:
    return self.c_proj(identity_rule_implicit(self.act, self.c_fc(hidden_states)))


def lxt_map(module: ModuleType, cp: bool = False) -> dict[Any, Any]:
    """A map as LXT's users write them, part by part."""
    attention = patch_cp_attention if cp else patch_attention
    dropout = partial(patch_method, dropout_forward)
    if module is modeling_gpt2:
        return {
            modeling_gpt2.GPT2MLP: partial(patch_method, gpt2_mlp_forward),
            nn.LayerNorm: partial(patch_method, layer_norm_forward),
            nn.Dropout: dropout,
            module: attention,
        }
    if module is modeling_bert:
        gelu = transformers.activations.GELUActivation
        return {
            gelu: partial(patch_method, non_linear_forward, keep_original=True),
            nn.Tanh: partial(patch_method, non_linear_forward, keep_original=True),
            nn.LayerNorm: partial(patch_method, layer_norm_forward),
            nn.Dropout: dropout,
            module: attention,
        }
    named = {name.rpartition("_")[0] or name: value for name, value in vars(module).items()}
    mlp = next(c for name, c in named.items() if name.endswith("MLP"))
    norm = next(c for name, c in named.items() if name.endswith("RMSNorm"))
    return {
        mlp: partial(patch_method, cp_gated_mlp_forward if cp else gated_mlp_forward),
        norm: partial(patch_method, rms_norm_forward),
        nn.Dropout: dropout,
        module: attention,
    }


def golden_relevance(case: str, patch_map: dict[Any, Any] | None) -> tuple[Tensor, Tensor]:
    golden = json.loads((DATA / f"{case}.json").read_text())
    name = case.split("-")[0]
    model_class = getattr(transformers, golden["model_class"])
    config = model_class.config_class.from_json_file(DATA / f"{name}.config.json")
    model = model_class._from_config(config, attn_implementation=golden["attn_implementation"])
    model = model.double().train()  # the patch takes care of dropout
    model.load_state_dict(load_file(DATA / f"{name}.safetensors"))
    for parameter in model.parameters():
        parameter.requires_grad = False
    x = model.get_input_embeddings()(torch.tensor(golden["input_ids"])).requires_grad_()
    with monkey_patch(importlib.import_module(model_class.__module__), patch_map):
        logits = model(inputs_embeds=x).logits
    logits = logits[:, -1] if logits.dim() == 3 else logits
    logits.gather(1, torch.tensor(golden["target_index"])[:, None]).sum().backward()
    assert x.grad is not None
    expected = torch.tensor(golden["relevance"], dtype=torch.float64)
    return (x * x.grad).sum(-1).detach(), expected


@pytest.mark.parametrize("case", CASES)
def test_golden_values(case: str) -> None:
    """By LXT's own kind of map to 1e-9; by ours to 1e-7, as it doesn't divide by x + 1e-10."""
    name, variant, _ = case.split("-")
    module = modeling(name)
    ours = getattr(importlib.import_module(f"lxt.efficient.models.{name}"), variant)
    assert difference(*golden_relevance(case, ours)) <= 1e-7
    if variant == "attnLRP":
        assert difference(*golden_relevance(case, None)) <= 1e-7
    theirs = lxt_map(module, cp=variant == "cp_LRP")
    assert difference(*golden_relevance(case, theirs)) <= 1e-9


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma3", "gpt2", "bert", "qwen3_moe"])
def test_maps_to_import(name: str) -> None:
    models = importlib.import_module(f"lxt.efficient.models.{name}")
    assert list(models.attnLRP) == list(models.cp_LRP) == [modeling(name)]
    assert list(get_default_map(modeling(name))) == [modeling(name)]
    with monkey_patch(modeling(name), models.cp_LRP) as patch:
        assert patch.composite is lxt.cp_lrp


def test_a_map_may_add_to_a_composite() -> None:
    """A forward that spells its rules out is one unit among the others' rules."""
    model = zoo.build("llama")
    example = zoo.example("llama", model)
    runs = []

    def counted(self: Any, x: Tensor) -> Tensor:
        runs.append(self)
        return gated_mlp_forward(self, x)

    patch_map = {
        modeling_llama: apply(lxt.attnlrp),
        modeling_llama.LlamaMLP: partial(patch_method, counted),
    }
    with monkey_patch(modeling_llama, patch_map):
        result = relevance(model, example)
    assert len(runs) == 2
    assert difference(result, under(lxt.attnlrp, model, example)) <= 1e-7


def test_attention_patched_under_a_composite_is_refused() -> None:
    """It would halve twice; the model's operations have rules already."""
    model = zoo.build("llama")
    patch_map = {modeling_llama: apply(lxt.attnlrp), modeling_llama.LlamaMLP: _patch_attention}
    refused = pytest.raises(UnknownOperation, match="divide_gradient")
    with monkey_patch(modeling_llama, patch_map), refused:
        zoo.example("llama", model).run(model)
    assert not hasattr(modeling_llama.eager_attention_forward, "wraps_attention")


def _patch_attention(_: Any) -> bool:
    return patch_attention(modeling_llama)


def test_attention_functions_registered_later_are_wrapped_too() -> None:
    model = zoo.build("llama", attention="eager")
    example = zoo.example("llama", model)

    def mine(*args: Any, **kwargs: Any) -> Any:
        return modeling_qwen2.eager_attention_forward(*args, **kwargs)

    with monkey_patch(modeling_llama, {modeling_llama: patch_cp_attention}):
        expected = relevance(model, example)
        ALL_ATTENTION_FUNCTIONS["mine"] = mine
        try:
            assert "mine" in modeling_llama.ALL_ATTENTION_FUNCTIONS
            assert len(modeling_llama.ALL_ATTENTION_FUNCTIONS) == len(ALL_ATTENTION_FUNCTIONS)
            model.config._attn_implementation = "mine"
            for layer in model.model.layers:
                layer.self_attn.config._attn_implementation = "mine"
            # What the mask looks like depends on the name, not what is computed.
            example.kwargs["attention_mask"] = causal_mask(example.leaf)
            assert difference(relevance(model, example), expected) <= 1e-12
        finally:
            del ALL_ATTENTION_FUNCTIONS["mine"]


def causal_mask(x: Tensor) -> Tensor:
    length = x.shape[1]
    mask = torch.full((length, length), torch.finfo(x.dtype).min, dtype=x.dtype).triu(1)
    return mask.expand(len(x), 1, length, length)


def test_methods_by_name_and_whole_modules() -> None:
    gemma3 = modeling("gemma3")
    norm = gemma3.Gemma3RMSNorm

    def gemma3_norm(self: Any, x: Tensor) -> Tensor:
        return x * stop_gradient(torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))

    model = zoo.build("gemma3")
    example = zoo.example("gemma3", model)
    plain = relevance(model, example)
    before = attributes(norm, gemma3)
    patch = partial(patch_method, gemma3_norm, method_name="_norm", keep_original=True)
    with monkey_patch(gemma3, {norm: patch}):
        assert norm._norm is gemma3_norm
        assert callable(norm.original__norm)
        assert difference(relevance(model, example), plain) > 1e-3
    assert attributes(norm, gemma3) == before

    edited = ModuleType("edited")
    edited.eager_attention_forward = modeling_qwen2.eager_attention_forward  # type: ignore[attr-defined]
    with monkey_patch(gemma3, {gemma3: partial(replace_module, edited)}):
        assert gemma3.eager_attention_forward is modeling_qwen2.eager_attention_forward
    assert attributes(norm, gemma3) == before
    assert not replace_module(gemma3, gemma3)


def test_a_shared_classs_other_methods_warn() -> None:
    before = attributes(nn.SiLU)
    patch = partial(patch_method, lambda self: "patched", method_name="extra_repr")
    with pytest.warns(UserWarning, match="SiLU.extra_repr is patched for every model"):
        handle = monkey_patch(modeling_llama, {nn.SiLU: patch})
    assert repr(nn.SiLU()) == "SiLU(patched)"
    handle.remove()
    assert attributes(nn.SiLU) == before


def test_a_patch_that_fails_leaves_nothing() -> None:
    def fails(target: Any) -> bool:
        target.answer = 42
        raise RuntimeError("no")

    targets = (modeling_llama, modeling_llama.LlamaMLP)
    before = attributes(*targets)
    patch_map = {modeling_llama: patch_attention, modeling_llama.LlamaMLP: fails}
    with monkey_patch(modeling_llama, lxt.cp_lrp) as patch:
        with pytest.raises(RuntimeError, match="no"):
            monkey_patch(modeling_llama, patch_map)
        assert "on" in repr(patch)
    assert attributes(*targets) == before
    with pytest.warns(UserWarning, match="LlamaMLP was not patched"):
        monkey_patch(modeling_llama, {modeling_llama.LlamaMLP: lambda _: False}).remove()


def test_what_others_changed_since_stays() -> None:
    handle = monkey_patch(modeling_llama)
    ours = modeling_llama.LlamaMLP.forward

    def theirs(self: Any, x: Tensor) -> Tensor:
        return ours(self, x)

    modeling_llama.LlamaMLP.forward = theirs  # type: ignore[method-assign]
    handle.remove()
    assert modeling_llama.LlamaMLP.forward is theirs
    mlp = modeling_llama.LlamaMLP(zoo.build("llama").config)
    x = torch.randn(2, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(mlp(x).sum(), x)  # what they wrapped has no effect any more
    expected = torch.autograd.grad(ours.__wrapped__(mlp, x).sum(), x)[0]  # type: ignore[attr-defined]
    assert torch.equal(gradient, expected)
    modeling_llama.LlamaMLP.forward = ours.__wrapped__  # type: ignore[attr-defined]


def test_patch_method_by_itself_changes_the_class() -> None:
    class MyMLP(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    original = MyMLP.forward
    assert patch_method(mlp_forward, MyMLP, keep_original=True)
    assert MyMLP.forward is mlp_forward
    assert MyMLP.original_forward is original
    with pytest.warns(UserWarning, match="patched already"):
        assert not patch_method(mlp_forward, MyMLP)
    with pytest.warns(UserWarning, match="patched already"):
        assert check_already_patched(mlp_forward, mlp_forward)
    assert not check_already_patched(mlp_forward, gated_mlp_forward)


@pytest.mark.parametrize(
    ("target", "patch_map", "error", "message"),
    [
        ("llama", None, InvalidModel, "'llama' can't be patched"),
        (json, None, InvalidModel, "json defines no torch.nn.Module"),
        (modeling_llama, "attnlrp", InvalidComposite, "'attnlrp' is no patch map"),
        (modeling_llama, {"LlamaMLP": len}, InvalidComposite, "'LlamaMLP' in the patch map"),
        (modeling_llama, {nn.SiLU: 3}, InvalidComposite, "the patch of SiLU is 3"),
        (
            modeling_llama,
            {modeling_qwen2: apply(lxt.attnlrp)},
            InvalidComposite,
            "'attnlrp' can be applied",
        ),
        (
            importlib.import_module("transformers.models.bloom.modeling_bloom"),
            {importlib.import_module("transformers.models.bloom.modeling_bloom"): patch_attention},
            InvalidComposite,
            "modeling_bloom calls no registered attention function",
        ),
    ],
)
def test_what_cant_be_patched(target: Any, patch_map: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        monkey_patch(target, patch_map)


# --- the rules ------------------------------------------------------------------------------------


def test_identity_rule_implicit() -> None:
    values = [-2.0, -1e-12, 0.0, 1e-10, -1e-10, 0.3, 5.0]
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    y = identity_rule_implicit(F.silu, x)
    assert torch.equal(y, F.silu(x))
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)
    expected = torch.tensor([(F.silu(v) / v if v else v + 0.5) for v in x.detach()])
    assert torch.allclose(gradient, expected.double(), rtol=1e-8)
    (again,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(gradient, again)
    half = x.detach().bfloat16().requires_grad_()
    (gradient,) = torch.autograd.grad(
        identity_rule_implicit(nn.PReLU().bfloat16(), half).sum(), half
    )
    assert gradient.dtype is torch.bfloat16
    assert gradient.isfinite().all()


def test_divide_and_stop_gradient() -> None:
    x = torch.randn(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(divide_gradient(x, 4).sum(), x)
    assert torch.equal(gradient, torch.full((3,), 0.25))
    (gradient,) = torch.autograd.grad(divide_gradient(x).sum(), x)
    assert torch.equal(gradient, torch.full((3,), 0.5))
    assert not stop_gradient(x).requires_grad
    y = divide_gradient(x, 2)
    y += 1  # a model may write to it
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.full((3,), 0.5))


@pytest.mark.parametrize("forward", [rms_norm_forward, layer_norm_forward])
def test_norm_forwards_keep_the_value(forward: Any) -> None:
    name = "llama" if forward is rms_norm_forward else "gpt2"
    norm = zoo.build(name, dtype=torch.float32).base_model
    norm = norm.norm if name == "llama" else norm.ln_f
    x = torch.randn(2, 3, 32, requires_grad=True)
    assert torch.equal(forward(norm, x), norm(x))
    copied = copy.deepcopy(norm)
    with lxt.attnlrp.context(copied):
        (expected,) = torch.autograd.grad(copied(x).sum(), x)
    assert torch.allclose(torch.autograd.grad(forward(norm, x).sum(), x)[0], expected, atol=1e-6)
