"""Small nets, Zennit composites for them, and the gradient that they give."""

import itertools
from collections.abc import Callable

import torch
import zennit.composites
import zennit.core
import zennit.rules as rules
from torch import Tensor, nn
from torchvision.models import vision_transformer
from zennit.composites import LayerMapComposite

import lxt

EXACT = 1e-30  # a stabilizer that stabilizes nothing but 0/0


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mlp(*sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for width, next_width in itertools.pairwise(sizes):
        layers += [nn.Linear(width, next_width), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(3),
        nn.Flatten(),
        nn.Linear(4, 8),
        nn.ReLU(inplace=True),
        nn.Linear(8, 3),
    ).double()


def tiny_vit() -> vision_transformer.VisionTransformer:
    return vision_transformer.VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
        num_classes=5,
    )


def vit() -> vision_transformer.VisionTransformer:
    torch.manual_seed(0)
    model = tiny_vit()
    nn.init.normal_(model.heads.head.weight)  # which torchvision sets to zero
    return model.double().eval()


def gamma(conv: float, linear: float, stabilizer: float = EXACT) -> LayerMapComposite:
    return LayerMapComposite(
        [(nn.Conv2d, rules.Gamma(conv, stabilizer)), (nn.Linear, rules.Gamma(linear, stabilizer))]
    )


def everywhere(rule: zennit.core.Hook, *classes: type[nn.Module]) -> LayerMapComposite:
    return LayerMapComposite([(cls, rule) for cls in classes or (nn.Linear,)])


def modified_gradient(
    model: nn.Module,
    x: Tensor,
    composite: zennit.core.Composite | None = None,
    ours: lxt.Composite | None = lxt.attnlrp,
    seed: Callable[[Tensor], Tensor] = lambda y: y[..., 0].sum(),
) -> Tensor:
    x = x.detach().requires_grad_()
    if composite is not None:
        composite.register(model)
    try:
        if ours is None:
            output = model(x)
        else:
            with ours.context(model):
                output = model(x)
        return torch.autograd.grad(seed(output), x)[0]
    finally:
        if composite is not None:
            composite.remove()


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> bool:
    return float((actual - expected).norm()) <= tolerance * float(expected.norm())
