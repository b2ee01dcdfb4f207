"""Attention patterns of whole windows: who sees whom. The pattern of new tokens behind a cache is in icrl/models/cache.py."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Pattern(Protocol):
    """Who sees whom in one pass, the same for every layer."""

    def positions(self, angles: Tensor) -> Tensor:
        """The rows of ``angles`` (positions, ...) that belong to the tokens: (T, ...) or (B, T, ...)."""
        ...

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keys and values of the tokens (B, H, T, d), queries of all or of the last ones (B, H, t, d) -> what each of these gathers (B, H, t, d)."""
        ...


class CausalWindow:
    """Every token sees itself and what came before."""

    def __init__(self, length: int):
        self.length = length

    def positions(self, angles: Tensor) -> Tensor:
        return angles[: self.length]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class QueriedWindow:
    """Tokens [beginning, P context tokens, Q queries]: query j sees the beginning, ``prefixes[j]`` context tokens and itself.

    Context tokens see themselves and what came before, or as an exact set only themselves and the beginning. Nothing sees a query.
    """

    def __init__(self, num_context: int, prefixes: Tensor, exact_set: bool):
        self.first_query, self.exact_set = 1 + num_context, exact_set
        num_queries, device = len(prefixes), prefixes.device
        columns = torch.arange(1 + num_context, device=device)
        own = torch.eye(num_queries, dtype=torch.bool, device=device)
        self.mask = torch.cat([columns <= prefixes[:, None], own], 1)  # (Q, 1 + P + Q)

    def positions(self, angles: Tensor) -> Tensor:
        return angles[: self.first_query + len(self.mask)]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        end = self.first_query
        answers = F.scaled_dot_product_attention(q[:, :, -len(self.mask) :], k, v, attn_mask=self.mask)
        if q.shape[2] == len(self.mask):
            return answers
        context = q[:, :, :end], k[:, :, :end], v[:, :, :end]
        if self.exact_set:
            gathered = see_first_and_self(*context)
        else:
            gathered = F.scaled_dot_product_attention(*context, is_causal=True)
        return torch.cat([gathered, answers], 2)


def see_first_and_self(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of tokens (B, H, T, d) that see the first token and themselves: a softmax over two is a sigmoid."""
    score = (q * (k - k[:, :, :1])).sum(-1, keepdim=True) * q.shape[-1] ** -0.5
    return v[:, :, :1] + torch.sigmoid(score) * (v - v[:, :, :1])
