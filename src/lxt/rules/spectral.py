"""Fourier transforms and complex numbers: linear maps, whose gradient is the rule (Eq. 8).

But for polar coordinates, which are a product with a cosine and a sine. The relevance of a complex
number is that of its real and imaginary part together.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lxt.gradients import carries_relevance, surrogate
from lxt.rules.activation import cos_slope
from lxt.rules.bilinear import share
from lxt.rules.elementary import passthrough
from lxt.rules.registry import (
    Sample,
    complex_t,
    constant_t,
    register,
    rule,
    sample,
    spelled,
    t,
)

SOURCE = "AttnLRP Eq. 8"


def transforms(*names: str, samples: list[Sample]) -> None:
    """Register transforms of `torch.fft`."""
    operations = [getattr(torch.fft, name) for name in names]
    register(operations, passthrough, source=SOURCE, samples=samples)


transforms("fft", "ifft", "rfft", "ihfft", samples=[sample(t(2, 4)), sample(t(4, 2), dim=0)])
transforms("irfft", "hfft", samples=[sample(t(2, 3)), sample(complex_t(2, 3), n=4)])
transforms("fft2", "ifft2", "rfft2", "fftn", "ifftn", "rfftn", samples=[sample(t(2, 4))])
transforms("irfft2", "irfftn", samples=[sample(complex_t(2, 3))])
transforms("fftshift", "ifftshift", samples=[sample(t(2, 3))])

_window = constant_t(4, positive=True)
register(
    [*spelled("stft")],
    passthrough,
    source=SOURCE,
    samples=[sample(t(2, 8), 4, 2, window=_window, center=False, return_complex=True)],
)
register(
    spelled("istft"),
    passthrough,
    source=SOURCE,
    samples=[sample(complex_t(2, 3, 3), 4, 2, window=_window)],
)
register(spelled("view_as_complex"), passthrough, source=SOURCE, samples=[sample(t(3, 2))])
register([torch.complex], passthrough, source=SOURCE, samples=[sample(t(3), t(3))])
register(
    [
        *spelled("view_as_real", "conj", "conj_physical"),
        *(torch.real, torch.imag),
        *(attribute.__get__ for attribute in (Tensor.real, Tensor.imag)),  # pyright: ignore[reportAttributeAccessIssue]
    ],
    passthrough,
    source=SOURCE,
    samples=[sample(complex_t(2, 3))],
)


@rule(
    torch.polar,
    source="AttnLRP Eq. 9, Prop. 3.2",
    samples=[sample(t(2, 3), t(2, 3)), sample(t(2, 3), constant_t(2, 3))],
)
def polar(abs: Tensor, angle: Tensor) -> Tensor:
    """r cos φ + i r sin φ: a product of r, and of what the secants of cosine and sine hand to φ."""
    radius, turn = share((abs, angle))
    if not carries_relevance(radius) and not carries_relevance(turn):
        return torch.polar(abs, angle)
    return surrogate(torch.polar, _linear_polar, (radius, turn))


def _linear_polar(radius: Tensor, angle: Tensor) -> Tensor:
    """The map that `polar` is linearised to, but for a constant."""
    r, phi = radius.detach(), angle.detach()
    slopes = torch.complex(cos_slope(phi), torch.sinc(phi / math.pi))
    return radius * torch.polar(torch.ones_like(phi), phi) + r * slopes * angle
