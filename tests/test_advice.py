"""Advice about families: each piece where it is due, none where nothing is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from line_world import Lines

from agents import make_source
from envs import make_family
from envs.gym_family import GymFamily
from icrl.data.advice import advice

POLICIES = {"uniform": make_source("uniform").make, "optimal": make_source("optimal").make}


class Start(gym.Env):
    """An episode of one step, whose first observation (size,) is ``first(rng)``."""

    action_space = Discrete(2)

    def __init__(self, first, size, reward):
        self.first, self.size, self.reward = first, size, reward
        self.observation_space = Box(-np.inf, np.inf, (size,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.asarray(self.first(self.np_random), np.float32), {}

    def step(self, action):
        return np.zeros(self.size, np.float32), self.reward(action), True, False, {}


def starts(first: Any, size=2, reward: Any = float, **options: Any):
    """A family with tasks (a, b), in which ``first(a, b, rng)`` (size,) is the first observation."""

    def sample(rng):
        return {"a": rng.normal(), "b": rng.normal(size=2)}

    def make(a, b):
        return Start(lambda rng: first(a, b, rng), size, reward)

    sizes: dict[str, Any] = {"num_train_tasks": 100, "num_validation_tasks": 2, "num_test_tasks": 2}
    return GymFamily(make, sample, horizon=3, name="starts", **sizes | options)


@pytest.mark.parametrize(
    "family",
    [
        make_family("darkroom"),
        make_family("darkroom", start="random", permuted_actions=True, num_validation=2, width=6, height=4),
        make_family("gaussian_bandit", horizon=20),
        starts(lambda a, b, rng: [np.sin(40 * a), b[0] + rng.normal()]),
    ],
    ids=("room", "permuted", "bandit", "starts"),
)
def test_nothing_is_said_where_nothing_is_wrong(family):
    assert advice(family, window=200, policies=POLICIES) == []


def leaks(family):
    return [line.split(": ")[0].removeprefix("the first observation tells the task's ") for line in advice(family)]


def test_a_task_that_the_first_observation_tells_is_named():
    assert leaks(starts(lambda a, b, rng: [rng.normal(), b[1]])) == ["b[1] (observation[1] equals it)"]
    mixed = starts(lambda a, b, rng: [2 * b[0] - 3 * b[1] + 1, b[0] + b[1], rng.normal()], size=3)
    assert leaks(mixed) == ["b[0] (100% of it can be read linearly)", "b[1] (100% of it can be read linearly)"]
    assert leaks(Lines()) == ["width (observation[1] equals it)"]


def test_long_observations_are_read_number_by_number():
    def first(a, b, rng):
        return [*rng.normal(size=120), 3 * a - 2]

    assert leaks(starts(first, size=121)) == ["a (100% of it can be read linearly)"]
    assert leaks(starts(lambda a, b, rng: rng.normal(size=121), size=121)) == []


def test_chance_is_no_leak():
    few = starts(lambda a, b, rng: rng.normal(size=6), size=6, num_train_tasks=20)
    assert [line for line in advice(few) if "tells" in line] == []
    assert leaks(starts(lambda a, b, rng: [a, a], num_train_tasks=9)) == ["only 9 distinct training tasks"]


def test_few_tasks_and_long_episodes():
    (line,) = advice(replace(Lines(widest=1 + 1e-9), num_train_tasks=7))
    assert line.startswith("only 7 distinct training tasks") and "augmented" in line
    (line,) = advice(make_family("darkroom"), window=99)
    assert line.startswith("an episode lasts up to 100 steps, the model's window holds 99")
    assert advice(make_family("darkroom"), window=100) == []


def test_rewards_that_nobody_meets():
    far = make_family("darkroom", width=40, height=20, horizon=70)
    assert advice(far, policies=POLICIES) == []
    (line,) = advice(far, policies={"uniform": POLICIES["uniform"]}, most_steps=2)
    assert line.startswith("uniform met no reward other than 0 in 2 steps of each of 16 tasks")
    (line,) = advice(starts(lambda a, b, rng: [0, 0], reward=lambda action: 0), policies=POLICIES)
    assert line.startswith("uniform met no reward")  # the optimal policy, which this family does not have, is left out


def test_looking_starts_no_processes(monkeypatch):
    made = []
    monkeypatch.setattr("envs.gym_vector.AsyncVectorEnv", lambda *args, **kwargs: made.append(args))
    assert leaks(replace(Lines(), asynchronous=True)) == ["width (observation[1] equals it)"] and not made
