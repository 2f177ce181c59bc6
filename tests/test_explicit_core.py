"""LXT's `Composite` and model names in the explicit formulation."""

import copy
import importlib
import operator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lxt
import lxt.explicit.functional as lf
import lxt.explicit.modules as lm
import zoo
from lxt.errors import (
    AlreadyRegistered,
    InvalidComposite,
    InvalidInput,
    UnmappedOperationWarning,
)
from lxt.explicit import rules
from lxt.explicit.core import Composite


class RootMeanSquareNorm(nn.Module):
    """Somebody's own norm."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class TwoLayers(nn.Module):
    """Two branches, joined by functions."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.layer1, self.layer2 = nn.Linear(4, 5), nn.Linear(4, 5)
        self.checkpointed = checkpointed

    def branches(self, x: Tensor) -> Tensor:
        y = self.layer2(x)
        y += F.softmax(self.layer1(x), -1)
        return y + torch.softmax(y, dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpointed:
            return checkpoint(self.branches, x, use_reentrant=False)  # type: ignore[return-value]
        return self.branches(x)


MAP = {nn.Linear: rules.EpsilonRule, operator.add: lf.add2, F.softmax: lf.softmax}


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(3, 4, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def two_layers() -> TwoLayers:
    torch.manual_seed(1)
    return TwoLayers().double()


def relevance(model: Any, x: Tensor) -> Tensor:
    y = model(x)
    return torch.autograd.grad(y, x, torch.ones_like(y))[0]


def by_hand(model: TwoLayers, x: Tensor) -> Tensor:
    """The map's rules, written out with the functions of the package."""

    def linear(layer: nn.Linear) -> Tensor:
        return rules.epsilon_lrp(lambda v: F.linear(v, layer.weight, layer.bias), 1e-8, x)

    model.requires_grad_(False)
    y = lf.add2(linear(model.layer2), lf.softmax(linear(model.layer1), -1))
    y = lf.add2(y, lf.softmax(y, -1))
    result = torch.autograd.grad(y, x, torch.ones_like(y))[0]
    model.requires_grad_(True)
    return result


def state(model: nn.Module) -> list[Any]:
    return [
        (name, id(module), {k: id(v) for k, v in vars(module).items()}, list(vars(module)))
        for name, module in model.named_modules()
    ] + [(name, p.requires_grad) for name, p in model.named_parameters()]


# --- modules --------------------------------------------------------------------------------------


def test_modules_by_class(x: Tensor) -> None:
    model = nn.Sequential(nn.Linear(4, 4), RootMeanSquareNorm()).double()
    before, shown = state(model), str(model)
    plain = model(x).detach()
    lrp = Composite({nn.Linear: rules.EpsilonRule, RootMeanSquareNorm: rules.IdentityRule})
    assert lrp.register(model) is model
    assert "(0): Linear(in_features=4, out_features=4, bias=True | EpsilonRule)" in str(model)
    assert "(1): RootMeanSquareNorm(IdentityRule)" in str(model)
    assert torch.equal(model(x), plain)
    result = relevance(model, x)
    assert all(not parameter.requires_grad for parameter in model.parameters())
    lrp.remove()
    lrp.remove()
    assert state(model) == before
    assert str(model) == shown
    model.requires_grad_(False)
    y = rules.epsilon_lrp(model[0], 1e-8, x)
    expected = torch.autograd.grad(y, x, torch.ones_like(y))[0]  # the norm hands all on
    assert torch.equal(result, expected)


def test_the_first_key_that_fits_counts_and_subclasses_fit(x: Tensor) -> None:
    class Special(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = nn.Sequential(Special(4, 4), nn.Linear(4, 4)).double()
    for layer_map, labels in [
        ({nn.Linear: rules.EpsilonRule}, ["EpsilonRule", "EpsilonRule"]),
        (
            {Special: rules.StopRelevanceRule, nn.Linear: rules.EpsilonRule},
            ["StopRelevanceRule", "EpsilonRule"],
        ),
        (
            {nn.Linear: rules.EpsilonRule, Special: rules.StopRelevanceRule},
            ["EpsilonRule", "EpsilonRule"],
        ),
        (
            {"0": rules.StopRelevanceRule, nn.Linear: rules.EpsilonRule},
            ["StopRelevanceRule", "EpsilonRule"],
        ),
    ]:
        with Composite(layer_map).context(model):
            assert [repr(m).rpartition("| ")[2].rstrip(")") for m in model] == labels
            if "StopRelevanceRule" in labels:
                assert not model(x).requires_grad
            else:
                assert relevance(model, x).isfinite().all()


def test_rules_with_arguments_and_of_ones_own(x: Tensor) -> None:
    class Doubled(rules.WrapModule):
        """The ε-rule, but twice as much."""

        def forward(self, input: Tensor) -> Tensor:
            y = rules.epsilon_lrp(self.module, 1e-8, input)
            return y + (y - y.detach())

    class Wrong(rules.WrapModule):
        def forward(self, input: Tensor) -> Tensor:
            return self.module(input) + 1

    model = nn.Sequential(nn.Linear(4, 4)).double()
    with Composite({nn.Linear: rules.EpsilonRule}).context(model):
        expected = relevance(model, x)
    with Composite({nn.Linear: Doubled}).context(model):
        assert torch.allclose(relevance(model, x), 2 * expected, rtol=1e-12)
    with Composite({nn.Linear: partial(rules.EpsilonRule, epsilon=1.0)}).context(model):
        damped = relevance(model, x)
    model.requires_grad_(False)
    y = model(x)
    (gradient,) = torch.autograd.grad(y, x, 1 / (y.detach() + 1.0))
    assert torch.allclose(damped, x.detach() * gradient, rtol=1e-12)
    refused = pytest.raises(InvalidComposite, match="rule of Linear returns another value")
    with refused, Composite({nn.Linear: Wrong}).context(model):
        model(x)


def test_hooks_on_a_module_with_a_rule_run_once(x: Tensor) -> None:
    model = nn.Sequential(nn.Linear(4, 4)).double()
    seen: list[str] = []
    model[0].register_forward_pre_hook(lambda *_: seen.append("before"))
    model[0].register_forward_hook(lambda *_: seen.append("after"))
    with Composite({nn.Linear: rules.EpsilonRule}).context(model):
        model(x)
    assert seen == ["before", "after"]


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.scale = nn.Softmax(dim=-1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.head(self.scale(self.attention(y, y, y)[0]))


def test_modules_that_stand_in(x: Tensor) -> None:
    torch.manual_seed(0)
    model = Attending().double().eval()
    inputs = x.detach()[None].requires_grad_()
    before, plain = state(model), model(inputs).detach()
    weights = [id(parameter) for parameter in model.parameters()]
    lrp = Composite(
        {
            nn.MultiheadAttention: lm.MultiheadAttention_CP,
            lm.LinearInProjection: rules.EpsilonRule,
            lm.LinearOutProjection: rules.EpsilonRule,
            nn.LayerNorm: lm.LayerNormEpsilon,
            nn.Softmax: lm.SoftmaxDT,
            nn.Linear: lm.LinearEpsilon,
        }
    )
    lrp.register(model)
    kinds = [type(module) for module in model.children()]
    assert kinds == [lm.LayerNormEpsilon, lm.MultiheadAttention_CP, lm.SoftmaxDT, lm.LinearEpsilon]
    assert "EpsilonRule" in repr(model.attention.v_proj)
    assert set(weights) >= {id(parameter) for parameter in model.norm.parameters()}
    assert torch.allclose(model(inputs), plain, rtol=1e-12)
    result = relevance(model, inputs)
    lrp.remove()
    assert state(model) == before
    # The same by the preset, whose operations find their rules by themselves.
    with lxt.explicit.explicit_form(lxt.cp_lrp | {nn.Softmax: lxt.rules.passthrough}).context(
        model
    ):
        expected = relevance(model, inputs)
    assert (result - expected).norm() <= 1e-4 * expected.norm()  # ε is 1e-6 in these modules


def test_a_composite_on_several_models(x: Tensor) -> None:
    models = [nn.Sequential(nn.Linear(4, 4)).double() for _ in range(2)]
    before = [state(model) for model in models]
    lrp = Composite({nn.Linear: rules.EpsilonRule})
    for model in models:
        lrp.register(model)
    assert all("EpsilonRule" in str(model) for model in models)
    with pytest.raises(AlreadyRegistered):
        Composite({nn.Linear: rules.IdentityRule}).register(models[0])
    once = relevance(models[0], x)
    lrp.register(models[0])  # again, as a notebook does
    assert torch.equal(relevance(models[0], x), once)
    lrp.remove()
    assert [state(model) for model in models] == before


def test_parameters_keep_requiring_grad_if_asked(x: Tensor, two_layers: TwoLayers) -> None:
    two_layers.layer1.weight.requires_grad_(False)
    before = state(two_layers)
    lrp = Composite(MAP)
    lrp.register(two_layers, no_grad=False)
    assert two_layers.layer2.weight.requires_grad
    lrp.remove()
    lrp.register(two_layers)
    assert not two_layers.layer2.weight.requires_grad
    lrp.remove()
    assert state(two_layers) == before


# --- functions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer_map",
    [
        MAP,
        {nn.Linear: rules.EpsilonRule, torch.add: lf.add2, torch.softmax: lf.softmax},
        {nn.Linear: rules.EpsilonRule, Tensor.add: lf.add2, Tensor.softmax: lf.softmax},
        {
            nn.Linear: rules.EpsilonRule,
            operator.add: lf.add2,
            operator.iadd: partial(lf.add2, epsilon=1e-8),
            F.softmax: partial(lf.softmax, temperature=1.0),
        },
    ],
    ids=["python", "torch", "methods", "partial"],
)
def test_functions_in_any_spelling(x: Tensor, two_layers: TwoLayers, layer_map: Any) -> None:
    expected = by_hand(two_layers, x)
    before, plain = state(two_layers), two_layers(x).detach()
    lrp = Composite(layer_map)
    model = lrp.register(two_layers, dummy_inputs={"x": torch.randn(1, 4).double()})
    assert torch.equal(model(x), plain)
    assert torch.equal(relevance(model, x), expected)
    lrp.remove()
    assert state(two_layers) == before
    assert torch.equal(two_layers(x), plain)


def test_functions_under_gradient_checkpointing(x: Tensor, two_layers: TwoLayers) -> None:
    expected = by_hand(two_layers, x)
    two_layers.checkpointed = True
    with Composite(MAP).context(two_layers) as model:
        assert torch.equal(relevance(model, x), expected)
        y = model(x)
    (later,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(later, expected)


def test_a_temperature_as_an_argument_of_the_rule(x: Tensor) -> None:
    class Softmax(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.softmax(x, dim=-1, dtype=torch.float32)

    model = Softmax()
    with Composite({F.softmax: lf.softmax}).context(model):
        actual = relevance(model, x)
    expected = relevance(lambda v: lf.softmax(v, -1, torch.float32), x)
    assert torch.equal(actual, expected)
    # A rule that changes the value is refused, and a temperature does.
    hot = Composite({F.softmax: partial(lf.softmax, temperature=2.0)})
    with hot.context(model):
        assert torch.equal(model(x), lf.softmax(x, -1, torch.float32, 2.0))


def test_means_norms_and_scaled_sums_as_torch_calls_them(x: Tensor) -> None:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.add(self.norm(x), x, alpha=0.5) - x.mean(-1, keepdim=True)

    model = Calls().double().requires_grad_(False)
    layer_map = {
        operator.add: lf.add2,
        operator.sub: lambda a, b: lf.add2(a, lf.mul2(b, -1)),
        torch.mean: lf.mean,
        F.layer_norm: lf.layer_norm,
    }
    with Composite(layer_map).context(model):
        actual = relevance(model, x)
    y = lf.layer_norm(x, model.norm.weight, model.norm.bias, 1e-5)
    y = lf.add2(y, lf.mul2(x, 0.5))
    y = lf.add2(y, lf.mul2(lf.mean(x, -1, True), -1))
    expected = torch.autograd.grad(y, x, torch.ones_like(y))[0]
    assert torch.allclose(actual, expected, rtol=1e-12)


def test_what_the_map_leaves_out_warns_once_and_names_it(x: Tensor, two_layers: TwoLayers) -> None:
    lrp = Composite({nn.Linear: rules.EpsilonRule, F.softmax: lf.softmax})
    noticed = pytest.warns(UnmappedOperationWarning, match=r"Tensor.add")
    with noticed as caught, lrp.context(two_layers) as model:
        model(x)
        model(x)
    messages = [str(w.message) for w in caught if w.category is UnmappedOperationWarning]
    assert len(messages) == 2  # one for += and one for +
    assert "'model' (TwoLayers)" in messages[0]
    assert "F.softmax(self.layer1(x), -1)" in messages[0]
    assert str(caught[0].filename) == __file__


def test_the_table(
    x: Tensor, two_layers: TwoLayers, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "120")

    class More(TwoLayers):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x).transpose(0, 1).exp()
            return torch.linalg.inv(y @ y.T)

    model = More().double()
    before = state(model)
    lrp = Composite(MAP | {nn.Linear: lm.LinearEpsilon})
    lrp.register(model, dummy_inputs={"x": torch.randn(9, 4).double()}, verbose=True)
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("│")
    ]
    assert rows == [
        ["layer1 (LinearEpsilon)", "-", "LinearEpsilon", "✓"],
        ["layer2 (LinearEpsilon)", "-", "LinearEpsilon", "✓"],
        ["More", "torch.nn.functional.softmax", "softmax", "✓"],
        ["More", "torch.Tensor.add_", "add2", "✓"],
        ["More", "torch.softmax", "softmax", "✓"],
        ["More", "torch.Tensor.add", "add2", "✓"],
        ["More", "torch.Tensor.transpose", "-", "✓"],
        ["More", "torch.Tensor.exp", "-", "✗"],
        ["More", "torch.Tensor.T.__get__", "-", "✓"],
        ["More", "torch.Tensor.matmul", "-", "✗"],
        ["More", "torch.linalg.inv", "-", "?"],
    ]
    lrp.remove()
    assert state(model) == before
    lrp.register(model, verbose=True)
    assert "layer1" in (out := capsys.readouterr().out)
    assert "softmax" not in out
    lrp.remove()
    with pytest.raises(InvalidInput, match="by name"):
        lrp.register(model, dummy_inputs=[x], verbose=True)  # type: ignore[arg-type]


# --- what goes with it ----------------------------------------------------------------------------


class Undoable:
    """What Zennit's canonizers, and composites, are to us."""

    def __init__(self, fails: bool = False) -> None:
        self.log: list[str] = []
        self.fails = fails

    def apply(self, model: nn.Module) -> list[Any]:
        self.log.append("apply")
        if self.fails:
            raise RuntimeError("no")
        return [self]

    def register(self, model: nn.Module) -> None:
        self.log.append("register")

    def remove(self) -> None:
        self.log.append("remove")


def test_canonizers_and_a_composite_of_zennits_kind(two_layers: TwoLayers) -> None:
    canonizer, zennit = Undoable(), Undoable()
    with Composite(MAP, [canonizer], zennit).context(two_layers):
        assert canonizer.log == ["apply"]
        assert zennit.log == ["register"]
    assert canonizer.log == ["apply", "remove"]
    assert zennit.log == ["register", "remove"]
    before = state(two_layers)
    with pytest.raises(RuntimeError, match="no"):
        Composite(MAP, [first := Undoable(), Undoable(fails=True)]).register(two_layers)
    assert first.log == ["apply", "remove"]
    assert state(two_layers) == before
    with pytest.raises(
        InvalidComposite, match=r"Undoable is a class: give an instance, Undoable\(\)"
    ):
        Composite(MAP, [Undoable])


def test_an_engine_composite_as_a_map() -> None:
    model = zoo.build("llama")
    example = zoo.example("llama", model)
    with lxt.explicit.attnlrp.context(model):
        expected = torch.autograd.grad(example.run(model).sum(), example.leaf)[0]
    with Composite(lxt.explicit.attnlrp).context(model):
        actual = torch.autograd.grad(example.run(model).sum(), example.leaf)[0]
    assert torch.equal(actual, expected)
    with pytest.raises(InvalidComposite, match="'attnlrp' hands back gradients"):
        Composite(lxt.attnlrp)


@pytest.mark.parametrize(
    ("layer_map", "message"),
    [
        ([nn.Linear], "is no dictionary"),
        ({int: rules.EpsilonRule}, "int is a class but no torch.nn.Module"),
        ({nn.Linear(1, 1): rules.EpsilonRule}, "is no key"),
        ({3: rules.EpsilonRule}, "3 is no key"),
        ({nn.Linear: lf.linear_epsilon}, "rule of Linear is <function linear_epsilon"),
        ({nn.Linear: nn.Identity}, "how to make a Identity of a Linear.*INIT_MODULE_MAPPING"),
        ({"layer1": "epsilon"}, "rule of 'layer1' is 'epsilon'"),
        ({F.softmax: rules.EpsilonRule}, "rule of softmax is <class.*give a function"),
        ({operator.add: 3}, "rule of add is 3"),
    ],
)
def test_hostile_maps(layer_map: Any, message: str) -> None:
    with pytest.raises(InvalidComposite, match=message):
        Composite(layer_map)


def test_a_name_that_fits_nothing_leaves_nothing(two_layers: TwoLayers) -> None:
    before = state(two_layers)
    with pytest.raises(InvalidComposite, match="matches 'layer3'.*'layer[12]'"):
        Composite({"layer3": rules.EpsilonRule}).register(two_layers)
    assert state(two_layers) == before


# --- models by LXT's names ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "bert", "mixtral", "phi3"])
def test_models_by_name(name: str) -> None:
    models = importlib.import_module(f"lxt.explicit.models.{name}")
    cls = zoo.ARCHITECTURES[name].type
    assert getattr(models, cls.__name__) is cls
    with pytest.raises(AttributeError):
        models.NoSuchModel  # noqa: B018
    model = zoo.build(name)
    example = zoo.example(name, model)
    before = copy.copy(vars(model))
    for composite, preset in (
        (models.attnlrp, lxt.explicit.attnlrp),
        (models.cp_lrp, lxt.explicit.cp_lrp),
    ):
        assert composite.register(model) is model
        logits = example.run(model).amax()
        logits.backward(logits)
        actual, example.leaf.grad = example.leaf.grad, None
        composite.remove()
        with preset.context(model):
            logits = example.run(model).amax()
        assert torch.equal(actual, torch.autograd.grad(logits, example.leaf, logits)[0])
    assert vars(model) == before


def test_openclips_composites_are_there_without_it() -> None:
    models = importlib.import_module("lxt.explicit.models.openclip")
    assert models.attnlrp.layer_map is lxt.explicit.cp_lrp
