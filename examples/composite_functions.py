"""Rules by function: what a model's code writes as `a + b` or `softmax(a)` gets a rule as well.

Nothing is traced for it, so it works under gradient checkpointing, and the rules come off again.

Weights: random; what holds here holds for any.
Prints a table of what has a rule and what lacks one, first with a forgotten function and then
complete; that relevance is the same under checkpointing; and that the model is afterwards what it
was.

    python examples/composite_functions.py
"""

import operator
import warnings

import torch
from _common import arguments
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lxt.explicit.functional as lf
from lxt.explicit import rules
from lxt.explicit.core import Composite


class Mixer(nn.Module):
    """Two layers, one through a softmax, added to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.chosen = nn.Linear(10, 20)
        self.plain = nn.Linear(10, 20)
        self.checkpointing = False

    def _mix(self, x: Tensor) -> Tensor:
        return torch.nn.functional.softmax(self.chosen(x), -1) + self.plain(x)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self._mix, x, use_reentrant=False) if self.checkpointing else self._mix(x)


def gradient_of(model: nn.Module, x: Tensor) -> Tensor:
    """Autograd's gradient; the relevance where rules are on the model."""
    x = x.clone().requires_grad_()
    y = model(x)
    y.backward(y)
    return x.grad


def main() -> None:
    arguments(__doc__).parse_args()
    torch.manual_seed(0)
    model, x = Mixer(), torch.randn(1, 32, 10)
    before = gradient_of(model, x)

    forgetful = Composite({nn.Linear: rules.EpsilonRule, operator.add: lf.add2})
    print("without a rule for softmax:")
    forgetful.register(model, dummy_inputs={"x": x}, verbose=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gradient_of(model, x)
    print(f"and the model itself warns: {caught[0].message}\n")
    forgetful.remove()

    complete = Composite(
        {
            nn.Linear: rules.EpsilonRule,
            operator.add: lf.add2,  # torch.add and Tensor.add are the same function
            torch.nn.functional.softmax: lf.softmax,
        }
    )
    print("complete:")
    complete.register(model, dummy_inputs={"x": x}, verbose=True)
    relevance = gradient_of(model, x)
    model.checkpointing = True
    recomputed = gradient_of(model, x)
    model.checkpointing = False
    complete.remove()

    print(f"same relevance under checkpointing   {torch.equal(relevance, recomputed)}")
    print(f"rules changed the gradient           {not torch.equal(relevance, before)}")
    print(f"remove() put it back                 {torch.equal(gradient_of(model, x), before)}")


if __name__ == "__main__":
    main()
