"""Several families as one: what lanes of different families see and do, who is held out, and one source in all of them."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest

from agents import make_source
from envs import make_family
from envs.mixed import Mixed
from icrl.interfaces import UserError
from icrl.rollout import rollout
from icrl.seeding import LaneStreams

ROOM, DOORS, MINI = (
    "darkroom width=4 height=3 horizon=6 num_validation=2",
    "keydoor width=3 height=3 horizon=8 task_split=0 num_tasks=20 num_validation=3",
    "minigrid_empty size=5 horizon=7 num_validation=1",
)
FAMILY = Mixed(members=(ROOM, DOORS), unseen=(MINI,))


def lanes_of(family: Mixed, per_member: int = 3):
    """Test tasks, some of each member, in turn."""
    test = family.split().test
    return np.concatenate([test[test["member"] == m][:per_member] for m in range(3)]).reshape(3, -1).T.ravel()


def test_spaces_fit_all_and_an_unseen_family_has_test_tasks_alone():
    assert FAMILY.spec.observation_space.nvec.tolist() == [5, 5, 4] and FAMILY.spec.action_space.n == 5  # type: ignore[attr-defined]
    assert FAMILY.spec.horizon == 8
    members = [set(part["member"].tolist()) for part in FAMILY.split()]
    assert members == [{0, 1}, {0, 1}, {0, 1, 2}]
    small = Mixed(members=(ROOM, DOORS), unseen=(MINI,), tasks_per_member=2, test_tasks_per_member=2)
    assert [len(part) for part in small.split()] == [4, 2, 6]


def test_every_lane_plays_its_own_family_behind_the_padding():
    tasks, rng = lanes_of(FAMILY), np.random.default_rng(0)
    env = FAMILY.make_vec(tasks)
    observation, info = env.reset(seed=4)
    mask = info["action_mask"]
    assert (
        mask.sum(1).tolist() == [5, 5, 3] * 3
        and (observation[0::3, 2] == 0).all()
        and (observation[1::3, 2] == 0).all()
    )
    alone = []
    for member, family in enumerate(FAMILY.families):
        lanes = np.flatnonzero(tasks["member"] == member)
        own = family.make_vec(FAMILY.inner_tasks(member, tasks[lanes]), lanes)
        seen, _ = own.reset(seed=4)
        np.testing.assert_array_equal(seen, observation[lanes][:, : seen.shape[1]])
        alone.append((lanes, own))
    for _ in range(30):
        actions = (rng.random(len(tasks)) * mask.sum(1)).astype(int)
        assert (env.optimal_action() < mask.sum(1)).all()
        observation, reward, terminated, truncated, info = env.step(actions)
        for lanes, own in alone:
            seen, paid, over, out, told = own.step(actions[lanes])
            np.testing.assert_array_equal(seen, observation[lanes, : seen.shape[1]])
            np.testing.assert_array_equal(paid, reward[lanes])
            np.testing.assert_array_equal(over | out, (terminated | truncated)[lanes])
            if "final_obs" in told:
                ended = told["_final_obs"]
                np.testing.assert_array_equal(
                    info["final_obs"][lanes, : seen.shape[1]][ended], told["final_obs"][ended]
                )


def test_a_task_is_the_same_whatever_list_it_stands_in():
    """So that an evaluation with another split finds training tasks among its test tasks."""
    lists = [Mixed(members=(f"{ROOM} goal_split={seed}",), unseen=()).split() for seed in (0, 1)]
    every = [{task.tobytes() for part in split for task in part} for split in lists]
    assert every[0] == every[1] and len(every[0]) == 12
    assert {task.tobytes() for task in lists[0].train} & {task.tobytes() for task in lists[1].test}


def test_an_action_that_a_family_lacks_does_what_its_last_one_does():
    tasks = lanes_of(FAMILY)[2::3]  # MiniGrid's, which have three
    seen = []
    for action in (2, 4):
        env = FAMILY.make_vec(tasks)
        env.reset(seed=0)
        seen.append(np.stack([env.step(np.full(len(tasks), action))[0] for _ in range(3)]))
    np.testing.assert_array_equal(*seen)


def test_returns_are_those_of_each_family():
    tasks = lanes_of(FAMILY)
    for member, family in enumerate(FAMILY.families):
        mine = tasks["member"] == member
        own = FAMILY.inner_tasks(member, tasks[mine])
        np.testing.assert_array_equal(FAMILY.optimal_return(tasks)[mine], family.optimal_return(own))
        np.testing.assert_array_equal(FAMILY.random_return(tasks)[mine], family.random_return(own))


def test_one_source_plays_in_every_family_as_it_does_alone():
    tasks = lanes_of(FAMILY)
    env, streams = FAMILY.make_vec(tasks), LaneStreams(3, "s", lane_ids=len(tasks))
    source = make_source("by_member", source="nearest_plausible", source_options=("epsilon=0.3",))
    turns = list(islice(rollout(source.make(FAMILY, env, streams, 30), env, seed=1), 30))
    for member, family in enumerate(FAMILY.families):
        lanes = np.flatnonzero(tasks["member"] == member)
        own = family.make_vec(FAMILY.inner_tasks(member, tasks[lanes]), lanes)
        inner = make_source("nearest_plausible", epsilon=0.3).make(family, own, LaneStreams(3, "s", lane_ids=lanes), 30)
        for mixed, plain in zip(turns, islice(rollout(inner, own, seed=1), 30), strict=True):
            for name in ("action", "target_action", "behaviour_log_prob"):
                np.testing.assert_array_equal(getattr(mixed.decision, name)[lanes], getattr(plain.decision, name))
            np.testing.assert_array_equal(mixed.step.reward[lanes], plain.step.reward)


def test_the_action_rule_reaches_sources_that_have_probabilities():
    for source, greedy in (("posterior_sampling", True), ("nearest_plausible", None)):
        made: Any = make_source("by_member", source=source, greedy=True)
        assert getattr(made.inner, "greedy", None) is greedy


@pytest.mark.parametrize(
    "options, words",
    [
        ({"members": ()}, "no members"),
        ({"members": ("darkrom",)}, "did you mean darkroom"),
        ({"members": ("darkroom width",)}, r"mixed's member 'darkroom width' has 'width': expected name=value"),
        ({"members": ("point_robot",)}, "cannot pad observations"),
        ({"unseen": ("point_robot",)}, "cannot pad observations"),
        ({"tasks_per_member": 0}, "tasks_per_member is 0"),
        ({"members": ("",)}, "unknown family ''"),
        ({"members": "darkroom"}, "members is 'darkroom': expected a list"),
        ({"members": (ROOM,), "unseen": (ROOM,)}, "names darkroom with the same options twice"),
    ],
)
def test_what_cannot_be_mixed_is_one_line(options, words):
    with pytest.raises(UserError, match=words):
        _ = make_family("mixed", **options).spec


def test_tasks_that_there_are_not_and_sources_that_do_not_fit_are_refused():
    tasks = lanes_of(FAMILY)
    for field, value in (("member", 3), ("member", -1), ("content", 1000)):
        wrong = tasks.copy()
        wrong[field][1] = value
        with pytest.raises(UserError, match="mixed has no task"):
            FAMILY.make_vec(wrong)
    with pytest.raises(UserError, match="by_member is for family mixed, not darkroom"):
        room = make_family("darkroom")
        make_source("by_member").make(room, room.make_vec(room.split().test), LaneStreams(0, lane_ids=20), 5)
    with pytest.raises(UserError, match="use source by_member"):
        FAMILY.posterior(FAMILY.make_vec(tasks))
    with pytest.raises(UserError, match="another family's task"):
        FAMILY.make_vec(tasks).optimal_action(tasks[::-1])
