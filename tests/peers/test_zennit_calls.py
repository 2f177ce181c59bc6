"""Zennit's rules as activation · gradient: how a model is run, what is refused, and undoing it."""

import gc
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import zennit.composites
import zennit.core
import zennit.rules as rules
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from zennit_nets import (
    close,
    everywhere,
    gamma,
    mlp,
    modified_gradient,
    normal,
)

import lxt
from lxt.efficient.zennit_patches import monkey_patch_zennit
from lxt.errors import InvalidComposite, MissingPackage, UnknownOperation


@pytest.fixture
def patched() -> Iterator[None]:
    with monkey_patch_zennit():
        yield


@pytest.mark.usefixtures("patched")
def test_gradient_checkpointing_and_a_second_backward() -> None:
    torch.manual_seed(0)
    x = normal(3, 6)

    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([mlp(6, 8, 6), mlp(6, 8, 6)])
            self.checkpointed = False

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                change = (
                    checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
                )
                assert isinstance(change, Tensor)
                x = x + change
            return x

    model = Blocks()
    composite = gamma(0.25, 0.5)
    first = modified_gradient(model, x, composite)
    third = modified_gradient(model, x, composite, seed=lambda y: y[..., 2].sum())
    model.checkpointed = True
    assert close(modified_gradient(model, x, composite), first)
    model.checkpointed = False
    leaf = x.clone().requires_grad_()
    with composite.context(model):
        with lxt.attnlrp.context(model):
            y = model(leaf)
        for seed, expected in ((0, first), (2, third), (0, first)):
            (gradient,) = torch.autograd.grad(y[:, seed].sum(), leaf, retain_graph=True)
            assert close(gradient, expected)


@pytest.mark.usefixtures("patched")
def test_a_module_called_twice_and_a_model_run_twice() -> None:
    """Zennit keeps one slot a module, which its latest call fills."""
    layer = mlp(6, 6)[0]
    once = nn.Sequential(layer, nn.ReLU(), mlp(6, 6)[0], nn.ReLU())
    twice = nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU())
    once[2].load_state_dict(layer.state_dict())
    x = normal(3, 6)
    composite = gamma(0.25, 0.5)
    expected = modified_gradient(once, x, composite, seed=Tensor.sum)
    assert float(expected.norm()) > 0.01
    assert close(modified_gradient(twice, x, composite, seed=Tensor.sum), expected)
    leaf = x.clone().requires_grad_()
    with composite.context(once), lxt.attnlrp.context(once):
        y = once(leaf)
        once(normal(3, 6, seed=1).requires_grad_())
        assert close(torch.autograd.grad(y.sum(), leaf)[0], expected)


@pytest.mark.usefixtures("patched")
def test_no_call_outlives_its_graph() -> None:
    class Mark:
        pass

    marks: list[weakref.ref[Mark]] = []

    class Marked(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.mark = Mark()
            marks.append(weakref.ref(ctx.mark))
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *g: Any) -> Any:
            return g

    model = mlp(4, 3)
    with gamma(0.25, 0.5).context(model):
        y = model(Marked.apply(normal(2, 4).requires_grad_()))
        assert marks[0]() is not None
        del y
        gc.collect()
        assert marks[0]() is None


@pytest.mark.usefixtures("patched")
def test_inactive_rules_and_removed_ones_let_the_gradient_through() -> None:
    model, x = mlp(6, 8, 3), normal(3, 6).requires_grad_()
    composite = gamma(0.25, 0.5)
    plain = modified_gradient(model, x, ours=None)
    with composite.context(model):
        y = model(x)[:, 0].sum()
        with composite.inactive():
            assert close(torch.autograd.grad(y, x, retain_graph=True)[0], plain)
        assert not close(torch.autograd.grad(y, x, retain_graph=True)[0], plain, 1e-2)
        with torch.no_grad():
            assert torch.equal(model(x), model(x.detach()))
    assert close(torch.autograd.grad(y, x)[0], plain)


@pytest.mark.usefixtures("patched")
def test_a_rule_of_ones_own_is_gone_when_removed() -> None:
    layer, x, rule = mlp(4, 3), normal(2, 4).requires_grad_(), rules.Gamma(3)
    plain = modified_gradient(layer, x, ours=None)
    handles = rule.register(layer[0])
    y = layer(x)[:, 0].sum()
    assert not close(torch.autograd.grad(y, x, retain_graph=True)[0], plain, 1e-2)
    handles.remove()
    assert close(torch.autograd.grad(y, x)[0], plain)
    assert rule.stored_tensors == {}


# --- refusals -------------------------------------------------------------------------------------


class Parts(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 0, x * 2


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2)


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize(
    ("module", "count", "message"),
    [
        (nn.Bilinear(3, 3, 2), 2, "several inputs"),
        (Parts(), 1, "a tuple as output"),
        (Doubled(), 1, "overwrites its input"),
    ],
)
def test_what_a_rule_does_not_cover_is_refused(module: nn.Module, count: int, message: str) -> None:
    x = torch.ones(1, 3, requires_grad=True)
    with (
        everywhere(rules.Norm(), type(module)).context(module),
        pytest.raises(UnknownOperation, match=f"Norm on {type(module).__name__}.*{message}"),
    ):
        module(*[x] * count)


@pytest.mark.usefixtures("patched")
def test_pass_wants_one_shape() -> None:
    with pytest.raises(UnknownOperation, match="Pass on Linear.*shapes"):
        modified_gradient(mlp(3, 2), normal(2, 3), everywhere(rules.Pass()))


@pytest.mark.usefixtures("patched")
def test_second_derivatives_are_refused() -> None:
    model, x = mlp(3, 2), normal(2, 3).requires_grad_()
    with gamma(1, 1).context(model), pytest.raises(UnknownOperation, match="create_graph"):
        torch.autograd.grad(model(x).sum(), x, create_graph=True)


# --- patching and undoing -------------------------------------------------------------------------


def methods() -> list[Any]:
    classes = [c for c in vars(rules).values() if isinstance(c, type)]
    return [dict(vars(cls)) for cls in (zennit.core.Hook, zennit.core.BasicHook, *classes)]


def test_removal_leaves_no_trace() -> None:
    before = methods()
    first = monkey_patch_zennit()
    changed = methods()
    assert changed != before
    with monkey_patch_zennit() as second:
        first.remove()
        first.remove()
        assert methods() == changed  # the second holds it still
        assert second is not first
    assert methods() == before
    second.remove()
    assert methods() == before


def test_without_zennit_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zennit.core", None)
    with pytest.raises(MissingPackage, match=r"pip install lxt\[zennit\]"):
        monkey_patch_zennit()


def test_verbose_says_what_is_patched_once(capsys: pytest.CaptureFixture[str]) -> None:
    with monkey_patch_zennit(verbose=True):
        said = capsys.readouterr().out
        with monkey_patch_zennit(verbose=True):
            assert capsys.readouterr().out == ""
    assert "zennit.core.BasicHook.backward" in said
    assert "zennit.rules.Pass.backward" in said


def test_a_composite_keeps_the_form_in_which_it_was_registered() -> None:
    model, x = mlp(3, 4, 2), normal(2, 3)
    with monkey_patch_zennit():
        expected = modified_gradient(model, x, gamma(0.5, 0.5))
    leaf = x.clone().requires_grad_()
    handle = monkey_patch_zennit()
    composite = gamma(0.5, 0.5)
    composite.register(model)
    handle.remove()
    with lxt.attnlrp.context(model):
        y = model(leaf)
    assert close(torch.autograd.grad(y[:, 0].sum(), leaf)[0], expected)
    composite.register(model)  # now in Zennit's own form
    y = model(leaf)[:, 0].sum()
    with monkey_patch_zennit(), pytest.raises(InvalidComposite, match="register the composite aga"):
        y.backward()
