"""The γ-rule for vision transformers: Zennit's rules on the layers, ours on all else.

Relevance of images is noisy: gradients of a vision transformer change from pixel to pixel. The
γ-rule favours what speaks for a class over what speaks against it and so calms the heat map, the
more the larger γ is. The right one must be tried out, for convolution and linear layers each: in a
model as shallow as this one, that of the linear layers hardly matters.

Weights: a small ViT of torchvision, trained here in seconds to name the colour of a square among
noise, so that we know where relevance belongs.
Prints for each pair of γ how much of the positive relevance lies in the square, over 50 images;
writes the heat maps of one image as a grid, `vit_gamma.png`.

    pip install -e ".[zennit]"
    python examples/vit_gamma.py [--out FOLDER]
"""

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from _common import arguments
from torch import Tensor, nn
from torchvision.models import vision_transformer
from zennit.composites import LayerMapComposite
from zennit.rules import Gamma

from lxt.efficient import monkey_patch, monkey_patch_zennit

IMAGE, SQUARE = 32, 8
CONV_GAMMAS = (0.1, 0.25, 100)
LINEAR_GAMMAS = (0, 0.05, 1)


def images(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise with a red, green or blue square; the colour; and where the square is."""
    generator = torch.Generator().manual_seed(seed)
    pixels = 0.5 * torch.randn(count, 3, IMAGE, IMAGE, generator=generator)
    colours = torch.randint(3, (count,), generator=generator)
    corners = torch.randint(IMAGE - SQUARE + 1, (count, 2), generator=generator).tolist()
    inside = torch.zeros(count, IMAGE, IMAGE, dtype=torch.bool)
    for i, (top, left) in enumerate(corners):
        inside[i, top : top + SQUARE, left : left + SQUARE] = True
        pixels[i, colours[i]] += 1.5 * inside[i]
    return pixels, colours, inside


def trained_vit() -> nn.Module:
    torch.manual_seed(0)
    model = vision_transformer.VisionTransformer(
        image_size=IMAGE, patch_size=4, num_layers=2, num_heads=4, hidden_dim=48, mlp_dim=96,
        num_classes=3,
    )  # fmt: skip
    nn.init.normal_(model.heads.head.weight, std=0.1)  # torchvision starts it at 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(150):
        pixels, colours, _ = images(64, seed=step)
        loss = F.cross_entropy(model(pixels), colours)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def heatmaps(model: nn.Module, pixels: Tensor, conv_gamma: float, linear_gamma: float) -> Tensor:
    """The relevance of each pixel [images, height, width] for the predicted colour."""
    rules = LayerMapComposite([(nn.Conv2d, Gamma(conv_gamma)), (nn.Linear, Gamma(linear_gamma))])
    pixels = pixels.clone().requires_grad_()
    with rules.context(model):
        model(pixels).max(1).values.sum().backward()
    return (pixels * pixels.grad).sum(1).detach()


def main() -> None:
    out = arguments(__doc__).parse_args().out
    model = trained_vit()
    pixels, colours, inside = images(50, seed=12345)
    print(f"the model is right in {(model(pixels).argmax(1) == colours).float().mean():.0%}")
    print(f"the square is {SQUARE**2 / IMAGE**2:.0%} of an image\n")
    print("positive relevance inside the square:")

    figure, grid = plt.subplots(len(CONV_GAMMAS), len(LINEAR_GAMMAS), figsize=(7, 7.5))
    # CP-LRP for this module by default: attention weights count as constants.
    with monkey_patch(vision_transformer), monkey_patch_zennit():
        for row, conv_gamma in enumerate(CONV_GAMMAS):
            for column, linear_gamma in enumerate(LINEAR_GAMMAS):
                relevance = heatmaps(model, pixels, conv_gamma, linear_gamma)
                positive = relevance.clamp(min=0)
                share = float((positive * inside).sum() / positive.sum())
                title = f"conv γ {conv_gamma:g}, linear γ {linear_gamma:g}"
                print(f"  {title:28} {share:.0%}")

                limit = float(relevance[0].abs().max())
                axes = grid[row, column]
                axes.imshow(relevance[0].numpy(), cmap="bwr", vmin=-limit, vmax=limit)
                axes.set_title(f"{title}\n{share:.0%}", fontsize=8)
                axes.set_axis_off()

    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "vit_gamma.png", dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
