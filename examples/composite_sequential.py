"""Rules by module: a table from module classes to rules of LRP, put on a model and taken off again.

Weights: random; what holds here holds for any.
Prints the model without rules, with them, and after they were taken off, and that a rule on a
module and a module that stands in for it give the same relevance.

    python examples/composite_sequential.py
"""

import torch
from _common import arguments
from torch import Tensor, nn

import lxt.explicit.modules as lm
from lxt.explicit import rules
from lxt.explicit.core import Composite


class RootMeanSquareNorm(nn.Module):
    """A norm as a model of your own might have one, of which no library knows."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size) + 0.5)
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()


def relevance_of(model: nn.Module, x: Tensor) -> Tensor:
    """The relevance of the input for the largest output, which is put in as it is."""
    x = x.clone().requires_grad_()
    y = model(x).max()
    y.backward(y)  # y.backward() would put in 1, and so explain one unit of the output
    return x.grad


def main() -> None:
    arguments(__doc__).parse_args()
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(10, 10, bias=False), RootMeanSquareNorm(10), nn.Linear(10, 4, bias=False)
    )
    x = torch.randn(1, 10)
    print(f"without rules:\n{model}\n")

    by_rule = Composite({nn.Linear: rules.EpsilonRule, RootMeanSquareNorm: rules.IdentityRule})
    by_rule.register(model)
    print(f"with rules:\n{model}\n")
    first = relevance_of(model, x)
    by_rule.remove()
    print(f"after remove():\n{model}\n")

    # Modules that stand in for the model's own, which share its weights, for the length of a block.
    by_module = Composite(
        {nn.Linear: lm.LinearEpsilon, RootMeanSquareNorm: lm.RMSNormIdentity},
    )
    with by_module.context(model):
        second = relevance_of(model, x)

    print(f"explained output           {model(x).max():+.5f}")
    print(f"relevance by rules         {first.sum():+.5f}")
    print(f"relevance by modules       {second.sum():+.5f}")
    print(f"largest difference         {(first - second).abs().max():.1e}")


if __name__ == "__main__":
    main()
