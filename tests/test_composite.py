"""A composite is an immutable table that validates, merges, matches and describes itself."""

import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lxt
from lxt.composites import PRESETS, by_name
from lxt.errors import InvalidComposite, UnknownOperation
from lxt.rules import constant, passthrough, unit


def silu_as_identity(input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    return lxt.gradients.secant(input, F.silu, torch.ones_like)


class Squash(nn.Module):
    """An element-wise function made of several operations."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(2 * x)


class SquashAgain(Squash):
    """A subclass without a forward of its own is the same unit."""


class SquashAndShift(Squash):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


class Block(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(act)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[0](x)


X = torch.linspace(-2, 2, 7, dtype=torch.float64).requires_grad_()


def gradient(composite: lxt.Composite, module: nn.Module) -> torch.Tensor:
    with composite.context(module):
        y = module(X)
    (result,) = torch.autograd.grad(y.sum(), X)
    return result


def test_a_rule_is_a_function_with_the_signature_of_its_operation() -> None:
    composite = lxt.attnlrp | {F.silu: silu_as_identity}
    assert torch.equal(gradient(composite, nn.SiLU()), torch.ones_like(X))
    assert torch.allclose(gradient(lxt.attnlrp, nn.SiLU()), torch.sigmoid(X))


def test_merging_prefers_the_right_side_and_changes_neither() -> None:
    left = lxt.Composite({F.silu: passthrough, F.gelu: passthrough}, name="left")
    right = lxt.Composite({F.silu: constant}, name="right")
    merged = left | right
    assert merged[F.silu] is constant
    assert merged[F.gelu] is passthrough
    assert left[F.silu] is passthrough
    assert len(right) == 1
    assert merged.name == "left | right"
    assert (left | {F.relu: unit})[F.relu] is unit
    with pytest.raises(TypeError):
        left[F.silu] = constant  # type: ignore[index]
    with pytest.raises(TypeError):
        left | [1]  # type: ignore[operator]


def test_merging_keeps_what_becomes_of_unknown_operations() -> None:
    assert (lxt.gradient | {F.silu: unit}).on_unknown == "gradient"
    assert (lxt.attnlrp | lxt.gradient).on_unknown == "error"


@pytest.mark.parametrize(
    "target",
    [
        Squash,
        lxt.ClassPath(f"{Squash.__module__}.Squash"),
        "layers.*.0",
        "layers.0.0",
        "*",
    ],
)
def test_a_module_is_found_by_class_path_or_name(target: object) -> None:
    composite = lxt.attnlrp | {target: unit}
    expected = torch.sigmoid(2 * X)
    expected[3] = 0.5
    assert torch.allclose(gradient(composite, Block(Squash())), expected.detach())
    assert not torch.allclose(gradient(lxt.attnlrp, Block(Squash())), expected.detach())


def test_a_subclass_is_the_same_unit_unless_it_has_its_own_forward() -> None:
    composite = lxt.attnlrp | {Squash: constant}
    for act, found in ((SquashAgain(), True), (SquashAndShift(), False)):
        with composite.context(module := Block(act)):
            assert module(X).requires_grad is not found


def test_a_name_is_preferred_to_a_class_and_a_class_to_functions() -> None:
    block = Block(nn.SiLU())
    by_function = lxt.attnlrp | {F.silu: passthrough}
    by_class = by_function | {nn.SiLU: unit}
    by_module = by_class | {"layers.0.0": constant}
    with by_module.context(block):
        assert not block(X).requires_grad
    assert torch.allclose(gradient(by_class, block), torch.sigmoid(X), atol=1e-6)
    assert not torch.allclose(gradient(by_function, block), torch.sigmoid(X), atol=1e-2)


def test_a_module_rule_that_is_a_function_gets_the_module() -> None:
    def rule(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        assert isinstance(module, Squash)
        return module(x.detach()) * (x / x.detach())  # its own forward, not this rule again

    block = Block(Squash())
    offset = X + 3
    with (lxt.attnlrp | {Squash: rule}).context(block):
        y = block(offset)
    (gradient,) = torch.autograd.grad(y.sum(), X)
    assert torch.allclose(gradient, (Squash()(offset) / offset).detach())


@pytest.mark.parametrize(
    "rule",
    [
        lambda input, inplace=False: 2 * F.silu(input),
        lambda input, inplace=False: F.silu(input)[:1],
        lambda input, inplace=False: [F.silu(input)],
        lambda input, inplace=False: F.silu(input).float(),
        lxt.rules.family(lambda operation, x, inplace=False: operation(x) + 1),
    ],
)
@pytest.mark.parametrize("target", [F.silu, nn.SiLU])
def test_a_rule_that_changes_the_value_is_refused(rule: object, target: object) -> None:
    if target is nn.SiLU and not isinstance(rule, lxt.rules.Family):
        function, rule = rule, lambda module, x: function(x)
    with (
        pytest.raises(InvalidComposite, match="another value"),
        (lxt.attnlrp | {target: rule}).context(module := nn.SiLU()),
    ):
        module(X)


def test_a_rule_with_another_signature_is_refused() -> None:
    with (
        pytest.raises(InvalidComposite, match=r"silu takes \(\), .*inplace.*signature"),
        (lxt.attnlrp | {F.silu: lambda: 1}).context(module := nn.SiLU()),
    ):
        module(X)


def test_without() -> None:
    less = lxt.attnlrp.without(F.silu)
    assert len(less) == len(lxt.attnlrp) - 1
    with pytest.raises(UnknownOperation, match="silu"), less.context(module := nn.SiLU()):
        module(X)
    with pytest.raises(InvalidComposite, match="silu"):
        less.without(F.silu)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({int: passthrough}, "int.*Module"),
        ({nn.SiLU(): passthrough}, "SiLU.*class"),
        ({3: passthrough}, "3 is no target"),
        ({F.silu: 0.5}, "silu is 0.5"),
        ({"layers.*": None}, "None"),
    ],
)
def test_what_is_no_target_or_rule_is_refused_at_once(rules: dict, message: str) -> None:
    with pytest.raises(InvalidComposite, match=message):
        lxt.Composite(rules)
    with pytest.raises(InvalidComposite, match=message):
        lxt.attnlrp | rules


def test_on_unknown_is_validated() -> None:
    with pytest.raises(InvalidComposite, match="ignore"):
        lxt.Composite({}, on_unknown="ignore")  # type: ignore[arg-type]
    with pytest.raises(InvalidComposite, match="ignore"):
        lxt.attnlrp.register(nn.SiLU(), on_unknown="ignore")  # type: ignore[arg-type]


def test_printing_shows_what_is_in_it_in_a_screenful() -> None:
    assert repr(lxt.cp_lrp) == f"Composite('cp_lrp', {len(lxt.cp_lrp)} targets, on_unknown='error')"
    text = str(lxt.attnlrp)
    assert "'attnlrp'" in text
    assert str(len(lxt.attnlrp)) in text
    assert "passthrough" in text
    assert "error" in text
    assert len(text.splitlines()) < 40
    assert all(len(line) < 100 for line in text.splitlines())


def test_presets_by_name() -> None:
    for name in PRESETS:
        assert by_name(name) is getattr(lxt, name)
    with pytest.raises(InvalidComposite, match=r"'atnlrp'.*'attnlrp'.*cp_lrp"):
        by_name("atnlrp")
    with pytest.raises(InvalidComposite, match="there are attnlrp"):
        by_name("")


def test_a_model_that_is_a_target_itself() -> None:
    expected = torch.sigmoid(2 * X)
    expected = torch.where(X == 0, 0.5, expected).detach()
    assert torch.allclose(gradient(lxt.attnlrp | {Squash: unit}, Squash()), expected)
    assert not torch.allclose(gradient(lxt.attnlrp, Squash()), expected)


@pytest.mark.parametrize(
    ("method", "operation"),
    [
        (torch.Tensor.__add__, lambda x: x + x),
        (torch.Tensor.__radd__, lambda x: 1 + x),
        (torch.Tensor.__itruediv__, lambda x: operator.itruediv(x.clone(), 2)),
        (torch.Tensor.__imul__, lambda x: operator.imul(x.clone(), 2)),
        (torch.Tensor.__matmul__, lambda x: x @ x),
        (torch.Tensor.__neg__, lambda x: -x),
    ],
)
def test_the_methods_behind_pythons_operators_are_targets(method: Any, operation: Any) -> None:
    """Torch shows them under other names."""

    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return operation(x) + 0 * x.sum()

    calls = []

    def seen(operation: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(operation)
        return operation(*args, **kwargs)

    model, x = Model(), torch.eye(2, requires_grad=True)
    with (lxt.attnlrp | {method: lxt.rules.family(seen)}).context(model):
        model(x)
    assert calls
