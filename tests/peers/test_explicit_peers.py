"""The explicit formulation with Zennit, which speaks it natively, and with open_clip."""

import operator
import warnings

import pytest
import torch
import torch.nn.functional as F
import zennit.canonizers
import zennit.rules as zennit_rules
from test_torchvision import CASES, build, clip, images
from torch import Tensor, nn
from zennit.composites import LayerMapComposite
from zennit_nets import EXACT, cnn, gamma, normal, vit

import lxt
import lxt.explicit.functional as lf
import lxt.explicit.modules as lm
import lxt.explicit.rules as rules
from lxt.efficient import monkey_patch, monkey_patch_zennit
from lxt.errors import InvalidComposite, UnmappedOperationWarning
from lxt.explicit import explicit_form
from lxt.explicit.core import Composite
from lxt.explicit.models import openclip

TINY = 1e-12


def explicit_relevance(model: nn.Module, x: Tensor, index: int = 0) -> Tensor:
    value = model(x)[:, index]
    return torch.autograd.grad(value, x, value.detach())[0]


def difference(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("composite", ["attnlrp", "cp_lrp"])
@pytest.mark.parametrize("name", CASES)
def test_both_formulations_agree_on_vision_models(name: str, composite: str) -> None:
    model, x = build(name), images(name).requires_grad_()
    efficient = getattr(lxt, composite)
    with efficient.context(model):
        value = model(x)[..., 0]
    expected = (x * torch.autograd.grad(value.sum(), x)[0]).detach()
    with explicit_form(efficient, TINY).context(model):
        value = model(x)[..., 0]
        relevance = torch.autograd.grad(value, x, value.detach())[0]
    assert difference(relevance, expected) <= 1e-8


@pytest.mark.parametrize(("conv", "linear"), [(0.1, 0.0), (0.25, 0.05), (100.0, 1.0)])
def test_zennits_gamma_in_both_formulations(conv: float, linear: float) -> None:
    """As it is with explicit rules around it, patched with those of gradients."""
    model, x = vit().requires_grad_(False), normal(2, 3, 32, 32).requires_grad_()
    expected_value = model(x).detach()
    lrp = Composite(explicit_form(lxt.cp_lrp, TINY), zennit_composite=gamma(conv, linear))
    with lrp.context(model):
        assert torch.equal(model(x), expected_value)
        explicit = explicit_relevance(model, x)
    with monkey_patch_zennit(), lxt.cp_lrp.context(model):
        composite = gamma(conv, linear)
        composite.register(model)
        (gradient,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
        composite.remove()
    assert difference(explicit, (x * gradient).detach()) <= 1e-8
    assert not any(module._forward_hooks for module in model.modules())


def test_the_recipe_for_vision_transformers_through_the_patched_module() -> None:
    from torchvision.models import vision_transformer

    model, x = vit(), normal(2, 3, 32, 32).requires_grad_()
    with monkey_patch(vision_transformer) as patch, monkey_patch_zennit():
        assert patch.composite is lxt.cp_lrp
        composite = gamma(0.25, 0.05)
        composite.register(model)
        (gradient,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
        composite.remove()
    with monkey_patch_zennit(), lxt.cp_lrp.context(model):
        composite.register(model)
        (expected,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
        composite.remove()
    assert torch.equal(gradient, expected)
    from lxt.efficient.models import vit_torch

    with monkey_patch(vision_transformer, vit_torch.attnLRP) as patch:
        assert patch.composite is lxt.attnlrp


def test_zennits_canonizers_prepare_and_are_undone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    model = model.double().eval()
    model[1].running_mean.normal_()  # type: ignore[union-attr, operator]
    x = normal(2, 3, 5, 5).requires_grad_()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = model(x).detach()
    layer_map = {
        nn.Conv2d: rules.EpsilonRule,
        nn.BatchNorm2d: rules.IdentityRule,  # which merging leaves without effect
        nn.ReLU: rules.IdentityRule,
    }
    merge = zennit.canonizers.SequentialMergeBatchNorm()
    with Composite(layer_map, [merge]).context(model):
        assert torch.allclose(model(x), plain)
        merged = explicit_relevance(model, x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with explicit_form(lxt.attnlrp, TINY).context(model):
        apart = explicit_relevance(model, x)
    assert difference(merged, apart) <= 1e-5  # merging leaves the eps of the norm, 1e-5, behind


def test_zennits_rules_around_ours_on_a_plain_net() -> None:
    """Zennit alone knows such a net: the same relevance as with our rules for part of it."""
    model, x = cnn(), normal(2, 3, 7, 7).requires_grad_()
    zplus = LayerMapComposite([(nn.Conv2d, zennit_rules.ZPlus(EXACT))])
    with Composite(explicit_form(lxt.attnlrp, EXACT), zennit_composite=zplus).context(model):
        mixed = explicit_relevance(model, x)
    alone = LayerMapComposite(
        [
            (nn.ReLU, zennit_rules.Pass()),
            (nn.Conv2d, zennit_rules.ZPlus(EXACT)),
            ((nn.Linear, nn.AvgPool2d), zennit_rules.Epsilon(EXACT)),
        ]
    )
    alone.register(model)
    expected = explicit_relevance(model, x)
    alone.remove()
    assert difference(mixed, expected) <= 1e-10


def test_hooks_of_zennit_that_speak_the_other_formulation_are_refused() -> None:
    model, x = cnn(), normal(2, 3, 7, 7).requires_grad_()
    composite = LayerMapComposite([(nn.Linear, zennit_rules.Epsilon())])
    composite.register(model)
    refused = pytest.raises(InvalidComposite, match="hands back relevance.*after lxt.*patch_zennit")
    with refused, lxt.attnlrp.context(model):
        model(x)
    composite.remove()
    with monkey_patch_zennit():
        composite.register(model)
        refused = pytest.raises(InvalidComposite, match="hands back gradient.*without lxt")
        with refused, lxt.explicit.attnlrp.context(model):
            model(x)
        composite.remove()


def test_zennits_rule_goes_before_a_stand_ins_and_before_none() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).double(), normal(2, 4)
    x.requires_grad_()
    composite = LayerMapComposite([(nn.Linear, zennit_rules.Gamma(0.5, EXACT))])
    composite.register(model)
    expected = explicit_relevance(model, x)
    composite.remove()
    for layer_map in ({nn.Linear: lm.LinearEpsilon}, {nn.Linear: rules.EpsilonRule}, {}):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UnmappedOperationWarning)
            with Composite(layer_map, zennit_composite=composite).context(model):
                assert difference(explicit_relevance(model, x), expected) <= 1e-10
    assert not any(module._forward_hooks for module in model.modules())


def test_open_clip_as_lxt_explains_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    torch.manual_seed(0)
    model = clip().double().eval()
    text = torch.arange(1, 7).expand(3, 6)
    image = normal(1, 3, 32, 32).requires_grad_()
    inputs = {"image": image, "text": text}
    plain = model.requires_grad_(False)(**inputs)[0].detach()
    traced = openclip.attnlrp.register(model, dummy_inputs=inputs, verbose=True)
    assert "torch.nn.functional.multi_head_attention_forward" in capsys.readouterr().out
    heatmaps = []
    for linear in (0.0, 0.05):
        composite = gamma(0.1, linear)
        composite.register(traced)
        features = traced(image, text)
        assert torch.equal(features[0], plain)
        logits = lf.matmul(features[0], features[1].transpose(0, 1))
        image.grad = None
        logits[0, 1].backward()
        heatmaps.append(image.grad[0].sum(0))
        composite.remove()
    openclip.attnlrp.remove()
    assert all(heatmap.isfinite().all() for heatmap in heatmaps)
    assert difference(*heatmaps) > 1e-3


def test_a_map_of_lxts_kind_for_open_clip() -> None:
    """Attention by a module that stands in, functions in any spelling; as the preset."""
    torch.manual_seed(0)
    model = clip().visual.double().eval()
    x = normal(2, 3, 32, 32).requires_grad_()
    layer_map = {
        nn.MultiheadAttention: lm.MultiheadAttention_CP,
        lm.LinearInProjection: rules.EpsilonRule,
        lm.LinearOutProjection: rules.EpsilonRule,
        nn.LayerNorm: lm.LayerNormEpsilon,
        nn.GELU: rules.IdentityRule,
        nn.Linear: rules.EpsilonRule,
        nn.Conv2d: rules.EpsilonRule,
        operator.add: lf.add2,
        operator.matmul: lf.matmul,
        F.normalize: lf.normalize,
    }
    plain = model(x).detach()
    with Composite(layer_map).context(model):
        assert torch.allclose(model(x), plain, rtol=1e-10)
        actual = explicit_relevance(model, x)
    with lxt.explicit.cp_lrp.context(model):
        expected = explicit_relevance(model, x)
    assert difference(actual, expected) <= 1e-3  # with ε of 1e-6 in some modules
