"""Actions that are points of a space, as the candidates of Bayesian optimisation: embedded by where they are, so that near ones are alike."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icrl.interfaces import Array

WAVES = 6
"""Frequencies of each axis: 1 to this many half-waves, then their doubles."""


class PointTable(nn.Module):
    """Embeddings of A points (A, F) of the unit cube, as an ``nn.Embedding`` would give them: a network of their coordinates' waves."""

    waves: Tensor

    def __init__(self, points: Array, width: int):
        super().__init__()
        at = torch.tensor(points, dtype=torch.float32)
        halves = torch.cat([torch.arange(1, WAVES + 1), 2 * torch.arange(WAVES // 2 + 1, WAVES + 1)])
        angles = math.pi * at[:, :, None] * halves  # (A, F, waves)
        self.register_buffer("waves", torch.cat([angles.sin(), angles.cos()], -1).flatten(1), persistent=False)
        self.up, self.down = nn.Linear(self.waves.shape[1], 2 * width), nn.Linear(2 * width, width)

    def table(self) -> Tensor:
        """(A, D)."""
        return self.down(F.gelu(self.up(self.waves)))

    def forward(self, index: Tensor) -> Tensor:
        """Numbers (...) -> (..., D)."""
        return F.embedding(index, self.table())


class PointScores(nn.Module):
    """Logits over A points: how well features match each point's embedding."""

    def __init__(self, points: Array, width: int):
        super().__init__()
        self.points, self.query = PointTable(points, width), nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """(..., D) -> (..., A)."""
        return self.query(features) @ self.points.table().T * features.shape[-1] ** -0.5
