"""Point-Robot: its closed forms against simulation and by hand, a box of actions in native environments, and noise on its oracle."""

from __future__ import annotations

from itertools import islice

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box
from gymnasium.utils.env_checker import check_env

from agents import make_source
from agents.base import epsilon_noise_in_box
from envs import make_family
from envs.base import SingleEnv
from envs.point_robot import MAX_MOVE, PointRobot
from icrl.interfaces import Step, UserError
from icrl.rollout import rollout
from icrl.seeding import LaneStreams


def tasks_at(*goals):
    tasks = PointRobot().sample_tasks(np.random.default_rng(0), len(goals))
    tasks["goal"] = goals
    return tasks


def returns(family, tasks, policy, seed=0):
    """(N,) return of one episode of ``policy(env)``."""
    env = family.make_vec(tasks)
    env.reset(seed=seed)
    return np.sum([env.step(policy(env))[1] for _ in range(family.horizon)], axis=0)


def test_optimal_return_by_hand():
    tasks = tasks_at((0.3, 0.0), (0.25, -0.1), (0.0, 0.0))
    np.testing.assert_allclose(PointRobot().optimal_return(tasks), [-(0.2 + 0.1), -(0.15 + 0.05), 0], atol=1e-12)


def test_optimal_return_is_that_of_the_optimal_policy():
    family = PointRobot()
    tasks = np.concatenate(family.split())
    played = returns(family, tasks, lambda env: env.optimal_action())
    np.testing.assert_allclose(played, family.optimal_return(tasks), atol=1e-4)


@pytest.mark.parametrize("start", ["near", "anywhere"])
def test_expected_returns_where_the_start_is_random(start):
    family = PointRobot(start=start)
    tasks = family.split().test[:3]
    lanes, rng = np.repeat(tasks, 4000), np.random.default_rng(1)
    for policy, expected in (
        (lambda env: env.optimal_action(), family.optimal_return(tasks)),
        (lambda env: rng.uniform(-MAX_MOVE, MAX_MOVE, (len(lanes), 2)), family.random_return(tasks)),
    ):
        played = returns(family, lanes, policy).reshape(3, -1)
        error = played.std(axis=1) / np.sqrt(played.shape[1])
        assert (np.abs(played.mean(axis=1) - expected) < 4.5 * error + 0.1).all()


def test_no_other_policy_is_ever_nearer():
    family, rng = PointRobot(start="near"), np.random.default_rng(0)
    tasks = np.repeat(family.split().train, 20)
    best = returns(family, tasks, lambda env: env.optimal_action())
    others = returns(family, tasks, lambda env: env.optimal_action() + rng.normal(0, 0.05, (len(tasks), 2)))
    assert (others <= best + 1e-5).all() and (others < best - 0.01).all()


def test_the_optimum_of_other_tasks():
    env = PointRobot().make_vec(tasks_at((0.5, 0.5), (0.5, 0.5)))
    env.reset(seed=0)
    np.testing.assert_allclose(env.optimal_action(tasks_at((-0.5, 0.02), (0.0, 0.0))), [[-0.1, 0.02], [0, 0]])


def test_actions_beyond_the_box_are_clipped():
    env = PointRobot().make_vec(tasks_at((0.5, 0.5), (0.5, 0.5)))
    env.reset(seed=0)
    np.testing.assert_allclose(env.step(np.array([[7.0, -7.0], [1, 0]]))[0], [[0.1, -0.1], [0.1, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    "actions, message",
    [
        (np.zeros((3, 2)), "shape"),
        (np.zeros(2), "shape"),
        (np.zeros((2, 2), "U1"), "type"),
        (np.array([[0, np.nan], [0, 0]]), "finite"),
        (np.array([[0, np.inf], [0, 0]]), "finite"),
    ],
)
def test_what_is_no_action_is_refused(actions, message):
    env = PointRobot().make_vec(tasks_at((0.5, 0.5), (0.5, 0.5)))
    env.reset(seed=0)
    with pytest.raises(UserError, match=message):
        env.step(actions)


def test_a_single_environment_passes_check_env():
    for given in ({}, {"start": "anywhere", "goal": (0.3, -0.7)}):
        check_env(SingleEnv("point_robot", PointRobot, **given), skip_render_check=True)
    env = SingleEnv("point_robot", PointRobot, goal=(0.3, 0.0))
    env.reset(seed=0)
    observation, reward, *_ = env.step(np.array([0.1, 0.0], np.float32))
    assert observation.tolist() == pytest.approx([0.1, 0]) and reward == pytest.approx(-0.2)
    with pytest.raises(gym.error.ResetNeeded):
        SingleEnv("point_robot", PointRobot).step(np.zeros(2))


def test_observations_stay_in_their_space():
    family = PointRobot(start="anywhere", horizon=50)
    env = family.make_vec(np.resize(family.split().train, 500))
    assert env.observation_space.contains(env.reset(seed=0)[0])
    corner = np.sign(env.reset(seed=0)[0]) * MAX_MOVE
    for t in range(50):
        observation, _, terminated, truncated, info = env.step(corner)
        assert not terminated.any() and (truncated == (t == 49)).all()
    assert np.abs(info["final_obs"]).max() > 5.9 and env.observation_space.contains(info["final_obs"])
    assert np.abs(observation).max() <= 1


def test_a_lane_does_not_depend_on_the_others():
    family, lanes = PointRobot(start="near", horizon=3), np.array([4, 1])
    tasks, actions = np.resize(family.split().train, 6), np.random.default_rng(0).uniform(-0.1, 0.1, (7, 6, 2))

    def observations(env, chosen):
        return np.stack([env.reset(seed=5)[0], *(env.step(action[chosen])[0] for action in actions)])

    whole = observations(family.make_vec(tasks), np.arange(6))
    part = observations(family.make_vec(tasks[lanes], lane_ids=lanes), lanes)
    np.testing.assert_array_equal(whole[:, lanes], part)
    assert len(np.unique(whole[0], axis=0)) == 6 and (whole[3] != whole[0]).any()


def test_the_split_is_that_of_t2mir_with_validation_tasks():
    parts = PointRobot().split()
    assert [len(part) for part in parts] == [45, 10, 5]
    goals = np.concatenate(parts)["goal"]
    assert len(np.unique(goals, axis=0)) == 60 and np.abs(goals).max() <= 1 and (np.ptp(goals, axis=0) > 1.8).all()
    np.testing.assert_array_equal(np.concatenate(PointRobot().split()), np.concatenate(parts))
    assert (PointRobot(task_seed=1).split().test != parts.test).all()


def test_scattered_covers_the_square():
    family = PointRobot().scattered()
    env = family.make_vec(np.resize(PointRobot().split().train, 4000))
    observation, _ = env.reset(seed=0)
    counts = np.histogram2d(*observation.T, bins=4, range=[[-1, 1], [-1, 1]])[0]
    assert counts.sum() == 4000 and counts.min() > 180 and env.step(np.zeros((4000, 2)))[3].all()


def test_bad_options_and_tasks_are_refused():
    for key in ("horizon", "num_train_tasks", "num_test_tasks"):
        with pytest.raises(UserError, match=f"{key} is 0"):
            make_family("envs.point_robot:PointRobot", **{key: 0})
    with pytest.raises(UserError, match="outside the square"):
        PointRobot().make_vec(tasks_at((1.5, 0)))


# --- the exact belief ------------------------------------------------------------------------------------------------------


def belief_after(family, tasks, actions):
    """The belief of lanes that took the actions (T, B, 2), and the family's environment."""
    env = family.make_vec(tasks)
    posterior = family.posterior(env)
    observation, _ = env.reset(seed=0)
    for action in actions:
        following, reward, terminated, truncated, info = env.step(action)
        ended = (terminated | truncated)[:, None]
        final = np.where(ended, info.get("final_obs", following), following)
        posterior.update(Step(observation, action, reward, terminated, truncated, final))
        observation = following
    return posterior, env


def test_samples_agree_with_what_was_seen_and_the_goal_is_never_refuted():
    family, rng = PointRobot(horizon=4), np.random.default_rng(0)
    tasks = family.sample_tasks(rng, 300)
    straight = np.tile(rng.uniform(-0.1, 0.1, (1, 300, 2)), (3, 1, 1))
    for actions in (straight[:1], straight, rng.uniform(-0.1, 0.1, (2, 300, 2)), rng.uniform(-0.1, 0.1, (900, 300, 2))):
        posterior, _ = belief_after(family, tasks, actions)
        assert not posterior.refuted(tasks).any()
        sample = posterior.sample(LaneStreams(3, lane_ids=300), np.arange(300))
        assert not posterior.refuted(sample).any() and np.abs(sample["goal"]).max() <= 1
        error = np.linalg.norm(sample["goal"] - tasks["goal"], axis=1)
        found = (error < 1e-3).mean()
        if len(actions) == 1:
            assert found < 0.05
        elif len(actions) < 900:
            assert 0.5 < found < 0.85  # two mirror images, one of them perhaps outside the square
        else:
            assert found == 1
        assert posterior.refuted(family.sample_tasks(rng, 300)).mean() > 0.98


def test_a_sample_after_one_step_is_spread_like_the_tasks_that_pay_so():
    family = PointRobot()
    move = np.tile(np.array([0.1, 0.05], np.float32), (4000, 1))
    posterior, _ = belief_after(family, np.repeat(tasks_at((0.8, -0.7)), 4000), move[None])
    goals = posterior.sample(LaneStreams(0, lane_ids=4000), np.arange(4000))["goal"]
    distance = np.linalg.norm(np.array([0.8, -0.7]) - move[0])
    others = family.sample_tasks(np.random.default_rng(1), 4_000_000)["goal"]
    others = others[np.abs(np.linalg.norm(others - move[0], axis=1) - distance) < 0.002]
    np.testing.assert_allclose(goals.mean(axis=0), others.mean(axis=0), atol=0.05)
    np.testing.assert_allclose(np.cov(goals.T), np.cov(others.T), atol=0.05)


def test_posterior_sampling_is_at_the_optimum_from_the_second_episode_on():
    family = PointRobot()
    tasks = np.resize(family.split().test, 50)
    env = family.make_vec(tasks)
    agent = make_source("sample_and_hold").make(family, env, LaneStreams(0, lane_ids=50), 60)
    reward = np.stack([turn.step.reward for turn in islice(rollout(agent, env, seed=0), 60)]).reshape(3, 20, 50).sum(1)
    best = family.optimal_return(tasks)
    assert (reward[0] <= best + 1e-4).all() and best.mean() - 4 < reward[0].mean() < best.mean() - 1
    np.testing.assert_allclose(reward[1:], np.stack([best, best]), atol=1e-3)


def test_a_belief_is_forgotten_lane_by_lane_and_has_no_list():
    posterior, env = belief_after(PointRobot(), tasks_at((0.5, 0.5), (0.1, 0.2)), np.full((1, 2, 2), 0.1, np.float32))
    wrong = tasks_at((-0.5, 0.5), (-0.1, 0.2))
    assert posterior.refuted(wrong).all()
    posterior.reset(np.array([1]))
    assert posterior.refuted(wrong).tolist() == [True, False]
    for call in (posterior.plausible, posterior.candidates, lambda: posterior.optimal_action_probs(env)):
        with pytest.raises(UserError, match="choose"):
            call()


# --- noise on an oracle whose actions are a box -------------------------------------------------------------------------


LANES = np.arange(6)


def turns_of(source, num_steps, lane_ids=LANES, **options):
    family = PointRobot()
    env = family.make_vec(np.resize(family.split().train, 6)[lane_ids], lane_ids)
    agent = make_source(source, **options).make(family, env, LaneStreams(7, "source", lane_ids=lane_ids), num_steps)
    return list(islice(rollout(agent, env, seed=2, record_optimal=True), num_steps))


def test_annealed_noise_falls_and_labels_stay_optimal():
    turns = turns_of("annealed", 400)
    executed, intended = (np.stack([getattr(t.decision, key) for t in turns]) for key in ("action", "target_action"))
    noisy = (executed != intended).any(axis=-1)  # (T, B)
    assert noisy[0].all() and 0.4 < noisy[:360].mean() < 0.6 and not noisy[360:].any()
    assert np.abs(executed).max() <= np.float32(MAX_MOVE) and executed.dtype == np.float32
    np.testing.assert_array_equal(intended, np.stack([np.asarray(turn.optimal_action) for turn in turns]))
    assert turns[0].decision.behaviour_log_prob is None and turns[-1].decision.behaviour_log_prob is None
    reward = np.stack([turn.step.reward for turn in turns]).reshape(20, 20, 6).sum(axis=1).mean(axis=1)
    assert reward[-2:].mean() > reward[:2].mean() + 5


def test_noise_in_a_box_is_uniform_and_as_frequent_as_asked():
    space = Box(np.array([-1, 0], np.float32), np.array([1, 4], np.float32))
    decision = epsilon_noise_in_box(
        np.full((20_000, 2), 0.5, np.float32), 0.3, LaneStreams(0, lane_ids=20_000), space=space
    )
    noise = decision.action[(decision.action != decision.target_action).any(axis=1)]
    assert len(noise) / 20_000 == pytest.approx(0.3, abs=0.015)
    np.testing.assert_allclose(noise.mean(axis=0), [0, 2], atol=0.06)
    np.testing.assert_allclose(noise.var(axis=0), [4 / 12, 16 / 12], rtol=0.06)
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.04


def test_noisy_lanes_do_not_depend_on_each_other():
    lanes = np.array([4, 1])
    whole = np.stack([turn.step.action for turn in turns_of("optimal", 30, epsilon=0.5)])
    part = np.stack([turn.step.action for turn in turns_of("optimal", 30, lanes, epsilon=0.5)])
    np.testing.assert_array_equal(whole[:, lanes], part)


def test_noise_needs_a_bounded_box():
    family = PointRobot()
    env = family.make_vec(family.split().test)
    env.single_action_space = Box(-np.inf, np.inf, (2,))
    streams = LaneStreams(0, lane_ids=5)
    with pytest.raises(UserError, match="bounded box"):
        make_source("optimal", epsilon=0.1).make(family, env, streams, 10)
    make_source("optimal").make(family, env, streams, 10)
