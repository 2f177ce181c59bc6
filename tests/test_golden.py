"""Agreement with relevances that LXT 2.1 itself computed, on tiny models in float64.

LXT divides by x + 1e-10 where it linearises an activation. We don't, since that is wrong near
x = 0; on these models it changes the relevance by up to 3e-8. So the composites are compared as
they are to 1e-7, and with that one rule replaced by LXT's to 1e-9: nothing else differs.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file

import lxt
from lxt.gradients import secant
from lxt.rules import family

DATA = Path(__file__).parent / "data" / "golden"
CASES = sorted(path.stem for path in DATA.glob("*-*-*.json"))
COMPOSITES = {"attnLRP": lxt.attnlrp, "cp_LRP": lxt.cp_lrp}


@family
def stabilised(operation, x, *args, **kwargs):
    """f(x) / (x + 1e-10), as LXT does."""

    def f(v):
        return operation(v, *args, **kwargs)

    return secant(x, f, lambda v: f(v) / (v + 1e-10))


AS_LXT_DOES = dict.fromkeys(
    (
        F.silu,
        F.gelu,
        torch.tanh,
        lxt.ClassPath("transformers.activations.NewGELUActivation"),
        lxt.ClassPath("transformers.activations.GELUActivation"),
    ),
    stabilised,
)


def relevance(case: str, composite: lxt.Composite) -> tuple[torch.Tensor, dict]:
    golden = json.loads((DATA / f"{case}.json").read_text())
    name = case.split("-")[0]
    model_class = getattr(transformers, golden["model_class"])
    config = model_class.config_class.from_json_file(DATA / f"{name}.config.json")
    model = model_class._from_config(config, attn_implementation=golden["attn_implementation"])
    model = model.double().eval()
    model.load_state_dict(load_file(DATA / f"{name}.safetensors"))
    x = model.get_input_embeddings()(torch.tensor(golden["input_ids"])).detach().requires_grad_()
    with composite.context(model):
        logits = model(inputs_embeds=x).logits
    logits = logits[:, -1] if logits.dim() == 3 else logits
    explained = logits.gather(1, torch.tensor(golden["target_index"])[:, None])[:, 0]
    assert explained.tolist() == pytest.approx(golden["target_logit"], rel=1e-12)
    (gradient,) = torch.autograd.grad(explained.sum(), x)
    return (x * gradient).sum(-1).detach(), golden


def difference(actual: torch.Tensor, golden: dict) -> float:
    expected = torch.tensor(golden["relevance"], dtype=torch.float64)
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("case", CASES)
def test_relevance_is_that_of_lxt(case: str) -> None:
    composite = COMPOSITES[case.split("-")[1]]
    assert difference(*relevance(case, composite | AS_LXT_DOES)) <= 1e-9
    assert difference(*relevance(case, composite)) <= 1e-7


def test_cp_lrp_needs_no_allowance_for_gated_mlps() -> None:
    """A gate that is a constant is not linearised, so nothing differs at all."""
    for case in CASES:
        if "cp_LRP" in case and "gpt2" not in case:
            assert difference(*relevance(case, lxt.cp_lrp)) <= 1e-12


def test_the_plain_gradient_is_something_else() -> None:
    for case in CASES:
        assert difference(*relevance(case, lxt.gradient)) > 1e-2
