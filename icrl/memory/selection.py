"""Which of the nearest chunks are retrieved: relevance and utility in one score, twins left out, sets built one by one.

Every rule re-ranks the same candidates, batched over n queries; what is absent has relevance -inf and is never chosen. RA-DT's rule is `top` (Schmied et al.
2024, section 3.2: relevance plus weighted utility, both scaled over the candidates). The other three are in-context example selection as language models
use it: a set that covers the parts of the query (Gupta et al. 2023), maximal marginal relevance (Carbonell & Goldstein 1998), and one after the other, each
given those before it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from icrl.config import MemoryConfig
from icrl.interfaces import Array

DIVERSITY = 0.5
"""What maximal marginal relevance takes off for being like what was chosen."""


class Candidates(NamedTuple):
    """The l nearest chunks of each of n queries."""

    relevance: Array  # (n, l) cosine with the query, -inf where there is no candidate
    utility: Array  # (n, l)
    keys: Array  # (n, l, E) of the steps before the cut, unit length
    futures: Array  # (n, l, E) of the steps behind it
    end: Array  # (n, l) the step behind the chunk, counted so that chunks of different lives are far apart; 0 where nobody knows


def select(candidates: Candidates, parts: Array, config: MemoryConfig) -> Array:
    """(n, k) positions of the chosen candidates, best first, -1 where there are fewer; ``parts`` (n, P, E): the keys of the query's observations."""
    relevance = candidates.relevance
    there = np.isfinite(relevance)
    base = _scaled(relevance, there) + config.utility * _scaled(candidates.utility, there)
    chosen = np.full((len(base), config.k), -1)
    free = there.copy()
    bonus = np.zeros_like(base)
    covered = np.zeros(parts.shape[:2])  # (n, P) how well each part of the query is covered so far
    if config.selection in ("random", "foreign"):
        base = _noise(candidates.keys, parts)
    likeness = np.einsum("npe,nle->npl", parts, candidates.keys) if config.selection == "coverage" else None
    rows = np.arange(len(base))
    for round_number in range(min(config.k, base.shape[1])):
        if likeness is not None:
            bonus = np.maximum(likeness - covered[:, :, None], 0).mean(1)
            score = bonus + config.utility * _scaled(candidates.utility, there)
        else:
            score = base + bonus
        best = np.where(free, score, -np.inf).argmax(1)
        found = free[rows, best]
        chosen[:, round_number] = np.where(found, best, -1)
        if round_number + 1 == config.k:
            break
        free[rows, best] = False
        like = _like(candidates.keys, best), _like(candidates.futures, best)  # (n, l) each
        free &= ~((like[0] >= config.twin) & (like[1] >= config.twin) & found[:, None])
        if not config.overlap:
            beside = np.abs(candidates.end - candidates.end[rows, best][:, None]) < 2 * config.chunk
            free &= ~(beside & (candidates.end > 0) & found[:, None])
        if likeness is not None:
            covered = np.maximum(covered, likeness[rows, :, best])
        elif config.selection == "diverse":
            bonus = np.minimum(bonus, -DIVERSITY * like[0])
        elif config.selection == "sequential":  # the next one begins as this one goes on
            onward = np.einsum("nle,ne->nl", candidates.keys, candidates.futures[rows, best])
            base = onward + config.utility * _scaled(candidates.utility, there)
    return chosen


def _noise(keys: Array, parts: Array) -> Array:
    """(n, l) scores that rank nothing, the same for the same question to the same chunks, as a roll-out that is repeated needs."""
    asked = np.abs(parts).sum((1, 2), dtype=np.float64)[:, None]
    return np.modf((np.abs(keys).sum(-1, dtype=np.float64) + asked) * 1e6)[0]


def _like(keys: Array, best: Array) -> Array:
    """(n, l) cosine of every candidate with the one at position ``best`` (n,)."""
    return np.einsum("nle,ne->nl", keys, keys[np.arange(len(keys)), best])


def _scaled(values: Array, there: Array) -> Array:
    """Each row brought to 0 .. 1 over what is there; 0 where all are equal, and where nothing is."""
    low = np.where(there, values, np.inf).min(1, keepdims=True, initial=np.inf)
    high = np.where(there, values, -np.inf).max(1, keepdims=True, initial=-np.inf)
    span = np.where(high > low, high - low, 1.0)
    return np.where(there, (np.where(there, values, 0.0) - np.where(np.isfinite(low), low, 0.0)) / span, 0.0)
