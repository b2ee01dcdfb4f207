"""Families of ordinary Gymnasium environments: made in a line, played like every other, refused in one line."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from line_world import LENGTH, Lines, LineWorld

from agents import make_source
from envs import make_family
from envs.gym_family import GymFamily, GymTaskFamily
from icrl.evaluation import run_episodes
from icrl.interfaces import UserError
from icrl.registry import PROTOCOLS
from icrl.seeding import LaneStreams
from scripts import cli

PENDULUMS = GymFamily(lambda g: gym.make("Pendulum-v1", g=g), lambda rng: {"g": rng.uniform(5, 15)}, name="pendulums")


def goal_task(rng):
    return {"goal": rng.integers(LENGTH)}


def lines(make_env: Any = LineWorld, sample_task: Any = goal_task, **options: Any):
    given: dict[str, Any] = {"horizon": 5, "num_train_tasks": 3, "num_validation_tasks": 1, "num_test_tasks": 2}
    return GymFamily(make_env, sample_task, **(given | options))


def test_any_environment_becomes_a_family_in_a_line():
    assert all(hasattr(PENDULUMS, member) for member in vars(PROTOCOLS["family"]) if not member.startswith("_"))
    spec = PENDULUMS.spec
    assert (spec.name, spec.horizon) == ("pendulums", 200) and spec.action_space.shape == (1,)
    tasks = PENDULUMS.split().test[:3]
    env = PENDULUMS.make_vec(tasks)
    assert [lane.unwrapped.g for lane in gravities(env)] == tasks["g"].tolist()
    env.reset(seed=0)
    for t in range(200):
        observation, reward, _, truncated, _ = env.step(np.zeros((3, 1), np.float32))
        assert env.observation_space.contains(observation) and (reward <= 0).all() and (truncated == (t == 199)).all()
    assert np.isnan(PENDULUMS.optimal_return(tasks)).all()


def gravities(env):
    return [lane._env for lane in env._envs.envs]


def test_split_is_distinct_and_its_test_tasks_do_not_depend_on_the_others():
    family = Lines()
    parts = family.split()
    assert [len(part) for part in parts] == [24, 6, 6] and parts.train.dtype.names == ("goal", "width")
    assert len({task.tobytes() for part in parts for task in part}) == 36
    np.testing.assert_array_equal(replace(family, num_train_tasks=5).split().test, parts.test)
    assert (replace(family, task_seed=1).split().test != parts.test).any()
    assert len({task.tobytes() for part in lines().split() for task in part}) == LENGTH
    with pytest.raises(UserError, match="only 6 distinct tasks, expected 7"):
        lines(num_train_tasks=4).split()


def test_a_task_may_be_a_record_and_hold_arrays():
    dtype = np.dtype([("place", np.float32, (2,)), ("size", np.int16)])

    def sample(rng):
        return np.array([(rng.random(2), rng.integers(9))], dtype)[0]

    seen = []

    def make(place, size):
        seen.append((place, size))
        return LineWorld(0)

    family = GymFamily(make, sample, horizon=3)
    tasks = family.sample_tasks(np.random.default_rng(0), 4)
    assert tasks.dtype == dtype
    family.make_vec(tasks[1:2])
    place, size = seen[-1]
    assert place.tolist() == tasks["place"][1].tolist() and size == tasks["size"][1] and type(size) is int
    place[:] = 7
    assert (tasks["place"][1] != 7).all()


def test_returns_are_measured_once_and_belong_to_the_task():
    calls = []
    family = lines(make_env=lambda goal: calls.append(goal) or LineWorld(goal), measured_episodes=200)
    tasks = np.sort(family.sample_tasks(np.random.default_rng(1), 9))
    exact = 5 + 1 - np.maximum(abs(tasks["goal"] - 2), 1)  # steps that end on the goal
    np.testing.assert_array_equal(family.optimal_return(tasks), exact)
    random = family.random_return(tasks)
    assert (random < exact).all() and (np.abs(random[tasks["goal"] == 2] - walk_on(2)) < 0.3).all()
    before = len(calls)
    np.testing.assert_array_equal(family.random_return(tasks[::-1]), random[::-1])
    assert len(calls) == before
    alone = lines(measured_episodes=200).random_return(tasks[4:5])
    np.testing.assert_array_equal(alone, random[4:5])


def walk_on(goal):
    """Expected visits of a uniform walk of five steps from cell 2."""
    mass, visits = np.eye(LENGTH)[2], 0.0
    for _ in range(5):
        left, right = np.roll(mass, -1), np.roll(mass, 1)
        left[-1], right[0] = 0, 0
        left[0] += mass[0]
        right[-1] += mass[-1]
        mass = (left + right + mass) / 3
        visits += mass[goal]
    return visits


def test_returns_that_are_told_are_believed():
    family = lines(optimal_return_of=lambda goal: 10.0 * goal, random_return_of=lambda goal: -1)
    tasks = family.split().train
    np.testing.assert_array_equal(family.optimal_return(tasks), 10.0 * tasks["goal"])
    np.testing.assert_array_equal(family.random_return(tasks), -np.ones(3))


def test_lanes_in_processes_play_the_same():
    family = Lines()
    tasks = family.split().test[:2]
    played = []
    for one in (family, replace(family, asynchronous=True)):
        env = one.make_vec(tasks)
        env.reset(seed=0)
        played.append([(env.optimal_action(), *env.step(np.array([0, 1]))[:4]) for _ in range(6)])
        env.close()
    for here, there in zip(*played, strict=True):
        for a, b in zip(here, there, strict=True):
            np.testing.assert_array_equal(a, b)


numbers = count()


def first_whole_then_half(rng):
    return {"goal": 0.5 if next(numbers) else 1}


def raising(rng):
    raise KeyError("no dice")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"horizon": 0}, "no time limit: give horizon"),
        ({"horizon": -1}, "horizon is -1: expected at least 0"),
        ({"num_test_tasks": 0}, "num_test_tasks is 0: expected at least 1"),
        ({"make_env": lambda goal: "a map"}, "make_env of GymFamily gave 'a map'.*expected a gymnasium.Env"),
        ({"make_env": lambda gaol: None}, "make_env.*'goal'.*raised TypeError"),
        ({"sample_task": raising}, "sample_task raised KeyError at test_gym_family.py.*no dice"),
        ({"sample_task": lambda rng: {"goal": "left"}}, "expected numbers"),
        ({"sample_task": lambda rng: {"horizon": 3}}, "under names other than .*horizon"),
        ({"sample_task": lambda rng: 3}, "expected a dictionary"),
        ({"sample_task": first_whole_then_half}, "kinds of numbers"),
        ({"sample_task": lambda rng: {"goal": np.zeros(rng.integers(1, 4))}}, "same names, shapes"),
    ],
)
def test_what_cannot_be_a_family_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        family = lines(**change)
        assert family.spec
        family.sample_tasks(np.random.default_rng(0), 20)


def test_what_a_family_does_not_have_is_refused():
    family = lines(make_env=lambda goal: LineWorld(goal, two_axes=goal == 5))
    odd = family.sample_tasks(np.random.default_rng(0), 40)
    odd = np.sort(odd)[[0, -1]]
    with pytest.raises(
        UserError,
        match=r"task 1 of GymFamily has the observation_space .*\(3, 1\).*the family's is.*its task: goal = 5\)",
    ):
        family.make_vec(odd)
    with pytest.raises(UserError, match="got tasks with fields"):
        family.make_vec(Lines().split().test)
    with pytest.raises(UserError, match="no posterior"):
        family.posterior(family.make_vec(odd[:1]))
    with pytest.raises(UserError, match="scattered"):
        family.scattered()

    @dataclass(frozen=True)
    class Half(GymTaskFamily):
        """Has no sample_task."""

    with pytest.raises(NotImplementedError, match="Half needs a method sample_task"):
        assert Half().spec


def test_a_failing_environment_cannot_be_measured():
    family = Lines(fail_at=2)
    tasks = family.sample_tasks(np.random.default_rng(0), 20)
    with pytest.raises(UserError, match=r"cannot be measured: the environment of .* raised RuntimeError"):
        family.random_return(tasks)


SMALL = (
    *("--family.name", "line_world:Lines", "--family.options.widest", "4", "--collect.sources.0.name", "annealed"),
    *("--collect.num-histories", "24", "--collect.steps-per-history", "40", "--model.window", "30"),
    *(
        "--train.steps",
        "4",
        "--train.warmup-steps",
        "1",
        "--train.validate-every",
        "4",
        "--evaluations.0.baselines",
        "random",
        "optimal",
        "source",
    ),
)


def test_the_whole_path_from_the_command_line(tmp_path, capsys):
    assert cli.main(["run", "smoke", "--out", str(tmp_path / "run"), *SMALL]) == 0
    (record,) = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert record["family"] == "Lines" and record["num_tasks"] == 6
    optimal = record["agents"]["optimal"]
    assert optimal["mean_return"]["mean"] == record["optimal_return"] and optimal["normalised_score"]["mean"] == 1
    told = capsys.readouterr()
    assert "verdict" in told.out and "the first observation tells the task's width" in told.err


def test_an_unknown_optimum_leaves_only_what_needs_it_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(LineWorld, "optimal_action", None)
    words = [word for word in SMALL if word != "optimal"]
    words[words.index("annealed")] = "uniform"
    assert cli.main(["run", "smoke", "--out", str(tmp_path / "run"), *words]) == 0
    (record,) = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    agent = record["agents"]["agent"]
    assert agent["normalised_score"]["mean"] is None and agent["regret"]["mean"] is None
    assert record["optimal_return"] is None and "NaN" not in (tmp_path / "run" / "evaluation.json").read_text()
    assert "optimum is not known" in (tmp_path / "run" / "report" / "index.html").read_text()
    assert agent["mean_return"]["mean"] > 0 and record["verdict"]["learned"] is not None and record["random_return"] > 0


def test_a_family_may_be_given_a_name():
    assert make_family("line_world:Lines", name="mine").spec.name == "mine"


def test_an_evaluation_with_a_failed_environment_is_refused():
    family = Lines(fail_at=3)
    tasks = family.split().test
    env = family.make_vec(tasks)
    agent = make_source("uniform").make(family, env, LaneStreams(0, "a", lane_ids=len(tasks)), 10)
    with pytest.raises(UserError, match="the line is broken"):
        run_episodes(agent, env, 2, horizon=5, seed=0)


def test_bad_spaces_and_failing_environments_reach_the_user(tmp_path, capsys):
    collect = ["collect", "smoke", "--out", str(tmp_path / "data"), *SMALL[: SMALL.index("--train.steps")]]
    collect += ["--evaluations.0.baselines", "random"]
    assert cli.main([*collect, "--family.options.two-axes"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "no encoder can represent the observation space Box(" in line
        and "use Discrete, MultiDiscrete or Box with one axis" in line
    )
    assert not (tmp_path / "data").exists()
    assert cli.main([*collect, "--family.options.fail-at", "7"]) != 0
    told = capsys.readouterr().err
    assert "raised RuntimeError at line_world.py" in told and "the line is broken" in told
    assert (tmp_path / "data" / "manifest.json").exists()
