"""A model of your own: what rules it needs by hand, and what it needs here, which is nothing.

A transformer block that no library knows, explained three ways: with the rules written into its
code, as LXT's page on extending it describes (a patch map puts that code in place); by AttnLRP,
which finds the rules by the operations; and, for an activation composed of several operations,
by AttnLRP and one more entry.

Weights: random; what holds here holds for any.
Prints how far the relevances are apart.

    python examples/extending.py
"""

from functools import partial

import torch
import torch.nn.functional as F
from _common import arguments
from torch import Tensor, nn

import lxt
from lxt.efficient import monkey_patch
from lxt.efficient.patches import patch_method
from lxt.efficient.rules import divide_gradient, identity_rule_implicit, stop_gradient

SIZE = 16


class Norm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(SIZE, SIZE) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))


class GatedMLP(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(SIZE, SIZE) for _ in range(3))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.norm, self.attention, self.mlp = Norm(), Attention(), GatedMLP(activation)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))
        return x + self.mlp(self.norm(x))


class Mish(nn.Module):
    """An activation composed of several operations; AttnLRP alone takes it apart."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tanh(F.softplus(x))


# The same forwards with the rules written in.


def norm_by_hand(self: Norm, x: Tensor) -> Tensor:
    deviation = (x.var(-1, keepdim=True) + 1e-6).sqrt()
    return (x - x.mean(-1, keepdim=True)) / stop_gradient(deviation)


def attention_by_hand(self: Attention, x: Tensor) -> Tensor:
    query, key = divide_gradient(self.query(x), 2), divide_gradient(self.key(x), 2)
    attended = F.scaled_dot_product_attention(query, key, self.value(x))
    return divide_gradient(attended, 2)


def mlp_by_hand(self: GatedMLP, x: Tensor) -> Tensor:
    gate = identity_rule_implicit(self.activation, self.gate(x))
    return self.down(divide_gradient(gate * self.up(x), 2))


BY_HAND = {
    Norm: partial(patch_method, norm_by_hand),
    Attention: partial(patch_method, attention_by_hand),
    GatedMLP: partial(patch_method, mlp_by_hand),
}


def relevance_of(model: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    model(x)[0, -1].max().backward()
    return (x * x.grad).sum(-1)


def main() -> None:
    arguments(__doc__).parse_args()
    torch.manual_seed(0)
    x = torch.randn(1, 5, SIZE)

    model = Block(nn.SiLU())
    with monkey_patch(model, BY_HAND):
        by_hand = relevance_of(model, x)
    with lxt.attnlrp.context(model):
        found = relevance_of(model, x)
    print(f"relevance by hand             {by_hand.sum():+.4f}")
    print(f"AttnLRP differs from it by    {(found - by_hand).abs().max():.1e}")

    model = Block(Mish())
    with monkey_patch(model, BY_HAND):
        by_hand = relevance_of(model, x)
    with lxt.attnlrp.context(model):
        taken_apart = relevance_of(model, x)
    with (lxt.attnlrp | {Mish: lxt.rules.unit}).context(model):
        as_a_unit = relevance_of(model, x)
    print("with an activation of several operations:")
    print(f"AttnLRP differs by            {(taken_apart - by_hand).abs().max():.1e}")
    print(f"and with one entry more by    {(as_a_unit - by_hand).abs().max():.1e}")


if __name__ == "__main__":
    main()
