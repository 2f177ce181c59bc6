"""Values that LXT computed, and what tests of explicit functions and rules compare with."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian

GOLDEN = json.loads((Path(__file__).parent / "data" / "golden" / "explicit.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"]}


def value(*shape: int, seed: int = 0, dtype=torch.float64) -> Tensor:
    """Numbers away from 0 of both signs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, dtype=torch.float64, generator=generator) + 0.2
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return (x * sign).to(dtype)


def carrier(*shape: int, seed: int = 0, dtype=torch.float64) -> Tensor:
    return value(*shape, seed=seed, dtype=dtype).requires_grad_()


def relevance(y: Tensor, r: Tensor, *operands: Tensor) -> list[Tensor | None]:
    assert not y._is_view()  # of a custom Function, which could not be written to in place
    return list(torch.autograd.grad(y, operands, r, allow_unused=True, retain_graph=True))


def taylor(function, operands, r, epsilon, share=1) -> list[Tensor]:
    """x_i Σ_j J_ji R_j / (share · y_j + ε), by dense Jacobians and loops."""
    operands = tuple(x.detach().double() for x in operands)
    y = function(*operands)
    if y.numel() == 0:
        return [torch.zeros_like(x) for x in operands]
    jacobians = jacobian(function, operands)
    relevances = []
    for x, j in zip(operands, jacobians, strict=True):
        rows = j.reshape(y.numel(), x.numel())
        total = torch.zeros(x.numel(), dtype=torch.float64)
        for row, y_j, r_j in zip(rows, y.flatten(), r.double().flatten(), strict=True):
            total += x.flatten() * row * r_j / (share * y_j + epsilon)
        relevances.append(total.reshape(x.shape))
    return relevances


def close(ours, theirs, rtol=1e-9) -> None:
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-11)


# What LXT computed


def tensors(case: dict) -> tuple[list[Tensor], dict[str, Tensor], Tensor, Tensor, list[Tensor]]:
    def convert(x):
        return torch.tensor(x, dtype=torch.float64)

    return (
        [convert(x).requires_grad_() for x in case["inputs"]],
        {name: convert(x) for name, x in case["constants"].items()},
        convert(case["output"]),
        convert(case["output_relevance"]),
        [convert(x) for x in case["relevance"]],
    )


def filled(module: nn.Module) -> nn.Module:
    """`module` in float64, with parameters of its own."""
    module.double()
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            parameter.copy_(value(*parameter.shape, seed=seed))
    return module


def linear(*shape: int, bias: bool = True) -> nn.Linear:
    module = nn.Linear(shape[1], shape[0], bias=bias, dtype=torch.float64)
    module.load_state_dict(
        {"weight": value(*shape), **({"bias": value(shape[0], seed=1)} if bias else {})}
    )
    return module
