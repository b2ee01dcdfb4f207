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

    def summarise(self, layer: int, x: Tensor) -> Tensor:
        """x (B, T, D) of the tokens -> the mean of those that a task may be told from at each of them (B, T, D), 0 where there is none."""
        ...


class CausalWindow:
    """Every token sees itself and what came before.

    It is summarised from the first ``told`` (T,) or (B, T) tokens of the window; by default from those that it sees. In windows that are ``apart`` (B,) steps
    of ``each`` tokens see nothing of other steps.
    """

    def __init__(self, length: int, told: Tensor | None = None, apart: Tensor | None = None, each: int = 1):
        self.length, self.told, self.mask = length, told, None
        if apart is not None:
            token = torch.arange(length, device=apart.device)
            before, same = token <= token[:, None], token // each == token[:, None] // each
            self.mask = (before & (same | ~apart[:, None, None]))[:, None]  # (B, 1, T, T)

    def positions(self, angles: Tensor) -> Tensor:
        return angles[: self.length]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, is_causal=self.mask is None)

    def summarise(self, layer: int, x: Tensor) -> Tensor:
        told = torch.arange(1, self.length + 1, device=x.device) if self.told is None else self.told
        return mean_of_first(running_sums(x), told.expand(x.shape[:2]))


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
        self.told = 1 + torch.cat([columns, prefixes])  # (1 + P + Q,)

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

    def summarise(self, layer: int, x: Tensor) -> Tensor:
        end = self.first_query
        means = mean_of_first(running_sums(x[:, :end]), self.told.expand(x.shape[:2]))
        return torch.cat([first_and_self(x[:, :1], x[:, :end]), means[:, end:]], 1) if self.exact_set else means


def running_sums(x: Tensor) -> Tensor:
    """(B, T, D) -> sums of the first 1 to T, in float32."""
    return x.float().cumsum(1)


def mean_of_first(sums: Tensor, told: Tensor) -> Tensor:
    """Running sums (B, S, D) -> means of the first ``told`` (B, T), (B, T, D); 0 where that is none."""
    index = (told - 1).clamp(min=0)[..., None].expand(-1, -1, sums.shape[-1])
    return sums.gather(1, index) * ((told > 0) / told.clamp(min=1))[..., None]


def first_and_self(first: Tensor, x: Tensor) -> Tensor:
    """What tokens of an exact set are summarised from: the beginning-of-context token (B, 1, D) and themselves (B, T, D)."""
    return (first.float() + x.float()) / 2


def see_first_and_self(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of tokens (B, H, T, d) that see the first token and themselves: a softmax over two is a sigmoid."""
    score = (q * (k - k[:, :, :1])).sum(-1, keepdim=True) * q.shape[-1] ** -0.5
    return v[:, :, :1] + torch.sigmoid(score) * (v - v[:, :, :1])
