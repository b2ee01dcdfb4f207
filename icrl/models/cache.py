"""Keys and values of what was already read, one row of slots per lane. An argument of the policy, never an attribute.

A lane's first ``lengths[lane]`` slots are valid. New tokens are written at the slots behind them, and only those that are *kept* move the length
on: a query token, which nothing may attend to later, is simply overwritten by the next token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from icrl.interfaces import UserError
from icrl.models.attention import first_and_self, mean_of_first, running_sums


@dataclass
class KVCache:
    """Keys and values (layers, B, H, S, d) with S slots per lane, and how many of them are valid."""

    keys: Tensor
    values: Tensor
    lengths: Tensor  # (B,) int64
    sums: dict[
        int, Tensor
    ]  # by layer with a task router (B, S, D) float32: the sum up to each slot of what it summarises

    @staticmethod
    def empty(
        num_layers: int,
        lanes: int,
        heads: int,
        slots: int,
        head_width: int,
        device: torch.device,
        summarised: Sequence[int] = (),
        width: int = 0,
    ) -> KVCache:
        """Nothing read yet; the layers ``summarised`` keep running sums of that ``width``. Raises UserError where so many lanes do not fit the memory."""
        shape = (num_layers, lanes, heads, slots, head_width)
        needed = 2 * 4 * math.prod(shape) + 4 * len(summarised) * lanes * slots * width
        if device.type == "cpu" and needed > psutil.virtual_memory().available:
            raise UserError(
                f"the keys and values of {lanes:,} lanes take {needed / 1e9:.1f} GB, more memory than is free: use fewer lanes at once "
                "(and more seeds instead)"
            )
        return KVCache(
            torch.zeros(shape, device=device),
            torch.zeros(shape, device=device),
            torch.zeros(lanes, dtype=torch.int64, device=device),
            {layer: torch.zeros(lanes, slots, width, device=device) for layer in summarised},
        )

    @property
    def num_slots(self) -> int:
        return self.keys.shape[3]


class CacheView:
    """The pattern of T new tokens of some lanes behind a cache: where they write, and what they see.

    Attributes
    ----------
    mask : Tensor or None
        (n, 1, T, S') bool, True where token i may attend to slot j; None where ``causal`` says it all.
    causal : bool
        The new tokens stand behind nothing: they see themselves and the new ones before them.
    """

    def __init__(
        self,
        cache: KVCache,
        num_new: int,
        lanes: Tensor | None,
        allowed: Tensor | None = None,
        told: Tensor | None = None,
    ):
        self.cache, self.num_new, self.lanes, self.allowed = cache, num_new, lanes, allowed
        self.lengths = cache.lengths if lanes is None else cache.lengths[lanes]  # (n,)
        self.first = int(self.lengths.max()) if len(self.lengths) else 0
        self.together = lanes is None and bool((self.lengths == self.first).all())
        self.num_read = self.first + num_new
        if self.num_read > cache.num_slots:
            raise ValueError(f"{self.num_read} tokens do not fit {cache.num_slots} slots of the cache")
        device = cache.lengths.device
        self.slots = self.lengths[:, None] + torch.arange(num_new, device=device)  # (n, T)
        self.told = self.slots + 1 if told is None else told  # (n, T) slots that a new token is summarised from
        self.mask: Tensor | None = None
        self.causal = self.first == 0 and allowed is None
        if not self.causal and (allowed is not None or not self.together or num_new > 1):
            reads = torch.arange(self.num_read, device=device)
            self.mask = (reads <= self.slots[:, :, None])[:, None]  # (n, 1, T, S')
            if allowed is not None:
                own = reads == self.slots[:, :, None]
                first = reads == 0  # the beginning-of-context token
                self.mask = self.mask & (allowed[:, :, None] | own | first)[:, None]

    def positions(self, angles: Tensor) -> Tensor:
        """The rows of ``angles`` that belong to the new tokens: (T, ...), or (n, T, ...) where lanes differ."""
        return angles[self.first : self.num_read] if self.together else angles[self.slots]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write keys and values of the new tokens (n, H, T, d); gather (n, H, T, d) from all that they may see."""
        keys, values = self._extend(layer, k, v)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=self.mask, is_causal=self.causal)

    def summarise(self, layer: int, x: Tensor) -> Tensor:
        """Continue the running sums of a layer by its new tokens (n, T, D); what these are summarised from (n, T, D)."""
        kept, slots = self.cache.sums[layer], self.slots
        lanes = torch.arange(len(kept), device=x.device) if self.lanes is None else self.lanes
        before = kept[lanes, (self.lengths - 1).clamp(min=0)] * (self.lengths > 0)[:, None]
        kept[lanes[:, None], slots] = before[:, None] + running_sums(x)
        longest = max(1, int(self.told.max()))
        means = mean_of_first(kept[:, :longest] if self.lanes is None else kept[lanes, :longest], self.told)
        if self.allowed is None:
            return means
        return torch.where(self.allowed[..., None], means, first_and_self(kept[lanes, :1], x))

    def _extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write a layer's new keys and values (n, H, T, d); return all that the new tokens may read (n, H, S', d)."""
        all_keys, all_values = self.cache.keys[layer], self.cache.values[layer]
        if self.together:
            all_keys[:, :, self.first : self.num_read] = keys
            all_values[:, :, self.first : self.num_read] = values
            return all_keys[:, :, : self.num_read], all_values[:, :, : self.num_read]
        if self.causal and self.lanes is not None:
            all_keys[self.lanes, :, : self.num_new] = keys
            all_values[self.lanes, :, : self.num_new] = values
            return keys, values
        lanes = torch.arange(len(all_keys), device=keys.device) if self.lanes is None else self.lanes
        all_keys[lanes[:, None], :, self.slots] = keys.transpose(1, 2)
        all_values[lanes[:, None], :, self.slots] = values.transpose(1, 2)
        if self.lanes is None:
            return all_keys[:, :, : self.num_read], all_values[:, :, : self.num_read]
        return all_keys[lanes, :, : self.num_read], all_values[lanes, :, : self.num_read]

    def keep(self, num_kept: Tensor | int) -> None:
        """Make the first ``num_kept`` (n,) of the new tokens part of the context."""
        if self.lanes is None:
            self.cache.lengths += num_kept
        else:
            self.cache.lengths[self.lanes] += num_kept
