"""Meta-World's Reach and Push: tasks and messages without it, and, where it is installed, what is played."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs.base import SingleEnv
from envs.metaworld_tasks import MetaworldPush, MetaworldReach
from icrl.interfaces import UserError

every_family = pytest.mark.parametrize("family", [MetaworldReach(), MetaworldPush()], ids=lambda f: f.name)
with_metaworld = pytest.mark.skipif(find_spec("metaworld") is None, reason="Meta-World is not installed")


@every_family
def test_tasks_lie_where_meta_world_draws_them(family):
    assert family.title in ("metaworld_reach", "metaworld_push") and family.horizon == 100
    assert [len(part) for part in family.split()] == [45, 10, 5]
    tasks = family.sample_tasks(np.random.default_rng(0), 2000)
    low, high = np.array(family.goals)
    np.testing.assert_allclose(tasks["goal"].min(axis=0), low, atol=0.005)
    np.testing.assert_allclose(tasks["goal"].max(axis=0), high, atol=0.005)
    distance = np.hypot(*(tasks["goal"] - tasks["object"])[:, :2].T)
    assert 0.15 <= distance.min() < 0.155 and (tasks["object"][:, 2] == 0.02).all()


@every_family
def test_missing_meta_world_names_the_extra(family, monkeypatch):
    monkeypatch.setitem(sys.modules, "metaworld", None)
    with pytest.raises(UserError, match=rf"{family.name} needs Meta-World.*pip install icrl\[metaworld\]"):
        type(family)().make_vec(family.split().test)


@every_family
@pytest.mark.parametrize(
    "field, value, message",
    [
        ("goal", (0, 0, 0), "goal is.*expected within"),
        ("object", (0, 1, 0.02), "object is.*expected within"),
        (None, None, "nearer"),
    ],
)
def test_bad_tasks_are_refused(family, field, value, message):
    task = family.sample_task(np.random.default_rng(0))
    if field is None:
        task["goal"][:2], task["object"][:2] = (0, 0.8), (0, 0.7)
    else:
        task[field] = np.array(value)
    with pytest.raises(UserError, match=message):
        family.make_env(**task)


@with_metaworld
@every_family
@pytest.mark.filterwarnings("ignore:.*Box observation space m..imum value")
def test_single_environment_passes_check_env(family):
    task = family.split().test[0]
    check_env(
        SingleEnv(family.name, type(family), **{key: task[key].tolist() for key in task.dtype.names}),
        skip_render_check=True,
    )


@with_metaworld
@every_family
def test_the_scripted_policy_solves_what_uniform_actions_do_not(family):
    tasks = family.split().test[:2]
    best, random = family.optimal_return(tasks), family.random_return(tasks)
    assert (best > random + 100).all() and (best <= 1000).all()


@with_metaworld
@every_family
def test_goals_are_hidden_and_lanes_keep_apart(family):
    tasks = family.split().test[:2].copy()
    tasks["object"] = tasks["object"][0]
    env = family.make_vec(tasks)
    observation, _ = env.reset(seed=0)
    rewards = []
    for _ in range(80):
        np.testing.assert_array_equal(observation[0], observation[1])  # same object, same actions, another goal
        observation, reward, *_ = env.step(np.tile(env.optimal_action()[0], (2, 1)))
        rewards.append(reward)
    assert (np.diff(rewards, axis=1) != 0).any() and observation.dtype == np.float32
