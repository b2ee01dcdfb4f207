"""What every lane has lived through, within a window of transitions: the memory of an in-context agent, oldest first."""

from __future__ import annotations

from collections.abc import Mapping

import gymnasium as gym
import numpy as np

from icrl.data.schema import flatten, unflatten
from icrl.interfaces import Array, Observation, Step, map_observation

_STATE = ("lengths", "episode_step", "episode_return", "paid")


class Context:
    """Arrays (B, W, ...) of transitions by name, and how many of them each lane holds."""

    def __init__(self, lanes: int, window: int):
        self.window = window
        self.columns: dict[str, Observation] = {}
        self.lengths = np.zeros(lanes, np.int64)  # (B,) transitions held
        self.episode_step = np.zeros(lanes, np.int64)  # (B,) steps of the running episode so far
        self.episode_return = np.zeros(lanes, np.float32)  # (B,) what its rewards add up to
        self.paid = np.zeros(
            lanes, bool
        )  # (B,) whether some step of the lane's life, the forgotten ones included, paid more than 0

    def _allocate(self, step: Step) -> None:
        def empty(array: Array) -> Array:
            array = np.asarray(array)
            return np.zeros((len(self.lengths), self.window, *array.shape[1:]), array.dtype)

        for name in ("observation", "action", "reward", "next_observation"):
            self.columns[name] = map_observation(empty, getattr(step, name))
        self.columns["ended"] = np.zeros((len(self.lengths), self.window), bool)
        self.columns["episode_step"] = np.zeros((len(self.lengths), self.window), np.int64)
        self.columns["episode_return"] = np.zeros((len(self.lengths), self.window), np.float32)
        self.columns["paid"] = np.zeros((len(self.lengths), self.window), bool)
        self.columns["begins"] = np.zeros((len(self.lengths), self.window), bool)

    def append(self, step: Step, begins: Array | bool = True) -> None:
        """Add one transition to every lane; with ``begins`` (B,) a plan began with it."""
        step = step._replace(reward=np.asarray(step.reward, np.float32))
        if not self.columns:
            self._allocate(step)
        lanes = np.arange(len(self.lengths))
        values = {
            "observation": step.observation,
            "action": step.action,
            "reward": step.reward,
            "next_observation": step.next_observation,
            "ended": step.ended,
            "episode_step": self.episode_step,
            "episode_return": self.episode_return,
            "paid": self.paid,
            "begins": np.broadcast_to(begins, self.paid.shape),
        }
        for name, value in values.items():

            def write(column: Array, new: Array) -> None:
                column[lanes, self.lengths] = new

            map_observation(write, self.columns[name], value)
        self.lengths += 1
        self.episode_step = np.where(step.ended, 0, self.episode_step + 1)
        self.episode_return = np.where(step.ended, 0, self.episode_return + step.reward).astype(np.float32)
        self.paid = self.paid | (step.reward > 0)

    def best(self) -> Array:
        """(B,) float32 what the best finished episode of each lane's window earned; -inf where none is."""
        if not self.columns:
            return np.full(len(self.lengths), -np.inf, np.float32)
        over = self.columns["ended"] & (np.arange(self.window) < self.lengths[:, None])
        return np.where(over, self.columns["episode_return"] + self.columns["reward"], -np.inf).max(1)

    def shows_reward(self) -> Array:
        """(B,) bool: some step of each lane's window paid more than 0."""
        if not self.columns:
            return np.zeros(len(self.lengths), bool)
        held = np.arange(self.window) < self.lengths[:, None]
        return np.any((np.asarray(self.columns["reward"]) > 0) & held, axis=1)

    def forget(self, lanes: Array) -> None:
        """Empty the windows of some lanes, whose lives go on."""
        self.lengths[lanes] = 0
        self.episode_step[lanes] = 0
        self.episode_return[lanes] = 0

    def drop_oldest(self, lane: int, needed: int, whole_episodes: bool, multiple: int = 1) -> int:
        """Drop a lane's oldest transitions, or whole episodes of them, until ``needed`` slots are free; a multiple of ``multiple``. How many they were."""
        length = int(self.lengths[lane])
        cut = length + needed - self.window
        if whole_episodes:
            ends = np.flatnonzero(self.columns["ended"][lane, :length]) + 1
            cut = int(min(ends[ends >= cut], default=cut))  # an episode longer than the horizon is cut within
        cut = min(-(-cut // multiple), length // multiple) * multiple

        def shift(column: Array) -> None:
            column[lane, : length - cut] = column[lane, cut:length].copy()

        for column in self.columns.values():
            map_observation(shift, column)
        self.lengths[lane] = length - cut
        return cut

    def state(self) -> dict[str, Array]:
        """Everything, as arrays by name."""
        arrays = {name: getattr(self, name) for name in _STATE}
        for name, column in self.columns.items():
            arrays |= {f"columns/{key}": part for key, part in flatten(name, column).items()}
        return arrays

    def restore(self, arrays: Mapping[str, Array], space: gym.Space) -> None:
        """Take over a state; ``space`` is that of observations. KeyError or ValueError where something is missing or of another shape."""
        lanes = len(self.lengths)
        for name in _STATE:
            setattr(self, name, arrays[name])
        if any(getattr(self, name).shape != (lanes,) for name in _STATE):
            raise ValueError(f"not of {lanes} lanes")
        if not ((self.lengths >= 0) & (self.lengths <= self.window)).all():
            raise ValueError(f"lengths outside a window of {self.window}")
        self.columns = {}
        if "columns/reward" in arrays:
            for name in ("observation", "next_observation"):
                self.columns[name] = unflatten(space, name, lambda key: arrays[f"columns/{key}"])
            for name in ("action", "reward", "ended", "episode_step", "episode_return", "paid", "begins"):
                self.columns[name] = arrays[f"columns/{name}"]
        elif self.lengths.any():
            raise ValueError("no columns")
        for name, column in self.columns.items():
            if any(part.shape[:2] != (lanes, self.window) for part in flatten(name, column).values()):
                raise ValueError(f"{name} of another shape")

    def episodes(self, lanes: Array, length: int) -> Array:
        """(n, length + 1) number of the episode, within the window, at every transition and behind the last."""
        ended = self.columns["ended"][lanes, :length]
        ended = ended & (np.arange(length) < self.lengths[lanes, None])
        return np.concatenate([np.zeros((len(lanes), 1), np.int64), np.cumsum(ended, 1)], 1)
