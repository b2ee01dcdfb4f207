"""Ordinary environments as lanes: the same streams whatever the company, failures kept apart, in this process or in others."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode

from envs.gym_vector import GymVectorEnv
from icrl.interfaces import FamilySpec, UserError

HORIZON = 6
BOX = Box(-np.inf, np.inf, (2,), np.float32)
SPEC = FamilySpec("counter", BOX, Discrete(3), HORIZON)


class Counter(gym.Env):
    """Shows (steps in this episode, a number drawn at its start), pays the action plus noise, may end early or go wrong."""

    metadata: ClassVar[dict] = {"render_modes": ["rgb_array"], "render_fps": 7}
    action_space = Discrete(3)

    def __init__(self, length=HORIZON, fail_at=0, how="", space=BOX, mask=False, render_mode=None):
        self.length, self.fail_at, self.how, self.mask = length, fail_at, how, mask
        self.observation_space, self.render_mode = space, render_mode
        self.steps = 0

    def observe(self) -> Any:
        return np.array([self.t, self.start], np.float64)

    def info(self):
        return {"action_mask": np.array([True, self.t % 2 == 0, True])} if self.mask else {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.how == "reset" and self.steps >= self.fail_at:
            raise OSError("no new episode")
        self.t, self.start = 0, self.np_random.random()
        return self.observe(), self.info()

    def step(self, action):
        self.t += 1
        self.steps += 1
        reward, observation = float(action) + self.np_random.random(), self.observe()
        if self.steps == self.fail_at:
            if self.how == "raise":
                raise ZeroDivisionError("the floor\ngave way")
            reward = np.nan if self.how == "reward" else reward
            observation = observation * np.inf if self.how == "observation" else observation
            observation = np.zeros(3) if self.how == "shape" else observation
        return observation, reward, self.t >= self.length, False, self.info()

    def optimal_action(self, task=None):
        return 0 if task is None else int(task["length"]) % 3

    def render(self):
        return np.full((2, 2, 3), self.t, np.uint8)


class Plain(gym.Env):
    """No optimal action, spaces of all kinds, never ends."""

    def __init__(self, space, action_space, values=None):
        self.observation_space, self.action_space, self.values = space, action_space, values
        space.seed(0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        observation = self.observation_space.sample() if self.values is None else self.values
        return observation, 0.5, False, False, {}


def make_counter(task, **options):
    return Counter(length=int(task["length"]), **options)


def make_faulty(task, how="raise"):
    """The task of length 3 fails at its fifth step."""
    return make_counter(task, fail_at=5, how=how if task["length"] == 3 else "")


def tasks_of(*lengths):
    return np.array([(n,) for n in lengths], [("length", np.int64)])


def play(env, num_steps, seed=0):
    """Observations (T + 1, B, ...), true next ones (T, B, ...), rewards, terminated and truncated (T, B)."""
    columns = [[], [], [], [], []]
    observation, _ = env.reset(seed=seed)
    columns[0].append(observation)
    for t in range(num_steps):
        actions = (np.arange(env.num_envs) * 0 + t) % 3
        observation, reward, terminated, truncated, info = env.step(actions)
        true = info.get("final_obs", observation)
        if "final_obs" in info:
            ended = terminated | truncated
            np.testing.assert_array_equal(info["_final_obs"], ended)
            np.testing.assert_array_equal(true[~ended], observation[~ended])
        for column, value in zip(columns, (observation, true, reward, terminated, truncated), strict=True):
            column.append(value)
    return [np.stack(column) for column in columns]


def test_contract_of_a_vector_environment():
    env = GymVectorEnv(SPEC, tasks_of(3, 4, 99), make_counter)
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP and env.metadata["render_fps"] == 7
    observation, true, reward, terminated, truncated = play(env, 12)
    assert reward.dtype == np.float32 and all(env.observation_space.contains(o) for o in observation)
    t = np.arange(1, 13)
    for lane, length in enumerate((3, 4, HORIZON)):
        np.testing.assert_array_equal(true[:, lane, 0], (t - 1) % length + 1)
        np.testing.assert_array_equal(observation[1:, lane, 0], t % length)
        np.testing.assert_array_equal((terminated | truncated)[:, lane], t % length == 0)
    assert not terminated[:, 2].any() and truncated[:, 2].sum() == 2  # 99 steps are cut at the horizon
    assert (
        len(np.unique(observation[:, :, 1])) == 3 + 12 // 3 + 12 // 4 + 12 // HORIZON
    )  # lanes have streams of their own
    assert env.failed == {}


@pytest.mark.parametrize("asynchronous", [False, pytest.param(True, id="asynchronous")])
def test_a_lane_does_not_depend_on_the_others_nor_on_where_it_runs(asynchronous):
    lengths = (3, 5, 2, 6)
    whole = play(GymVectorEnv(SPEC, tasks_of(*lengths), make_counter), 9)
    again = GymVectorEnv(SPEC, tasks_of(6, 5), make_counter, np.array([3, 1]), asynchronous=asynchronous)
    for column, part in zip(whole, play(again, 9), strict=True):
        np.testing.assert_array_equal(column[:, [3, 1]], part)
    assert (play(again, 9, seed=1)[2] != part_rewards(whole)).any()
    again.close()


def part_rewards(columns):
    return columns[2][:, [3, 1]]


REASONS = {
    "raise": r"raised ZeroDivisionError at test_gym_vector.py:\d+: the floor gave way, in step 2 of an episode",
    "reward": "returned the reward nan, in step 2 of an episode",
    "observation": "returned an observation that is not finite, in step 2",
    "shape": r"returned an observation of shape \(3,\) and type float64, expected \(2,\) and float32",
}


@pytest.mark.parametrize("how, asynchronous", [(how, False) for how in REASONS] + [("raise", True)])
def test_a_lane_that_fails_stands_still_and_the_others_go_on(how, asynchronous):
    healthy = play(GymVectorEnv(SPEC, tasks_of(4, 3), make_counter), 14)
    env = GymVectorEnv(SPEC, tasks_of(4, 3), partial(make_faulty, how=how), asynchronous=asynchronous)
    observation, true, reward, terminated, truncated = columns = play(env, 14)
    for own, good in zip(columns, healthy, strict=True):
        np.testing.assert_array_equal(own[:, 0], good[:, 0])
        np.testing.assert_array_equal(own[: 4 + (own is observation), 1], good[: 4 + (own is observation), 1])
    assert list(env.failed) == [1]
    with pytest.raises(AssertionError, match=REASONS[how]):
        raise AssertionError(env.failed[1])
    assert (
        (reward[4:, 1] == 0).all()
        and (observation[5:, 1] == observation[4, 1]).all()
        and (true[4:, 1] == observation[4, 1]).all()
    )
    ends = np.flatnonzero((terminated | truncated)[:, 1])
    assert ends.tolist() == [2, 2 + HORIZON, 2 + HORIZON + HORIZON][: len(ends)] and len(ends) == 2
    assert env.optimal_action().tolist() == [0, 0]
    env.close()


def test_failure_at_the_start_of_an_episode_spares_the_one_before():
    env = GymVectorEnv(SPEC, tasks_of(3, 3), lambda task: make_counter(task, fail_at=3, how="reset"))
    env.reset(seed=0)
    for _ in range(2):
        env.step(np.zeros(2, int))
    *_, reward, terminated, _, info = env.step(np.full(2, 2))
    assert terminated.all() and (reward >= 2).all() and (info["final_obs"][:, 0] == 3).all() and env.failed == {}
    env.step(np.zeros(2, int))
    assert sorted(env.failed) == [0, 1] and "no new episode" in env.failed[0]


def test_a_seeded_reset_tries_failed_lanes_again():
    env = GymVectorEnv(SPEC, tasks_of(3), make_faulty)
    play(env, 6)
    assert env.failed
    env.reset()
    assert env.failed
    play(env, 6)  # its fifth step is behind it
    assert env.failed == {}
    never = GymVectorEnv(SPEC, tasks_of(3), lambda task: make_counter(task, how="reset"))
    observation, _ = never.reset(seed=0)
    assert observation.tolist() == [[0, 0]] and list(never.failed) == [0]


@pytest.mark.parametrize(
    "space",
    [
        Discrete(4, start=2),
        MultiDiscrete([3, 5], dtype=np.int16),
        Box(0, 9, (3, 3, 2), np.uint8),
        Dict(place=MultiDiscrete([3, 4]), look=Dict(far=Box(-1, 1, (2,), np.float32))),
    ],
    ids=lambda space: type(space).__name__,
)
def test_spaces_of_all_kinds(space):
    spec = FamilySpec("plain", space, Box(-1, 1, (2,), np.float32), 2)
    env = GymVectorEnv(spec, tasks_of(1, 2), lambda task: Plain(space, spec.action_space))
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    observation, reward, _, truncated, info = env.step(np.zeros((2, 2), np.float32))
    assert env.observation_space.contains(observation) and not truncated.any() and (reward == 0.5).all()
    observation, _, _, truncated, info = env.step(np.zeros((2, 2)))
    assert truncated.all() and env.observation_space.contains(info["final_obs"])
    with pytest.raises(UserError, match="no optimal policy"):
        env.optimal_action()
    for bad in (np.zeros((2, 3)), np.full((2, 2), np.nan)):
        with pytest.raises(UserError, match="actions"):
            env.step(bad)


@pytest.mark.parametrize("space, value", [(Discrete(3), 3), (MultiDiscrete([2, 2]), [0, 2]), (Discrete(3), 0.5)])
def test_an_index_outside_its_space_is_a_failure(space, value):
    env = GymVectorEnv(
        FamilySpec("plain", space, Discrete(2), 5), tasks_of(1), lambda task: Plain(space, Discrete(2), values=value)
    )
    env.reset(seed=0)
    env.step(np.zeros(1, int))
    assert "returned" in env.failed[0]


def test_optimal_actions_masks_and_frames_are_passed_on():
    env = GymVectorEnv(
        SPEC, tasks_of(4, 3), lambda task: make_counter(task, mask=task["length"] == 3, render_mode="rgb_array")
    )
    _, info = env.reset(seed=0)
    assert info["action_mask"].tolist() == [[True] * 3] * 2
    *_, info = env.step(np.zeros(2, int))
    assert info["action_mask"].tolist() == [[True] * 3, [True, False, True]]
    assert env.optimal_action().tolist() == [0, 0] and env.optimal_action(tasks_of(7, 5)).tolist() == [1, 2]
    assert [frame.max() for frame in env.render()] == [1, 1]
    env.step(np.zeros(2, int))
    *_, info = env.step(np.zeros(2, int))
    assert info["action_mask"].tolist() == [[True] * 3] * 2  # of the new episode


def make_odd(task):
    """Another observation space for length 9, none at all for 8 and 7."""
    if task["length"] == 8:
        raise KeyError("no such map")
    if task["length"] == 7:
        raise UserError("mujoco is not installed: pip install icrl[mujoco]")
    return make_counter(task, space=Box(0, 1, (5,)) if task["length"] == 9 else BOX)


@pytest.mark.parametrize(
    "length, message",
    [
        (9, r"task 1 of counter has the observation_space Box.*\(5,\).*the family's is Box.*\(2,\)"),
        (8, "task 1 of counter cannot be made: make_env raised KeyError at test_gym_vector.py.*no such map"),
        (7, "task 1 of counter cannot be made: mujoco is not installed: pip install"),
    ],
)
def test_tasks_that_do_not_fit_are_refused(length, message):
    with pytest.raises(UserError, match=message):
        GymVectorEnv(SPEC, tasks_of(3, length), make_odd)


def die(task):
    env = make_counter(task)
    env.step = lambda action: __import__("os")._exit(1)  # type: ignore[method-assign]
    return env


def test_asynchronous_lanes_refuse_and_die_in_one_line():
    with pytest.raises(UserError, match="task 1 of counter has the observation_space"):
        GymVectorEnv(SPEC, tasks_of(3, 9), make_odd, asynchronous=True)
    env = GymVectorEnv(SPEC, tasks_of(3), die, asynchronous=True)
    env.reset(seed=0)
    with pytest.raises(UserError, match="a process of an asynchronous environment of counter died"):
        env.step(np.zeros(1, int))
    env.close()


def test_bad_calls_are_refused():
    env = GymVectorEnv(SPEC, tasks_of(3, 4), make_counter)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(2, int))
    env.reset()
    for actions in (np.zeros(3, int), np.zeros(2), np.array([0, 3]), np.array([0, -1])):
        with pytest.raises(UserError, match="actions"):
            env.step(actions)
    with pytest.raises(UserError, match="seed"):
        env.reset(seed=[1, 2])  # type: ignore[arg-type]
    for tasks, lanes in ((tasks_of(), None), (tasks_of(3), np.arange(2))):
        with pytest.raises(UserError, match="at least one task"):
            GymVectorEnv(SPEC, tasks, make_counter, lanes)
