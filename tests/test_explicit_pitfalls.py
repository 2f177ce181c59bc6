"""What a hostile review of the explicit formulation found, and it must not do again."""

import operator
import warnings
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lxt
import lxt.explicit.functional as lf
import lxt.explicit.modules as lm
from lxt.errors import InvalidComposite, InvalidModel, UnmappedOperationWarning
from lxt.explicit import explicit_form, rules
from lxt.explicit.core import Composite


class Call(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(3, 4, dtype=torch.float64, requires_grad=True)


def both(composite: lxt.Composite, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance in gradient × input, and explicit."""
    with composite.context(model):
        y = model(x)
    efficient = x.detach() * torch.autograd.grad(y.sum(), x)[0]
    with explicit_form(composite, 1e-12).context(model):
        y = model(x)
    return efficient, torch.autograd.grad(y, x, y.detach())[0]


def relevance(model: nn.Module, x: Tensor) -> Tensor:
    y = model(x)
    return torch.autograd.grad(y, x, y.detach())[0]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * x.sigmoid(),
        lambda x: torch.addcmul(x + 1, x, x.sigmoid(), value=0.5),
        lambda x: torch.einsum("ij,ij->ij", x, x.sigmoid()),
        lambda x: torch.einsum("ij,ij->ij", [x.sigmoid(), x]),
        lambda x: (x + 1).mul_(x.sigmoid()),
        lambda x: (x + 1).addcmul_(x, x.sigmoid()),
        lambda x: F.glu(torch.cat((x, x), -1)),
    ],
)
def test_gates_in_every_kind_of_product(function: Any, x: Tensor) -> None:
    efficient, explicit = both(lxt.cp_lrp, Call(function), x)
    assert torch.allclose(explicit, efficient, rtol=1e-8)
    other, _ = both(lxt.attnlrp, Call(function), x)
    assert not torch.allclose(other, efficient, rtol=1e-2)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class OfDictionary(nn.Module):
    def forward(self, d: dict[str, Tensor]) -> Tensor:
        return d["x"] * 2


def damped(*args: Any, **kwargs: Any) -> Tensor:
    y = torch.add(*args, **kwargs)
    return y * 0.5 + y.detach() * 0.5


def damped_product(x: Tensor, other: Tensor) -> Tensor:
    y = x.clone() * other
    return x.copy_(y * 0.25 + y.detach() * 0.75)


@pytest.mark.parametrize(
    ("rules_of_ones_own", "function"),
    [
        ({torch.add: damped}, lambda x: torch.add(x, x * 2)),
        ({torch.relu: partial(torch.nn.functional.silu)}, lambda x: x + 1),
        ({Tensor.mul_: damped_product}, lambda x: (x + 1).mul_(x)),
        ({Tensor.sigmoid_: lxt.rules.passthrough}, lambda x: (x + 1).sigmoid_()),
        ({torch.einsum: torch.einsum}, lambda x: torch.einsum("ij,ij->i", Pair(x, x + 1))),
    ],
)
def test_the_explicit_form_of_rules_of_ones_own(
    rules_of_ones_own: Any, function: Any, x: Tensor
) -> None:
    efficient, explicit = both(lxt.attnlrp | rules_of_ones_own, Call(function), x)
    assert torch.allclose(explicit, efficient, rtol=1e-8)


def test_the_explicit_form_of_a_module_that_takes_a_dictionary(x: Tensor) -> None:
    part = OfDictionary()

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = part

        def forward(self, x: Tensor) -> Tensor:
            return self.part({"x": x}) + 1

    composite = lxt.attnlrp | {OfDictionary: lambda module, d: d["x"] * 2}
    efficient, explicit = both(composite, Whole(), x)
    assert torch.allclose(explicit, efficient, rtol=1e-8)


def test_a_rule_that_cannot_be_hashed(x: Tensor) -> None:
    class Rule:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, x: Tensor) -> Tensor:
            return x.exp()

    efficient, explicit = both(lxt.attnlrp | {torch.exp: Rule()}, Call(torch.exp), x)
    assert torch.allclose(explicit, efficient, rtol=1e-8)


# --- layer maps -----------------------------------------------------------------------------------

MAP = {
    operator.add: lf.add2,
    operator.mul: lf.mul2,
    operator.matmul: lf.matmul,
    torch.mean: lf.mean,
    F.softmax: lf.softmax,
    F.layer_norm: lf.layer_norm,
}


class Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Any:
        return g[0] * 2


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.add(x, other=x),
        lambda x: torch.add(input=x, other=x),
        lambda x: torch.mul(x, other=x),
        lambda x: torch.matmul(x, other=x.T),
        lambda x: x.mean(axis=1, keepdim=True),
        lambda x: torch.mean(x, dim=-1, keepdim=True),
        lambda x: torch.softmax(x, axis=-1),
        lambda x: x.softmax(-1),
        lambda x: F.layer_norm(x, (4,)) + x,
    ],
)
def test_arguments_by_name_are_understood(function: Any, x: Tensor) -> None:
    model = Call(function)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Composite(MAP).context(model):
            actual = relevance(model, x)
    with explicit_form(lxt.attnlrp, 1e-8).context(model):
        expected = relevance(model, x)
    # The functions of the map stabilise with ε of 1e-6 or 1e-8.
    assert torch.allclose(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x: x.prod(-1), "torch.Tensor.prod"),
        (lambda x: torch.lerp(x, x, 0.3), "torch.lerp"),
        (lambda x: Opaque.apply(x) + x, "Opaque"),
        (lambda x: x.mean(1, dtype=torch.float32), "torch.Tensor.mean .*dtype"),
        (lambda x: F.layer_norm(x, (3, 4)), "layer_norm .*several dimensions"),
        (lambda x: x - x * 2, "torch.Tensor.sub"),
    ],
)
def test_whatever_is_left_to_autograd_warns(function: Any, named: str, x: Tensor) -> None:
    model = Call(function)
    with pytest.warns(UnmappedOperationWarning, match=named), Composite(MAP).context(model):
        model(x)


@pytest.mark.parametrize(
    ("layer_map", "function", "same"),
    [
        (
            {operator.sub: lambda a, b: lf.add2(a, lf.mul2(b, -1))},
            lambda x: (2 - x) - x,
            lambda x: lf.add2(lf.add2(2, lf.mul2(x, -1)), lf.mul2(x, -1)),
        ),
        ({operator.mul: lf.mul2}, lambda x: torch.multiply(x, x), lambda x: lf.mul2(x, x)),
        (
            {operator.pow: lambda x, p: lf.mul2(x, x)},
            lambda x: x**2,
            lambda x: lf.mul2(x, x),
        ),
    ],
)
def test_operators_in_all_their_spellings(
    layer_map: Any, function: Any, same: Any, x: Tensor
) -> None:
    model = Call(function)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Composite(layer_map).context(model):
            actual = relevance(model, x)
    assert torch.allclose(actual, relevance(Call(same), x), rtol=1e-10)


@pytest.mark.parametrize(
    ("layer_map", "write"),
    [
        ({operator.iadd: lf.add2}, lambda h, c: operator.iadd(h, c)),
        ({Tensor.mul_: lf.mul2}, lambda h, c: h.mul_(c)),
        ({operator.add: lf.add2}, lambda h, c: h.add_(c)),
    ],
)
def test_in_place_keys_write_in_place(layer_map: Any, write: Any, x: Tensor) -> None:
    def function(x: Tensor) -> Tensor:
        h = x.clone()
        write(h, x)
        return h

    model = Call(function)
    plain = model(x).detach()
    with Composite(layer_map).context(model):
        y = model(x)
    assert torch.equal(y, plain)
    assert torch.autograd.grad(y.sum(), x)[0].any()


def test_the_first_key_counts_whatever_it_is(x: Tensor) -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)}).double()
    model.forward = lambda x: model["b"](model["a"](x))  # type: ignore[method-assign]
    for layer_map, label in [
        ({nn.Linear: rules.EpsilonRule, "b": rules.IdentityRule}, "EpsilonRule"),
        ({"b": rules.IdentityRule, nn.Linear: rules.EpsilonRule}, "IdentityRule"),
    ]:
        with Composite(layer_map).context(model):
            assert label in repr(model["b"])
            assert "EpsilonRule" in repr(model["a"])


def test_a_module_with_a_rule_hides_its_parts_from_stand_ins(x: Tensor) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x)

    model = nn.Sequential(Block()).double()
    with Composite({Block: rules.EpsilonRule}).context(model):
        expected = relevance(model, x)
    with Composite({Block: rules.EpsilonRule, nn.Linear: lm.LinearEpsilon}).context(model):
        assert torch.allclose(relevance(model, x), expected, rtol=1e-10)


def test_a_shared_module_is_replaced_everywhere(x: Tensor) -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, layer).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Composite({nn.Linear: lm.LinearEpsilon}).context(model):
            assert model[0] is model[1]
            assert isinstance(model[0], lm.LinearEpsilon)
            model(x)
    assert model[0] is model[1] is layer


def test_leaving_a_context_keeps_the_composite_on_other_models(x: Tensor) -> None:
    first, second = (nn.Sequential(nn.Linear(4, 4)).double() for _ in range(2))
    lrp = Composite({nn.Linear: rules.EpsilonRule})
    lrp.register(first)
    with lrp.context(second):
        pass
    assert "EpsilonRule" in repr(first)
    assert "EpsilonRule" not in repr(second)
    lrp.remove()
    assert "EpsilonRule" not in repr(first)


def test_what_is_changed_during_a_registration_stays(x: Tensor) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).double()
    lrp = Composite({nn.Linear: lm.LinearEpsilon})
    lrp.register(model)
    mine = model[0] = nn.Identity()
    model.eval()
    lrp.remove()
    assert model[0] is mine
    assert not model[1].training


def test_drop_in_functions_have_rules_under_an_explicit_composite(x: Tensor) -> None:
    layer = nn.Linear(4, 4).double().requires_grad_(False)
    model = Call(lambda x: F.relu(lf.linear_epsilon(x, layer.weight, layer.bias, 1e-8)) + x)
    with lxt.explicit.attnlrp.context(model):
        actual = relevance(model, x)
    plain = Call(lambda x: F.relu(F.linear(x, layer.weight, layer.bias)) + x)
    with lxt.explicit.attnlrp.context(plain):
        expected = relevance(plain, x)
    assert torch.allclose(actual, expected, rtol=1e-8)
    refused = pytest.raises(lxt.errors.UnknownOperation, match="linear_epsilon_fn")
    with refused, lxt.attnlrp.context(model):
        model(x)


class Canonizer:
    def apply(self, model: nn.Module, verbose: bool) -> None:
        """One of LXT's kind: it takes `verbose`, and may return nothing."""
        self.applied = not verbose


def test_canonizers_of_lxts_kind_and_what_is_none(x: Tensor) -> None:
    model = nn.Sequential(nn.Linear(4, 4)).double()
    canonizer = Canonizer()
    with Composite({nn.Linear: rules.EpsilonRule}, [canonizer]).context(model):
        assert canonizer.applied
    Composite({}, None).register(model)
    with pytest.raises(InvalidComposite, match="3 is no canonizer"):
        Composite({}, [3]).register(nn.Linear(1, 1))
    with pytest.raises(InvalidModel, match="3 is no torch.nn.Module"):
        Composite({}).register(3)  # type: ignore[arg-type]
    with pytest.raises(InvalidComposite, match="matches 'zzz'"):
        Composite({"zzz": lm.LinearEpsilon}).register(nn.Sequential(nn.Linear(1, 1)))


def test_a_context_within_a_registration_leaves_it_on(x: Tensor) -> None:
    model = nn.Sequential(nn.Linear(4, 4)).double()
    lrp = Composite({nn.Linear: rules.EpsilonRule})
    lrp.register(model)
    with lrp.context(model):
        pass
    assert "EpsilonRule" in repr(model)
    lrp.remove()
    assert "EpsilonRule" not in repr(model)


def test_explicit_modules_are_no_rules_of_a_composite_of_gradients() -> None:
    with pytest.raises(InvalidComposite, match="EpsilonRule, a class of modules.*explicit.core"):
        lxt.attnlrp | {nn.Linear: rules.EpsilonRule}


def test_operators_methods_are_found_under_either_name() -> None:
    composite = lxt.attnlrp | {Tensor.__mul__: lxt.rules.constant}
    assert composite[Tensor.__mul__] is composite[Tensor.mul] is lxt.rules.constant
    assert Tensor.__mul__ in composite
    assert Tensor.mul not in composite.without(Tensor.__mul__)


def test_a_unit_without_a_finite_value_at_zero_is_refused() -> None:
    x = torch.rand(3, requires_grad=True)
    model = Call(torch.lgamma)
    with (lxt.attnlrp | {torch.lgamma: lxt.rules.unit}).context(model):
        y = model(x)
    with pytest.raises(InvalidComposite, match="finite value at 0"):
        y.sum().backward()
