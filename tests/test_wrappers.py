"""Augmented families: the inner family under other names, held out in both, from Python and from the command line."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.utils.env_checker import check_env

from envs import make_family
from envs.augmentations import Permutation, Projection
from envs.base import SingleEnv
from envs.wrappers import Augmented
from icrl.data.store import HistoryStore
from icrl.interfaces import UserError
from scripts import cli

ROOM = ("width=4", "height=3", "horizon=9", "num_validation=2")
LINES = "line_world:Lines"
VARIANTS = [
    {"inner_options": ROOM},
    {"inner_options": (*ROOM, "start=random"), "permute_actions": False, "permute_observations": True},
    {"inner_options": ROOM, "permute_observations": True, "num_augmentations": 20},
    {"inner": "gaussian_bandit", "inner_options": ("horizon=6", "num_train_tasks=20", "num_test_tasks=10")},
    {"inner": LINES, "permute_observations": True},
    {"inner": LINES, "project_observations": 3},
]
every_variant = pytest.mark.parametrize("options", VARIANTS, ids=range(len(VARIANTS)))


@every_variant
def test_split_is_new_in_both(options):
    family = Augmented(**options)
    parts, inner = family.split(), family.family.split()
    own = [key for key in parts.train.dtype.names or () if not key.startswith("inner_")]
    assert len(own) == family.permute_actions + family.permute_observations + bool(family.project_observations)
    for key in own:
        seen = [{value.tobytes() for value in np.atleast_2d(part[key].T).T} for part in parts]
        assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    for name, part in parts._asdict().items():
        copies = len(part) // len(getattr(inner, name))
        pool = 3 if options == VARIANTS[4] else 4  # of six permutations three are for training
        assert copies == (pool if name == "train" else 1)
        np.testing.assert_array_equal(family.inner_tasks(part), np.repeat(getattr(inner, name), copies))
        assert len({task.tobytes() for task in part}) == len(part)
        np.testing.assert_array_equal(getattr(Augmented(**options).split(), name), part)


@every_variant
def test_the_inner_family_is_played_under_other_names(options):
    family = Augmented(**options)
    num_actions = family.spec.action_space.n  # type: ignore[attr-defined]
    tasks = family.split().test[:5]
    outer, inner = (
        family.make_vec(tasks, np.arange(3, 8)[: len(tasks)]),
        family.family.make_vec(family.inner_tasks(tasks), np.arange(3, 8)[: len(tasks)]),
    )
    shown, true = outer.reset(seed=2)[0], inner.reset(seed=2)[0]
    codes: list[dict] = [{} for _ in tasks]  # what each lane's observation stands for: a function of the task alone
    for t in range(2 * family.spec.horizon):
        assert outer.observation_space.contains(shown)
        action = outer.optimal_action() if t % 2 else np.full(len(tasks), t // 2 % num_actions)
        inner_action = inner.optimal_action() if t % 2 else renamed(family, tasks, action)
        shown, reward, *ended, info = outer.step(action)
        true, inner_reward, *inner_ended, inner_info = inner.step(inner_action)
        np.testing.assert_array_equal(reward, inner_reward)
        np.testing.assert_array_equal(ended, inner_ended)
        assert ("final_obs" in info) == ("final_obs" in inner_info)
        for lane, code in enumerate(codes):
            for there, here in ((true, shown), (inner_info.get("final_obs", true), info.get("final_obs", shown))):
                assert code.setdefault(there[lane].tobytes(), here[lane].tobytes()) == here[lane].tobytes()
    assert all(len(set(code.values())) == len(code) for code in codes)  # nothing is lost
    np.testing.assert_array_equal(family.optimal_return(tasks), family.family.optimal_return(family.inner_tasks(tasks)))
    np.testing.assert_array_equal(family.random_return(tasks), family.family.random_return(family.inner_tasks(tasks)))


def renamed(family, tasks, action):
    return tasks["action_permutation"][np.arange(len(tasks)), action] if family.permute_actions else action


def test_observations_are_really_changed_and_actions_too():
    family = Augmented(inner_options=ROOM, permute_observations=True)
    tasks = family.split().train
    env = family.make_vec(tasks)
    assert len(np.unique(env.reset(seed=0)[0], axis=0)) > 6  # all begin in the same cell
    assert len(np.unique(env.optimal_action())) == 5
    others = env.optimal_action(tasks[::-1])
    inner = family.family.make_vec(family.inner_tasks(tasks))
    inner.reset(seed=0)
    np.testing.assert_array_equal(
        renamed(family, tasks[::-1], others), inner.optimal_action(family.inner_tasks(tasks[::-1]))
    )
    steps = env.steps_to_reward(tasks[:, None])
    np.testing.assert_array_equal(steps, inner.steps_to_reward(family.inner_tasks(tasks[:, None])))
    assert len(np.unique(steps)) > 2


@pytest.mark.parametrize(
    "space, elements",
    [
        (Discrete(4, start=2), np.array([2, 5, 3])),
        (MultiDiscrete([2, 3], dtype=np.int16), np.array([[0, 2], [1, 0], [1, 1]], np.int16)),
        (MultiDiscrete([3, 2], start=[1, -1]), np.array([[1, -1], [3, 0], [2, 0]])),
        (Box(-1, 1, (4,), np.float32), np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)),
    ],
)
def test_a_permutation_and_its_inverse(space, elements):
    permutation, rng = Permutation(space), np.random.default_rng(0)
    values = np.array([permutation.draw(rng) for _ in range(3)])
    permutation.check("value", values)
    there = permutation.bound(values)(elements)
    assert there.dtype == elements.dtype and all(space.contains(row) for row in there) and (there != elements).any()
    np.testing.assert_array_equal(permutation.bound(permutation.inverse(values))(there), elements)
    drawn = {permutation.draw(rng).tobytes() for _ in range(400)}
    assert len(drawn) == {"Discrete": 24, "MultiDiscrete": 12, "Box": 24}[type(space).__name__]
    with pytest.raises(UserError, match="does not hold each of 0 to"):
        permutation.check("value", np.zeros_like(values))


def test_a_projection_is_linear_and_keeps_lengths_on_average():
    projection, rng = Projection(Box(-1, 1, (30,)), 40), np.random.default_rng(0)
    seeds = np.array([projection.draw(rng) for _ in range(200)])
    x, y = rng.normal(size=(2, 200, 30))
    project = projection.bound(seeds)
    np.testing.assert_allclose(project(x + 2 * y), project(x) + 2 * project(y), atol=1e-4)
    assert abs((project(x) ** 2).mean() / (x**2).mean() - 1) < 0.05
    np.testing.assert_array_equal(project(x)[7:8], projection.bound(seeds[7:8])(x[7:8]))


def test_box_actions_are_permuted_by_coordinate():
    permutation = Permutation(Box(-1, 1, (3,)), alike=True)
    values = np.array([[2, 0, 1]])
    assert permutation.bound(values)(np.array([[0.1, 0.2, 0.3]])).tolist() == [[0.3, 0.1, 0.2]]
    with pytest.raises(UserError, match="expected the same bounds"):
        Permutation(Box(np.array([-1, -2], np.float32), np.array([1, 2], np.float32)), alike=True)
    wide = Permutation(Box(np.array([-1, -2], np.float32), np.array([1, 3], np.float32)))
    assert wide.outcome == Box(-2, 3, (2,), np.float32)


def test_scattered_is_the_inner_one_augmented():
    family = Augmented(inner_options=ROOM, permute_observations=True)
    scattered = family.scattered()
    assert scattered.spec.horizon == 1 and scattered.family == family.family.scattered()
    np.testing.assert_array_equal(scattered.split().test, family.split().test)


def test_single_environments():
    check_env(SingleEnv("augmented", Augmented, inner_options=ROOM, permute_observations=True), skip_render_check=True)
    task = Augmented(inner_options=ROOM).split().test[0]
    env = SingleEnv("augmented", Augmented, inner_options=ROOM, **{key: task[key].tolist() for key in task.dtype.names})
    env.reset(seed=0)
    with pytest.raises(UserError, match="action_permutation does not hold each of 0 to 4 once"):
        SingleEnv("augmented", Augmented, inner_options=ROOM, inner_goal=(1, 1), action_permutation=(0, 0, 1, 2, 3))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"permute_actions": False}, "changes nothing"),
        ({"copies": 0}, "copies is 0"),
        ({"num_augmentations": 2}, "num_augmentations is 2: expected at least 3"),
        ({"inner": "darkrom"}, "did you mean darkroom"),
        ({"inner_options": ("width:5",)}, "expected name=value"),
        ({"inner_options": ("widht=5",)}, "unknown option 'widht'"),
        ({"inner_options": ("width=wide",)}, "expected int"),
        ({"project_observations": 3}, "cannot be projected"),
        ({"inner": LINES, "project_observations": 3, "permute_observations": True}, "both"),
        ({"inner": LINES, "inner_options": ("two_axes=true",), "permute_observations": True}, "cannot be permuted"),
        ({"inner": "bernoulli_bandit"}, "only 2 values of action_permutation, expected at least 3"),
    ],
)
def test_impossible_augmentations_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        make_family("envs.wrappers:Augmented", **options).split()


def test_what_does_not_fit_is_refused():
    family = Augmented(inner_options=ROOM)
    env = family.make_vec(family.split().test[:2])
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(2, int))
    env.reset(seed=0)
    for actions in (np.zeros(3, int), np.zeros(2), np.array([0, 5]), np.array([0, -1])):
        with pytest.raises(UserError, match="actions"):
            env.step(actions)
    with pytest.raises(UserError, match="no posterior"):
        family.posterior(env)
    with pytest.raises(UserError, match="got tasks with fields"):
        family.make_vec(family.family.split().test)


def test_the_command_line_reads_the_inner_family(tmp_path):
    argv = ["collect", "smoke", "--out", str(tmp_path / "data"), "--family.name", "envs.wrappers:Augmented"]
    argv += [
        "--family.options.inner-options",
        "width=5",
        "height=4",
        "horizon=15",
        "start=centre",
        "--family.options.permute-observations",
    ]
    argv += [
        "--collect.sources.0.name",
        "optimal",
        "--collect.num-histories",
        "8",
        "--evaluations.0.baselines",
        "random",
    ]
    assert cli.main(argv) == 0
    store = HistoryStore.open(tmp_path / "data")
    assert store.manifest["family"]["options"]["inner_options"] == ["width=5", "height=4", "horizon=15", "start=centre"]
    family = make_family("envs.wrappers:Augmented", **store.manifest["family"]["options"])
    assert family.spec.horizon == store.spec.horizon and set(store.split.train.dtype.names or ()) == {
        *("inner_goal", "action_permutation", "observation_permutation"),
    }
    np.testing.assert_array_equal(family.split().train, store.split.train)
