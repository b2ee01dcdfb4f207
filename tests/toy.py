"""A family whose observation, action and reward encode the step, its source, and random histories: for the data's tests.

Lane i with task (offset, odd_horizon) counts its own steps n = 0, 1, 2, ... over its whole life; the observation in which
step n is taken is n + offset (plus 50 000 where an episode ended), the scripted action is n mod 3, the reward n + offset / 10 000. Observations do not restart.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from icrl.data import schema, writer
from icrl.data.schema import History
from icrl.data.store import HistoryStore
from icrl.interfaces import Decision, FamilySpec, Split, TaskVectorEnv, UserError, where_lanes

TASK_DTYPE = np.dtype([("offset", np.int32), ("horizon", np.int32)])


@dataclass(frozen=True)
class CountFamily:
    """Counting with per-task horizons, so that histories are ragged."""

    num_tasks: int = 5
    keyed: bool = False
    poison_step: int = -1

    @property
    def spec(self) -> FamilySpec:
        count = gym.spaces.Discrete(100_000)
        observation = gym.spaces.Dict({"count": count, "pair": gym.spaces.MultiDiscrete([256, 3])})
        return FamilySpec("count", observation if self.keyed else count, gym.spaces.Discrete(3), horizon=9)

    def sample_tasks(self, rng, num_tasks):
        return self.split().train[rng.integers(self.num_tasks, size=num_tasks)]

    def split(self) -> Split:
        tasks = np.zeros(self.num_tasks + 2, TASK_DTYPE)
        tasks["offset"] = np.arange(len(tasks)) * 1000
        tasks["horizon"] = 3 + np.arange(len(tasks)) % 5
        return Split(tasks[:-2], tasks[-2:-1], tasks[-1:])

    def make_vec(self, tasks, lane_ids=None):
        return CountEnv(self, tasks, lane_ids)

    def optimal_return(self, tasks):
        return np.zeros(len(tasks))

    random_return = optimal_return

    def posterior(self, env):
        raise UserError("no posterior")

    def scattered(self):
        return self


class CountEnv(TaskVectorEnv):
    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, family: CountFamily, tasks, lane_ids):
        self.family = family
        self.tasks = tasks
        self.num_envs = len(tasks)
        self.lane_ids = np.arange(len(tasks)) if lane_ids is None else lane_ids
        self.single_observation_space = family.spec.observation_space
        self.single_action_space = family.spec.action_space
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, self.num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, self.num_envs)
        self.count = np.zeros(self.num_envs, np.int64)

    def _observe(self, final=False):
        count = self.count + self.tasks["offset"] + (50_000 if final else 0)
        pair = np.stack([count % 256, count % 3], 1)
        return {"count": count, "pair": pair} if self.family.keyed else count

    def reset(self, *, seed=None, options=None):
        self.count[:] = 0
        return self._observe(), {}

    def step(self, actions):
        reward = (self.count + self.tasks["offset"] / 10_000).astype(np.float32)
        if self.family.poison_step >= 0:
            reward[(self.count == self.family.poison_step) & (self.lane_ids == 3)] = np.nan
        self.count += 1
        ended = self.count % self.tasks["horizon"] == 0
        info = {}
        if ended.any():
            final = where_lanes(ended, self._observe(final=True), self._observe())
            info = {"final_obs": final, "_final_obs": ended}
        return self._observe(), reward, ended & (self.count % 2 == 0), ended & (self.count % 2 == 1), info

    def optimal_action(self, tasks=None):
        return (self.count + 1) % 3


@dataclass(frozen=True)
class CountSource:
    """Acts n mod 3 and means (n + 2) mod 3."""

    informed: bool = True
    sleep: float = 0.0

    def make(self, family, env, streams, num_steps):
        return CountAgent(self, env.num_envs)


class CountAgent:
    def __init__(self, source, lanes):
        self.source = source
        self.reset(lanes)

    def reset(self, lanes):
        if isinstance(lanes, int):
            self.count = np.zeros(lanes, np.int64)
        else:
            self.count[lanes] = 0

    def act(self, observation, action_mask=None):
        if self.source.sleep:
            time.sleep(self.source.sleep)
        action = self.count % 3
        if not self.source.informed:
            return Decision(action)
        return Decision(action, (self.count + 2) % 3, np.log1p(self.count).astype(np.float32))

    def observe(self, step):
        self.count += 1


def random_history(spec: FamilySpec, rng: np.random.Generator, lengths: list[int], finished: bool = True) -> History:
    """A history of random entries with the given episode lengths; unless ``finished`` its last episode is cut off."""
    total, num = sum(lengths), len(lengths)
    offset = np.cumsum([0, *lengths])
    terminated, truncated = np.zeros(total, bool), np.zeros(total, bool)
    ends = offset[1:] - 1
    terminated[ends] = rng.random(num) < 0.5
    truncated[ends] = ~terminated[ends]
    if not finished:
        terminated[-1] = truncated[-1] = False
    return History(
        observation=_random_entries(spec.observation_space, rng, total),
        action=_random_entries(spec.action_space, rng, total),
        reward=rng.normal(size=total).astype(np.float32),
        terminated=terminated,
        truncated=truncated,
        final_observation=_random_entries(spec.observation_space, rng, num),
        episode_offset=offset,
        task=int(rng.integers(3)),
        source=int(rng.integers(2)),
        target_action=_random_entries(spec.action_space, rng, total),
        behaviour_log_prob=rng.normal(size=total).astype(np.float32),
    )


def _random_entries(space: gym.Space, rng: np.random.Generator, num: int) -> Any:
    """(num, ...) random members of a space."""
    if isinstance(space, gym.spaces.Dict):
        return {key: _random_entries(part, rng, num) for key, part in space.spaces.items()}
    if isinstance(space, gym.spaces.Discrete):
        return rng.integers(space.n, size=num) + space.start
    if isinstance(space, gym.spaces.MultiDiscrete):
        return rng.integers(space.nvec, size=(num, *space.shape)) + space.start
    assert isinstance(space, gym.spaces.Box)
    low, high = (np.clip(bound.astype(float), -5, 5) for bound in (space.low, space.high))
    return (low + (high - low) * rng.random((num, *space.shape))).astype(space.dtype)


def write_histories(path: Path, spec: FamilySpec, histories: list[History], per_shard: int) -> HistoryStore:
    """A dataset of the given histories."""
    tasks = np.zeros(3, [("goal", np.int8, (2,)), ("name", "U4")])
    tasks["goal"] = np.arange(6).reshape(3, 2)
    split = Split(tasks, tasks[:1], tasks[:2])
    columns = [name for name in schema.OPTIONAL_COLUMNS if getattr(histories[0], name) is not None]
    collect = {"shard_histories": per_shard, "sources": [{"name": "a"}, {"name": "b"}]}
    plan = writer.make_plan(spec, split, family={"name": "toy"}, collect=collect, seed=0, columns=columns)
    with writer.writing(path, plan, split):
        starts = range(0, len(histories), per_shard)
        for index, start in enumerate(starts):
            group = histories[start : start + per_shard]
            writer.write_shard(path, index, schema.pack_histories(spec, group, start))
        writer.finish(path, len(starts), {"created": "today"})
    return HistoryStore.open(path)


def without_flushing() -> Iterator[None]:
    """For a fixture: no waiting for the disk, which is most of the time that writing small datasets takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield
