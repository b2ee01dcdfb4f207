"""Action heads: a categorical one for ``Discrete`` actions, a diagonal Gaussian one for ``Box`` actions.

Both answer the same four questions: features to parameters, loss of a label, is a label hit, and draw an action with given random numbers (drawn by the
caller per lane, so that torch's global random state plays no part).
"""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icrl.interfaces import ActionRule, UserError
from icrl.models.points import PointScores
from icrl.seeding import LaneStreams


class CategoricalHead(nn.Module):
    """Logits over A actions."""

    def __init__(self, width: int, space: gym.spaces.Discrete, points: np.ndarray | None = None):
        super().__init__()
        self.start, self.outputs = int(space.start), int(space.n)
        self.linear = nn.Linear(width, self.outputs) if points is None else PointScores(points, width)

    def forward(self, features: Tensor) -> Tensor:
        """(..., D) -> logits (..., A)."""
        return self.linear(features)

    def loss(self, logits: Tensor, action: Tensor, smoothing: float = 0.0) -> Tensor:
        """Cross-entropy of actions (...,) under logits (..., A), not reduced: (...,)."""
        labels = action.long() - self.start
        flat = F.cross_entropy(
            logits.flatten(0, -2).float(), labels.flatten(), reduction="none", label_smoothing=smoothing
        )
        return flat.view(labels.shape)

    def hit(self, logits: Tensor, action: Tensor) -> Tensor:
        """(...,) float: 1 where the most probable action is the label."""
        return (logits.argmax(-1) == action.long() - self.start).float()

    def log_prob(self, logits: Tensor, action: np.ndarray, action_mask: np.ndarray | None) -> np.ndarray:
        """(B,) log-probabilities of actions (B,) under logits (B, A), at temperature 1; masked actions have probability 0."""
        return -self.loss(_allowed(logits, action_mask), torch.as_tensor(action, device=logits.device)).cpu().numpy()

    def choose(
        self, logits: Tensor, streams: LaneStreams, rule: ActionRule, action_mask: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Actions (B,) and their log-probabilities (B,) under logits (B, A); masked actions have probability 0."""
        logits = _allowed(logits.float() / rule.temperature, action_mask)
        log_probs = F.log_softmax(logits, -1).cpu().numpy()
        draw = log_probs.argmax(-1) if rule.greedy else streams.choice(np.exp(log_probs))
        return draw + self.start, np.take_along_axis(log_probs, draw[:, None], 1)[:, 0]


def _allowed(logits: Tensor, action_mask: np.ndarray | None) -> Tensor:
    if action_mask is None:
        return logits
    return logits.masked_fill(~torch.as_tensor(np.asarray(action_mask, bool), device=logits.device), -math.inf)


class GaussianHead(nn.Module):
    """Mean and log standard deviation of independent Gaussians, for bounded or unbounded ``Box`` actions."""

    def __init__(self, width: int, space: gym.spaces.Box):
        super().__init__()
        self.low, self.high, self.outputs = space.low, space.high, 2 * int(np.prod(space.shape))
        self.linear = nn.Linear(width, self.outputs)

    def forward(self, features: Tensor) -> Tensor:
        """(..., D) -> (..., 2 A): means, then log standard deviations within [-5, 2]."""
        mean, raw = self.linear(features).chunk(2, -1)
        return torch.cat([mean, -1.5 + 3.5 * torch.tanh(raw)], -1)

    def loss(self, params: Tensor, action: Tensor, smoothing: float = 0.0) -> Tensor:
        """Negative log-density of actions (..., A), summed over dimensions: (...,). Smoothing has no meaning here."""
        mean, log_std = params.float().chunk(2, -1)
        z = (action.float() - mean) * torch.exp(-log_std)
        return (0.5 * z.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def hit(self, params: Tensor, action: Tensor) -> Tensor:
        """(...,) float: 1 where the label lies within two standard deviations in every dimension."""
        mean, log_std = params.float().chunk(2, -1)
        return ((action.float() - mean).abs() <= 2 * log_std.exp()).all(-1).float()

    def choose(
        self, params: Tensor, streams: LaneStreams, rule: ActionRule, action_mask: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Actions (B, A) clipped to the space, and the log-densities (B,) of the unclipped samples."""
        mean, log_std = (part.cpu().numpy() for part in params.float().chunk(2, -1))
        log_std = log_std + 0.5 * math.log(rule.temperature)  # a density to the power 1 / temperature
        noise = np.zeros_like(mean) if rule.greedy else streams.normal(mean.shape[1]).reshape(mean.shape)
        sample = mean + np.exp(log_std) * noise
        log_prob = (-0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
        return np.clip(sample, self.low, self.high).astype(self.low.dtype), log_prob


def make_head(width: int, space: gym.Space, points: np.ndarray | None = None) -> CategoricalHead | GaussianHead:
    """The head for an action space, whose actions may be ``points`` (A, F). Raises UserError where none can represent it."""
    if isinstance(space, gym.spaces.Discrete):
        return CategoricalHead(width, space, points)
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and space.dtype.kind == "f":
        return GaussianHead(width, space)
    raise UserError(f"no head can represent the action space {space}: use Discrete, or a real Box with one axis")
