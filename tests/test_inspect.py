"""The summary of a dataset against numbers counted by hand, and its picture."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest
from toy import random_history, without_flushing, write_histories

from icrl.data.inspect import figure, summary
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
