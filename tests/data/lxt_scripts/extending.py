"""A model of one's own, with a patch map part by part and rules in its own code."""

from functools import partial

import torch
from torch import nn

from lxt.efficient import monkey_patch
from lxt.efficient.patches import (
    dropout_forward,
    gated_mlp_forward,
    layer_norm_forward,
    patch_method,
)
from lxt.efficient.rules import divide_gradient, identity_rule_implicit, stop_gradient


class GatedMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(6, 8), nn.Linear(6, 8)
        self.down_proj, self.act_fn = nn.Linear(8, 6), nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Squash(nn.Module):
    def forward(self, x):
        return torch.tanh(x) * nn.functional.silu(x)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(6), GatedMLP()
        self.squash, self.dropout = Squash(), nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.squash(x + self.mlp(self.norm(x))))


def squash_forward(self, x):
    left = identity_rule_implicit(torch.tanh, x)
    return divide_gradient(left * identity_rule_implicit(nn.functional.silu, x), 2)


def plain_squash_forward(self, x):
    return torch.tanh(x) * stop_gradient(nn.functional.silu(x))


def run(modeling, squash, x):
    torch.manual_seed(0)
    model = modeling.Model().double().train()
    monkey_patch(
        modeling,
        {
            modeling.GatedMLP: partial(patch_method, gated_mlp_forward),
            modeling.Squash: partial(patch_method, squash),
            nn.LayerNorm: partial(patch_method, layer_norm_forward),
            nn.Dropout: partial(patch_method, dropout_forward),
        },
        verbose=True,
    )
    x = x.detach().requires_grad_()
    model(x).sum().backward()
    return model, (x * x.grad).detach()
