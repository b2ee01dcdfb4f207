"""Trials: k episodes of one task as one episode, for native families and for a user's own."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from gymnasium.utils.env_checker import check_env
from line_world import Lines

from envs import make_family
from envs.gym_family import GymFamily
from envs.trial import TrialEncoding, TrialEnv, TrialVecEnv
from icrl.interfaces import FamilySpec, UserError

ROOM = make_family("darkroom", width=4, height=3, horizon=5, num_validation=2)


def play(env, actions, seed=0):
    observation, info = env.reset(seed=seed)
    turns = [env.step(action) for action in actions]
    return observation, info, turns


@pytest.mark.filterwarnings("ignore:.*A Box observation space m")  # rewards have no bounds
@pytest.mark.parametrize(
    "family", [ROOM, make_family("gaussian_bandit", horizon=4), Lines()], ids=lambda f: f.spec.name
)
def test_any_family_makes_an_environment_that_passes_check_env(family):
    check_env(TrialEnv(family, family.split().train, 2), skip_render_check=True)


def test_a_trial_is_the_family_s_own_stream_with_what_was_done_beside_it():
    env = TrialEnv(ROOM, ROOM.split().train, 3)
    actions = np.random.default_rng(1).integers(5, size=15)
    first, info, turns = play(env, actions)
    assert env.max_steps == 15 and env.observation_space.shape == (4 + 3 + 5 + 2,)
    np.testing.assert_array_equal(first, np.eye(14)[[0, 3]].sum(0))  # row 0, column 0, nothing done yet
    inner = ROOM.make_vec(env.tasks[[info["task"]]])
    observation, _ = inner.reset(seed=1)
    earned = np.zeros(3)
    for t, (action, turn) in enumerate(zip(actions, turns, strict=True)):
        observation, reward, _, ended, inner_info = inner.step(np.array([action]))
        over = t == 14
        row, column = (inner_info["final_obs"] if over else observation)[0]
        seen = np.concatenate([np.eye(3)[row], np.eye(4)[column], np.eye(5)[action], [reward[0], ended[0]]])
        np.testing.assert_array_equal(turn[0], seen)
        assert turn[1] == reward[0] and turn[2] == over and not turn[3] and ended[0] == (t % 5 == 4)
        earned[t // 5] += reward[0]
    np.testing.assert_array_equal(turns[-1][4]["episode_returns"], earned)
    assert not any("episode_returns" in turn[4] for turn in turns[:-1])
    with pytest.raises(gym.error.ResetNeeded, match="over"):
        env.step(0)


def test_every_trial_draws_a_task_and_seeds_repeat_it():
    tasks = ROOM.split().train[:4]
    env = TrialEnv(ROOM, tasks, 1)
    drawn = [env.reset(seed=0)[1]["task"], *(env.reset()[1]["task"] for _ in range(60))]
    assert set(drawn) == {0, 1, 2, 3}
    again = [env.reset(seed=0)[1]["task"], *(env.reset()[1]["task"] for _ in range(60))]
    assert drawn == again
    noisy = make_family("gaussian_bandit", horizon=3)
    env = TrialEnv(noisy, noisy.split().train[:1], 1)
    rewards = [[turn[1] for turn in play(env, [0] * 3, seed)[2]] for seed in (0, 0, 1)]
    assert rewards[0] == rewards[1] != rewards[2]


def test_a_random_agent_earns_k_times_a_random_episode():
    family = make_family("bernoulli_bandit", horizon=4)
    tasks = family.split().test[:3]
    env, rng = TrialEnv(family, tasks, 5), np.random.default_rng(0)
    returns = {0: [], 1: [], 2: []}
    for trial in range(300):
        _, info = env.reset(seed=trial)
        rewards = [env.step(rng.integers(2))[1] for _ in range(20)]
        returns[info["task"]].append(sum(rewards))
    for task, expected in enumerate(5 * family.random_return(tasks)):
        assert abs(np.mean(returns[task]) - expected) < 5 * np.std(returns[task]) / len(returns[task]) ** 0.5


def test_the_encoding_of_every_kind_of_space():
    space = Dict(
        a=Discrete(3, start=1), b=MultiDiscrete([2, 3], start=[0, 5]), c=Dict(d=Box(-2, 2, (2, 2), np.float64))
    )
    encoding = TrialEncoding(FamilySpec("any", space, Box(-1, 1, (2,), np.float32), 9))
    observation = {
        "a": np.array([1, 3]),
        "b": np.array([[1, 5], [0, 7]]),
        "c": {"d": np.arange(8.0).reshape(2, 2, 2) / 4},
    }
    action, reward, ended = np.array([[0.5, -1], [0, 1]]), np.array([2.0, -3.0]), np.array([False, True])
    seen = encoding.after(observation, action, reward, ended)
    assert seen.dtype == np.float32 and seen.tolist() == [
        [1, 0, 0, 0, 1, 1, 0, 0, 0, 0.25, 0.5, 0.75, 0.5, -1, 2, 0],
        [0, 0, 1, 1, 0, 0, 0, 1, 1, 1.25, 1.5, 1.75, 0, 1, -3, 1],
    ]
    assert all(encoding.space.contains(row) for row in seen)
    assert encoding.start(observation).tolist() == [[*row[:12], 0, 0, 0, 0] for row in seen.tolist()]


def test_impossible_trials_are_refused():
    for tasks, episodes in ((ROOM.split().train[:0], 1), (ROOM.split().train, 0)):
        with pytest.raises(UserError, match="expected at least one of each"):
            TrialEnv(ROOM, tasks, episodes)
    with pytest.raises(gym.error.ResetNeeded):
        TrialEnv(ROOM, ROOM.split().train, 1).step(0)
    odd = FamilySpec("odd", gym.spaces.Text(3), Discrete(2), 4)
    with pytest.raises(UserError, match="a trial cannot show the space Text"):
        TrialEncoding(odd)
    broken = replace(Lines(), fail_at=2)
    tasks = broken.sample_tasks(np.random.default_rng(0), 30)
    env = TrialEnv(broken, tasks[tasks["goal"] == 0][:1], 1)
    env.reset(seed=0)
    env.step(0)
    with pytest.raises(UserError, match=r"the environment of task .* of Lines raised RuntimeError"):
        env.step(0)


def test_one_lane_of_many_trials_plays_what_the_single_environment_does():
    for family in (ROOM, make_family("gaussian_bandit", horizon=4), Lines()):
        tasks, rng = family.split().train, np.random.default_rng(0)
        single, lanes = TrialEnv(family, tasks, 2), TrialVecEnv(family, tasks, 2, num_envs=1)
        seen = single.reset(seed=5)[0]
        assert lanes.single_observation_space == single.observation_space
        np.testing.assert_array_equal(lanes.reset(seed=5)[0], seen[None])
        for _ in range(3 * single.max_steps):
            action = rng.integers(2)
            seen, reward, over, _, info = single.step(action)
            first, rewards, overs, cut, infos = lanes.step(np.array([action]))
            assert rewards.tolist() == [np.float32(reward)] and overs.tolist() == [over] and not cut.any()
            np.testing.assert_array_equal(infos["final_obs"] if over else first, seen[None])
            if over:
                np.testing.assert_allclose(lanes.episode_returns[0], info["episode_returns"])
                np.testing.assert_array_equal(first[0], single.reset()[0])


class Uneven(gym.Env):
    """Pays its goal at each step and ends by chance."""

    action_space, observation_space = Discrete(2), Discrete(4)

    def __init__(self, goal: int):
        self.goal = goal

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        return 1, float(self.goal), bool(self.np_random.random() < 0.3), False, {}


def test_lanes_whose_episodes_end_at_different_times_begin_new_trials_on_their_own():
    family = GymFamily(Uneven, lambda rng: {"goal": rng.integers(500)}, name="uneven", horizon=9)
    env = TrialVecEnv(family, family.split().train, 3, num_envs=6)
    env.reset(seed=0)
    begun, episodes, goals = np.zeros(6, int), np.zeros(6, int), [[] for _ in range(6)]
    for _ in range(200):
        seen, reward, over, _, info = env.step(np.zeros(6, int))
        true = info.get("final_obs", seen)
        episodes += true[:, -1].astype(int)
        np.testing.assert_array_equal(over, (episodes == 3))
        assert (seen[over, 4:] == 0).all() and (true[:, :4] == seen[:, :4])[~over].all()
        for lane in range(6):
            goals[lane].append(reward[lane])
        for lane in np.flatnonzero(over):
            assert len(set(goals[lane])) == 1, "one task in a trial"
            assert env.episode_returns[lane].sum() == pytest.approx(sum(goals[lane]))
            goals[lane] = []
        begun, episodes = begun + over, np.where(over, 0, episodes)
    assert begun.min() > 5 and len(set(begun)) > 1


def test_many_lanes_of_a_native_family_get_fresh_tasks_after_each_trial():
    env = TrialVecEnv(ROOM, ROOM.split().train, 2, num_envs=50)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(50, int))
    env.reset(seed=1)
    assert np.isnan(env.episode_returns).all()
    seen, best = [], []
    for t in range(40):
        inner = env._trials[0]._env
        assert inner is not None
        seen.append(inner.tasks.copy())
        _, reward, over, _, _ = env.step(inner.optimal_action())
        best.append(reward)
        assert over.all() == over.any() == (t % 10 == 9)
    assert all((seen[t] == seen[0]).all() for t in range(10)) and (seen[10] != seen[9]).any()
    expected = ROOM.optimal_return(seen[-1])
    np.testing.assert_allclose(env.episode_returns, np.stack([expected] * 2, axis=1))
