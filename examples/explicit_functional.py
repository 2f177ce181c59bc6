"""Writing LRP out: functions whose backward pass takes and returns relevance.

An attention block, written once with torch's functions and once with those of
`lxt.explicit.functional`: same values, but what arrives as `.grad` is the relevance.

Weights: random; what holds here holds for any.
Prints that both agree in their values; what the rules conserve of the relevance put in; and how
`conservation_check` catches an operation that was forgotten.

    python examples/explicit_functional.py
"""

import torch
import torch.nn.functional as F
from _common import arguments
from torch import Tensor

import lxt.explicit.functional as lf
from lxt.explicit.check import conservation_check

WORDS, FEATURES = 6, 16


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64) / shape[-1] ** 0.5


def block(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """One attention head and one linear layer, each added to its input, with torch's functions."""
    query, key, value = (F.linear(x, weights[name]) for name in ("query", "key", "value"))
    scores = torch.matmul(query, key.transpose(-1, -2)) * FEATURES**-0.5
    attended = torch.matmul(F.softmax(scores, -1), value)
    x = torch.add(x, F.linear(attended, weights["out"]))
    return torch.add(x, F.linear(F.rms_norm(x, (FEATURES,), weights["norm"], 1e-6), weights["mlp"]))


def explicit_block(x: Tensor, weights: dict[str, Tensor], forget: bool = False) -> Tensor:
    """The same block with LRP's rules; `forget` leaves one addition as it was."""
    query, key, value = (lf.linear_epsilon(x, weights[name]) for name in ("query", "key", "value"))
    scores = lf.mul2(lf.matmul(query, key.transpose(-1, -2)), FEATURES**-0.5)
    attended = lf.matmul(lf.softmax(scores, -1), value)
    x = lf.add2(x, lf.linear_epsilon(attended, weights["out"]))
    transformed = lf.linear_epsilon(lf.rms_norm_identity(x, weights["norm"], 1e-6), weights["mlp"])
    return x + transformed if forget else lf.add2(x, transformed)


def main() -> None:
    arguments(__doc__).parse_args()
    torch.manual_seed(0)
    x = random(WORDS, FEATURES).requires_grad_()
    weights = {name: random(FEATURES, FEATURES) for name in ("query", "key", "value", "out", "mlp")}
    weights["norm"] = 1 + random(FEATURES)

    y = explicit_block(x, weights)
    print(f"largest difference of the values   {(y - block(x, weights)).abs().max():.1e}")

    # One rule: all relevance arrives, but for what ε takes. A bias would absorb its share, too.
    explained = lf.linear_epsilon(x, weights["mlp"]).max()
    (relevance,) = torch.autograd.grad(explained, x, explained)
    print(f"a linear layer     put in {explained:.6f}   arrived {relevance.sum():.6f}")

    # The whole block: the softmax's Taylor expansion has a bias, which absorbs a part by intent.
    explained = y.max()
    (relevance,) = torch.autograd.grad(explained, x, explained)
    print(f"the block          put in {explained:.6f}   arrived {relevance.sum():.6f}")

    # So a sum that shrank proves nothing. The check spreads relevance evenly in place of the rules:
    # then all of it arrives if, and only if, every operation is one that hands relevance on.
    for name, forget in (("complete", False), ("with a plain +", True)):
        y = explicit_block(x, weights, forget)
        with conservation_check():
            (relevance,) = torch.autograd.grad(y, x, torch.ones_like(y))
        print(f"check, {name:14}  put in {y.numel()}   arrived {relevance.sum():.6f}")


if __name__ == "__main__":
    main()
