"""What a hostile review of `monkey_patch` found, and it must not do again."""

import copy
import gc
import threading
import warnings
import weakref
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from accelerate.hooks import remove_hook_from_module
from torch import Tensor, nn
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.llama import modeling_llama

import lxt
import zoo
from lxt.efficient import monkey_patch
from lxt.efficient.patches import (
    gated_mlp_forward,
    non_linear_forward,
    patch_attention,
    patch_cp_attention,
    patch_method,
)
from lxt.errors import (
    InvalidComposite,
    InvalidModel,
    UnknownOperation,
    UnusedCompositeWarning,
)
from patching import difference, relevance, under


@pytest.mark.parametrize("part_ends_first", [True, False])
def test_a_model_and_a_part_of_it_in_two_threads(part_ends_first: bool) -> None:
    """Each call from outside has a propagation of its own, on the same modules."""
    model = zoo.build("gpt2")
    example = zoo.example("gpt2", model)
    expected = under(lxt.attnlrp, model, example)
    leaf = example.leaf.detach().clone().requires_grad_()
    with lxt.attnlrp.context(model.transformer):
        hidden = model.transformer(inputs_embeds=leaf).last_hidden_state
    (part_expected,) = torch.autograd.grad(hidden.sum(), leaf)
    inside, go_on = threading.Event(), threading.Event()
    results: dict[str, Tensor] = {}

    def wait(*_: Any) -> None:
        if threading.current_thread().name == "whole":
            inside.set()
            assert go_on.wait(30)

    def whole() -> None:
        results["whole"] = relevance(model, example)

    def part() -> None:
        assert inside.wait(30)
        hidden = model.transformer(inputs_embeds=leaf).last_hidden_state
        if part_ends_first:
            go_on.set()
        (results["part"],) = torch.autograd.grad(hidden.sum(), leaf)
        go_on.set()

    handle = model.transformer.h[1].register_forward_pre_hook(wait)
    with monkey_patch(modeling_gpt2):
        threads = [threading.Thread(target=f, name=f.__name__) for f in (whole, part)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    handle.remove()
    assert torch.equal(results["whole"], expected)
    assert torch.equal(results["part"], part_expected)
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_first_calls_of_one_instance_in_many_threads() -> None:
    model = zoo.build("llama")
    example = zoo.example("llama", model)
    expected = under(lxt.attnlrp, model, example)
    start = threading.Barrier(4)
    results: list[Tensor] = []

    def work() -> None:
        leaf = example.leaf.detach().clone().requires_grad_()
        start.wait(30)
        logits = example.run(model, leaf)
        (gradient,) = torch.autograd.grad(logits[example.output_mask].sum(), leaf)
        results.append((leaf * gradient).detach())

    for _ in range(3):
        with monkey_patch(modeling_llama):
            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
    assert len(results) == 12
    assert all(torch.equal(result, expected) for result in results)


def test_patching_in_many_threads() -> None:
    before = {name: id(value) for name, value in vars(modeling_llama.LlamaMLP).items()}
    start = threading.Barrier(4)
    handles = []

    def work() -> None:
        start.wait(30)
        handles.append(monkey_patch(modeling_llama))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(handles) == 4
    for handle in handles:
        handle.remove()
    assert {name: id(value) for name, value in vars(modeling_llama.LlamaMLP).items()} == before


@pytest.mark.parametrize("patched_first", [True, False])
@pytest.mark.parametrize("offload", [True, False])
def test_accelerates_hooks_before_and_after(patched_first: bool, offload: bool) -> None:
    """They keep the `forward` that an instance had when they came, the class's own or ours."""
    model = zoo.build("llama")
    example = zoo.example("llama", model)
    expected = under(lxt.attnlrp, model, example)
    plain = relevance(model, example)

    def hook() -> None:
        if offload:
            cpu_offload(model, torch.device("cpu"))
        else:
            dispatch_model(model, {"": "cpu"}, force_hooks=True)

    if not patched_first:
        hook()
    patch = monkey_patch(modeling_llama)
    if patched_first:
        hook()
    assert difference(relevance(model, example), expected) <= 1e-12
    patch.remove()
    assert difference(relevance(model, example), plain) <= 1e-12
    remove_hook_from_module(model, recurse=True)
    assert difference(relevance(model, example), plain) <= 1e-12


def test_a_forward_taken_while_patched_has_no_rules_afterwards() -> None:
    model = zoo.build("llama")
    example = zoo.example("llama", model)
    plain = relevance(model, example)
    with monkey_patch(modeling_llama):
        forward = model.forward
    logits = forward(inputs_embeds=example.leaf).logits
    (gradient,) = torch.autograd.grad(logits[example.output_mask].sum(), example.leaf)
    assert torch.equal((example.leaf * gradient).detach(), plain)


def test_calling_forward_itself_is_no_way_around() -> None:
    model = zoo.build("llama")
    example = zoo.example("llama", model)
    expected = under(lxt.attnlrp, model, example)
    with monkey_patch(modeling_llama):
        logits = model.forward(inputs_embeds=example.leaf).logits
    (gradient,) = torch.autograd.grad(logits[example.output_mask].sum(), example.leaf)
    assert torch.equal((example.leaf * gradient).detach(), expected)


def test_a_copy_made_while_patched_is_free_afterwards() -> None:
    model = zoo.build("llama")
    example = zoo.example("llama", model)
    plain = relevance(model, example)
    with monkey_patch(modeling_llama):
        relevance(model, example)
        twin = copy.deepcopy(model)
        assert torch.equal(relevance(twin, example), relevance(model, example))
    assert torch.equal(relevance(twin, example), plain)


def test_a_part_of_a_model_that_is_not_patched_says_so() -> None:
    class Headed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = zoo.build("llama").model
            self.head = nn.Linear(32, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.head(self.body(inputs_embeds=x).last_hidden_state))

    model = Headed()
    x = torch.randn(1, 5, 32, dtype=torch.float64, requires_grad=True)
    with monkey_patch(modeling_llama):
        with pytest.warns(UnusedCompositeWarning, match="LlamaModel is patched, and Headed, which"):
            model(x)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(x)
            model.body(inputs_embeds=x)


def test_parameters_that_are_computed_are_refused() -> None:
    """A replica of DataParallel, or `functional_call`: its weights would pass for carriers."""
    model = zoo.build("llama")
    example = zoo.example("llama", model)
    replica = copy.copy(model.lm_head)
    replica._parameters = {"weight": model.lm_head.weight * 1}  # type: ignore[assignment]
    former = model.lm_head._replicate_for_data_parallel()
    former._former_parameters = {"weight": model.lm_head.weight * 1}  # type: ignore[attr-defined]
    x = torch.randn(2, 32, dtype=torch.float64, requires_grad=True)
    for module in (replica, former):
        refused = pytest.raises(InvalidModel, match="'weight' of a Linear is computed from another")
        with refused, lxt.attnlrp.context(module):
            module(x)
    assert all(parameter.requires_grad for parameter in model.parameters())
    parameters = {name: p * 1 for name, p in model.named_parameters()}
    kwargs = {"inputs_embeds": example.leaf}
    with pytest.raises(InvalidModel, match="is computed"), lxt.attnlrp.context(model):
        torch.func.functional_call(model, parameters, kwargs=kwargs)


@pytest.mark.parametrize("composite", [lxt.attnlrp, lxt.cp_lrp, lxt.explicit.attnlrp])
@pytest.mark.parametrize("multiply", [torch.mul, torch.matmul, nn.functional.linear])
def test_another_models_weight_is_no_factor(composite: lxt.Composite, multiply: Any) -> None:
    other = nn.Linear(4, 4).double()

    class Borrows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return multiply(x, other.weight)

    x = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    model = Borrows()
    refused = pytest.raises(UnknownOperation, match="is not the registered model's")
    with refused, composite.context(model):
        model(x)
    other.requires_grad_(False)
    with composite.context(model):
        assert torch.autograd.grad(model(x).sum(), x)[0].any()


def test_formulations_that_meet_are_refused() -> None:
    model = zoo.build("llama")
    example = zoo.example("llama", model)
    handle = lxt.explicit.attnlrp.register(model.model.layers[0])
    with monkey_patch(modeling_llama), pytest.raises(InvalidComposite, match="hand back relevance"):
        example.run(model)
    handle.remove()


def test_patched_cp_attention_under_a_composite_is_refused() -> None:
    model = zoo.build("llama")
    example = zoo.example("llama", model)
    with monkey_patch(modeling_llama, {modeling_llama: patch_cp_attention}):
        assert relevance(model, example).any()
        with pytest.raises(InvalidComposite, match="patched by patch_cp_attention"):
            under(lxt.attnlrp, model, example)


def test_what_a_patched_forward_leaves_on_its_module_stays() -> None:
    class Remembering(nn.SiLU):
        pass

    def forward(self: Any, x: Tensor) -> Tensor:
        self.seen = x.shape
        return non_linear_forward(self, x)

    model = zoo.build("llama")
    for layer in model.model.layers:
        layer.mlp.act_fn = Remembering()
    example = zoo.example("llama", model)
    patch_map = {Remembering: partial(patch_method, forward, keep_original=True)}
    with monkey_patch(modeling_llama, patch_map):
        example.run(model)
    act = model.model.layers[0].mlp.act_fn
    assert act.seen == (2, 11, 48)
    assert not hasattr(act, "original_forward")
    assert "forward" not in vars(act)


# --- found by a second review ---------------------------------------------------------------------


def test_hooks_of_an_outermost_module_that_has_a_rule_itself_run() -> None:
    mlp = modeling_llama.LlamaMLP(zoo.build("llama").config)
    mlp.register_forward_hook(lambda module, args, output: output * 2)
    x = torch.randn(2, 32, requires_grad=True)
    plain = mlp(x).detach()
    for hooked in (False, True):
        if hooked:
            dispatch_model(mlp, {"": "cpu"}, force_hooks=True)
        patch_map = {modeling_llama.LlamaMLP: partial(patch_method, gated_mlp_forward)}
        with monkey_patch(modeling_llama, patch_map):
            assert torch.equal(mlp(x), plain)


def test_hooks_of_the_outermost_module_run_outside_of_the_rules() -> None:
    """As they do after `register`: a loss that one logs is nobody's relevance."""
    model = zoo.build("llama")
    example = zoo.example("llama", model)
    expected = under(lxt.attnlrp, model, example)
    logged = []
    model.register_forward_hook(lambda m, args, output: logged.append(output.logits.prod().item()))
    with monkey_patch(modeling_llama):
        assert torch.equal(relevance(model, example), expected)
    assert logged


@pytest.mark.parametrize(
    "multiply",
    [
        lambda x, w: x @ w.T,
        lambda x, w: x * w[0],
        lambda x, w: nn.functional.linear(x, w.float().double()),
        lambda x, w: x * (1 + w),
    ],
)
def test_a_part_of_another_models_weight_is_no_factor_either(multiply: Any) -> None:
    weight = nn.Parameter(torch.randn(4, 4, dtype=torch.float64))

    class Borrows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return multiply(x, weight)

    x = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    for composite in (lxt.attnlrp, lxt.explicit.cp_lrp):
        refused = pytest.raises(UnknownOperation, match="is not the registered model's")
        with refused, composite.context(model := Borrows()):
            model(x)


def test_formulations_that_meet_inside_a_unit_are_refused() -> None:
    other = nn.Linear(4, 4)

    class Calls(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return other(x) * 2

    x = torch.randn(2, 4, requires_grad=True)
    inner = lxt.explicit.attnlrp.register(other)
    model = nn.Sequential(Calls())
    refused = pytest.raises(InvalidComposite, match="hand back relevance")
    with refused, (lxt.attnlrp | {Calls: lambda module, x: other(x) * 2}).context(model):
        model(x)
    inner.remove()


def test_blocks_that_overlap_put_back_what_was_before_each() -> None:
    before = {name: id(value) for name, value in vars(modeling_llama.LlamaMLP).items()}
    first, second = monkey_patch(modeling_llama), monkey_patch(modeling_llama, lxt.cp_lrp)
    first.remove()
    second.remove()
    a = monkey_patch(modeling_llama)
    a.__enter__()
    b = monkey_patch(modeling_llama, lxt.cp_lrp)
    b.__enter__()
    a.__exit__()
    assert "on" in repr(b)  # its block has not ended
    b.__exit__()
    assert {name: id(value) for name, value in vars(modeling_llama.LlamaMLP).items()} == before
    outermost = monkey_patch(modeling_llama)
    with monkey_patch(modeling_llama) as block, monkey_patch(modeling_llama):
        block.remove()
    assert "on" in repr(outermost)
    outermost.remove()
    assert {name: id(value) for name, value in vars(modeling_llama.LlamaMLP).items()} == before


def test_patches_that_were_replaced_are_let_go() -> None:
    patches = [weakref.ref(monkey_patch(modeling_llama)) for _ in range(5)]
    gc.collect()
    assert sum(patch() is not None for patch in patches) <= 2
    monkey_patch(modeling_llama).remove()


def test_a_map_of_ones_own_leaves_gradients_of_parameters() -> None:
    model = zoo.build("llama")
    example = zoo.example("llama", model)
    patch_map = {nn.SiLU: partial(patch_method, non_linear_forward, keep_original=True)}
    gradients = []
    for target in (modeling_llama, model):
        with monkey_patch(target, patch_map):
            example.run(model).sum().backward()
        gradients.append([p.grad for p in model.parameters()][1:])
        model.zero_grad()
    for of_module, of_instance in zip(*gradients, strict=True):
        assert torch.equal(of_module, of_instance)


def test_a_patch_that_fails_midway_is_undone() -> None:
    class Stubborn(type):
        def __setattr__(cls, name: str, value: Any) -> None:
            raise TypeError("not me")

    class Zz(nn.Module, metaclass=Stubborn):
        def forward(self, x: Tensor) -> Tensor:
            return x

    module = ModuleType("stubborn")
    aa = type("Aa", (nn.Module,), {"forward": lambda self, x: x, "__module__": "stubborn"})
    type.__setattr__(Zz, "__module__", "stubborn")
    module.Aa, module.Zz = aa, Zz  # type: ignore[attr-defined]
    before = aa.forward
    with pytest.raises(TypeError, match="not me"):
        monkey_patch(module)
    assert aa.forward is before
    assert "__call__" not in vars(aa)
    eager = modeling_llama.eager_attention_forward
    patch_map = {modeling_llama: patch_attention, int: lambda cls: patch_method(len, cls)}
    with pytest.raises(InvalidComposite):
        monkey_patch(modeling_llama, patch_map)
    assert modeling_llama.eager_attention_forward is eager


def test_a_users_rule_of_a_module_is_verified_once() -> None:
    runs = []

    class Counted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            runs.append("original")
            return x * 2

    model = nn.Sequential(Counted())
    x = torch.ones(2, requires_grad=True)
    with (lxt.attnlrp | {Counted: lambda module, x: x * 2}).context(model):
        for _ in range(3):
            model(x)
    assert runs == ["original"]
