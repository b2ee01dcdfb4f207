"""The summary of a dataset against numbers counted by hand, and its picture."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from toy import random_history, without_flushing, write_histories

from icrl.data.inspect import figure, learning_warnings, summary
from icrl.data.schema import History
from icrl.interfaces import FamilySpec, UserError

GRID = FamilySpec("grid", gym.spaces.MultiDiscrete([2, 3]), gym.spaces.Discrete(4), horizon=5)
_fast = pytest.fixture(scope="module", autouse=True)(without_flushing)


def by_hand(source):
    """Twenty steps: episodes of 5, 5, 5 and, unfinished, 5; rewards 1 in the second and 2 in the last one."""
    ends = np.isin(np.arange(20), [4, 9, 14])
    return History(
        observation=np.stack([np.zeros(20, int), np.arange(20) % 3 * (source + 1) // 2], 1),
        action=np.full(20, source),
        reward=np.repeat([0, 1, 0, 2], 5).astype(np.float32),
        terminated=ends,
        truncated=np.zeros(20, bool),
        final_observation=np.zeros((4, 2), int),
        episode_offset=np.arange(5) * 5,
        source=source,
    )


def test_summary_of_two_sources(tmp_path):
    store = write_histories(tmp_path / "data", GRID, [by_hand(0), by_hand(1), by_hand(1)], per_shard=2)
    told = json.loads(json.dumps(summary(store), allow_nan=False))
    assert (told["histories"], told["transitions"], told["episodes"]) == (3, 60, 12)
    assert told["tasks"] == {"train": 3, "validation": 1, "test": 2}
    first, second = told["sources"]
    assert (first["name"], first["histories"], second["histories"]) == ("a", 1, 2)
    assert first["return_by_decile"] == [0, None, 5, None, None, 0, None, None, None, None]
    assert second["reward_by_decile"] == [0, 0, 0.5, 1, 1, 0, 0, 1, 2, 2]
    assert first["rewarded_share"] == 0.5
    assert first["action_frequencies"] == [1, 0, 0, 0] and second["action_frequencies"] == [0, 1, 0, 0]
    assert first["episode_length"] == {"least": 5, "mean": 5, "most": 5}
    assert second["history_length"] == {"least": 20, "mean": 20, "most": 20}
    assert first["coverage"]["distinct_per_history"] == 2 and second["coverage"]["distinct_per_history"] == 3
    assert second["coverage"]["share_of_states"] == 0.5 and np.shape(second["coverage"]["visits"]) == (2, 3)
    assert np.isclose(np.sum(second["coverage"]["visits"]), 1)
    assert summary(store, most_histories=1)["sources"][0]["histories"] == 1


def test_figure_draws_what_there_is(tmp_path):
    grid = write_histories(tmp_path / "grid", GRID, [by_hand(0), by_hand(1)], per_shard=2)
    drawing = figure(grid)
    titles = [axis.get_title() for axis in drawing.axes]
    assert titles[:4] == ["learning", "actions", "visits: a", "visits: b"]
    assert drawing.axes[0].get_ylabel() == "return per episode"
    drawing.savefig(tmp_path / "figure.png")
    spec = FamilySpec("robot", gym.spaces.Box(-1, 1, (2,)), gym.spaces.Box(-1, 1, (1,)), horizon=5)
    robot = write_histories(tmp_path / "robot", spec, [random_history(spec, np.random.default_rng(0), [5, 5])], 1)
    assert [axis.get_title() for axis in figure(robot).axes] == ["learning"]
    one = write_histories(tmp_path / "one", spec, [random_history(spec, np.random.default_rng(0), [10])], 1)
    assert figure(one).axes[0].get_ylabel() == "reward per step"


def test_at_least_one_history_is_read(tmp_path):
    store = write_histories(tmp_path / "data", GRID, [by_hand(0)], per_shard=1)
    with pytest.raises(UserError, match="0 histories"):
        summary(store, most_histories=0)


def life(returns, task=0, source=0, length=5):
    """Ten episodes of ``length`` steps with the given returns, all earned by their last step."""
    T = length * len(returns)
    ends = np.arange(T) % length == length - 1
    reward = np.zeros(T, np.float32)
    reward[ends] = returns
    return History(
        observation=np.zeros((T, 2), int),
        action=np.zeros(T, int),
        reward=reward,
        terminated=ends,
        truncated=np.zeros(T, bool),
        final_observation=np.zeros((len(returns), 2), int),
        episode_offset=np.arange(len(returns) + 1) * length,
        task=task,
        source=source,
    )


FAMILY: Any = SimpleNamespace(
    optimal_return=lambda tasks: tasks["goal"][:, 0] + 10.0, random_return=lambda tasks: np.full(len(tasks), 2.0)
)


def test_scores_at_the_end_of_histories(tmp_path):
    """Optima 10, 12 and 14, uniform actions 2; ends 10, 7 and 2."""
    lives = [life([*range(1, 10), end], task) for task, end in enumerate([10, 7, 2])]
    store = write_histories(tmp_path / "data", GRID, lives, per_shard=1)
    told = summary(store, family=FAMILY)["sources"][0]
    assert (told["optimal_return"], told["random_return"]) == (12, 2)
    assert told["end_score"] == pytest.approx((8 + 5 + 0) / (8 + 10 + 12))
    assert told["reached"] == pytest.approx(1 / 3)
    assert summary(store)["sources"][0]["end_score"] is None

    def knows_none(tasks):
        raise UserError("no optimum")

    unknown: Any = SimpleNamespace(optimal_return=knows_none, random_return=knows_none)
    assert summary(store, family=unknown)["sources"][0]["reached"] is None


@pytest.mark.parametrize(
    "returns, known, warned",
    [
        ([2, 2, 2, 3, 4, 5, 6, 8, 9, 9.5], True, False),  # learned
        ([10] * 10, True, False),  # was optimal from the start
        ([10] * 10, False, True),  # nobody can tell that it was
        ([5, 4, 4, 4, 4, 4, 4, 4, 4, 5], True, True),  # no better than at its beginning
        ([2, 2, 2, 2, 3, 3, 3, 3, 3, 5], True, True),  # better, but far below the optimum
        ([2, 2, 2, 2, 3, 3, 3, 3, 3, 5], False, False),
    ],
)
def test_a_source_that_has_not_learned_is_told(tmp_path, returns, known, warned):
    store = write_histories(tmp_path / "data", GRID, [life(returns)], per_shard=1)
    lines = learning_warnings(summary(store, family=FAMILY if known else None))
    assert len(lines) == warned
    if warned:
        assert lines[0].startswith(f"source a has not learned (return per episode {returns[0]} in the first tenth")
        assert ("return of the optimum 10, of uniform actions 2" in lines[0]) == known


def test_a_bandits_history_is_told_by_its_rewards(tmp_path):
    spec = FamilySpec("bandit", gym.spaces.MultiDiscrete([1, 1]), gym.spaces.Discrete(4), horizon=20)
    for name, rewards, warned in [("good", [0.1] * 10 + [0.5] * 10, False), ("bad", [0.3] * 10 + [0.1] * 10, True)]:
        one = life([0], length=20)
        one.reward[:] = rewards
        told = summary(write_histories(tmp_path / name, spec, [one], per_shard=1), family=FAMILY)
        assert told["sources"][0]["end_score"] == pytest.approx((20 * rewards[-1] - 2) / 8)
        assert len(learning_warnings(told)) == warned


def test_nobody_expects_scattered_or_uniform_sources_to_learn():
    entry = {
        "scattered": False,
        "name": "uniform",
        "return_by_decile": [2, 1],
        "reward_by_decile": [],
        "end_score": None,
    }
    learner = {**entry, "name": "q_learning"}
    assert learning_warnings({"sources": [entry, {**learner, "scattered": True}]}) == []
    assert len(learning_warnings({"sources": [learner]})) == 1
