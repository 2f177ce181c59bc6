"""What hides a non-linearity is refused by name; what is used twice is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import silu as imported_silu
from torch.utils.checkpoint import checkpoint

import odd_models
from lxt.composites import attnlrp
from lxt.rules import unit
from naive_functions import FUNCTIONS, secant
from odd_models import Cube, DirtyCube, Odd, assert_refused, model_of, operand, upstream
from operations import assert_close

# --- autograd Functions ---------------------------------------------------------------------------

USES: dict[str, Callable[[Odd, Callable[[Tensor], Tensor], Tensor], Any]] = {
    "the output": lambda _, f, x: f(x),
    "in a list": lambda _, f, x: [f(x)],
    "added to": lambda _, f, x: f(x) + 1,
    "put into a constant": lambda _, f, x: torch.zeros_like(x).index_put_((torch.arange(3),), f(x)),
    "read by a unit": lambda model, f, x: model.block[1](f(x)),
    "the output of a checkpoint": lambda _, f, x: checkpoint(f, x, use_reentrant=False),
    "within a checkpoint": lambda _, f, x: checkpoint(lambda v: f(v) + 1, x, use_reentrant=False),
    "in a residual": lambda _, f, x: x + x * f(x),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", odd_models.FUNCTIONS)
def test_an_autograd_function_is_refused(name: str, use: str) -> None:
    function = odd_models.FUNCTIONS[name]
    # Only what it hands on unchanged, or a view of it, may stand in between.
    shown = "CopySlices" if name == "DirtyCube" else name
    assert_refused(lambda model, x: USES[use](model, function, x), f"{name}|{shown}")


def test_an_autograd_function_that_writes_to_its_operand_and_is_not_read() -> None:
    def wholly(_: Odd, x: Tensor) -> Tensor:
        x = x.clone()
        DirtyCube.apply(x)
        return x + 1

    def partly(_: Odd, x: Tensor) -> Tensor:
        x = x.clone()
        DirtyCube.apply(x[0])
        return x + 1

    assert_refused(wholly, "DirtyCube")
    assert_refused(partly, "CopySlices")


# --- ways out of torch ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("way", odd_models.WAYS_OUT)
def test_values_that_leave_torch_are_refused(way: str) -> None:
    function = odd_models.WAYS_OUT[way]
    assert_refused(lambda _, x: function(x) + x, "takes values out of sight")


@pytest.mark.parametrize("way", odd_models.UNSEEN_WRITES)
def test_writes_that_no_graph_shows_are_refused(way: str) -> None:
    function = odd_models.UNSEEN_WRITES[way]
    assert_refused(lambda _, x: function(x), "it writes to a tensor that depends on")


def test_writes_that_no_graph_shows_are_left_to_autograd_where_one_says_so() -> None:
    for function in odd_models.UNSEEN_WRITES.values():
        model, x = model_of(lambda _, x, f=function: f(x)), operand()
        with attnlrp.context(model, on_unknown="gradient"):
            y = model(x * 1)
        assert torch.equal(y, function(x.detach()))
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.ones_like(x))


def test_ways_out_are_left_to_autograd_where_one_says_so() -> None:
    model, x = model_of(lambda _, x: x * x.mean().item()), operand()
    with attnlrp.context(model, on_unknown="gradient"):
        y = model(x * 1)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], x.mean().detach().expand_as(x))


SOUND: dict[str, tuple[Callable[[Odd, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "a detached tensor": (lambda _, x: x * x.detach().sigmoid(), lambda x: x.sigmoid()),
    "a write to a copy": (
        lambda _, x: x * x.detach().clone().mul_(0).add_(3),
        lambda x: 3 * torch.ones_like(x),
    ),
    "a write to a copy without a graph": (
        lambda _, x: x * torch.no_grad()(lambda: x.clone().mul_(0).add_(3))(),
        lambda x: 3 * torch.ones_like(x),
    ),
    "a write to what was computed of a detached tensor": (
        lambda _, x: x * (x.detach() * 1).sigmoid_(),
        lambda x: x.sigmoid(),
    ),
    "a write to what nobody else has": (
        lambda _, x: x * (x * 2).detach().sigmoid_(),
        lambda x: (2 * x).sigmoid(),
    ),
    "a number of a detached tensor": (
        lambda _, x: x * x.detach().mean().item(),
        lambda x: x.mean().expand_as(x),
    ),
    "control flow": (lambda _, x: x * 2 if x.mean() > -9 else x, lambda x: 2 * torch.ones_like(x)),
    "lengths": (lambda _, x: x * (x > -9).sum().item(), lambda x: 12 * torch.ones_like(x)),
    "an index": (lambda _, x: x * int(x[0].argmax() >= 0), torch.ones_like),
    "memory of a constant": (
        lambda _, x: x * torch.from_numpy(odd_models.ONE.numpy() * 3),
        lambda x: 3 * torch.ones_like(x),
    ),
    "a look at it": (lambda _, x: (torch.no_grad()(lambda: x.numpy(force=True))(), x * 2)[1],
                     lambda x: 2 * torch.ones_like(x)),
    "a plain subclass": (lambda _, x: F.relu(x.as_subclass(odd_models.Plain)),
                         lambda x: (x > 0).double()),
    "a parameter's subclass": (
        lambda _, x: x * odd_models.PlainParameter(odd_models.ONE * 3, requires_grad=False),
        lambda x: 3 * torch.ones_like(x),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_what_is_sound_goes_on_working(name: str) -> None:
    function, wanted = SOUND[name]
    model, x = model_of(function), operand()
    with attnlrp.context(model):
        y = model(x * 1)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert_close(gradient, wanted(x.detach()), 1e-15)


def test_hooks_may_look_at_values() -> None:
    seen: list[Any] = []
    model, x = model_of(lambda model, x: model.activation(x)), operand()
    model.activation.register_forward_hook(
        lambda *args: seen.append((args[2].detach().numpy(), args[2].mean().item()))
    )
    with attnlrp.context(model):
        model(x * 1)
    assert len(seen) == 1


# --- operators and tensors that no rule sees through ----------------------------------------------


@pytest.mark.parametrize("kind", odd_models.OPERATORS)
def test_opaque_operators_are_refused(kind: str) -> None:
    function, name = odd_models.OPERATORS[kind]
    assert_refused(lambda _, x: function(x), name)
    assert_refused(lambda _, x: function(x) + x, name)


@pytest.mark.parametrize("kind", odd_models.SUBCLASSES)
def test_operands_that_compute_by_themselves_are_refused(kind: str) -> None:
    function, name = odd_models.SUBCLASSES[kind]
    assert_refused(function, name)


# --- one thing twice, and other ways to call ------------------------------------------------------


def slopes(name: str, x: Tensor) -> Tensor:
    function = FUNCTIONS[name]
    found = [secant(function, v) for v in x.flatten().tolist()]
    return torch.tensor(found, dtype=torch.float64).view_as(x)


class Recursive(nn.Module):
    """Calls itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, depth: int = 2) -> Tensor:
        return x if depth == 0 else self(F.silu(self.linear(x)), depth - 1)


def through(
    weight: Tensor, bias: Tensor, name: str, x: Tensor, times: int
) -> Callable[..., Tensor]:
    """The gradient of `times` layers f(W x + b), by their secants, layer by layer."""
    seen = []
    for _ in range(times):
        x = x @ weight.T + bias
        seen.append(slopes(name, x))
        x = x * seen[-1]

    def pull(g: Tensor) -> Tensor:
        for slope in reversed(seen):
            g = (g * slope) @ weight
        return g

    return pull


def twice(model: Odd, x: Tensor) -> Tensor:
    return model.block(model.block(x))


def by_forward(model: Odd, x: Tensor) -> Tensor:
    first, second = model.block
    return second.forward(first.forward(second.forward(first.forward(x))))


def tied(model: Odd, x: Tensor) -> Tensor:
    first: Any = model.block[0]
    model.linear.weight, model.linear.bias = first.weight, first.bias
    return F.gelu(model.linear(model.block(x)))


LAYERED = {"a block twice": twice, "forward itself": by_forward, "tied weights": tied}


@pytest.mark.parametrize("name", LAYERED)
def test_one_module_used_twice(name: str) -> None:
    model, x, g = model_of(LAYERED[name]), operand(), upstream()
    with attnlrp.context(model):
        y = model(x * 1)
    assert torch.equal(y, model(x.detach()))
    (gradient,) = torch.autograd.grad(y, x, g)
    weight, bias = (p.detach() for p in model.block[0].parameters())
    assert_close(gradient, through(weight, bias, "gelu", x.detach(), 2)(g), 1e-9)


def test_a_module_that_calls_itself() -> None:
    torch.manual_seed(0)
    model, x, g = Recursive().double(), operand(), upstream()
    with attnlrp.context(model):
        y = model(x * 1)
    (gradient,) = torch.autograd.grad(y, x, g)
    weight, bias = (p.detach() for p in model.linear.parameters())
    assert_close(gradient, through(weight, bias, "silu", x.detach(), 2)(g), 1e-12)


def into_a_view(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :2].mul_(y[:, 2:].clone())
    return y


ELEMENT_BY_ELEMENT: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "imported at the top": (imported_silu, lambda x: slopes("silu", x)),
    "a method": (lambda x: x.sigmoid(), lambda x: slopes("sigmoid", x)),
    "in place": (lambda x: x.clone().sigmoid_(), lambda x: slopes("sigmoid", x)),
    "F.silu in place": (lambda x: F.silu(x.clone(), inplace=True), lambda x: slopes("silu", x)),
    "a dunder": (lambda x: x.__mul__(x.__add__(1)), lambda x: (x + 1) / 2 + x / 2),
    "a number first": (lambda x: 2 - 3 * x, lambda x: -3 * torch.ones_like(x)),
    "a number's method": (lambda x: x.__rmul__(3.0), lambda x: 3 * torch.ones_like(x)),
    "a compiled function": (
        torch.compile(lambda x: x.sigmoid() * x, backend="aot_eager"),
        lambda x: (x.sigmoid() + slopes("sigmoid", x) * x) / 2,
    ),
    "torch._C._nn": (lambda x: torch._C._nn.gelu(x), lambda x: slopes("gelu", x)),  # pyright: ignore[reportAttributeAccessIssue]
    "torch._VF": (lambda x: torch._VF.tanh(x), lambda x: slopes("tanh", x)),  # pyright: ignore[reportAttributeAccessIssue]
}


@pytest.mark.parametrize("name", ELEMENT_BY_ELEMENT)
def test_other_ways_to_call(name: str) -> None:
    function, wanted = ELEMENT_BY_ELEMENT[name]
    model, x, g = model_of(lambda _, x: function(x)), operand(), upstream()
    with attnlrp.context(model):
        y = model(x * 1)
    (gradient,) = torch.autograd.grad(y, x, g)
    assert_close(gradient, g * wanted(x.detach()), 1e-12)


def test_a_product_written_into_a_view() -> None:
    model, x = model_of(lambda _, x: into_a_view(x)), operand()
    with attnlrp.context(model):
        y = model(x * 1)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    v = x.detach()
    wanted = torch.cat((v[:, 2:] / 2, 1 + v[:, :2] / 2), 1)
    assert_close(gradient, wanted, 1e-15)


def test_a_cube_that_a_rule_covers_is_right() -> None:
    """The same model, with the odd part in a module that has a rule."""

    class Hidden(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Cube.apply(x)

    model, x = nn.Sequential(nn.Identity(), Hidden()), operand()
    with (attnlrp | {Hidden: unit}).context(model):
        y = model(x * 1)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert_close(gradient, x.detach() ** 2, 1e-12)


# --- operands that are written to later -----------------------------------------------------------


def sigmoid_secant(x: Tensor) -> Tensor:
    slopes = [secant(FUNCTIONS["sigmoid"], v) for v in x.flatten().tolist()]
    return torch.tensor(slopes, dtype=torch.float64).view_as(x)


def then(write: Callable[[Tensor], Any]) -> Callable[[Odd, Tensor], Tensor]:
    """σ(y) of a y that is written to afterwards, and used no more."""

    def function(_: Odd, x: Tensor) -> Tensor:
        y = x * 1
        gate = torch.sigmoid(y)
        write(y)
        return gate

    return function


LATER_WRITES: dict[str, Callable[[Tensor], Any]] = {
    "add_": lambda y: y.add_(1),
    "zero_": lambda y: y.zero_(),
    "twice": lambda y: y.mul_(2).sigmoid_(),
    "a part": lambda y: y[0].add_(1),
    "an item": lambda y: y.__setitem__((0, 1), 5.0),
    "a view": lambda y: y.view(-1).mul_(3),
    "inplace": lambda y: F.relu(y, inplace=True),
}


@pytest.mark.parametrize("write", LATER_WRITES)
@pytest.mark.parametrize("formulation", ["gradient", "explicit"])
def test_an_operand_may_be_written_to_later(formulation: str, write: str) -> None:
    model, x, g = model_of(then(LATER_WRITES[write])), operand(), upstream()
    values = x.detach()
    slope = sigmoid_secant(values)
    if formulation == "gradient":
        with attnlrp.context(model):
            y = model(x)
        wanted = g * slope
    else:
        with odd_models.COMPOSITES["explicit attnlrp"].context(model):
            y = model(x)
        g = g * y.detach()
        wanted = g / y.detach() * slope * values
    assert torch.equal(y, torch.sigmoid(values))
    assert_close(torch.autograd.grad(y, x, g)[0], wanted, 1e-6)


def test_an_operand_may_be_written_to_later_within_a_checkpoint() -> None:
    def body(x: Tensor) -> Tensor:
        y = x * 1
        gate = torch.sigmoid(y)
        y.add_(1)
        return gate + torch.sigmoid(y)

    model = model_of(lambda _, x: checkpoint(body, x, use_reentrant=False))
    x, g = operand(), upstream()
    with attnlrp.context(model):
        y = model(x)
    values = x.detach()
    wanted = g * (sigmoid_secant(values) + sigmoid_secant(values + 1))
    assert_close(torch.autograd.grad(y, x, g)[0], wanted, 1e-14)


def test_swish_in_place_is_a_product_of_two() -> None:
    def function(_: Odd, x: Tensor) -> Tensor:
        y = x * 1
        y *= torch.sigmoid(y)
        y += 1
        return y

    model, x, g = model_of(function), operand(), upstream()
    with attnlrp.context(model):
        y = model(x)
    values = x.detach()
    wanted = g * (values.sigmoid() + values * sigmoid_secant(values)) / 2
    assert_close(torch.autograd.grad(y, x, g)[0], wanted, 1e-14)
