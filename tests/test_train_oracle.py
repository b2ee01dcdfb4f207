"""``scripts.train_oracle``: what it writes is the learner's actor, it goes on where it stopped, and it refuses what it cannot do."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from envs.mujoco_tasks import HalfCheetahVel, WalkerParam
from envs.oracle_policy import OraclePolicy
from icrl.interfaces import UserError
from scripts.common import run_command
from scripts.train_oracle import Options, ToldEnv, command, remade_by, train_oracle

pytest.importorskip("mujoco")
FAMILY = "envs.mujoco_tasks:HalfCheetahVel"


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Two tasks to choose checkpoints on, three in all to note returns of, a few steps each."""
    small = HalfCheetahVel(horizon=10, num_train_tasks=1, num_validation_tasks=2, num_test_tasks=1)
    monkeypatch.setattr("scripts.train_oracle.make_family", lambda name: small)


def options(folder, **changes):
    given: dict[str, Any] = {"steps": 2040, "checkpoint_every": 2040, "width": 8, "threads": 1, **changes}
    return Options(**given, out=folder / "oracle.safetensors", work=folder / "work")


def sac_acts(work, seen):
    from stable_baselines3 import SAC

    return SAC.load(next(work.glob("step-*")) / "learner.zip", device="cpu").predict(seen, deterministic=True)[0]


def ppo_acts(work, seen):
    import pickle

    from stable_baselines3 import PPO

    newest = next(work.glob("step-*"))
    normal = pickle.loads((newest / "normal.pkl").read_bytes())
    assert normal.obs_rms.count > 4000 and np.abs(normal.obs_rms.mean).max() > 0.01
    model = PPO.load(newest / "learner.zip", device="cpu")
    return np.tanh(model.predict(normal.normalize_obs(seen), deterministic=True)[0])


LEARNERS = [("sac", sac_acts, 2040, 2100), ("ppo", ppo_acts, 4112, 8224)]
"""Name, how a checkpoint of it acts, and steps after a first round of updates and after more."""


@pytest.mark.parametrize("algorithm, acts, steps, more", LEARNERS)
def test_the_file_holds_the_learners_actor_and_says_how_it_was_made(tmp_path, algorithm, acts, steps, more):
    given = options(tmp_path, algorithm=algorithm, steps=steps, checkpoint_every=steps)
    best = train_oracle(FAMILY, given, command="the command", progress=False)
    policy = OraclePolicy(tmp_path / "oracle.safetensors")
    seen = np.random.default_rng(0).normal(0, 1, (50, 18)).astype(np.float32)
    np.testing.assert_allclose(policy(seen[:, :17], seen[:, 17:]), acts(tmp_path / "work", seen), atol=1e-5)
    assert policy.metadata["command"] == "the command" and best["steps"] == steps
    returns = json.loads(policy.metadata["returns"])
    assert [len(returns[part]) for part in ("train", "validation", "test")] == [1, 2, 1]
    assert np.mean([row["return"] for row in returns["validation"]]) == pytest.approx(
        best["validation_return"], abs=0.01
    )
    assert returns["test"][0]["velocity"] == pytest.approx(
        HalfCheetahVel(horizon=10, num_test_tasks=1).split().test[0]["velocity"], abs=1e-4
    )


@pytest.mark.parametrize("algorithm, acts, steps, more", LEARNERS)
def test_a_second_call_goes_on_and_learns(tmp_path, algorithm, acts, steps, more):
    given = {"algorithm": algorithm, "checkpoint_every": steps}
    seen = np.random.default_rng(0).normal(0, 1, (5, 18)).astype(np.float32)
    first = train_oracle(FAMILY, options(tmp_path, steps=steps, **given), progress=False)
    before = acts(tmp_path / "work", seen)
    second = train_oracle(FAMILY, options(tmp_path, steps=more, **given), progress=False)
    assert [path.name for path in (tmp_path / "work").glob("step-*")] == [f"step-{more:010}"]
    assert (acts(tmp_path / "work", seen) != before).any()
    assert second["validation_return"] >= first["validation_return"]
    assert train_oracle(FAMILY, options(tmp_path, steps=more, **given), progress=False) == second  # not done twice
    with pytest.raises(UserError, match="width 8, this one has 16"):
        train_oracle(FAMILY, options(tmp_path, width=16, **given), progress=False)
    other = "ppo" if algorithm == "sac" else "sac"
    with pytest.raises(UserError, match=f"algorithm {algorithm}, this one has {other}"):
        train_oracle(FAMILY, options(tmp_path, algorithm=other), progress=False)
    assert list((tmp_path / "work").glob(f"{algorithm}_1/events*"))


def test_the_learner_is_told_a_new_task_in_each_episode():
    env = ToldEnv(HalfCheetahVel(horizon=4), np.random.default_rng(0))
    targets = set()
    for _ in range(5):
        observation, _ = env.reset()
        assert env._env is not None
        robot: Any = env._env._robot
        for t in range(4):
            before = robot.data.qpos[0]
            following, reward, terminated, truncated, _ = env.step(np.zeros(6, np.float32))
            velocity, target = (robot.data.qpos[0] - before) / robot.dt, (following[-1] + 1) * 1.5
            assert env.observation_space.contains(following) and following[-1] == observation[-1]
            assert (
                not terminated and truncated == (t == 3) and reward == pytest.approx(-abs(velocity - target), abs=1e-5)
            )
        targets.add(float(observation[-1]))
    assert len(targets) == 5


def test_a_share_of_the_training_episodes_ends_when_the_robot_falls():
    """A walker that moves at random falls soon; the family's own episode goes on to its horizon."""
    actions = np.random.default_rng(0)
    lengths = {}
    for share in (0.0, 0.5, 1.0):
        env = ToldEnv(WalkerParam(horizon=120), np.random.default_rng(1), end_when_fallen=share)
        lengths[share] = []
        for _ in range(12):
            env.reset()
            ended, steps = False, 0
            while not ended:
                _, _, terminated, truncated, _ = env.step(actions.uniform(-1, 1, 6).astype(np.float32))
                ended, steps = terminated or truncated, steps + 1
            assert env._env is not None and terminated == (steps < 120) and (not terminated or not env._env.healthy)
            lengths[share].append(steps)
    early = {share: sum(steps < 120 for steps in lengths[share]) for share in lengths}
    assert early[0.0] == 0 < early[0.5] < early[1.0]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "comes first"),
        (["half", "--steps", "0"], "steps 0"),
        (["half", "--updates-per-step", "2"], "updates-per-step"),
        (["half", "--algorithm", "ppo", "--updates-per-step", "1"], "is an option of SAC"),
        (["half", "--learning-rate", "0"], "learning-rate"),
        (["half", "--out", "."], "is a folder"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, capsys):
    assert run_command(command, arguments) == 2
    assert message in capsys.readouterr().err


def test_other_families_are_refused(monkeypatch):
    from envs import make_family

    monkeypatch.setattr("scripts.train_oracle.make_family", make_family)
    with pytest.raises(UserError, match="darkroom is no MuJoCo family"):
        train_oracle("darkroom", Options())


def test_the_command_that_is_kept_names_what_shapes_the_weights_and_no_folder(tmp_path):
    given = Options(steps=500_000, threads=1, width=64, out=tmp_path / "here.safetensors", work=tmp_path)
    assert remade_by(FAMILY, given) == f"python -m scripts.train_oracle {FAMILY} --steps 500000 --width 64 --threads 1"
