"""The loop keeps actions, rewards and observations aligned, across resets and for Gymnasium's own vector environments."""

from __future__ import annotations

from itertools import islice
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from icrl.interfaces import Decision, UserError
from icrl.rollout import rollout, true_next_observation


class Clock(gym.Env):
    """Observation t of its episode, reward = 10 t + action, next observation t + 1; lane n lasts n + 2 steps."""

    def __init__(self, length: int, as_dict: bool = False):
        box = gym.spaces.Box(0, 100, (1,), np.float32)
        self.observation_space = gym.spaces.Dict({"t": box}) if as_dict else box
        self.action_space = gym.spaces.Discrete(10)
        self._length, self._as_dict = length, as_dict

    def _observe(self) -> Any:
        value = np.array([self._t], np.float32)
        return {"t": value} if self._as_dict else value

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._t = 0
        return self._observe(), {}

    def step(self, action: int):
        reward = 10.0 * self._t + float(action)
        self._t += 1
        return self._observe(), reward, self._t == self._length, False, {}


class CountingAgent:
    """Its action encodes how often it acted; it records what it observed."""

    def __init__(self):
        self.seen = []
        self.num_acts = 0

    def reset(self, lanes):
        self.lanes = lanes

    def act(self, observation, action_mask=None):
        self.last_observation = observation
        self.num_acts += 1
        return Decision(np.full(3, (self.num_acts - 1) % 10))

    def observe(self, step):
        self.seen.append(step)


def clocks(mode: AutoresetMode, as_dict: bool = False) -> Any:
    return SyncVectorEnv([lambda n=n: Clock(n + 2, as_dict) for n in range(3)], autoreset_mode=mode)


def test_every_field_belongs_to_the_same_time():
    agent = CountingAgent()
    turns = list(islice(rollout(agent, clocks(AutoresetMode.SAME_STEP), seed=0), 12))
    lengths = np.arange(3) + 2
    for t, turn in enumerate(turns):
        step = turn.step
        np.testing.assert_array_equal(step.observation[:, 0], t % lengths)
        np.testing.assert_array_equal(step.action, t % 10)
        np.testing.assert_array_equal(step.reward, 10 * (t % lengths) + t % 10)
        np.testing.assert_array_equal(step.next_observation[:, 0], t % lengths + 1)  # true last observation at an end
        np.testing.assert_array_equal(step.ended, t % lengths == lengths - 1)
        assert agent.seen[t] is step  # observed before it is yielded
    assert agent.lanes == 3


def test_dictionary_observations():
    turns = islice(rollout(CountingAgent(), clocks(AutoresetMode.SAME_STEP, as_dict=True), seed=0), 8)
    for t, turn in enumerate(turns):
        np.testing.assert_array_equal(turn.step.next_observation["t"][:, 0], t % (np.arange(3) + 2) + 1)


def test_turns_are_not_overwritten():
    stream = rollout(CountingAgent(), clocks(AutoresetMode.SAME_STEP), seed=0)
    first = next(stream)
    kept = first.step.observation.copy(), first.step.reward.copy(), first.step.next_observation.copy()
    next(stream)
    for array, copy in zip((first.step.observation, first.step.reward, first.step.next_observation), kept, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_dense_final_observations_replace_only_ended_lanes():
    first, final = np.zeros((3, 1)), np.arange(3.0)[:, None] + 5
    info = {"final_obs": final, "_final_obs": np.array([False, True, False])}
    np.testing.assert_array_equal(true_next_observation(first, info)[:, 0], [0, 6, 0])
    np.testing.assert_array_equal(
        true_next_observation(first, {"final_obs": final, "_final_obs": np.ones(3, bool)}), final
    )


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_other_autoreset_modes_are_refused(mode):
    with pytest.raises(UserError, match="SAME_STEP"):
        next(rollout(CountingAgent(), clocks(mode), seed=0))
