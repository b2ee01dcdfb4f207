"""What every lane has lived through, within a window of transitions: the memory of an in-context agent, oldest first."""

from __future__ import annotations

import numpy as np

from icrl.data.sampling import improving, returns_around
from icrl.interfaces import Array, Observation, Step, map_observation


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
        for name in ("begins", "improves"):
            self.columns[name] = np.zeros((len(self.lengths), self.window), bool)
        self.columns["return_to_go"] = np.zeros((len(self.lengths), self.window), np.float32)

    def append(self, step: Step, begins: Array | bool = True, return_to_go: Array | float = 0.0) -> None:
        """Add one transition to every lane; with ``begins`` (B,) a plan began with it, ``return_to_go`` (B,) is what the policy went for."""
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
            "improves": np.ones_like(self.paid),
            "return_to_go": np.broadcast_to(np.float32(return_to_go), self.paid.shape),
        }
        for name, value in values.items():

            def write(column: Array, new: Array) -> None:
                column[lanes, self.lengths] = new

            map_observation(write, self.columns[name], value)
        self.lengths += 1
        self.episode_step = np.where(step.ended, 0, self.episode_step + 1)
        self.episode_return = np.where(step.ended, 0, self.episode_return + step.reward).astype(np.float32)
        self.paid = self.paid | (step.reward > 0)

    def judge(self, lanes: Array, rule: str) -> None:
        """Say of the finished episodes of some lanes what they brought and whether they were better than those before, as a training window does."""
        length = int(self.lengths[lanes].max(initial=0))
        if length == 0:
            return
        held = np.arange(length) < self.lengths[lanes, None]
        episode = self.episodes(lanes, length)[:, :-1]
        ended = self.columns["ended"][lanes, :length] & held
        finished = episode < ended.sum(1)[:, None]
        reward = np.where(held, self.columns["reward"][lanes, :length], 0)
        earned = self.columns["episode_return"][lanes, :length]  # what was forgotten included
        _, to_come = returns_around(reward, episode)
        steps = self.columns["episode_step"][lanes, :length]
        for name, known in (("return_to_go", to_come), ("improves", improving(earned + to_come, steps, rule))):
            self.columns[name][lanes, :length] = np.where(finished, known, self.columns[name][lanes, :length])

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

    def episodes(self, lanes: Array, length: int) -> Array:
        """(n, length + 1) number of the episode, within the window, at every transition and behind the last."""
        ended = self.columns["ended"][lanes, :length]
        ended = ended & (np.arange(length) < self.lengths[lanes, None])
        return np.concatenate([np.zeros((len(lanes), 1), np.int64), np.cumsum(ended, 1)], 1)
