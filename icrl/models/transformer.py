"""Pre-norm transformer on scaled-dot-product attention, with rotary positions and a key-value cache as an argument.

The same ``forward`` serves training (a whole window) and deployment (new tokens behind a cache): who sees whom is a pattern
(icrl/models/attention.py), and the laws in tests/test_models.py hold the two together. Rotary positions: Su et al. 2021, arXiv 2104.09864.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icrl.config import ModelConfig
from icrl.models.attention import Pattern
from icrl.models.moe import Mixture
from icrl.models.retrieval import CrossAttention, MemoryView


def rotary_angles(num_positions: int, head_width: int) -> Tensor:
    """(num_positions, head_width / 2) every position's rotations, as complex numbers of modulus 1."""
    frequencies = 10_000.0 ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angles = torch.arange(num_positions, dtype=torch.float64)[:, None] * frequencies
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate neighbouring pairs of x (B, T, ..., H, d) by ``angles``, (T, d/2) or (B, T, d/2): one complex product each way."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    angles = angles.reshape(*angles.shape[:-1], *(1,) * (pairs.ndim - 3), angles.shape[-1])
    return torch.view_as_real(pairs * angles).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention; who sees whom is the pattern's business."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.num_heads, self.dropout = config.num_heads, config.dropout
        self.qkv = nn.Linear(config.width, 3 * config.attention_width, bias=False)
        self.out = nn.Linear(config.attention_width, config.width, bias=False)

    def forward(self, x: Tensor, angles: Tensor | None, pattern: Pattern, layer: int, first: int) -> Tensor:
        """What the tokens from ``first`` on gather from x (B, T, D) -> (B, T - first, D)."""
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, -1)
        qk, v = qkv.split((2, 1), 2)
        if angles is not None:
            qk = rotate(qk, angles)
        q, k = qk.permute(2, 0, 3, 1, 4)  # each (B, H, T, d)
        y = pattern.attend(layer, q[:, :, first:], k, v.squeeze(2).transpose(1, 2))
        y = y.transpose(1, 2).flatten(2)
        return F.dropout(self.out(y), self.dropout, self.training)


class MLP(nn.Module):
    """Two-layer feed-forward with GELU."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dropout = config.dropout
        self.up = nn.Linear(config.width, config.mlp_ratio * config.width)
        self.down = nn.Linear(config.mlp_ratio * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.down(F.gelu(self.up(x))), self.dropout, self.training)


class Block(nn.Module):
    """x + attention(norm(x)), then x + cross(norm(x)) where there is a memory, then x + mlp(norm(x)), which may be a mixture of experts.

    Of the tokens from ``first`` on: the others are only looked at.
    """

    def __init__(self, config: ModelConfig, remembers: bool, mixes: bool):
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.attention, self.mlp = Attention(config), Mixture(config) if mixes else MLP(config)
        self.cross_norm = nn.LayerNorm(config.width) if remembers else None
        self.cross = CrossAttention(config) if remembers else None

    def forward(
        self, x: Tensor, angles: Tensor | None, pattern: Pattern, layer: int, first: int, memory: MemoryView | None
    ) -> Tensor:
        seen = self.attention_norm(x)
        x = x[:, first:] + self.attention(seen, angles, pattern, layer, first)
        if self.cross is not None and self.cross_norm is not None and memory is not None:
            x = x + memory.attend(layer, self.cross, self.cross_norm(x))
        if isinstance(self.mlp, MLP):
            return x + self.mlp(self.mlp_norm(x))
        summary = pattern.summarise(layer, seen)[:, first:] if self.mlp.task_router is not None else None
        return x + self.mlp(self.mlp_norm(x), summary)


class Transformer(nn.Module):
    """The backbone of every policy: tokens (B, T, D) in, features of those that are read out."""

    angles: Tensor

    def __init__(self, config: ModelConfig, num_slots: int):
        super().__init__()
        self.config = config
        remembering = config.memory.k > 0, config.memory.k > 0 and config.memory.layers == "all"
        mixing = config.mixture.blocks
        self.blocks = nn.ModuleList(Block(config, remembering[n > 0], n in mixing) for n in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width)
        angles = (
            rotary_angles(num_slots, config.attention_width // config.num_heads) if config.rotary else torch.empty(0)
        )
        self.register_buffer("angles", angles, persistent=False)

    def forward(self, x: Tensor, pattern: Pattern, first: int = 0, memory: MemoryView | None = None) -> Tensor:
        """Features (B, T - first, D) of the tokens from ``first`` on; each of x (B, T, D) sees what the pattern lets it see.

        Of the tokens before ``first`` the last layer needs keys and values alone. ``memory`` is what was retrieved for them, if anything.
        """
        angles = pattern.positions(self.angles) if self.config.rotary else None
        last = len(self.blocks) - 1
        for layer, block in enumerate(self.blocks):
            x = block(x, angles, pattern, layer, first if layer == last else 0, memory)
        return self.norm(x)
