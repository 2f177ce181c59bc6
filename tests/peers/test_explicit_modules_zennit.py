"""Modules of `lxt.explicit.modules` that have a rule of Zennit, too: Zennit's is the one."""

import operator

import pytest
import torch
import torch.nn.functional as F
import zennit.rules as zennit_rules
from torch import Tensor, nn
from zennit.composites import LayerMapComposite, NameMapComposite
from zennit_nets import normal

import lxt.explicit.functional as lf
import lxt.explicit.modules as lm
import lxt.explicit.rules as rules
from lxt.explicit.core import Composite

EPSILON = 1e-6


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.act, self.b = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)
        self.norm, self.weights = nn.LayerNorm(6), nn.Softmax(-1)
        self.rms = nn.RMSNorm(6, 1e-5)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        h = self.rms(self.norm(self.act(self.a(x))))
        return self.b(h + self.weights(h))


STAND_INS = {
    nn.Linear: lm.LinearEpsilon,
    nn.LayerNorm: lm.LayerNormEpsilon,
    nn.Softmax: lm.SoftmaxDT,
    nn.RMSNorm: lm.RMSNormIdentity,
}
OTHERS = {nn.ReLU: rules.IdentityRule, operator.add: lf.add2}


def relevance(model: nn.Module, composite: Composite) -> Tensor:
    x = normal(2, 4).requires_grad_()
    with composite.context(model):
        y = model(x)
        return torch.autograd.grad(y, x, y.detach())[0]


def close(actual: Tensor, expected: Tensor, rtol: float = 1e-12) -> None:
    assert float((actual - expected).norm()) <= rtol * float(expected.norm())


@pytest.mark.parametrize("kind", STAND_INS)
@pytest.mark.parametrize("rule", [zennit_rules.Epsilon(EPSILON), zennit_rules.Norm(EPSILON)])
def test_zennits_rule_takes_the_place_of_a_stand_ins(kind: type[nn.Module], rule) -> None:
    """As it is on torch's own module, to the last digits."""
    model = Net()
    zennit = LayerMapComposite([((kind, STAND_INS[kind]), rule)])
    without = {key: value for key, value in STAND_INS.items() if key is not kind}
    expected = relevance(model, Composite({**OTHERS, **without}, zennit_composite=zennit))
    both = relevance(model, Composite({**OTHERS, **STAND_INS}, zennit_composite=zennit))
    close(both, expected)
    alone = relevance(model, Composite({**OTHERS, **STAND_INS}))
    close(relevance(model, Composite({**OTHERS, **STAND_INS})), alone)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_zennits_epsilon_is_that_of_the_stand_in_up_to_its_sign() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            net = Net()
            self.a, self.act, self.b = net.a, net.act, net.b

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.act(self.a(x)))

    model = Small()
    layer_map = {nn.ReLU: rules.IdentityRule, nn.Linear: lm.LinearEpsilon}
    zennit = LayerMapComposite([(nn.Linear, zennit_rules.Epsilon(EPSILON))])
    both = relevance(model, Composite(layer_map, zennit_composite=zennit))
    close(both, relevance(model, Composite(layer_map)), rtol=1e-3)
    gamma = NameMapComposite([(["a"], zennit_rules.Gamma(0.25))])
    mixed = relevance(model, Composite(layer_map, zennit_composite=gamma))
    x = normal(2, 4).requires_grad_()
    hidden = rules.identity(F.relu, model.a(x))
    y = lf.linear_epsilon(hidden, model.b.weight, model.b.bias)
    gamma.register(model)  # on `a` alone, whose output's gradient is relevance
    hidden = rules.identity(F.relu, model.a(x))
    y = lf.linear_epsilon(hidden, model.b.weight.detach(), model.b.bias.detach())
    (expected,) = torch.autograd.grad(y, x, y.detach())
    gamma.remove()
    close(mixed, expected)


def test_hooks_of_zennit_that_are_there_first_are_kept() -> None:
    model = Net()
    zennit = LayerMapComposite([(nn.Linear, zennit_rules.Epsilon(EPSILON))])
    layer_map = {**OTHERS, **STAND_INS}
    expected = relevance(model, Composite(layer_map, zennit_composite=zennit))
    zennit.register(model)
    first = relevance(model, Composite(layer_map))
    zennit.remove()
    close(first, expected)
