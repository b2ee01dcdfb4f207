"""The plain recorder: what is kept is what was added, copied, in order; what cannot be a history is refused in one line."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from toy import random_history, without_flushing

from agents.recorder import HistoryRecorder
from envs import make_family
from icrl.data.schema import OPTIONAL_COLUMNS, History, flatten
from icrl.data.store import HistoryStore
from icrl.data.writer import write_histories
from icrl.interfaces import FamilySpec, Split, UserError

ROBOT = FamilySpec("robot", gym.spaces.Box(-9, 9, (2,)), gym.spaces.Box(-5, 5, (3,)), horizon=7)
KEYED = FamilySpec(
    "keyed",
    gym.spaces.Dict({"at": gym.spaces.MultiDiscrete([3, 4]), "seen": gym.spaces.Box(-9, 9, (2, 2))}),
    gym.spaces.Discrete(4),
    horizon=7,
)
TASKS = np.array([(0.5,), (1.5,), (2.5,)], [("goal", np.float64)])
SPLIT = Split(TASKS, TASKS[:1], TASKS[:2])
_fast = pytest.fixture(scope="module", autouse=True)(without_flushing)


def made(spec, seed, finished=True) -> History:
    """A random history without what the random one leaves out: every observation is where the last action led to."""
    return random_history(spec, np.random.default_rng(seed), [4, 7, 1, 5], finished)


def step_of(history: History, t: int) -> list[Any]:
    """What a loop sees at step t of a history."""

    def at(observation):
        return {k: v[t] for k, v in observation.items()} if isinstance(observation, dict) else observation[t]

    names = ("action", "reward", "terminated", "truncated")
    return [at(history.observation), *(getattr(history, name)[t] for name in names), at(history.next_observation)]


def same(one: History, other: History) -> None:
    for field in dataclasses.fields(History):
        there, here = getattr(one, field.name), getattr(other, field.name)
        if there is not None or here is not None:
            for a, b in zip(flatten("", there).values(), flatten("", here).values(), strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("spec", [ROBOT, KEYED], ids=["box", "dict"])
def test_what_is_added_comes_back_from_a_dataset(tmp_path, spec, finished):
    given = made(spec, 0, finished)
    recorder = HistoryRecorder(spec, capacity=2)
    for t in range(given.num_transitions):
        known = {name: getattr(given, name)[t] for name in ("target_action", "behaviour_log_prob")}
        recorder.add(*step_of(given, t), **known)
    kept = recorder.histories(task=given.task, source=given.source)
    write_histories(tmp_path / "data", spec, SPLIT, kept * 3, sources=("a", "b"), shard_histories=2)
    store = HistoryStore.open(tmp_path / "data")
    assert (store.num_histories, store.num_shards, store.spec) == (3, 2, spec)
    assert store.optional == ("behaviour_log_prob", "target_action")
    np.testing.assert_array_equal(store.split.train, TASKS)
    for i in range(3):
        same(store.history(i), given)


def test_lanes_are_streams_of_their_own():
    """Three lanes with episodes of different lengths, added together, come back as three histories."""
    given = [made(ROBOT, seed) for seed in range(3)]
    given[1] = random_history(ROBOT, np.random.default_rng(1), [7, 7, 3], finished=False)
    recorder = HistoryRecorder(ROBOT, num_lanes=3)
    for t in range(17):
        recorder.add(*(np.stack(column) for column in zip(*(step_of(h, t) for h in given), strict=True)))
    kept = recorder.histories(task=[2, 0, 1])
    assert [history.task for history in kept] == [2, 0, 1]
    for there, here in zip(given, kept, strict=True):
        plain = dataclasses.replace(there, target_action=None, behaviour_log_prob=None, task=here.task, source=0)
        same(here, plain)


def test_the_loop_may_use_its_arrays_again():
    observation, following, reward = np.zeros(2), np.ones(2), np.array(0.5)
    recorder = HistoryRecorder(ROBOT)
    recorder.add(observation, np.zeros(3), reward, False, True, following)
    observation += 5
    following += 5
    reward += 5
    history = recorder.histories(task=0)[0]
    assert history.observation.tolist() == [[0, 0]] and history.final_observation.tolist() == [[1, 1]]
    assert history.reward.tolist() == [0.5]


def test_stopped_lanes_end_where_they_were_stopped():
    given = [made(ROBOT, seed) for seed in range(3)]
    recorder = HistoryRecorder(ROBOT, num_lanes=3)
    for t in range(17):
        if t == 6:
            recorder.stop(np.array([1]))
        values = [np.stack(column) for column in zip(*(step_of(h, t) for h in given), strict=True)]
        if t >= 6:
            values[2][1] = np.nan  # whatever a stopped lane gives is not looked at
        recorder.add(*values)
    assert recorder.num_transitions.tolist() == [17, 6, 17] and recorder.stopped.tolist() == [False, True, False]
    stopped = recorder.histories(task=0)[1]
    assert stopped.episode_offset.tolist() == [0, 4, 6]
    np.testing.assert_array_equal(stopped.final_observation[-1], given[1].next_observation[5])
    np.testing.assert_array_equal(stopped.reward, given[1].reward[:6])


GOOD = {
    "observation": np.zeros(2),
    "action": np.zeros(3),
    "reward": 0.0,
    "terminated": False,
    "truncated": False,
    "next_observation": np.zeros(2),
}


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"reward": np.nan}, r"^reward is nan at history 0, step 1, expected finite numbers"),
        ({"reward": [0.0]}, r"^reward has shape \(1,\), expected \(\): correct"),
        ({"observation": np.zeros(3)}, r"^observation has shape \(3,\), expected \(2,\)"),
        ({"next_observation": np.array([0, np.inf])}, r"^final_observation is \[0.0, inf\] at history 0, step 1"),
        ({"action": np.array([0, 0, 6.0])}, r"^action is \[0.0, 0.0, 6.0\] at history 0, step 1, expected values from"),
        ({"observation": np.ones(2)}, r"^history 0, step 1: the observation is not where the action before it led to"),
        ({"behaviour_log_prob": 0.0}, r"^behaviour_log_prob is given at one step and not at another"),
        ({"observation": {"key": np.zeros(2)}}, r"^observation, observation.key is given"),
    ],
)
def test_what_cannot_be_a_history_is_refused_and_nothing_recorded(wrong, message):
    recorder = HistoryRecorder(ROBOT)
    recorder.add(**GOOD)
    with pytest.raises(UserError, match=message) as raised:
        recorder.add(**{**GOOD, **wrong})
    assert "\n" not in str(raised.value)
    recorder.add(**GOOD)
    assert recorder.histories(task=0)[0].num_transitions == 2


def test_lanes_must_all_be_there():
    recorder = HistoryRecorder(ROBOT, num_lanes=2)
    with pytest.raises(UserError, match=r"observation has shape \(1, 2\), expected \(2, 2\)"):
        recorder.add(*(np.asarray(value)[None] for value in GOOD.values()))
    with pytest.raises(UserError, match="nothing was recorded"):
        recorder.columns()
    with pytest.raises(UserError, match="lane 0 has no transition"):
        recorder.histories(task=0)
    with pytest.raises(UserError, match="3 tasks were given for 2 lanes"):
        recorder.histories(task=[0, 1, 2])


def test_a_loop_around_gymnasium_leaves_a_dataset_of_the_family(tmp_path):
    family = make_family("darkroom", width=4, height=4, horizon=6)
    histories = []
    for task in range(2):
        row, column = family.split().train["goal"][task].tolist()
        env = gym.make("icrl/DarkRoom-v0", width=4, height=4, horizon=6, goal=(row, column))
        recorder = HistoryRecorder(family.spec)
        observation, _ = env.reset(seed=task)
        for t in range(15):
            action = t % 5
            following, reward, terminated, truncated, _ = env.step(action)
            recorder.add(observation, action, reward, terminated, truncated, following)
            observation = env.reset()[0] if terminated or truncated else following
        histories += recorder.histories(task)
    described = {"name": "darkroom", "options": {"width": 4, "height": 4, "horizon": 6}}
    write_histories(tmp_path / "data", family.spec, family.split(), histories, family=described)
    store = HistoryStore.open(tmp_path / "data")
    assert store.manifest["family"] == described and store.task.tolist() == [0, 1]
    assert np.diff(store.history(0).episode_offset).tolist() == [6, 6, 3]


def test_histories_that_make_no_dataset_are_refused(tmp_path):
    history = made(ROBOT, 0)
    short = dataclasses.replace(ROBOT, horizon=6)
    bare = dataclasses.replace(history, **dict.fromkeys(OPTIONAL_COLUMNS))
    for spec, histories, sources, message in [
        (ROBOT, [], ("a", "b"), "no histories"),
        (short, [history], ("a", "b"), "an episode of 7 steps, the horizon is 6"),
        (ROBOT, [history, bare], ("a", "b"), r"history 1 has \[\], history 0 has"),
        (ROBOT, [dataclasses.replace(history, source=1)], ("a",), "of source 1, there are 1"),
    ]:
        with pytest.raises(UserError, match=message):
            write_histories(tmp_path / "data", spec, SPLIT, histories, sources=sources)
        assert not (tmp_path / "data").exists()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="already holds something"):
        write_histories(tmp_path / "data", ROBOT, SPLIT, [history], sources=("a", "b"))
