"""Contracts that every task family obeys, over the registry and its options."""

from __future__ import annotations

from importlib.util import find_spec

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, MultiDiscrete
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from envs import FAMILIES, GROUP, family_class, family_names, gymnasium_id, make_family
from icrl.interfaces import UserError
from icrl.registry import known_names
from scripts import cli

pytestmark = pytest.mark.filterwarnings("ignore:.*Box observation space m..imum value")  # robots' are unbounded
VARIANTS = [
    ("darkroom", {}),
    ("darkroom", {"width": 5, "height": 4, "horizon": 7, "start": "random", "num_validation": 2}),
    ("darkroom", {"width": 9, "height": 9, "horizon": 20, "start": "centre", "reward": "once"}),
    ("darkroom", {"width": 4, "height": 5, "horizon": 9, "permuted_actions": True, "num_validation": 2}),
    ("keydoor", {}),
    ("keydoor", {"width": 4, "height": 3, "horizon": 20, "start": "random", "reward": "once", "task_split": 3}),
    ("gaussian_bandit", {"horizon": 12, "num_train_tasks": 50, "num_test_tasks": 30}),
    ("gaussian_bandit", {"horizon": 12, "num_arms": 2, "noise": 0.0}),
    ("bernoulli_bandit", {"horizon": 12, "num_arms": 3}),
    ("linear_bandit", {"horizon": 12}),
    ("linear_bandit", {"horizon": 12, "num_arms": 4, "dimension": 3, "noise": 0.0}),
    ("odd_even_bandit", {"horizon": 12}),
    ("bayesian_optimisation", {"num_train_tasks": 40, "num_validation_tasks": 5}),
    ("bayesian_optimisation", {"num_train_tasks": 40, "num_variants": 2, "candidate_seed": 3}),
    ("tabular", {"num_train_tasks": 500, "num_test_tasks": 50}),
    ("tabular", {"num_states": 4, "num_actions": 2, "horizon": 7, "start": "random", "num_train_tasks": 50}),
    ("minigrid_empty", {}),
    ("minigrid_empty", {"size": 6, "horizon": 20, "permuted_actions": True, "num_validation": 2}),
    ("minigrid_fourrooms", {"size": 7, "horizon": 25, "begin": "anywhere"}),
    ("minigrid_objects", {"num_objects": 2, "num_arrangements": 20}),
    ("minigrid_doors", {"size": 7, "horizon": 30}),
    ("minigrid_doorkey", {"size": 6, "horizon": 40, "permuted_actions": True}),
    ("minigrid_lavagap", {"size": 7, "horizon": 35, "num_validation": 2}),
    ("minigrid_memory", {"num_cues": 4, "horizon": 20, "num_validation": 2}),
    ("augmented", {}),
    (
        "augmented",
        {"inner_options": ("width=5", "height=4", "horizon=7", "num_validation=2"), "permute_observations": True},
    ),
    (
        "augmented",
        {
            "inner": "keydoor",
            "inner_options": ("width=4", "height=3", "horizon=20", "num_validation=2"),
            "permute_actions": False,
            "permute_observations": True,
        },
    ),
    ("mixed", {"tasks_per_member": 6, "test_tasks_per_member": 4}),
    (
        "mixed",
        {
            "members": ("darkroom width=4 height=4 horizon=9 num_validation=2", "minigrid_empty size=6"),
            "unseen": ("keydoor width=4 height=4 horizon=20 num_validation=2",),
        },
    ),
    ("maze_runner", {}),
    ("maze_runner", {"size": 7, "horizon": 25, "max_goals": 2, "begin": "anywhere"}),
    ("point_robot", {}),
    ("point_robot", {"horizon": 7, "start": "near"}),
    ("half_cheetah_vel", {"horizon": 8}),
    ("half_cheetah_dir", {"horizon": 8}),
    ("ant_dir", {"horizon": 8}),
    ("walker_param", {"horizon": 8}),
    ("metaworld_reach", {"horizon": 8}),
    ("metaworld_push", {"horizon": 8}),
]
ENDS_EARLY = {"maze_runner", "mixed"}
"""Families whose episodes can end before the horizon."""
TERMINATES = {"bayesian_optimisation"}
"""Families whose episodes are terminated at the horizon, not cut off."""
NEEDS = {"half_cheetah": "mujoco", "ant": "mujoco", "walker": "mujoco", "metaworld": "metaworld"}
"""Optional libraries by the beginning of a family's name: simulated robots, whose returns are measured."""


def is_robot(name):
    return any(name.startswith(start) for start in NEEDS)


def if_installed(name, *values):
    """Parameters that are skipped where what the family needs is not installed."""
    missing = [library for start, library in NEEDS.items() if name.startswith(start) and find_spec(library) is None]
    return pytest.param(name, *values, marks=[pytest.mark.skip(reason=f"no {library}") for library in missing])


every_family = pytest.mark.parametrize(
    "name, options",
    [if_installed(name, options) for name, options in VARIANTS],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)


def test_every_registered_family_is_tested():
    assert {name for name, _ in VARIANTS} == set(FAMILIES)
    assert set(family_names()) >= set(FAMILIES)


@pytest.mark.parametrize("name", [if_installed(name) for name in FAMILIES])
def test_single_environment_passes_check_env(name):
    check_env(gym.make(gymnasium_id(name)).unwrapped)


@every_family
def test_single_environment_with_options_passes_check_env(name, options):
    task = make_family(name, **options).split().test[0]
    given = {field: task[field].tolist() for field in task.dtype.names}
    env = gym.make(gymnasium_id(name), **options, **given)
    check_env(env.unwrapped, skip_render_check=True)
    env.reset(seed=0)
    family = make_family(name, **options)
    horizon = family.families[0].spec.horizon if name == "mixed" else family.spec.horizon  # type: ignore[attr-defined]
    for t in range(horizon):
        *_, terminated, truncated, _ = env.step(np.zeros_like(some_actions(family, 1, 1)[0, 0]))
        ends = t == horizon - 1
        assert (terminated, truncated) == ((ends, False) if name in TERMINATES else (False, ends))


def play(env, actions, seed=3):
    """Observations (T + 1, B, ...), rewards (T, B), ended (T, B) and the infos of a fixed sequence of actions."""
    observations, rewards, ended, infos = [env.reset(seed=seed)[0]], [], [], []
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        observations.append(observation)
        rewards.append(reward)
        ended.append(terminated | truncated)
        infos.append(info)
    return np.stack(observations), np.stack(rewards), np.stack(ended), infos


def some_actions(family, num_steps, num_lanes):
    """Uniform actions (T, B) or (T, B, action_dim)."""
    space, rng = family.spec.action_space, np.random.default_rng(0)
    if isinstance(space, Box):
        return rng.uniform(space.low, space.high, (num_steps, num_lanes, *space.shape)).astype(np.float32)
    return rng.integers(space.n, size=(num_steps, num_lanes))


@every_family
def test_spaces_autoreset_and_final_observation(name, options):
    family = make_family(name, **options)
    horizon = family.spec.horizon
    env = family.make_vec(np.resize(family.split().test, 6))
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    observations, rewards, ended, infos = play(env, some_actions(family, 2 * horizon + 1, 6))
    assert rewards.dtype == np.float32 and observations.dtype == env.observation_space.dtype
    assert all(env.observation_space.contains(o) for o in observations)
    age = np.zeros(6, int)
    for now, info in zip(ended, infos, strict=True):
        age += 1
        early = now & (age < horizon)
        assert (now | (age < horizon)).all() and (name in ENDS_EARLY or not early.any())
        assert ("final_obs" in info) == now.any()
        if now.any():
            assert env.observation_space.contains(info["final_obs"]) and (info["_final_obs"] == now).all()
        age[now] = 0


@every_family
def test_a_lane_does_not_depend_on_the_others(name, options):
    family = make_family(name, **options)
    tasks, lanes = np.resize(family.split().test, 7), np.array([5, 1, 2])
    actions = some_actions(family, 2 * family.spec.horizon + 1, 7)
    whole = play(family.make_vec(tasks), actions)
    part = play(family.make_vec(tasks[lanes], lane_ids=lanes), actions[:, lanes])
    for a, b in zip(whole[:3], part[:3], strict=True):
        np.testing.assert_array_equal(a[:, lanes], b)


@every_family
def test_equal_seeds_give_equal_streams(name, options):
    family = make_family(name, **options)
    env, actions = family.make_vec(family.split().test[:3]), some_actions(family, 30, 3)
    first, again, other = play(env, actions), play(env, actions), play(env, actions, seed=4)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    random = (
        name in ("bernoulli_bandit", "odd_even_bandit", "tabular")
        or options.get("start") == "random"
        or options.get("start") == "near"
        or options.get("begin") == "anywhere"
        or (is_robot(name) and not name.startswith("metaworld"))
        or name == "minigrid_memory"
        or (name in ("gaussian_bandit", "linear_bandit") and "noise" not in options)
    )
    assert random == any((a != b).any() for a, b in zip(first[:2], other[:2], strict=True))


@every_family
def test_split_is_disjoint_deterministic_and_playable(name, options):
    parts = make_family(name, **options).split()
    assert len(parts.train) and len(parts.validation) and len(parts.test)
    keys = [{task.tobytes() for task in part} for part in parts]
    assert [len(key) for key in keys] == [len(part) for part in parts]
    assert not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])
    for part, again in zip(parts, make_family(name, **options).split(), strict=True):
        np.testing.assert_array_equal(part, again)
        make_family(name, **options).make_vec(part)


def mean_return(family, tasks, policy, episodes):
    """(N,) mean return of ``policy(env)`` over episodes."""
    env = family.make_vec(tasks)
    env.reset(seed=1)
    total, left = np.zeros(len(tasks)), np.full(len(tasks), episodes)
    while left.any():
        _, reward, terminated, truncated, _ = env.step(policy(env))
        total += reward * (left > 0)
        left -= (terminated | truncated) & (left > 0)
    return total / episodes


@every_family
def test_returns_equal_simulated_ones(name, options):
    if is_robot(name):
        pytest.skip("measured, see tests/test_mujoco.py and tests/test_metaworld.py")
    family = make_family(name, **options)
    tasks = family.split().test[:4]
    optimal, random = family.optimal_return(tasks), family.random_return(tasks)
    assert optimal.shape == random.shape == (len(tasks),) and (optimal >= random).all()
    lanes = np.repeat(tasks, 250)
    uniform = iter(some_actions(family, 3 * family.spec.horizon, len(lanes)))
    for policy, expected in (
        (lambda env: env.optimal_action(), optimal),
        (lambda env: next(uniform), random),
    ):
        means = mean_return(family, lanes, policy, episodes=3).reshape(len(tasks), -1)
        rare = np.abs(expected) < 0.1  # such a success may not occur: Poisson's variance
        variance = np.maximum(means.var(axis=1), np.where(rare, np.abs(expected), 0))
        error = np.sqrt(variance / means.shape[1])
        assert (np.abs(means.mean(axis=1) - expected) <= 4.5 * error + 1e-4).all()


@every_family
def test_scattered_is_one_step_long(name, options):
    if is_robot(name):
        with pytest.raises(UserError, match="into any state"):
            make_family(name, **options).scattered()
        return
    family = make_family(name, **options).scattered()
    assert family.spec.horizon == 1
    env = family.make_vec(np.resize(family.split().train, 400))
    observations, _, ended, infos = play(env, some_actions(family, 3, 400))
    assert ended.all() and all("final_obs" in info for info in infos)
    space, num_states = family.spec.observation_space, 400  # a plane has no end of states
    if isinstance(space, MultiDiscrete):
        few = name.startswith(
            ("minigrid", "maze", "mixed")
        )  # there most combinations of an observation's parts cannot be seen
        num_states = 30 if few else np.prod(space.nvec)
    assert len(np.unique(observations[1], axis=0)) > 0.9 * num_states


@every_family
def test_bad_calls_are_refused(name, options):
    family = make_family(name, **options)
    env = family.make_vec(family.split().test[:3])
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(3, int))
    env.reset(seed=0)
    bad = [np.zeros(2, int), np.zeros(3), np.array([0, 0, 9999]), np.array([0, -1, 0])]
    if isinstance(family.spec.action_space, Box):
        bad = [*bad[:2], np.full((3, *family.spec.action_space.shape), np.nan)]
    for actions in bad:
        with pytest.raises(UserError, match="actions"):
            env.step(actions)
    with pytest.raises(UserError, match="seed"):
        env.reset(seed=[1, 2, 3])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="task"):
        family.make_vec(family.split().test[:0])


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("darkrom", {}, "unknown family 'darkrom': did you mean darkroom"),
        ("nowhere:Family", {}, "cannot import.*on the Python path"),
        ("envs.darkroom:Nothing", {}, "no class Nothing"),
        ("envs.darkroom:DarkRoomVectorEnv", {}, "not a dataclass"),
        ("darkroom", {"widht": 5}, "unknown option 'widht'"),
        ("darkroom", {"width": "ten"}, "expected int"),
        ("darkroom", {"start": "middle"}, "'corner' or 'centre' or 'random'"),
        ("darkroom", {"goal_split": "dtp"}, "'dpt' or 'radt' or int"),
        ("darkroom", {"goal_split": -1}, "seed"),
        ("darkroom", {"width": 0}, "at least 1"),
        ("darkroom", {"width": 1, "height": 1}, "cells"),
        ("darkroom", {"num_validation": -1}, "num_validation"),
        ("keydoor", {"task_split": -1}, "task_split"),
        ("keydoor", {"task_split": 0, "num_tasks": 10_001}, "num_tasks"),
        ("gaussian_bandit", {"num_arms": 1}, "num_arms"),
        ("gaussian_bandit", {"noise": -0.1}, "noise"),
        ("gaussian_bandit", {"num_test_tasks": 0}, "num_test_tasks"),
        ("bayesian_optimisation", {"num_variants": 0}, "num_variants is 0"),
        ("minigrid_empty", {"size": 3}, "size is 3"),
        ("maze_runner", {"size": 8}, "odd"),
    ],
)
def test_bad_options_are_refused(name, options, message):
    with pytest.raises(UserError, match=message):
        make_family(name, **options)


def test_bad_tasks_are_refused():
    cases: list[tuple[dict, str]] = [
        ({"goal": (10, 0)}, "outside the room"),
        ({"goal": (1, 2, 3)}, "shape"),
        ({"gaol": (1, 2)}, "unknown argument 'gaol'"),
        ({"permuted_actions": True, "goal": (1, 1), "permutation": (0, 0, 1, 2, 3)}, "permutation"),
    ]
    for arguments, message in cases:
        with pytest.raises(UserError, match=message):
            gym.make("icrl/DarkRoom-v0", **arguments)
    with pytest.raises(UserError, match="a seed of at least 0"):
        gym.make("icrl/MazeRunner-v0", maze=-1, num_goals=1, goals=[[3, 3]] * 3)
    with pytest.raises(UserError, match="a door lies outside"):
        gym.make("icrl/KeyDoor-v0", key=(0, 0), door=(10, 0))
    with pytest.raises(UserError, match="mean"):
        gym.make("icrl/GaussianBandit-v0", num_arms=2, means=(0.5, 1.5))
    with pytest.raises(UserError, match="validation"):
        make_family("darkroom", width=3, height=3).split()


def test_a_family_by_module_and_class():
    assert family_class("envs.darkroom:DarkRoom") is family_class("darkroom")
    assert make_family("envs.darkroom:DarkRoom", width=3).spec == make_family("darkroom", width=3).spec


def test_entry_points_add_names(monkeypatch):
    from importlib.metadata import EntryPoint

    added = [EntryPoint("mine", "envs.bandit:GaussianBandit", GROUP), EntryPoint("darkroom", "elsewhere:Room", GROUP)]
    monkeypatch.setattr("icrl.registry.entry_points", lambda group: added if group == GROUP else [])
    assert known_names(FAMILIES, GROUP)["darkroom"] == FAMILIES["darkroom"]  # built-in names win
    assert make_family("mine", num_arms=3).spec.action_space.n == 3  # type: ignore[attr-defined]


BROKEN = {
    "import nosuchlib": r"ModuleNotFoundError at mine.py:1: No module named 'nosuchlib'",
    "def f(:": "SyntaxError at mine.py:1",
    "\nx = y": "NameError at mine.py:2",
    "import os\nos.nothing": "AttributeError at mine.py:2",
    "raise RuntimeError('no\\nlicence')": "RuntimeError at mine.py:1",
    "raise SystemExit(1)": "SystemExit at mine.py:1",
}


@pytest.mark.parametrize("source", BROKEN, ids=BROKEN.get)
def test_a_module_that_cannot_be_imported_is_told_in_one_line(source, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(source + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.main(["collect", "smoke", "--out", str(tmp_path / "data"), "--family.name", "mine:Family"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot import family 'mine:Family'" in line and BROKEN[source] in line and "repair it" in line


def test_an_installed_package_adds_a_family_and_a_broken_one_does_not_hide_the_others(tmp_path, monkeypatch, capsys):
    """A distribution as pip leaves it: a module and its metadata."""
    (tmp_path / "their_rooms.py").write_text(
        "from dataclasses import dataclass\nfrom envs.darkroom import DarkRoom\n\n\n"
        '@dataclass(frozen=True)\nclass TheirRoom(DarkRoom):\n    """A room of another package."""\n\n    tint: int = 3\n'
    )
    metadata = tmp_path / "their_rooms-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-rooms\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        f"[{GROUP}]\ntheir_room = their_rooms:TheirRoom\nlost_room = their_lost_rooms:Room\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.main(["list", "families"]) == 0
    told = capsys.readouterr().out
    assert "their_room           A room of another package." in told and "tint: int, default 3" in told
    assert "lost_room            cannot be used: cannot import family 'lost_room'" in told and "tabular" in told
    words = ["collect", "smoke", "--out", str(tmp_path / "data"), "--family.name", "their_room"]
    for name, value in {"width": 5, "height": 5, "horizon": 15, "num-validation": 5, "tint": 4}.items():
        words += [f"--family.options.{name}", str(value)]
    assert cli.main(words) == 0 and "64 histories" in capsys.readouterr().out


def test_unset_task_fields_are_drawn_and_follow_the_seed():
    env = gym.make("icrl/DarkRoom-v0", permuted_actions=True, goal=(3, 4)).unwrapped
    permutations = set()
    for seed in (0, 0, 1, 2):
        env.reset(seed=seed)
        assert env._vec.tasks["goal"][0].tolist() == [3, 4]  # type: ignore[attr-defined]
        permutations.add(tuple(env._vec.tasks["permutation"][0]))  # type: ignore[attr-defined]
    assert len(permutations) == 3
