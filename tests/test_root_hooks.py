"""Hooks of the registered model itself: they run after its forward, where no rule is in force."""

import pytest
import torch
from torch import Tensor, nn

import lxt
from lxt.errors import UnknownOperation

X = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 3)).double()


def relevance(net: nn.Module, **options: str) -> Tensor:
    x = X.clone().requires_grad_()
    with lxt.attnlrp.context(net, **options):
        output = net(x)
    return (x * torch.autograd.grad(output.sum(), x)[0]).detach()


@pytest.mark.parametrize(
    "hook",
    [
        lambda module, args, output: output.tanh(),
        lambda module, args, output: output.mul_(output.detach()),
        lambda module, args, output: [output * 2],
    ],
)
def test_one_that_changes_the_output_is_refused(hook) -> None:
    net = model()
    handle = net.register_forward_hook(hook)
    with pytest.raises(UnknownOperation, match="forward hook of Sequential itself"):
        relevance(net)
    assert list(net._forward_hooks) == [handle.id]


def test_its_plain_gradient_may_be_taken() -> None:
    net = model()
    net.register_forward_hook(lambda module, args, output: output.tanh())
    assert relevance(net, on_unknown="gradient").shape == X.shape
    assert len(net._forward_hooks) == 1


def test_one_that_looks_or_hands_on_is_not() -> None:
    net, seen = model(), []
    expected = relevance(net)
    net.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    net.register_forward_hook(lambda module, args, output: output)
    net.register_full_backward_hook(lambda module, grad_input, grad_output: None)
    assert torch.equal(relevance(net), expected)
    assert len(seen) == 1
    assert len(net._forward_hooks) == 2


def test_one_that_raises_leaves_no_trace() -> None:
    net = model()

    def fail(module: nn.Module, args: object, output: Tensor) -> None:
        raise KeyError("a hook's own error")

    net.register_forward_hook(fail)
    with pytest.raises(KeyError, match="own error"):
        relevance(net)
    assert len(net._forward_hooks) == 1


def test_on_a_part_of_the_model_it_runs_under_the_rules() -> None:
    net = nn.Sequential(model())
    net[0].register_forward_hook(lambda module, args, output: torch.tanh(output))
    written = nn.Sequential(model(), nn.Tanh())
    assert torch.allclose(relevance(net), relevance(written), rtol=1e-12)
