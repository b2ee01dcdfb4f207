"""Bayes explorers score what exact inference scores, and know nothing but the posterior contract."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from agents import make_source
from envs import make_family
from envs.darkroom import DarkRoom
from icrl.rollout import rollout
from icrl.seeding import LaneStreams


def returns(source, family, tasks, episodes, **options):
    """(B, episodes) returns of a source."""
    env = family.make_vec(tasks)
    horizon = family.spec.horizon
    agent = make_source(source, **options).make(
        family, env, LaneStreams(0, "s", lane_ids=len(tasks)), episodes * horizon
    )
    rewards = np.stack([turn.step.reward for turn in islice(rollout(agent, env, seed=0), episodes * horizon)])
    return rewards.reshape(episodes, horizon, -1).sum(axis=1).T


ROOM = DarkRoom()
HELD_OUT = ROOM.split().test


@pytest.mark.parametrize(
    "source, lanes, expected, tolerance",
    [
        ("nearest_plausible", 20, [43.7, 90.9, 90.9], 1e-4),
        ("sample_and_hold", 1000, [43.2, 82.7, 90.9], 4.0),
        ("posterior_sampling", 1000, [10.8, 33.1, 49.7, 58.8], 4.0),
        ("optimal", 20, [90.9, 90.9], 1e-4),
    ],
)
def test_held_out_scores_of_exact_inference(source, lanes, expected, tolerance):
    curve = returns(source, ROOM, np.resize(HELD_OUT, lanes), len(expected)).mean(axis=0)
    np.testing.assert_allclose(curve, expected, atol=tolerance)


def test_nearest_plausible_meets_a_new_cell_at_each_step():
    """Over all 100 goals a sweep without a lost step earns (100 + 99 + ... + 2) / 100; the start cell is found by elimination."""
    tasks = ROOM.make_tasks(np.arange(100))
    scores = returns("nearest_plausible", ROOM, tasks, 2)
    assert sorted(scores[:, 0]) == [0, *range(2, 101)]
    np.testing.assert_array_equal(scores[:, 1], ROOM.optimal_return(tasks))


def test_held_targets_sweep_as_well():
    scores = returns("nearest_plausible", ROOM, HELD_OUT, 2, hold=0).mean(axis=0)
    np.testing.assert_allclose(scores, [43.7, 90.9], atol=1e-4)


@pytest.mark.parametrize("reward", ["dense", "once"])
@pytest.mark.parametrize("source", ["nearest_plausible", "sample_and_hold", "posterior_sampling"])
def test_explorers_end_optimal_with_permuted_actions(source, reward):
    family = make_family(
        "darkroom", width=4, height=4, horizon=40, permuted_actions=True, num_validation=2, reward=reward
    )
    tasks = np.resize(family.split().test, 24)
    scores = returns(source, family, tasks, 12)
    assert (scores[:, -1] >= family.optimal_return(tasks) - (0 if source != "posterior_sampling" else 8)).mean() > 0.9
    assert scores[:, 0].mean() < scores[:, -1].mean() or reward == "once"


def test_blind_sweep_repeats_one_path():
    family = DarkRoom(width=4, height=4, horizon=16, num_validation=2)
    tasks = np.resize(family.split().test, 3)
    env = family.make_vec(tasks)
    agent = make_source("blind_sweep").make(family, env, LaneStreams(0, lane_ids=3), 48)
    actions = np.stack([turn.step.action for turn in islice(rollout(agent, env, seed=0), 48)]).reshape(3, 16, 3)
    assert (actions == actions[:1, :, :1]).all()  # the same in every episode and whatever the task
    scores = returns("blind_sweep", family, tasks, 3)
    assert (scores[family.goal_cells(tasks) > 0] == 1).all()  # it passes by each goal once, the start cell comes last


def test_blind_sweep_starts_again_when_everything_was_swept():
    family = make_family("darkroom", width=2, height=2, horizon=40, num_validation=1)
    assert (returns("blind_sweep", family, family.split().test, 1) > 5).all()


@pytest.mark.parametrize("permuted", [False, True])
def test_sweep_then_return_returns_from_the_next_episode_on(permuted):
    family = make_family("darkroom", width=4, height=4, horizon=60, num_validation=2, permuted_actions=permuted)
    tasks = np.resize(family.split().test, 12)
    scores, optimal = returns("sweep_then_return", family, tasks, 8), family.optimal_return(tasks)
    for lane in range(12):
        first = np.flatnonzero(scores[lane] > 0)[0]
        assert scores[lane, first] < optimal[lane]
        assert (scores[lane, first + 2 :] == optimal[lane]).all()


def test_noise_is_executed_and_the_intention_is_the_label():
    env = ROOM.make_vec(np.resize(HELD_OUT, 200))
    agent = make_source("nearest_plausible", epsilon=0.3).make(ROOM, env, LaneStreams(0, lane_ids=200), 100)
    turns = list(islice(rollout(agent, env, seed=0), 100))
    action, target, log_prob = (
        np.stack([getattr(t.decision, key) for t in turns]) for key in ("action", "target_action", "behaviour_log_prob")
    )
    assert (action != target).mean() == pytest.approx(0.3 * 0.8, abs=0.01)
    np.testing.assert_allclose(np.exp(log_prob), np.where(action == target, 0.7 + 0.06, 0.06), rtol=1e-5)


def test_posterior_sampling_greedy_takes_the_most_probable_optimal_action():
    env = ROOM.make_vec(HELD_OUT)
    agent = make_source("posterior_sampling", greedy=True).make(ROOM, env, LaneStreams(0, lane_ids=20), 10)
    turn = next(rollout(agent, env, seed=0))
    np.testing.assert_array_equal(turn.decision.action, 0)  # rows come first: 90 of 100 goals lie below the corner


@pytest.mark.parametrize("hold", [0, 3])
def test_held_sample_is_kept_until_refuted_or_for_hold_steps(hold):
    env = ROOM.make_vec(np.resize(HELD_OUT, 50))
    agent = make_source("sample_and_hold", hold=hold).make(ROOM, env, LaneStreams(1, lane_ids=50), 60)
    held, refuted, longest = None, np.zeros(50, bool), 0
    for _ in islice(rollout(agent, env, seed=0), 30):
        now = agent._held["goal"].copy()  # type: ignore[attr-defined]
        changed = refuted if held is None else (now != held).any(axis=1)
        assert hold or (changed <= refuted).all()
        held, refuted = now, agent._posterior.refuted(agent._held)  # type: ignore[attr-defined]
        longest = max(longest, int(agent._age.max()))  # type: ignore[attr-defined]
    assert longest <= hold if hold else longest > 3


class ContractOnly:
    """A posterior without anything beyond the contract."""

    def __init__(self, posterior):
        for name in ("reset", "update", "sample", "refuted", "candidates", "plausible", "optimal_action_probs"):
            setattr(self, name, getattr(posterior, name))


@pytest.mark.parametrize("source", ["nearest_plausible", "blind_sweep", "sweep_then_return"])
def test_the_contract_is_enough(source, monkeypatch):
    fast = returns(source, ROOM, HELD_OUT, 2)
    family = type(ROOM)
    original = family.posterior
    monkeypatch.setattr(family, "posterior", lambda self, env: ContractOnly(original(self, env)))
    np.testing.assert_array_equal(returns(source, ROOM, HELD_OUT, 2), fast)


def test_plausible_tasks_are_those_of_positive_weight():
    env = ROOM.make_vec(HELD_OUT)
    posterior = ROOM.posterior(env)
    agent = make_source("uniform").make(ROOM, env, LaneStreams(0, lane_ids=20), 60)
    posterior.reset(20)
    for turn in islice(rollout(agent, env, seed=0), 60):
        posterior.update(turn.step)
    (tasks, weights), (same, mask) = posterior.candidates(), posterior.plausible()
    np.testing.assert_array_equal(tasks, same)
    np.testing.assert_array_equal(weights > 0, mask)
    assert 0 < mask.sum() < mask.size
