"""A composite of modules on a Sequential with a norm of one's own; undone in the end."""

import torch
from torch import nn

import lxt.explicit.functional as lf
from lxt.explicit import rules
from lxt.explicit.core import Composite


class RootMeanSquareNorm(nn.Module):
    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


torch.manual_seed(0)
weight, bias = torch.randn(4, 6).double(), torch.randn(4).double()
inputs = torch.randn(3, 6).double().requires_grad_()
y = lf.linear_epsilon(inputs, weight, bias)
y.backward(y)
linear = inputs.grad

model = nn.Sequential(nn.Linear(10, 10), RootMeanSquareNorm()).double()
before = str(model)
lrp = Composite({nn.Linear: rules.EpsilonRule, RootMeanSquareNorm: rules.IdentityRule})
lrp.register(model, verbose=True)
print(model)
x = torch.randn(5, 10).double().requires_grad_()
y = model(x)
y.backward(y)
relevance = x.grad
lrp.remove()
