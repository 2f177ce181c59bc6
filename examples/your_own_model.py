"""A model with parts that no rule knows: `lxt.audit` finds them, and says what to write.

A gated block with a rare torch function, an autograd Function and a norm fused into one kernel. The
audit is red; three lines later it is green, and the relevance is that of the same block written in
plain torch. `docs/your-own-model.md` takes the same way step by step.

Weights: random; what holds here holds for any.
Prints what the audit finds before and after, what is wrong with a norm's own gradient, and how far
the relevance is from that of the plain block.

    python examples/your_own_model.py
"""

import torch
from _common import arguments
from torch import Tensor, nn

import lxt

SIZE = 16


class SquareFunction(torch.autograd.Function):
    """x·|x|, by a kernel of its own."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.abs()

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x.abs() * g


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return SquareFunction.apply(x)


class FusedNormFunction(torch.autograd.Function):
    """An RMSNorm and its gradient in one go."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        x, scale = ctx.saved_tensors
        return scale * (g - x * scale**2 * (g * x).mean(-1, keepdim=True))


class FusedNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return FusedNormFunction.apply(x)


class PlainNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Block(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.square = norm, Square()
        self.gate, self.up, self.down = (nn.Linear(SIZE, SIZE) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.down(self.square(self.up(h)) * torch.special.i1(self.gate(h)))


SAMPLE = lxt.sample(FusedNorm(), torch.linspace(-2, 2, 12).reshape(3, 4).requires_grad_())


@lxt.rule(FusedNorm, source="AttnLRP Prop. 3.4", samples=[SAMPLE])
def fused_norm(norm: FusedNorm, x: Tensor) -> Tensor:
    """The root mean square is a constant."""

    def scaled(x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6).detach()

    return lxt.gradients.surrogate(norm.forward, scaled, [x])


def relevance_of(model: nn.Module, x: Tensor, composite: lxt.Composite) -> Tensor:
    x = x.clone().requires_grad_()
    with composite.context(model):
        model(x)[0, -1].max().backward()
    return (x * x.grad).sum(-1)


def main() -> None:
    arguments(__doc__).parse_args()
    torch.manual_seed(0)
    model, x = Block(FusedNorm()), torch.randn(1, 5, SIZE)

    report = lxt.audit(model, x)
    print(f"findings before: {len(report.findings)}")
    for finding in report.findings:
        print(f"  {finding.text.partition(' ')[0]:<18} write: {finding.line}")

    try:
        lxt.testing.check_rule(lxt.rules.passthrough, FusedNorm, SAMPLE)
    except lxt.errors.CheckFailed as error:
        print(f"the norm's own gradient: {error}")

    lxt.testing.check_rule(fused_norm)
    gates = {torch.special.i1: lxt.rules.unit, Square: lxt.rules.unit}
    composite = lxt.attnlrp | gates | {FusedNorm: fused_norm}
    report = lxt.testing.check_model(model, x, composite=composite)
    print(f"findings after:  {len(report.findings)}\n")
    print(report)

    plain = Block(PlainNorm())
    plain.load_state_dict(model.state_dict())
    found = relevance_of(model, x, composite)
    expected = relevance_of(plain, x, lxt.attnlrp | gates)
    print(f"\nthe plain block's relevance differs by {(found - expected).abs().max():.1e}")


if __name__ == "__main__":
    main()
