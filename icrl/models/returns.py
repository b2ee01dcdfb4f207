"""Returns that a policy predicts, and acts for (ICEE: Dai et al. 2024, arXiv 2403.06826).

What an episode may still bring is predicted from the features of a step; what to do for one of these returns is read out of the same features beside it.
So later steps see what was earned, never what was gone for.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from icrl.config import ModelConfig
from icrl.models.transformer import MLP


class ReturnAim(nn.Module):
    """A distribution over the values of the return still to come, and features that serve one of them."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.prediction = nn.Linear(config.width, config.return_bins)
        self.value = nn.Embedding(config.return_bins, config.width)
        self.improves = nn.Embedding(2, config.width) if config.cross_episode != "off" else None
        self.norm = nn.LayerNorm(config.width)
        self.mlp = MLP(config)

    def predict(self, features: Tensor) -> Tensor:
        """(..., D) -> logits of the return still to come (..., bins)."""
        return self.prediction(features)

    def forward(self, features: Tensor, return_to_go: Tensor, improves: Tensor) -> Tensor:
        """Features (..., D) of steps, and the return (...) that each is to bring -> features (..., D) for the action head.

        ``improves`` (...) bool tells whether the episode is then better than those before it; read only with ``model.cross_episode``.
        """
        aim = self.value(self.nearest(return_to_go))
        if self.improves is not None:
            aim = aim + self.improves(improves.long())
        x = features + self.norm(aim)
        return x + self.mlp(x)

    def nearest(self, return_to_go: Tensor) -> Tensor:
        """(...) -> int64 numbers of the nearest values."""
        low, high, bins = self.config.return_low, self.config.return_high, self.config.return_bins
        return ((return_to_go - low) / (high - low) * (bins - 1)).round().long().clamp(0, bins - 1)

    def values(self) -> Tensor:
        """(bins,) float32 the values."""
        return torch.linspace(self.config.return_low, self.config.return_high, self.config.return_bins)
