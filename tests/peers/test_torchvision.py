"""Vision models of torchvision, timm and open_clip under our composites."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import open_clip.model
import pytest
import timm
import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU
from torch import Tensor, nn
from zennit_nets import tiny_vit

import lxt
from test_contracts import assert_identical, close, differing, traces, without_tensors

COMPOSITES = [lxt.attnlrp, lxt.cp_lrp]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

over_composites = pytest.mark.parametrize("composite", COMPOSITES, ids=lambda c: c.name)


class EmbeddedText(nn.Module):
    """The text tower of CLIP, from token embeddings on."""

    def __init__(self, clip: open_clip.model.CLIP) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, x: Tensor) -> Tensor:
        ids = torch.arange(1, x.shape[1] + 1).expand(x.shape[:2])  # the last is the greatest
        handle = self.clip.token_embedding.register_forward_hook(lambda *_: x)
        try:
            return self.clip.encode_text(ids)
        finally:
            handle.remove()


def timm_vit(fused: bool = True) -> nn.Module:
    size: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_heads=2, num_classes=5, **size)
    for block in model.blocks:
        assert block.attn.fused_attn
        block.attn.fused_attn = fused
    return model


def clip(quick_gelu: bool = False) -> open_clip.model.CLIP:
    vision = open_clip.model.CLIPVisionCfg(
        layers=2, width=16, head_width=8, patch_size=8, image_size=32
    )
    text = open_clip.model.CLIPTextCfg(context_length=6, vocab_size=10, width=16, heads=2, layers=2)
    return open_clip.model.CLIP(16, vision, text, quick_gelu=quick_gelu)


@dataclass
class Case:
    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = field(default=(3, 32, 32))


CASES = {
    "torchvision": Case(tiny_vit),
    "timm": Case(timm_vit),
    "timm, written out": Case(lambda: timm_vit(fused=False)),
    "open_clip vision": Case(lambda: clip().visual),
    "open_clip text": Case(lambda: EmbeddedText(clip()), (6, 16)),
}

over_names = pytest.mark.parametrize("name", CASES)


def build(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    model = CASES[name].make()
    with torch.no_grad():
        for parameter in model.parameters():  # some of which are zero or one at first
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def images(name: str, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, *CASES[name].shape, generator=generator).to(dtype)


def relevance(model: nn.Module, x: Tensor, composite: lxt.Composite) -> Tensor:
    x = x.detach().requires_grad_()
    with composite.context(model):
        output = model(x)
    (gradient,) = torch.autograd.grad(output[:, 1].sum(), x)
    return (x * gradient).detach()


@over_composites
@over_names
def test_forward_is_bit_identical(name: str, composite: lxt.Composite) -> None:
    for dtype in DTYPES:
        model, x = build(name, dtype), images(name, dtype=dtype)
        model.requires_grad_(False)
        plain = model(x.requires_grad_())
        model.requires_grad_(True)
        with composite.context(model):
            assert_identical(plain, model(x))


@over_composites
@over_names
def test_removing_leaves_no_trace(name: str, composite: lxt.Composite) -> None:
    model, x = build(name), images(name)
    model(x)
    before = without_tensors(traces(model))
    relevance(model, x, composite)
    assert without_tensors(traces(model)) == before
    assert all(parameter.grad is None for parameter in model.parameters())


@over_composites
@over_names
def test_a_row_equals_the_row_alone(name: str, composite: lxt.Composite) -> None:
    model, x = build(name), images(name, batch=3)
    together = relevance(model, x, composite)
    for index in range(3):
        alone = relevance(model, x[index : index + 1], composite)
        assert close(together[index], alone[0], 1e-9)


@over_names
def test_composites_differ(name: str) -> None:
    model, x = build(name), images(name)
    attnlrp, cp_lrp, plain = (
        relevance(model, x, c) for c in (lxt.attnlrp, lxt.cp_lrp, lxt.gradient)
    )
    assert differing(attnlrp, plain) > 1e-3
    assert differing(cp_lrp, plain) > 1e-3
    assert differing(attnlrp, cp_lrp) > 1e-3


@over_composites
def test_fused_attention_and_written_out_agree(composite: lxt.Composite) -> None:
    x = images("timm")
    fused = relevance(build("timm"), x, composite)
    assert close(relevance(build("timm, written out"), x, composite), fused, 1e-9)


# --- torchvision's, written out -------------------------------------------------------------------


def constant_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    deviation = (centred.detach() ** 2).mean(-1, keepdim=True).add(norm.eps).sqrt()
    return centred / deviation * norm.weight.detach() + norm.bias.detach()


def half(x: Tensor) -> Tensor:
    return x / 2 + (x / 2).detach()


def frozen(x: Tensor, layer: nn.Module) -> Tensor:
    return x @ layer.weight.detach().T + layer.bias.detach()  # type: ignore[operator,union-attr]


def attention(x: Tensor, module: nn.MultiheadAttention, weights_carry: bool) -> Tensor:
    width = x.shape[-1] // module.num_heads
    weights = module.in_proj_weight.detach().chunk(3)
    biases = module.in_proj_bias.detach().chunk(3)
    query, key, value = (x @ w.T + b for w, b in zip(weights, biases, strict=True))
    heads = []
    for start in range(0, x.shape[-1], width):
        q, k, v = (t[..., start : start + width] for t in (query, key, value))
        if weights_carry:
            scores = half(q) @ half(k).mT / width**0.5
            heads.append(half(scores.softmax(-1)) @ half(v))
        else:
            heads.append((q @ k.mT / width**0.5).softmax(-1).detach() @ v)
    return frozen(torch.cat(heads, -1), module.out_proj)


def naive_vit(model: Any, images: Tensor, weights_carry: bool) -> Tensor:
    x = F.conv2d(images, model.conv_proj.weight.detach(), model.conv_proj.bias.detach(), 8)
    x = x.flatten(2).mT
    x = torch.cat([model.class_token.detach().expand(len(x), 1, -1), x], 1)
    x = x + model.encoder.pos_embedding.detach()
    for block in model.encoder.layers:
        x = x + attention(constant_norm(x, block.ln_1), block.self_attention, weights_carry)
        hidden = frozen(constant_norm(x, block.ln_2), block.mlp[0])
        hidden = hidden * (F.gelu(hidden) / hidden).detach()
        x = x + frozen(hidden, block.mlp[3])
    return frozen(constant_norm(x, model.encoder.ln)[:, 0], model.heads.head)


@over_composites
def test_torchvision_is_what_it_is_written_out(composite: lxt.Composite) -> None:
    model, x = build("torchvision"), images("torchvision").requires_grad_()
    output = naive_vit(model, x, weights_carry=composite is lxt.attnlrp)
    assert close(output.detach(), model(x).detach(), 1e-12)
    expected = x * torch.autograd.grad(output[:, 1].sum(), x)[0]
    assert close(relevance(model, x, composite), expected.detach(), 1e-10)


# --- activations that open_clip and timm write out ------------------------------------------------


def test_quick_gelu_is_one_unit() -> None:
    torch.manual_seed(0)
    model = clip(quick_gelu=True).visual.double().eval()
    assert any(isinstance(module, QuickGELU) for module in model.modules())
    x = images("open_clip vision")
    unit = lxt.attnlrp | {QuickGELU: lxt.rules.unit}
    assert close(relevance(model, x, lxt.attnlrp), relevance(model, x, unit), 1e-9)


@pytest.mark.parametrize(
    "name",
    [
        "gelu",
        "gelu_tanh",
        "swish",
        "mish",
        "hard_swish",
        "hard_mish",
        "quick_gelu",
    ],
)
def test_an_activation_of_timm_passes_relevance_on(name: str) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = timm.layers.get_act_layer(name)()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x * 2)

    x = images("timm")
    model = Around()
    assert close(relevance(model, x, lxt.attnlrp)[:, 1], model(x)[:, 1], 1e-12)
