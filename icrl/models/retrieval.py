"""Cross-attention to what a memory brought: keys and values made once per retrieval, then looked at by the tokens that it serves.

Beside the retrieved tokens stands one that holds nothing, with a learned key and the value 0. Its share of the attention is what the memory is *not*
given; an empty memory leaves it alone, so that the layer adds exactly 0, in training as at deployment (tests/test_recall.py).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icrl.config import ModelConfig


class Remembered(NamedTuple):
    """Keys and values of R retrievals' tokens in one layer, the token that holds nothing first: (B, R, H, 1 + M, d)."""

    keys: Tensor
    values: Tensor


class CrossAttention(nn.Module):
    """Multi-head attention of a window's tokens to those of the retrieval in force."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.num_heads, self.dropout = config.num_heads, config.dropout
        self.query = nn.Linear(config.width, config.attention_width, bias=False)
        self.key_value = nn.Linear(config.width, 2 * config.attention_width, bias=False)
        self.nothing = nn.Parameter(torch.zeros(config.num_heads, 1, config.attention_width // config.num_heads))
        self.out = nn.Linear(config.attention_width, config.width, bias=False)

    def remember(self, tokens: Tensor) -> Remembered:
        """Retrieved tokens (B, R, M, D) -> their keys and values."""
        batch, retrievals, length, _ = tokens.shape
        key_value = self.key_value(tokens).view(batch, retrievals, length, 2, self.num_heads, -1)
        keys, values = key_value.permute(3, 0, 1, 4, 2, 5)  # each (B, R, H, M, d)
        nothing = self.nothing.to(keys.dtype).expand(batch, retrievals, -1, -1, -1)
        return Remembered(torch.cat([nothing, keys], 3), torch.cat([torch.zeros_like(nothing), values], 3))

    def forward(self, x: Tensor, remembered: Remembered, seen: Tensor) -> Tensor:
        """What tokens gather: x (B, R, T, D), T tokens for each of R retrievals; ``seen`` (B, R, 1 + M) bool -> (B, R, T, D)."""
        batch, retrievals, length, _ = x.shape
        q = self.query(x).view(batch * retrievals, length, self.num_heads, -1).transpose(1, 2)
        keys, values = (part.flatten(0, 1) for part in remembered)
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen.flatten(0, 1)[:, None, None])
        y = self.out(y.transpose(1, 2).flatten(2)).view(x.shape)
        return F.dropout(y, self.dropout, self.training)

    def shares(self, x: Tensor, remembered: Remembered, seen: Tensor) -> Tensor:
        """(B, R, T, 1 + M) how the attention is divided, mean over heads; the first share is that of nothing."""
        batch, retrievals, length, _ = x.shape
        q = self.query(x).view(batch, retrievals, length, self.num_heads, -1).transpose(2, 3)
        scores = q @ remembered.keys.transpose(-1, -2) * q.shape[-1] ** -0.5  # (B, R, H, T, 1 + M)
        return scores.masked_fill(~seen[:, :, None, None], -torch.inf).softmax(-1).mean(2)


class MemoryView(Protocol):
    """What the tokens of one pass see of a memory, the same for every layer."""

    def attend(self, number: int, layer: CrossAttention, x: Tensor) -> Tensor:
        """What tokens x (B, T, D) gather in the cross-attending layer ``number``: (B, T, D)."""
        ...


class RetrievedWindow:
    """Whole windows: every ``every`` tokens a retrieval of their own, from the window's first token on.

    Parameters
    ----------
    tokens : Tensor
        (B, R, M, D) what was retrieved.
    looked_at : Tensor
        (B, R, M) bool.
    every : int
        Tokens that each retrieval serves; the last one may serve fewer.
    places : Tensor, optional
        (B, R, M) where each retrieved token stands among distinct ones: ``tokens`` is then (B, 1, N, D), so that what came twice is read once.
    """

    def __init__(self, tokens: Tensor, looked_at: Tensor, every: int, places: Tensor | None = None):
        self.tokens, self.every = tokens, every
        self.seen = see_nothing_too(looked_at)
        self.places = None if places is None else F.pad(places + 1, (1, 0))  # (B, R, 1 + M): nothing stands first

    def attend(self, number: int, layer: CrossAttention, x: Tensor) -> Tensor:
        return layer(self._grouped(x), self._remembered(layer), self.seen).flatten(1, 2)[:, : x.shape[1]]

    def _remembered(self, layer: CrossAttention) -> Remembered:
        remembered = layer.remember(self.tokens)
        if self.places is None:
            return remembered
        rows = torch.arange(len(self.places), device=self.places.device)[:, None, None]
        return Remembered(*(part[:, 0].transpose(1, 2)[rows, self.places].transpose(2, 3) for part in remembered))

    def _grouped(self, x: Tensor) -> Tensor:
        """Tokens (B, T, D) by the retrieval that serves them: (B, R, every, D), zeros where the last one serves fewer."""
        batch, length, width = x.shape
        retrievals = self.seen.shape[1]
        return F.pad(x, (0, 0, 0, retrievals * self.every - length)).view(batch, retrievals, self.every, width)


class WatchedWindow(RetrievedWindow):
    """The same, keeping how the attention was divided: ``shares``, by layer (B, R, every, 1 + M), the first share being that of nothing."""

    def __init__(self, tokens: Tensor, looked_at: Tensor, every: int, places: Tensor | None = None):
        super().__init__(tokens, looked_at, every, places)
        self.shares: list[Tensor] = []

    def attend(self, number: int, layer: CrossAttention, x: Tensor) -> Tensor:
        self.shares.append(layer.shares(self._grouped(x), self._remembered(layer), self.seen))
        return super().attend(number, layer, x)


def see_nothing_too(looked_at: Tensor) -> Tensor:
    """(..., M) bool -> (..., 1 + M): the token that holds nothing is always seen."""
    return F.pad(looked_at, (1, 0), value=True)


class RetrievalCache:
    """What the lanes of a roll-out have retrieved last: keys and values by layer. An argument of the policy, never an attribute."""

    def __init__(self, layers: int, lanes: int, heads: int, length: int, head_width: int, device: torch.device):
        shape = (layers, lanes, heads, 1 + length, head_width)
        self.keys, self.values = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
        self.seen = see_nothing_too(torch.zeros(lanes, length, dtype=torch.bool, device=device))  # (B, 1 + M)
        self.shares: list[Tensor] | None = (
            None  # where it is a list: by layer, how the attention of the last token was divided, (B, 1 + M)
        )

    def write(self, number: int, lanes: Tensor, remembered: Remembered) -> None:
        """Keep the keys and values (n, 1, H, 1 + M, d) of some lanes' retrieval in one layer."""
        self.keys[number, lanes], self.values[number, lanes] = remembered.keys[:, 0], remembered.values[:, 0]

    def attend(self, number: int, layer: CrossAttention, x: Tensor) -> Tensor:
        """Tokens (B, T, D) of all lanes: each sees what its lane retrieved last."""
        remembered = Remembered(self.keys[number][:, None], self.values[number][:, None])
        if self.shares is not None:
            self.shares.append(layer.shares(x[:, None], remembered, self.seen[:, None])[:, 0, -1])
        return layer(x[:, None], remembered, self.seen[:, None])[:, 0]
