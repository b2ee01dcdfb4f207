"""The MuJoCo families: rewards recomputed from the physics, hidden dynamics, oracles in numpy, and what is said where something is missing."""

from __future__ import annotations

import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from safetensors.numpy import save_file

from envs import make_family, oracle_policy
from envs.base import SingleEnv
from envs.mujoco_tasks import AntDir, HalfCheetahDir, HalfCheetahVel, MujocoTask, WalkerParam
from envs.oracle_policy import OraclePolicy
from icrl.interfaces import UserError

mujoco = pytest.importorskip("mujoco")
CLASSES = (HalfCheetahVel, HalfCheetahDir, AntDir, WalkerParam)


@pytest.fixture(params=CLASSES, ids=lambda cls: cls.name)
def family(request):
    """Each family afresh, since families remember what they measured."""
    return request.param(horizon=12)


def actions_of(family, num_steps, num_lanes, seed=0):
    shape = (num_steps, num_lanes, *family.spec.action_space.shape)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def robot_of(family, task):
    """A single environment that plays a record, and the robot in it."""
    env = family.make_env(**{key: task[key] for key in task.dtype.names})
    assert isinstance(env, MujocoTask)
    return env, env._robot


def observations(env, actions, seed=3):
    return np.stack([env.reset(seed=seed)[0], *(env.step(action)[0] for action in actions)])


@pytest.mark.filterwarnings("ignore:.*Box observation space m..imum value")
def test_single_environment_passes_check_env(family):
    task = family.split().test[0]
    given = {field: task[field].tolist() for field in task.dtype.names}
    check_env(SingleEnv(family.name, type(family), horizon=12, **given), skip_render_check=True)


def test_episodes_last_as_long_as_the_horizon_and_lanes_keep_apart(family):
    tasks, lanes, actions = family.split().train[:4], np.array([3, 1]), actions_of(family, 26, 4)
    whole = observations(family.make_vec(tasks), actions)
    part = observations(family.make_vec(tasks[lanes], lanes), actions[:, lanes])
    np.testing.assert_array_equal(whole[:, lanes], part)
    env = family.make_vec(tasks)
    env.reset(seed=3)
    for t, action in enumerate(actions):
        observation, reward, terminated, truncated, info = env.step(action)
        assert observation.dtype == np.float32 and np.isfinite(observation).all() and np.isfinite(reward).all()
        assert (
            not terminated.any() and (truncated == ((t + 1) % 12 == 0)).all() and ("final_obs" in info) == truncated[0]
        )
    assert not env.failed  # type: ignore[attr-defined]


def test_split_and_what_is_told(family):
    parts = family.split()
    assert [len(part) for part in parts] == [45, 10, 5]
    tasks = np.concatenate(parts)
    assert len({task.tobytes() for task in tasks}) == 60
    np.testing.assert_array_equal(np.concatenate(type(family)().split()), tasks)
    told = family.told(tasks)
    assert len(np.unique(told, axis=0)) == 60 and 0.9 < np.abs(told).max() <= 1.0001
    np.testing.assert_array_equal(family.told(tasks[7]), told[7])


def played(family, task, num_steps=30):
    """Actions (T, A), rewards (T,), velocities (T, 2) of the torso and the physics of one lane of random actions."""
    env, robot = robot_of(family, task)
    env.reset(seed=0)
    data, dt = robot.data, robot.dt  # type: ignore[attr-defined]
    actions, rewards, velocities = actions_of(family, num_steps, 1)[:, 0], [], []
    for action in actions:
        before = data.qpos[:2].copy()
        rewards.append(env.step(action)[1])
        velocities.append((data.qpos[:2] - before) / dt)
    return actions, np.array(rewards), np.array(velocities), data


def test_cheetah_velocity_reward():
    family = HalfCheetahVel()
    tasks = family.sample_tasks(np.random.default_rng(0), 200)
    assert tasks["velocity"].min() < 0.1 and tasks["velocity"].max() > 2.9
    actions, rewards, velocities, _ = played(family, tasks[0])
    expected = -np.abs(velocities[:, 0] - tasks[0]["velocity"]) - 0.05 * (actions**2).sum(axis=1)
    np.testing.assert_allclose(rewards, expected, rtol=1e-6)


def test_cheetah_direction_reward_and_strength():
    tasks = HalfCheetahDir().sample_tasks(np.random.default_rng(0), 2)
    assert all(set(part["direction"]) == {-1, 1} for part in HalfCheetahDir().split())
    tasks["strength"], tasks["direction"] = 1.0, (-1, 1)
    for task in tasks[:2]:
        actions, rewards, velocities, _ = played(HalfCheetahDir(), task)
        expected = task["direction"] * velocities[:, 0] - 0.05 * (actions**2).sum(axis=1)
        np.testing.assert_allclose(rewards, expected, rtol=1e-6)
    weak = tasks[:1].copy()
    weak["strength"] = 0.5
    gears = [robot_of(HalfCheetahDir(), t)[1].model.actuator_gear for t in (tasks[0], weak[0])]  # type: ignore[attr-defined]
    np.testing.assert_allclose(gears[1], 0.5 * gears[0])


def test_ant_direction_reward():
    task = AntDir().sample_tasks(np.random.default_rng(4), 1)[0]
    actions, rewards, velocities, _ = played(AntDir(), task, num_steps=10)
    along = velocities @ [np.cos(task["angle"]), np.sin(task["angle"])]
    costs = 1 - 0.5 * (actions**2).sum(axis=1)  # healthy, and v5's torques
    np.testing.assert_allclose(
        rewards, along + costs, atol=0.02
    )  # the rest: contacts; qpos and the torso's place differ a little


def test_walker_parameters_reach_the_physics():
    family = WalkerParam()
    plain = family.sample_tasks(np.random.default_rng(0), 1)
    for key in family.MULTIPLIERS:
        plain[key] = 1
    changed = plain.copy()
    changed["mass"], changed["inertia"][0, 2, 1], changed["damping"][0, 0], changed["friction"][0, 0, 0] = (
        2,
        3,
        1.3,
        0.5,
    )
    models = [robot_of(family, task[0])[1].model for task in (plain, changed)]  # type: ignore[attr-defined]
    np.testing.assert_allclose(models[1].body_mass, 2 * models[0].body_mass)
    np.testing.assert_allclose(models[1].body_subtreemass, 2 * models[0].body_subtreemass)
    for name, index, factor in (
        ("body_inertia", (3, 1), 3),
        ("dof_damping", 3, 1.3),
        ("geom_friction", (0, 0), 0.5),
    ):
        ratio = np.ones_like(getattr(models[0], name))
        ratio[index] = factor
        np.testing.assert_allclose(getattr(models[1], name), ratio * getattr(models[0], name))
    ends = [played(family, task[0])[2][-1] for task in (plain, changed)]
    assert np.abs(ends[0] - ends[1]).max() > 0.01


def test_walker_multipliers_have_t2mirs_ranges():
    tasks = WalkerParam().sample_tasks(np.random.default_rng(0), 300)
    for key, base in (("mass", 1.5), ("inertia", 1.5), ("damping", 1.3), ("friction", 1.5)):
        exponent = np.log(tasks[key]) / np.log(base)
        assert -3 <= exponent.min() < -2.9 and 2.9 < exponent.max() <= 3 and abs(exponent.mean()) < 0.15


@pytest.fixture
def oracles(tmp_path, monkeypatch):
    """The folder in which oracles are looked for, empty."""
    monkeypatch.setattr(oracle_policy, "FOLDER", tmp_path)
    return tmp_path


def some_layers(num_inputs, num_outputs, width=5):
    rng = np.random.default_rng(0)
    sizes = [(width, num_inputs), (width, width), (num_outputs, width)]
    layers = {f"weight.{i}": rng.normal(0, 0.3, size).astype(np.float32) for i, size in enumerate(sizes)}
    return layers | {f"bias.{i}": rng.normal(0, 0.3, size[0]).astype(np.float32) for i, size in enumerate(sizes)}


def test_an_oracle_acts_on_observation_and_task(family, oracles):
    tasks = family.split().test[:3]
    layers = some_layers(
        gym.spaces.flatdim(family.spec.observation_space) + family.told(tasks).shape[1],
        gym.spaces.flatdim(family.spec.action_space),
    )
    save_file(layers, oracles / f"{family.name}.safetensors")
    env = family.make_vec(tasks)
    observation, _ = env.reset(seed=0)
    for asked in (None, tasks[::-1]):
        hidden = np.concatenate([observation, family.told(tasks if asked is None else asked)], axis=1)
        for i in (0, 1):
            hidden = np.maximum(np.einsum("oi,bi->bo", layers[f"weight.{i}"], hidden) + layers[f"bias.{i}"], 0)
        expected = np.tanh(np.einsum("oi,bi->bo", layers["weight.2"], hidden) + layers["bias.2"])
        np.testing.assert_allclose(env.optimal_action(asked), expected, atol=1e-5)
    total = np.zeros(3)
    for _ in range(25 * family.horizon):
        total += env.step(env.optimal_action())[1]
    expected = family.optimal_return(tasks)
    assert np.isfinite(expected).all() and np.abs(expected - total / 25).max() < 0.15 * np.abs(expected).max() + 1


def test_without_an_oracle_no_optimum_is_claimed(family, oracles):
    tasks = family.split().test[:2]
    env = family.make_vec(tasks)
    env.reset(seed=0)
    with pytest.raises(UserError, match="no optimal policy"):
        env.optimal_action()
    assert np.isnan(family.optimal_return(tasks)).all() and np.isfinite(family.random_return(tasks)).all()


def test_what_is_no_oracle_is_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    for name in ("x", "y"):
        with pytest.raises(UserError, match=f"{name}.safetensors is no oracle"):
            OraclePolicy(tmp_path / f"{name}.safetensors")


def test_kept_oracles_are_small_good_and_say_where_they_come_from(family):
    path = oracle_policy.FOLDER / f"{family.name}.safetensors"
    assert path.stat().st_size <= 1_000_000
    metadata = OraclePolicy(path).metadata
    assert metadata["command"].startswith(f"python -m scripts.train_oracle {family.name}") and metadata["returns"]
    whole = type(family)()
    assert (whole.optimal_return(whole.split().test[:2]) > whole.random_return(whole.split().test[:2]) + 100).all()


def test_missing_mujoco_names_the_extra(family, monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(UserError, match=rf"{family.name} needs MuJoCo.*pip install icrl\[mujoco\]"):
        type(family)().make_vec(family.split().test)


@pytest.mark.parametrize(
    "family, field, value, message",
    [
        (HalfCheetahVel(), "velocity", 3.5, "task 1 of half_cheetah_vel cannot be made: velocity is"),
        (HalfCheetahVel(), "velocity", np.nan, "task 1 of half_cheetah_vel cannot be made: velocity is"),
        (HalfCheetahDir(), "direction", 0.5, "direction is 0.5"),
        (HalfCheetahDir(), "strength", 0.0, "strength is not positive"),
        (AntDir(), "angle", np.inf, "angle is inf"),
        (WalkerParam(), "friction", -1.0, "friction is not positive"),
    ],
)
def test_bad_tasks_are_refused(family, field, value, message):
    tasks = family.split().test[:2]
    tasks[field][1] = value
    with pytest.raises(UserError, match=message):
        family.make_vec(tasks)


def test_bad_options_and_calls_are_refused():
    for key in ("num_train_tasks", "horizon"):
        with pytest.raises(UserError, match=f"ant_dir's {key} is 0"):
            make_family("envs.mujoco_tasks:AntDir", **{key: 0})
    family = HalfCheetahVel()
    with pytest.raises(UserError, match="posterior"):
        family.posterior(family.make_vec(family.split().test[:1]))
    with pytest.raises(UserError, match="into any state"):
        family.scattered()


def test_making_a_robot_prints_and_writes_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    HalfCheetahVel().make_env(velocity=1.0).close()
    assert capfd.readouterr() == ("", "") and not list(tmp_path.iterdir())
