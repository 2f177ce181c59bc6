"""Fourier transforms and complex numbers: linear maps, whose gradient is the rule (Eq. 8).

The relevance of a complex number is that of its real and imaginary part together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lxt.rules.elementary import passthrough
from lxt.rules.registry import (
    Sample,
    complex_t,
    constant_t,
    register,
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
