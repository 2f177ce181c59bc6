"""`monkey_patch`: LXT's interface, scoped to one Python module and reversible."""

import gc
import importlib
import threading
import warnings
import weakref
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama
from transformers.models.qwen2 import modeling_qwen2

import lxt
import zoo
from lxt.efficient import monkey_patch
from lxt.efficient.patches import (
    cp_gated_mlp_forward,
    patch_attention,
    patch_method,
)
from lxt.errors import (
    AlreadyRegistered,
    InvalidComposite,
    UnusedCompositeWarning,
)
from patching import attributes, classes_of, difference, modeling, relevance, under
from test_patch_maps import lxt_map

# --- scope ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["default", "as LXT"])
def test_only_the_patched_module_changes_and_removal_restores_by_identity(style: str) -> None:
    patch_map = None if style == "default" else lxt_map(modeling_llama)
    others = [modeling_qwen2, *classes_of(modeling_qwen2), nn.Module, nn.Dropout, nn.LayerNorm]
    others += [nn.Linear, nn.SiLU, nn.functional, type(ALL_ATTENTION_FUNCTIONS)]
    own = [modeling_llama, *classes_of(modeling_llama)]
    llama = zoo.build("llama")  # which lets transformers add what it adds
    qwen = zoo.build("qwen2", training=True)
    before, own_before = attributes(*others), attributes(*own)
    registry = dict(ALL_ATTENTION_FUNCTIONS)
    example = zoo.example("qwen2", qwen)
    torch.manual_seed(0)
    plain = relevance(qwen, example)

    handle = monkey_patch(modeling_llama, patch_map)
    assert attributes(*others) == before
    assert dict(ALL_ATTENTION_FUNCTIONS) == registry
    assert attributes(*own) != own_before
    assert difference(relevance(llama, example), under(lxt.gradient, llama, example)) > 1e-2
    torch.manual_seed(0)
    assert torch.equal(relevance(qwen, example), plain)  # its dropout too
    handle.remove()
    assert attributes(*own) == own_before
    assert attributes(*others) == before
    handle.remove()
    assert attributes(*own) == own_before


def assert_same(found: Tensor, expected: Tensor) -> None:
    """To the last digits: which MLPs run as one unit may differ, and so the order of sums."""
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", zoo.NAMES)
def test_every_architecture_as_under_its_composite(name: str) -> None:
    model = zoo.build(name)
    example = zoo.example(name, model)
    plain = relevance(model, example)
    with monkey_patch(modeling(name)) as patch:
        assert_same(relevance(model, example), under(lxt.attnlrp, model, example))
        assert patch.composite is lxt.attnlrp
        monkey_patch(modeling(name), lxt.cp_lrp)
        assert_same(relevance(model, example), under(lxt.cp_lrp, model, example))
        monkey_patch(modeling(name)).remove()
    assert torch.equal(relevance(model, example), plain)


@pytest.mark.parametrize("name", ["llama", "gemma3", "bert", "t5"])
def test_no_trace_on_the_instance_and_bit_identical(name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = zoo.build(name, dtype=dtype)
        example = zoo.example(name, model)
        model.requires_grad_(False)
        plain = example.run(model)
        model.requires_grad_(True)
        before = [dict(module.__dict__) for module in model.modules()]
        with monkey_patch(modeling(name)):
            assert torch.equal(example.run(model), plain)
        assert [dict(module.__dict__) for module in model.modules()] == before
        assert all(p.requires_grad for p in model.parameters())


def test_a_part_of_a_model_called_alone_runs_under_the_rules() -> None:
    layer = modeling_llama.LlamaMLP(zoo.build("llama").config).double()
    x = torch.randn(2, 3, 32, dtype=torch.float64, requires_grad=True)
    with lxt.attnlrp.context(layer):
        (expected,) = torch.autograd.grad(layer(x).sum(), x)
    with monkey_patch(modeling_llama):
        (gradient,) = torch.autograd.grad(layer(x).sum(), x)
    assert torch.equal(gradient, expected)


def test_instances_are_not_kept_alive() -> None:
    with monkey_patch(modeling_llama):
        model = zoo.build("llama")
        relevance(model, zoo.example("llama", model))
        gone = weakref.ref(model)
        del model
        gc.collect()
        assert gone() is None


def test_models_of_one_module_in_two_threads() -> None:
    models = [zoo.build("llama", seed=seed) for seed in range(2)]
    example = zoo.example("llama", models[0])
    expected = [under(lxt.attnlrp, model, example) for model in models]
    results: dict[int, list[Tensor]] = {0: [], 1: [], 2: []}

    def work(key: int) -> None:
        leaf = example.leaf.detach().clone().requires_grad_()
        for _ in range(5):
            logits = example.run(models[key % 2], leaf)
            (gradient,) = torch.autograd.grad(logits[example.output_mask].sum(), leaf)
            results[key].append((leaf * gradient).detach())

    with monkey_patch(modeling_llama):
        threads = [threading.Thread(target=work, args=(key,)) for key in results]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for key, found in results.items():
        assert len(found) == 5
        assert all(torch.equal(r, expected[key % 2]) for r in found)
    for model in models:
        assert not any("forward" in module.__dict__ for module in model.modules())
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_registered_composite_goes_before_the_patch_of_its_class() -> None:
    model = zoo.build("llama")
    example = zoo.example("llama", model)
    expected = under(lxt.cp_lrp, model, example)
    with monkey_patch(modeling_llama):
        assert torch.equal(under(lxt.cp_lrp, model, example), expected)


def test_a_users_subclass_is_patched_with_its_parent_and_another_librarys_is_not() -> None:
    class Mine(modeling_llama.LlamaMLP):
        pass

    theirs = type("Theirs", (modeling_llama.LlamaMLP,), {})
    theirs.__module__ = "transformers.models.theirs.modeling_theirs"
    x = torch.randn(2, 32, requires_grad=True)
    for cls, patched in ((Mine, True), (theirs, False)):
        mlp = cls(zoo.build("llama").config)
        (plain,) = torch.autograd.grad(mlp(x).sum(), x)
        with monkey_patch(modeling_llama):
            (gradient,) = torch.autograd.grad(mlp(x).sum(), x)
        assert torch.equal(gradient, plain) is not patched


def test_generation_and_training_mode_and_checkpointing() -> None:
    model = zoo.build("llama")
    example = zoo.example("llama", model)
    assert example.input_ids is not None
    expected = under(lxt.attnlrp, model, example)
    tokens = model.generate(example.input_ids, max_new_tokens=3, do_sample=False)
    with monkey_patch(modeling_llama):
        again = model.generate(example.input_ids, max_new_tokens=3, do_sample=False)
        assert torch.equal(again, tokens)
        model.train()
        model.gradient_checkpointing_enable()
        logits = example.run(model)
    # Recomputed under the rules, after the patch is gone.
    (gradient,) = torch.autograd.grad(logits[example.output_mask].sum(), example.leaf)
    assert difference((example.leaf * gradient).detach(), expected) <= 1e-12


def test_training_a_patched_model_warns_that_its_parameters_are_constants() -> None:
    model = zoo.build("llama", training=True)
    ids = torch.arange(3, 9)[None]
    with monkey_patch(modeling_llama):
        with pytest.warns(UnusedCompositeWarning, match="parameters are constants"):
            output = model(ids, labels=ids)
        assert not output.loss.requires_grad
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(ids)  # once is enough
            with torch.no_grad():
                zoo.build("llama")(ids)
            zoo.build("llama").requires_grad_(False)(ids)
    model(ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# --- handles --------------------------------------------------------------------------------------


def test_patching_twice_is_harmless_and_another_map_switches() -> None:
    model = zoo.build("llama")
    example = zoo.example("llama", model)
    plain = relevance(model, example)
    attnlrp, cp_lrp = (under(c, model, example) for c in (lxt.attnlrp, lxt.cp_lrp))
    before = attributes(*classes_of(modeling_llama))
    first = monkey_patch(modeling_llama)
    second = monkey_patch(modeling_llama)
    assert torch.equal(relevance(model, example), attnlrp)
    third = monkey_patch(modeling_llama, lxt.efficient.models.llama.cp_LRP)  # type: ignore[attr-defined]
    assert torch.equal(relevance(model, example), cp_lrp)
    assert "removed" in repr(first)
    assert "removed" in repr(second)
    assert repr(third) == "Patch('cp_lrp' on transformers.models.llama.modeling_llama)"
    first.remove()  # which isn't on any more
    assert torch.equal(relevance(model, example), cp_lrp)
    with monkey_patch(modeling_llama):
        assert torch.equal(relevance(model, example), attnlrp)
    assert torch.equal(relevance(model, example), cp_lrp)
    third.remove()
    assert torch.equal(relevance(model, example), plain)
    assert attributes(*classes_of(modeling_llama)) == before


def test_a_block_ends_without_harm_if_the_patch_was_removed_or_replaced_within() -> None:
    before = attributes(*classes_of(modeling_llama))
    with monkey_patch(modeling_llama) as patch:
        patch.remove()
    assert attributes(*classes_of(modeling_llama)) == before
    with monkey_patch(modeling_llama):
        later = monkey_patch(modeling_llama, lxt.cp_lrp)
    assert "removed" in repr(later)  # the block ends as it began
    assert attributes(*classes_of(modeling_llama)) == before
    first = monkey_patch(modeling_llama)
    with monkey_patch(modeling_llama, lxt.cp_lrp):
        first.remove()
    assert attributes(*classes_of(modeling_llama)) == before


def test_verbose_names_what_was_patched(capsys: pytest.CaptureFixture[str]) -> None:
    monkey_patch(modeling_llama, verbose=True).remove()
    lines = capsys.readouterr().out.splitlines()
    assert "Patched transformers.models.llama.modeling_llama" in lines
    assert "Patched LlamaForCausalLM" in lines
    monkey_patch(modeling_llama).remove()
    assert capsys.readouterr().out == ""


def test_one_instance() -> None:
    model, other = zoo.build("llama"), zoo.build("llama", seed=1)
    example = zoo.example("llama", model)
    plain = relevance(other, example)
    with monkey_patch(model) as patch:
        assert torch.equal(relevance(other, example), plain)
        result = relevance(model, example)
        monkey_patch(model, lxt.cp_lrp)
        switched = relevance(model, example)
        assert "removed" in repr(patch)
        monkey_patch(model).remove()
    assert torch.equal(result, under(lxt.attnlrp, model, example))
    assert torch.equal(switched, under(lxt.cp_lrp, model, example))
    with lxt.attnlrp.context(model), pytest.raises(AlreadyRegistered):
        monkey_patch(model)
    with pytest.raises(InvalidComposite, match="eager_attention_forward.*other instances share"):
        monkey_patch(model, {modeling_llama: patch_attention})
    assert not hasattr(modeling_llama.eager_attention_forward, "wraps_attention")
    own = {modeling_llama.LlamaMLP: partial(patch_method, cp_gated_mlp_forward)}
    with monkey_patch(model, own):
        patched = relevance(model, example)
    assert difference(patched, under(lxt.gradient, model, example)) > 1e-3


def test_a_patched_instance_is_not_kept_alive() -> None:
    model = zoo.build("llama")
    monkey_patch(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


# --- all of transformers --------------------------------------------------------------------------

NO_MODELS = {"transformers.models.auto.modeling_auto"}  # a table of other modules' models


def modeling_modules() -> list[str]:
    models = Path(transformers.__file__).parent / "models"
    return sorted(
        f"transformers.models.{path.parent.name}.{path.stem}"
        for path in models.glob("*/modeling_*.py")
    )


def test_every_module_of_models_in_transformers_can_be_patched_and_restored() -> None:
    patched = 0
    for name in modeling_modules():
        try:
            module = importlib.import_module(name)
        except ImportError:  # it needs a package that is not here, such as torchaudio
            continue
        if name in NO_MODELS:
            continue
        classes = classes_of(module)
        before = attributes(module, *classes)
        with monkey_patch(module) as patch:
            assert patch.composite is lxt.attnlrp
            assert attributes(module, *classes) != before
        assert attributes(module, *classes) == before
        patched += 1
    assert patched > 500
