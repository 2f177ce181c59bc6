"""Operations that move, copy, cast or join values: autograd's own gradient is the rule.

Each output's relevance goes to the input that it came from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lxt.rules.elementary import passthrough
from lxt.rules.registry import Sample, constant_t, register, sample, spelled, t

SOURCE = "moves values"


def moves(*names: str, samples: list[Sample]) -> None:
    """Register operations that move values and leave them as they are."""
    register(spelled(*names), passthrough, source=SOURCE, samples=samples)


x = t(2, 3, 4)
square = t(2, 3, 3)

moves("view", "reshape", samples=[sample(x, (6, 4)), sample(x, (2, -1))])
moves("view_as", "reshape_as", "expand_as", samples=[sample(x, x)])
moves("flatten", "ravel", "contiguous", "clone", "cpu", "alias", samples=[sample(x)])
moves("unflatten", samples=[sample(x, 2, (2, 2))])
moves("transpose", "swapaxes", "swapdims", samples=[sample(x, 0, 2)])
moves("permute", samples=[sample(x, (2, 0, 1))])
moves("movedim", "moveaxis", samples=[sample(x, 0, -1)])
moves("t", samples=[sample(t(3, 4))])
moves("adjoint", samples=[sample(x)])
moves("squeeze", samples=[sample(t(2, 1, 3)), sample(t(2, 1, 3), 1)])
moves("squeeze_", samples=[sample(t(2, 1, 3)), sample(t(2, 1, 3), 1)])
moves("unsqueeze", samples=[sample(x, 1)])
moves("unsqueeze_", samples=[sample(x, 1)])
moves("transpose_", "swapaxes_", samples=[sample(x, 0, 2)])
moves("t_", samples=[sample(t(3, 4))])
moves("expand", samples=[sample(t(2, 1, 4), (2, 3, 4))])
moves("broadcast_to", samples=[sample(t(2, 1, 4), (2, 3, 4))])
moves("broadcast_tensors", samples=[sample(x, t(1, 4))])
moves("atleast_1d", "atleast_3d", samples=[sample(t(3, 4))])
moves("meshgrid", samples=[sample(t(2), t(3), indexing="ij")])
moves("column_stack", samples=[sample((t(3, 4), t(3)))])
moves("dsplit", "vsplit", samples=[sample(t(2, 3, 4), 2)])
moves("unsafe_chunk", samples=[sample(x, 2, 2)])
moves("unsafe_split", samples=[sample(x, 2, -1)])
moves("channel_shuffle", samples=[sample(t(1, 4, 2), 2)])
moves("repeat", "tile", samples=[sample(x, (1, 2, 1))])
moves("repeat_interleave", samples=[sample(x, 2, 1)])
moves("narrow", samples=[sample(x, 1, 0, 2)])
moves("select", samples=[sample(x, 1, 2)])
moves("diagonal", samples=[sample(square, dim1=1, dim2=2)])
moves("chunk", "tensor_split", samples=[sample(x, 2, 2)])
moves("split", samples=[sample(x, 2, -1), sample(x, (1, 3), -1)])
moves("split_with_sizes", samples=[sample(x, (1, 3), -1)])
moves("unbind", samples=[sample(x, 1)])
moves("hsplit", samples=[sample(t(4, 4), 2)])
moves("cat", "concat", "concatenate", samples=[sample((x, x), -1)])
moves("stack", samples=[sample((x, x), 0)])
moves("hstack", "vstack", "dstack", "atleast_2d", samples=[sample((t(3, 4), t(3, 4)))])
moves("block_diag", samples=[sample(t(2, 3), t(3, 2))])
moves("diag", "diag_embed", samples=[sample(t(3))])
moves("tril", "triu", "tril_", "triu_", samples=[sample(square)])
moves("pad", "constant_pad_nd", samples=[sample(x, (1, 2))])
register([Tensor.unfold], passthrough, source=SOURCE, samples=[sample(x, 2, 2, 1)])
register([F.unfold], passthrough, source=SOURCE, samples=[sample(t(1, 2, 3, 3), 2)])
moves("fold", samples=[sample(t(1, 12, 4), (3, 3), (2, 2))])
moves("as_strided", samples=[sample(t(3, 4), (2, 2), (4, 1))])
moves("pixel_shuffle", samples=[sample(t(1, 4, 2, 2), 2)])
register(
    [torch._C._nn.pad_sequence],  # pyright: ignore[reportAttributeAccessIssue]  # that of nn.utils.rnn
    passthrough,
    source=SOURCE,
    samples=[sample([t(2, 3), t(4, 3)], True)],
)
moves("pixel_unshuffle", samples=[sample(t(1, 1, 4, 4), 2)])

# Casts round; the rounding error is nobody's relevance.
moves("to", samples=[sample(x, torch.float32)])
moves("type_as", samples=[sample(x, x)])
moves("float", "double", samples=[sample(x)])
moves("half", "bfloat16", samples=[sample(x)])
moves("type", samples=[sample(x, torch.float32)])
moves("cuda", samples=[sample(x)])

# `x.copy_(y)` and friends: what is written is a move, what it overwrites is gone.
moves("copy_", samples=[sample(x, t(3, 4)), sample(constant_t(2, 3, 4), x)])
moves("resolve_conj", "resolve_neg", samples=[sample(x)])

_VIEW_PROPERTIES = (Tensor.T, Tensor.mT, Tensor.H, Tensor.mH)
register(
    [attribute.__get__ for attribute in _VIEW_PROPERTIES],  # pyright: ignore[reportAttributeAccessIssue]
    passthrough,
    source=SOURCE,
    samples=[sample(t(3, 4))],
)
