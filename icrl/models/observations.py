"""Observation encoders: index vectors, real vectors, small symbolic images, and dictionaries of these, to (..., D)."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icrl.interfaces import Observation, UserError


class IndexEncoder(nn.Module):
    """One embedding per coordinate, summed: held-out combinations of seen coordinates stay within what was trained."""

    offsets: Tensor

    def __init__(self, width: int, sizes: np.ndarray, start: np.ndarray):
        super().__init__()
        self.scalar = sizes.ndim == 0  # Discrete: observations without a coordinate axis
        sizes, start = np.atleast_1d(sizes), np.atleast_1d(start)
        self.table = nn.Embedding(int(sizes.sum()), width)
        offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]) - start
        self.register_buffer("offsets", torch.as_tensor(offsets, dtype=torch.int64), persistent=False)

    def forward(self, observation: Tensor) -> Tensor:
        if self.scalar:
            observation = observation[..., None]
        return self.table(observation.long() + self.offsets).sum(-2)


class RealEncoder(nn.Module):
    """A two-layer network on symlog-squashed values (Hafner et al. 2023, eq. 1), so that no scale is out of reach."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.up, self.down = nn.Linear(size, 2 * width), nn.Linear(2 * width, width)

    def forward(self, observation: Tensor) -> Tensor:
        x = observation.float()
        return self.down(F.gelu(self.up(x.sign() * x.abs().log1p())))


class ReturnEncoder(RealEncoder):
    """Returns, (..., 1) -> (..., D). How large they are at first is ``ModelConfig.return_scale``."""

    def __init__(self, width: int):
        super().__init__(width, 1)


class SymbolicImageEncoder(nn.Module):
    """Images (rows, columns, channels) of small integers: every channel's values embedded, two convolutions, one projection."""

    def __init__(self, width: int, shape: tuple[int, ...], high: int):
        super().__init__()
        rows, columns, channels = shape
        self.num_values = high + 1
        self.table = nn.Embedding(channels * self.num_values, 16)
        self.convolutions = nn.Sequential(
            nn.Conv2d(16, 32, 3, padding=1), nn.GELU(), nn.Conv2d(32, 32, 3, padding=1), nn.GELU()
        )
        self.project = nn.Linear(32 * rows * columns, width)

    def forward(self, observation: Tensor) -> Tensor:
        lead = observation.shape[:-3]
        offsets = torch.arange(observation.shape[-1], device=observation.device) * self.num_values
        cells = self.table(observation.flatten(0, -4).long() + offsets).sum(-2)  # (n, rows, columns, 16)
        return self.project(self.convolutions(cells.permute(0, 3, 1, 2)).flatten(1)).view(*lead, -1)


class DictEncoder(nn.Module):
    """The sum of its parts' encodings."""

    def __init__(self, width: int, space: gym.spaces.Dict):
        super().__init__()
        self.keys = list(space.spaces)
        self.parts = nn.ModuleList(make_encoder(width, part) for part in space.spaces.values())

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        encoded = [part(observation[key]) for key, part in zip(self.keys, self.parts, strict=True)]
        return torch.stack(encoded).sum(0)


def make_encoder(width: int, space: gym.Space) -> nn.Module:
    """The encoder for an observation space. Raises UserError where none can represent it."""
    if isinstance(space, gym.spaces.Discrete):
        return IndexEncoder(width, np.asarray(space.n), np.asarray(space.start))
    if isinstance(space, gym.spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return IndexEncoder(width, np.asarray(space.nvec), np.asarray(space.start))
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
        return RealEncoder(width, space.shape[0])
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 3 and np.issubdtype(space.dtype, np.integer):
        high = int(space.high.max())
        if space.low.min() >= 0 and high < 256:
            return SymbolicImageEncoder(width, space.shape, high)
    if isinstance(space, gym.spaces.Dict):
        return DictEncoder(width, space)
    raise UserError(
        f"no encoder can represent the observation space {space}: use Discrete, MultiDiscrete or Box with one axis, "
        "an integer Box (rows, columns, channels) with values 0 to 255, or a Dict of these"
    )


def to_tensors(observation: Observation, device: torch.device) -> Observation:
    """A numpy observation as tensors on the device."""
    if isinstance(observation, dict):
        return {key: to_tensors(part, device) for key, part in observation.items()}
    return torch.as_tensor(np.ascontiguousarray(observation), device=device)
