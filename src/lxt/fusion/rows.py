"""Tokens that hand nothing back: in the last layer, all but those that are explained."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lxt.pieces import is_batched

__all__ = ["on_live_rows"]

_FEW = 1 / 4


def on_live_rows(compute: Callable[..., Tensor], g: Tensor, *operands: Tensor | None) -> Tensor:
    """`compute(g, *operands)`, which treats each token by itself, on the tokens whose g isn't 0.

    Args:
        compute: maps [..., channels] of the gradient and the operands to [..., channels].
        g: the gradient [..., channels].
        operands: likewise, or None.

    """
    live = _live(g)
    if live is None:
        return compute(g, *operands)
    rows = (None if x is None else x.reshape(-1, x.shape[-1])[live] for x in (g, *operands))
    found = compute(*rows)
    result = found.new_zeros(g.shape[:-1].numel(), found.shape[-1])
    result[live] = found
    return result.view(*g.shape[:-1], -1)


def _live(g: Tensor) -> Tensor | None:
    """The numbers of the tokens whose gradient isn't 0, if they are few and it is cheap to know.

    The first token of most layers tells that they aren't. An accelerator would be waited for.
    """
    if g.device.type != "cpu" or is_batched(g) or not g.numel():
        return None
    flat = g.reshape(-1, g.shape[-1])
    if flat[0].any():
        return None
    live = (flat != 0).any(-1).nonzero()[:, 0]
    return live if len(live) <= _FEW * len(flat) else None
