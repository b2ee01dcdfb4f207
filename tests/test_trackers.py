"""What an evaluation watches of how an agent explores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from envs import make_family
from icrl.interfaces import PLAN_BEGINS, Decision, Step
from icrl.rollout import Turn
from icrl.trackers import ExplorationTracker, SimpleRegretTracker

DARK = make_family("darkroom").split().test[:1]


def turn(observation, log_prob=None, plan=None):
    lanes = len(observation)
    nothing = np.zeros(lanes, bool)
    step = Step(np.array(observation), np.zeros(lanes, int), np.zeros(lanes), nothing, nothing, np.array(observation))
    return Turn(step, Decision(step.action, None, log_prob, plan), None)


def test_coverage_counts_different_observations_of_each_lane():
    tracker = ExplorationTracker(2, 1, 4, MultiDiscrete([3, 3], start=[1, 1]))
    for cells in ([[1, 1], [3, 3]], [[1, 2], [3, 3]], [[1, 1], [3, 3]], [[2, 1], [1, 3]]):
        tracker.update(turn(cells), np.zeros(2, int))
    arrays = tracker.arrays()
    assert arrays["coverage_steps"].tolist() == [1, 2, 3, 4] and arrays["coverage"].tolist() == [1, 1.5, 1.5, 2.5]
    assert np.isnan(arrays["surprise"]).all() and np.isnan(arrays["plan_length"]).all()


def test_surprise_and_plan_lengths_are_those_of_an_episode_and_later_ones_do_not_count():
    tracker = ExplorationTracker(2, 2, 3, Discrete(5))
    for episode, log_prob, plan in (
        ([0, 0], [-1, -3], [1, 1]),
        ([0, 1], [-2, np.nan], [0, 1]),
        ([1, 2], [-5, -9], [0, 1]),
    ):
        tracker.update(turn([0, 0], np.array(log_prob), PLAN_BEGINS * np.array(plan)), np.array(episode))
    arrays = tracker.arrays()
    np.testing.assert_allclose(arrays["surprise"], [2, 5])
    np.testing.assert_allclose(arrays["plan_length"], [3 / 2, 2])


@pytest.mark.parametrize("space", [Box(-1, 1, (2,), np.float32), MultiDiscrete([300, 300]), Discrete(1)])
def test_what_cannot_be_listed_has_no_coverage(space):
    tracker = ExplorationTracker(1, 1, 2, space)
    tracker.update(turn(np.zeros((1, *space.shape))), np.zeros(1, int))
    assert "coverage" not in tracker.arrays()


def test_simple_regret_is_what_the_environment_says():
    family: Any = make_family("bayesian_optimisation", num_train_tasks=4, num_validation_tasks=0)
    env = family.make_vec(family.split().train[:2])
    tracker = SimpleRegretTracker.make(env, 3, 3)
    assert tracker is not None and SimpleRegretTracker.make(make_family("darkroom").make_vec(DARK), 1, 1) is None
    best, taken = env.optimal_action(), np.zeros((2, 3), int)
    taken[0, 2] = best[0]
    for t in range(3):
        one = turn([[0], [0]])
        tracker.update(one._replace(step=one.step._replace(action=taken[:, t])), np.full(2, t))
    regret = tracker.arrays()["simple_regret"]
    np.testing.assert_allclose(regret, family.simple_regret(env.tasks, taken), rtol=1e-6)
    assert regret[0, 2] == 0 and (regret[:, 0] > 0).all()
