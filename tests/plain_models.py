"""Transformers as people write them in PyTorch, without any library of models."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, TOKENS, BATCH = 16, 4, 6, 2


class ScaleNorm(nn.Module):
    """x / ‖x‖ · √d · g, with a g that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-5) * math.sqrt(WIDTH) * self.g


class WrittenRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * (x.square().mean(-1, keepdim=True) + 1e-6) ** -0.5


class WrittenLayerNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        deviation = ((x - mean) ** 2).mean(-1, keepdim=True).add(1e-5).sqrt()
        return (x - mean) / deviation * self.weight + self.bias


def rotated(x: Tensor) -> Tensor:
    """Rotary positions, the halves of each head turned against each other."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[-2])[:, None] * 10.0 ** -torch.arange(half)
    cos, sin = angle.cos().to(x), angle.sin().to(x)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


class Attention(nn.Module):
    """Attention in einsums, with a softmax of its own, rotary or ALiBi positions, and memory."""

    def __init__(self, positions: str, written: bool, talking: bool, memory: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GLU())
        self.talk = nn.Parameter(torch.randn(HEADS, HEADS)) if talking else None
        self.memory = nn.Parameter(torch.randn(2, HEADS, memory, WIDTH // HEADS))
        self.positions, self.written = positions, written

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], 3, HEADS, WIDTH // HEADS)
        q, k, v = self.qkv(x).view(shape).permute(2, 0, 3, 1, 4)
        if self.positions == "rotary":
            q, k = rotated(q), rotated(k)
        mk, mv = (m.expand(len(x), -1, -1, -1) for m in self.memory)
        k, v = torch.cat((mk, k), -2), torch.cat((mv, v), -2)
        scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1])
        if self.positions == "alibi":
            distance = torch.arange(k.shape[-2])[None] - torch.arange(q.shape[-2])[:, None]
            scores = scores - distance.abs() * 2.0 ** -torch.arange(1, HEADS + 1)[:, None, None]
        if self.talk is not None:
            scores = torch.einsum("bhij,hg->bgij", scores, self.talk)
        if self.written:
            e = torch.exp(scores)
            weights = e / e.sum(-1, keepdim=True)
        else:
            weights = scores.softmax(-1)
        mixed = torch.einsum("bhij,bhjd->bihd", weights, v)
        return self.out(mixed.reshape(x.shape))


class Block(nn.Module):
    """A block whose norm, gate and residual are chosen, as x-transformers lets one."""

    def __init__(
        self,
        norm: Callable[[], nn.Module],
        *,
        positions: str = "rotary",
        written: bool = False,
        talking: bool = False,
        parallel: bool = False,
        memory: int = 1,
    ) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norm() for _ in range(4))
        self.attention = Attention(positions, written, talking, memory)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.residual_scale = nn.Parameter(torch.ones(WIDTH))
        self.parallel = parallel

    def mlp(self, x: Tensor) -> Tensor:
        value, gate = self.up(x).chunk(2, -1)
        return self.down(value * F.gelu(gate))

    def forward(self, x: Tensor) -> Tensor:
        if self.parallel:
            y = self.norms[0](x)
            return x * self.residual_scale + self.attention(y) + self.mlp(y)
        x = x * self.residual_scale + self.norms[1](self.attention(self.norms[0](x)))
        return x + self.norms[3](self.mlp(self.norms[2](x)))


class Stack(nn.Module):
    """Blocks, one used twice, with a pooled output."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([*blocks, blocks[0]])
        self.positions = nn.Parameter(torch.randn(TOKENS, WIDTH))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class Decoder(nn.Module):
    """torch's decoder, with masks, over torch's encoder."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        settings = {"batch_first": True, "dropout": 0.1, "norm_first": norm_first}
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, activation="gelu", **settings)
        other = nn.TransformerDecoderLayer(WIDTH, HEADS, 24, activation=F.silu, **settings)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(other, 2, norm=nn.LayerNorm(WIDTH))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1]).to(target)
        padding = torch.zeros(source.shape[:2], dtype=torch.bool)
        padding[:, -1] = True
        memory = self.encoder(source, src_key_padding_mask=padding)
        return self.decoder(
            target, memory, tgt_mask=mask, tgt_is_causal=True, memory_key_padding_mask=padding
        )


class SelfAttention(nn.Module):
    """torch's attention by itself."""

    def __init__(self, need_weights: bool, **settings: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **settings)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=self.need_weights)[0]


def encoder(**settings) -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, batch_first=True, **settings)
    return nn.TransformerEncoder(layer, 2)


MODELS = {
    "encoder, norm last": lambda: encoder(),
    "encoder, norm first, GELU": lambda: encoder(norm_first=True, activation="gelu"),
    "encoder, no bias": lambda: encoder(bias=False),
    "encoder and decoder": lambda: Decoder(norm_first=False),
    "encoder and decoder, norm first": lambda: Decoder(norm_first=True),
    "attention": lambda: SelfAttention(need_weights=False),
    "attention with its weights": lambda: SelfAttention(need_weights=True),
    "attention with biases": lambda: SelfAttention(True, add_bias_kv=True, add_zero_attn=True),
    "rotary, GLU": lambda: Stack(Block(lambda: nn.LayerNorm(WIDTH))),
    "written RMS norm": lambda: Stack(Block(WrittenRMSNorm), Block(WrittenRMSNorm)),
    "written layer norm, ALiBi": lambda: Stack(Block(WrittenLayerNorm, positions="alibi")),
    "written softmax": lambda: Stack(Block(WrittenRMSNorm, written=True)),
    "scale norm, talking heads": lambda: Stack(Block(ScaleNorm, talking=True)),
    "parallel, no positions": lambda: Stack(Block(WrittenRMSNorm, parallel=True, positions="")),
}
