"""Calls that once gave a wrong relevance in silence, a deadlock, or something left behind."""

import copy
import gc
import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lxt
from lxt.errors import (
    InvalidComposite,
    InvalidModel,
    UnknownOperation,
    UnusedCompositeWarning,
)


class Call(nn.Module):
    """A model that calls a function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


def tensor(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, dtype=torch.float64, generator=generator).add(0.5).requires_grad_()


def relevances(function, *operands: Tensor, composite=lxt.attnlrp) -> list[float]:
    """Of the output, and of each operand."""
    model = function if isinstance(function, nn.Module) else Call(function)
    with composite.context(model):
        y = model(*operands)
    gradients = torch.autograd.grad(y.sum(), operands, allow_unused=True)
    parts = [
        0.0 if g is None else float((x * g).sum()) for x, g in zip(operands, gradients, strict=True)
    ]
    return [float(y.sum().detach()), *parts]


@pytest.mark.parametrize(
    "constant",
    [
        lambda x: x.pow(2).mean(-1, keepdim=True).add_(1e-6).rsqrt_(),
        lambda x: (x * 2).sqrt_(),
        lambda x: (x * 2).reciprocal_(),
        lambda x: (x * 2).pow_(-0.5),
        lambda x: x.clone().fill_(2.0),
        lambda x: x.clone().zero_() + 3,
    ],
)
def test_what_is_made_a_constant_in_place_is_one(constant) -> None:
    total, part = relevances(lambda x: x * constant(x), tensor(3, 4))
    assert part == pytest.approx(total)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("size", [1.0, 0.1, 0.03])
def test_rms_norm_keeps_relevance_in_any_precision(dtype: torch.dtype, size: float) -> None:
    """With the epsilon that torch takes by default, which is not that of the narrow type."""
    model = nn.RMSNorm(64, dtype=dtype, elementwise_affine=False)
    x = (tensor(8, 64).detach() * size).to(dtype).requires_grad_()
    total, part = relevances(model, x)
    assert part == pytest.approx(total, rel=0.02)


def test_torch_func_is_refused_where_relevance_runs_through_it() -> None:
    x = tensor(3, 4)
    for function in (F.silu, torch.logsumexp):
        mapped = torch.vmap(lambda row, f=function: f(row) if f is F.silu else f(row, -1))
        with pytest.raises(UnknownOperation, match=r"torch\.func"):
            relevances(mapped, x)
    total, part = relevances(lambda x: x * torch.vmap(torch.sin)(torch.ones(3, 4)), x)
    assert part == pytest.approx(total)


def test_a_parameter_of_another_model_is_refused() -> None:
    other = nn.Linear(4, 4, dtype=torch.float64)
    with pytest.raises(UnknownOperation, match="parameter.*freeze"):
        relevances(lambda x: other(x), tensor(3, 4))
    other.requires_grad_(False)
    (plain,) = torch.autograd.grad(other(x := tensor(3, 4)).sum(), x)
    assert relevances(lambda x: other(x), x)[1] == pytest.approx(float((x * plain).sum()))


def test_parameters_shared_by_two_models_in_two_threads() -> None:
    first, second = (nn.Linear(4, 4, bias=False, dtype=torch.float64) for _ in range(2))
    second.weight = first.weight
    x = tensor(3, 4)
    (expected,) = torch.autograd.grad(first(x).sum(), x)
    inside, done = threading.Event(), threading.Event()

    def hold(module: nn.Module, args: object) -> None:
        inside.set()
        assert done.wait(60)

    second.register_forward_pre_hook(hold)
    results: list[Tensor] = []

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = second

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    def run() -> None:
        with lxt.attnlrp.context(outer := Outer()):
            y = outer(x)
        results.append(torch.autograd.grad(y.sum(), x)[0])

    thread = threading.Thread(target=run)
    thread.start()
    assert inside.wait(60)
    with lxt.attnlrp.context(first):
        first(x)
    done.set()
    thread.join()
    assert torch.equal(results[0], expected)
    assert first.weight.requires_grad


def test_a_parameter_replaced_during_the_forward_is_handed_back() -> None:
    """As offloading does."""
    model = nn.Linear(4, 4, dtype=torch.float64)

    def replace(module: nn.Module, args: object) -> None:
        weight = module.weight
        module.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)

    outer = nn.Sequential(model)
    model.register_forward_pre_hook(replace)
    total, part = relevances(outer, tensor(3, 4))
    assert model.weight.requires_grad
    assert part == pytest.approx(total - 3 * float(model.bias.sum()))


def test_lazy_and_compiled_models_are_refused() -> None:
    lazy = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2))
    with pytest.raises(InvalidModel, match="'1'.*run the model once"):
        lxt.attnlrp.register(lazy)
    assert all(parameter.requires_grad for parameter in lazy.parameters())
    with pytest.raises(InvalidModel, match="compiled"):
        lxt.attnlrp.register(torch.compile(nn.SiLU()))
    (part := nn.SiLU()).compile()
    with pytest.raises(InvalidModel, match="compiled"):
        lxt.attnlrp.register(nn.Sequential(part))


def test_a_stale_view_under_a_backward_hook() -> None:
    model = nn.Linear(4, 4, dtype=torch.float64)
    outer = nn.Sequential(OrderedDict(inner=model))
    outer.forward = lambda x: stale(model, x)  # type: ignore[method-assign]
    model.register_full_backward_hook(lambda *_: None)
    x = tensor(4, 4)
    total, part = relevances(outer, x)
    assert part == pytest.approx(total - 4 * float(model.bias.sum()))


def stale(model: nn.Module, x: Tensor) -> Tensor:
    base = x * 1
    view = base.t()
    base.mul_(2)
    return model(view)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return g * 7


@dataclass
class Output:
    logits: Tensor


@pytest.mark.parametrize("wrap", [Output, lambda y: [y], lambda y: {"y": y}, lambda y: y])
def test_an_unseen_operation_at_the_very_end(wrap) -> None:
    model = Call(lambda x: wrap(Doubled.apply(x)))
    with pytest.raises(UnknownOperation, match="Doubled"), lxt.attnlrp.context(model):
        model(tensor(3))


def test_gates_of_cp_lrp() -> None:
    """What a non-linearity put out is a gate, on the way that models write it; a power is none."""
    for gate in (
        lambda x: F.silu(x, inplace=True),
        lambda x: x.sigmoid_(),
        lambda x: F.silu(x).masked_fill(x < 0, 0.0),
        lambda x: torch.cat([F.silu(x)], -1),
        lambda x: F.silu(x) * 2.0,
    ):
        for product in (
            torch.mul,
            lambda a, b: torch.einsum("ij,ij->ij", a, b),
            lambda a, b: torch.addcmul(torch.zeros(3, 4, dtype=a.dtype), a, b),
        ):
            total, to_gate, to_other = relevances(
                lambda x, y, g=gate, p=product: p(g(x * 1), y),
                tensor(3, 4),
                tensor(3, 4, seed=1),
                composite=lxt.cp_lrp,
            )
            assert to_gate == 0
            assert to_other == pytest.approx(total)
    for other in (torch.square, lambda x: x**2, lambda x: x.clamp(-9, 9), torch.abs):
        total, part, rest = relevances(
            lambda x, y, f=other: f(x) * y, tensor(3, 4), tensor(3, 4, seed=1), composite=lxt.cp_lrp
        )
        assert part == pytest.approx(total / 2)
        assert rest == pytest.approx(total / 2)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "call",
    [
        lambda x, y: torch.addcmul(torch.ones_like(x), 0.5, x, y),
        lambda x, y: torch.addmm(1.0, torch.ones(4, 4, dtype=x.dtype), 1.0, x, y),
    ],
)
def test_numbers_between_the_operands_are_refused(call) -> None:
    with pytest.raises(UnknownOperation, match="by name"):
        relevances(call, tensor(4, 4), tensor(4, 4, seed=1))


def test_a_weight_written_to_before_the_backward_pass_is_noticed() -> None:
    for model in (nn.LayerNorm(4), nn.RMSNorm(4), nn.GroupNorm(2, 4)):
        x = torch.rand(3, 4, requires_grad=True)
        with lxt.attnlrp.context(model):
            y = model(x)
        with torch.no_grad():
            model.weight.mul_(3)
        with pytest.raises(RuntimeError, match="inplace operation"):
            y.sum().backward()


def test_softplus_over_its_threshold() -> None:
    total, part = relevances(lambda x: F.softplus(x, 1.0, 1.0), x := tensor(9) * 3)
    at_zero = float(F.softplus(torch.zeros(9, dtype=torch.float64), 1.0, 1.0).sum())
    assert part == pytest.approx(total - at_zero)
    assert x.shape == (9,)


def test_calling_a_part_of_the_model_only_is_warned_of() -> None:
    model = nn.Sequential(nn.SiLU())
    with (
        pytest.warns(UnusedCompositeWarning, match="Sequential was not called"),
        lxt.attnlrp.context(model),
    ):
        model[0](tensor(3))


def test_a_forward_with_nothing_to_explain_is_warned_of() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.warns(UnusedCompositeWarning, match="parameters are constants"):  # noqa: SIM117
        with lxt.attnlrp.context(model):
            model(torch.ones(3))


def test_names_that_match_no_module() -> None:
    model = nn.Sequential(OrderedDict(act=nn.SiLU()))
    with pytest.raises(InvalidComposite, match=r"'layers\.\*\.act'.*'act'"):
        (lxt.attnlrp | {"layers.*.act": lxt.rules.unit}).register(model)
    assert "forward" not in model.__dict__


def test_equal_composites_have_equal_hashes() -> None:
    assert lxt.attnlrp | {} == lxt.attnlrp
    assert hash(lxt.attnlrp | {}) == hash(lxt.attnlrp)


def test_a_unit_put_in_after_registering() -> None:
    model = nn.Sequential(nn.Identity())
    handle = (lxt.attnlrp | {Squash: lxt.rules.unit}).register(model)
    model[0] = Squash()
    x = tensor(5)
    (gradient,) = torch.autograd.grad(model(x).sum(), x)
    handle.remove()
    assert torch.allclose(gradient, torch.sigmoid(x))


class Squash(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


def test_nothing_is_kept_alive_after_removal() -> None:
    """Not even until the next garbage collection: models are large."""
    gc.collect()
    gc.disable()
    try:
        model = nn.Sequential(Squash(), nn.Linear(4, 4))
        with (lxt.attnlrp | {Squash: lxt.rules.unit}).context(model):
            model(torch.rand(2, 4, requires_grad=True)).sum().backward()
        references = [weakref.ref(module) for module in model.modules()]
        del model
        assert [reference() for reference in references] == [None] * 3
    finally:
        gc.enable()


def test_a_deep_copy_keeps_a_forward_of_the_instance() -> None:
    model = Call(F.silu)
    model.forward = Answer()  # type: ignore[method-assign]
    with lxt.attnlrp.context(model):
        twin = copy.deepcopy(model)
        model(tensor(3))
    assert float(twin(tensor(3))) == 42


class Answer:
    def __call__(self, x: Tensor) -> Tensor:
        return torch.tensor(42.0)


def test_many_backward_hooks_are_no_burden() -> None:
    """Each makes a node that no function shows; looking them up must not get slower with each."""
    model = nn.Sequential(*[nn.Identity() for _ in range(600)])
    for module in model:
        module.register_full_backward_hook(lambda *_: None)
    total, part = relevances(model, tensor(3))
    assert part == pytest.approx(total)


def test_a_gate_is_one_behind_a_hook_too() -> None:
    """A backward hook on a module puts a node of its own behind it."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up, self.act = nn.Linear(3, 4), nn.Linear(3, 4), nn.SiLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.gate(x)) * self.up(x)

    torch.manual_seed(0)
    model = Gated()
    x = torch.randn(2, 3, requires_grad=True)
    gradients = []
    for _ in range(2):
        with lxt.cp_lrp.context(model):
            y = model(x)
        gradients.append(torch.autograd.grad(y.sum(), x)[0])
        model.act.register_full_backward_hook(lambda *_: None)
    assert torch.equal(*gradients)
    expected = (model.act(model.gate(x)) @ model.up.weight).detach()
    assert torch.allclose(gradients[0], expected, atol=1e-6)
