"""A composite of modules and functions, with dummy inputs."""

import operator

import torch
from torch import nn

import lxt.explicit.functional as lf
from lxt.explicit import rules
from lxt.explicit.core import Composite


class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.scores, self.values = nn.Linear(10, 20), nn.Linear(10, 20)

    def forward(self, x):
        return nn.functional.softmax(self.scores(x), -1) + self.values(x)


torch.manual_seed(0)
model = Mixture().double()
lrp = Composite(
    {
        nn.Linear: rules.EpsilonRule,
        operator.add: lf.add2,
        nn.functional.softmax: lf.softmax,
    }
)
x = torch.randn(1, 8, 10).double().requires_grad_()
traced = lrp.register(model, dummy_inputs={"x": x}, verbose=True)
print(traced)
y = traced(x)
y.backward(y)
relevance = x.grad
