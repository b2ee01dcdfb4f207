"""Nearest keys by cosine: exact in torch, or approximate by FAISS where a memory is large. Keys and queries have unit length."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from icrl.interfaces import Array, UserError

KINDS = ("exact", "faiss-flat", "faiss-ivf", "faiss-hnsw")


class Index(Protocol):
    """One set of keys that many queries search."""

    def search(self, queries: Array, num: int) -> tuple[Array, Array]:
        """Queries (n, E) -> cosines (n, num), highest first, and the numbers of the keys (n, num); -inf and -1 where there are fewer keys."""
        ...


def nearest(keys: Array, queries: Array, num: int, allowed: Array | None = None) -> tuple[Array, Array]:
    """As ``Index.search``, exactly, for one set of keys or for many.

    Keys (N, E) and queries (n, E) -> (n, num); or keys (B, N, E), queries (B, Q, E) and ``allowed`` (B, N), the keys that count -> (B, Q, num).
    """
    if keys.size == 0 or queries.size == 0:
        return highest(np.empty((*queries.shape[:-1], 0), np.float32), num)
    with torch.no_grad():
        q, k = torch.from_numpy(np.ascontiguousarray(queries)), torch.from_numpy(keys)
        cosine = q @ k.transpose(-1, -2)
        if allowed is not None:
            cosine.masked_fill_(~torch.from_numpy(np.ascontiguousarray(allowed))[:, None], -torch.inf)
    return highest(cosine.numpy(), num)


def highest(cosine: Array, num: int) -> tuple[Array, Array]:
    """Cosines (..., N), -inf for what does not count -> as ``Index.search``, (..., num)."""
    shape, num_found = (*cosine.shape[:-1], num), min(num, cosine.shape[-1])
    relevance, ids = np.full(shape, -np.inf, np.float32), np.full(shape, -1)
    best, where = torch.from_numpy(cosine).topk(num_found, -1)
    relevance[..., :num_found] = best.numpy()
    ids[..., :num_found] = np.where(np.isfinite(relevance[..., :num_found]), where.numpy(), -1)
    return relevance, ids


class ExactIndex:
    """Every key is compared with every query."""

    def __init__(self, keys: Array):
        self.keys = keys

    def search(self, queries: Array, num: int) -> tuple[Array, Array]:
        return nearest(self.keys, queries, num)


class FaissIndex:
    """FAISS: ``faiss-flat`` exact, ``faiss-ivf`` by inverted lists, ``faiss-hnsw`` by a graph of neighbours. UserError where FAISS is missing."""

    def __init__(self, keys: Array, kind: str):
        faiss = _faiss()
        width, inner = keys.shape[1], faiss.METRIC_INNER_PRODUCT
        keys = np.ascontiguousarray(keys, np.float32)
        self._index: Any
        if kind == "faiss-flat":
            self._index = faiss.IndexFlatIP(width)
        elif kind == "faiss-ivf":
            lists = max(1, min(int(4 * len(keys) ** 0.5), len(keys) // 39))  # FAISS wants 39 keys for each list
            self._index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, inner)
            self._index.train(keys[:: max(1, len(keys) // (64 * lists))])
            self._index.nprobe = max(16, lists // 128)
        else:
            self._index = faiss.IndexHNSWFlat(width, 32, inner)
            self._index.hnsw.efSearch = 128
        self._index.add(keys)

    def search(self, queries: Array, num: int) -> tuple[Array, Array]:
        cosine, ids = self._index.search(np.ascontiguousarray(queries, np.float32), num)
        return np.where(ids >= 0, cosine, -np.inf), ids


def make_index(keys: Array, kind: str) -> Index:
    """An index over keys (N, E). Raises UserError for an unknown kind, or where FAISS is needed and missing."""
    if kind == "exact":
        return ExactIndex(keys)
    if kind in KINDS:
        return FaissIndex(keys, kind)
    raise UserError(f"index {kind!r} is unknown, expected one of {', '.join(KINDS)}")


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UserError(f"this index needs FAISS ({error}): pip install icrl[faiss], or choose exact") from None
    return faiss
