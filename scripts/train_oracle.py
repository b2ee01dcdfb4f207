"""``python -m scripts.train_oracle FAMILY``: one learner that is told the task, as the family's oracle.

SAC (Haarnoja et al. 2018) needs few steps of the robot, PPO (Schulman et al. 2017) far less time for each. The learner sees the observation
and what ``MujocoFamily.told`` says of the task, a new task in each episode. At every checkpoint it plays the validation tasks; the best actor so
far is the result. A later call goes on from the last checkpoint: not bit for bit as if it had not been stopped, since running episodes are lost,
what PPO had not yet learned from, and their random numbers. Checkpoints are Stable-Baselines3's own and hold
pickles: go on only from a folder that you made. The result is safetensors, which hold numbers alone.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from safetensors.numpy import load_file, save
from tqdm import tqdm

from envs import make_family
from envs.mujoco_tasks import MujocoFamily
from envs.oracle_policy import FOLDER, OraclePolicy
from icrl.interfaces import Array, Tasks, UserError
from icrl.seeding import derive_seed, generator
from scripts.common import (
    MachineOptions,
    check_output_file,
    check_output_folder,
    device_of,
    first_argument,
    run_command,
    wants_help,
)
from scripts.options import parse

PROG = "python -m scripts.train_oracle"
USAGE = f"{PROG} FAMILY [--steps N] [--out FILE]"


@dataclass(frozen=True, kw_only=True)
class Options(MachineOptions):
    """How long to learn, and where the results go."""

    steps: int = 500_000
    """Environment steps in all, those of earlier calls included."""
    out: Path | None = None
    """The oracle's file; default: where the project keeps it, envs/oracles/FAMILY.safetensors."""
    work: Path | None = None
    """Folder of checkpoints and TensorBoard curves; default: runs/oracles/FAMILY."""
    algorithm: Literal["sac", "ppo"] = "sac"
    """The learner: PPO for bodies that differ so much that thousands of them must be seen."""
    width: int = 128
    """Units in each of the two hidden layers."""
    learning_rate: float = 1e-3
    """Step size; it falls linearly to a tenth."""
    updates_per_step: float = 0.5
    """SAC's gradient steps per environment step, at most 1."""
    end_when_fallen: float = 0.0
    """Share of the training episodes that end when the robot is no longer healthy, by its own environment's rule; the family's own go on."""
    checkpoint_every: int = 20_000
    """Steps between two checkpoints."""
    seed: int = 0
    """Root of all random numbers."""

    def __post_init__(self):
        for key in ("steps", "width", "checkpoint_every"):
            if getattr(self, key) < 1:
                raise UserError(f"--{key.replace('_', '-')} {getattr(self, key)}: expected at least 1")
        if self.algorithm == "ppo" and self.updates_per_step != Options.updates_per_step:
            raise UserError(f"--updates-per-step {self.updates_per_step} is an option of SAC: leave it out")
        if not 0 < self.updates_per_step <= 1:
            raise UserError(f"--updates-per-step {self.updates_per_step}: expected more than 0 and at most 1")
        if not 0 <= self.end_when_fallen <= 1:
            raise UserError(f"--end-when-fallen {self.end_when_fallen}: expected a share, 0 to 1")
        if not 0 < self.learning_rate < 1:
            raise UserError(f"--learning-rate {self.learning_rate}: expected more than 0 and less than 1")


class ToldEnv(gym.Env):
    """A family as one environment: a new task in each episode, which the observation tells (D + k,)."""

    def __init__(self, family: MujocoFamily, rng: np.random.Generator, *, end_when_fallen: float = 0.0):
        self._family, self._rng, self._env, self._clock = family, rng, None, 0
        self._end_when_fallen = end_when_fallen
        spec, told = family.spec, family.told(family.sample_task(np.random.default_rng(0)))
        size = gym.spaces.flatdim(spec.observation_space) + len(told)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = spec.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        if self._env is not None:
            self._env.close()
        task = self._family.sample_task(self._rng)
        self._env, self._told, self._clock = self._family.make_env(**task), self._family.told(task), 0
        self._ends_early = self._end_when_fallen > 0 and self._rng.random() < self._end_when_fallen
        observation, info = self._env.reset(seed=int(self._rng.integers(2**31)))
        return self._telling(observation), info

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        assert self._env is not None
        self._clock += 1
        observation, reward, _, _, info = self._env.step(action)
        fallen = self._ends_early and not self._env.healthy
        return self._telling(observation), float(reward), fallen, self._clock >= self._family.horizon, info

    def _telling(self, observation: Array) -> Array:
        return np.concatenate([observation, self._told], dtype=np.float32)


def command(argv: list[str]) -> None:
    """Train the oracle of one family."""
    about = "Train one policy that is told the task, as the oracle of a MuJoCo family; run it again to go on."
    if wants_help(argv):
        parse(Options, ["--help"], prog=f"{PROG} FAMILY", description=about)
    name, rest = first_argument(argv, "the name of a MuJoCo family", USAGE)
    options = parse(Options, rest, prog=f"{PROG} {name}", description=about)
    best = train_oracle(name, options, command=remade_by(name, options))
    print(f"{best['out']}: {best['validation_return']:.1f} on validation tasks after {best['steps']:,} steps")


def remade_by(name: str, options: Options) -> str:
    """The command that makes these weights again, wherever its folders are."""
    default = Options()
    told = ("steps", "algorithm", "width", "learning_rate", "updates_per_step")
    told += ("end_when_fallen", "checkpoint_every", "seed", "threads")
    given = {key: getattr(options, key) for key in told}
    words = [
        f"--{key.replace('_', '-')} {value}"
        for key, value in given.items()
        if value != getattr(default, key) or key == "steps"
    ]
    return " ".join([PROG, name, *words])


def train_oracle(name: str, options: Options, *, command: str = "", progress: bool = True) -> dict[str, Any]:
    """Train the oracle of the family called ``name``, or go on with it; what is known of the best actor so far.

    Raises UserError for a family that is none of MuJoCo's, other settings than those of the checkpoints, or places that cannot be written.
    """
    family = make_family(name)
    if not isinstance(family, MujocoFamily):
        raise UserError(f"{name} is no MuJoCo family, so it has no trained oracle: choose another")
    if options.end_when_fallen and not family.make_env(**family.sample_task(np.random.default_rng(0))).can_fall:
        raise UserError(
            f"--end-when-fallen {options.end_when_fallen}: {family.robot} has no rule of when it has fallen, leave it out"
        )
    out = options.out or FOLDER / f"{family.name}.safetensors"
    work = options.work or Path("runs/oracles") / family.name
    check_output_file(out, "--out")
    check_output_folder(work, f"--work {work}")
    work.mkdir(parents=True, exist_ok=True)
    settings = {"family": family.name, "algorithm": options.algorithm, "width": options.width, "seed": options.seed}
    settings |= {"learning_rate": options.learning_rate, "end_when_fallen": options.end_when_fallen}
    if options.algorithm == "sac":
        settings["updates_per_step"] = options.updates_per_step
    run = _Run(family, options, work, out, settings, command)
    run.train(progress)
    return run.best | {"out": str(out)}


class _Run:
    """One training: the learner, and what is known of its best actor."""

    def __init__(
        self,
        family: MujocoFamily,
        options: Options,
        work: Path,
        out: Path,
        settings: dict[str, Any],
        command: str,
    ):
        self.family, self.options, self.work, self.out = family, options, work, out
        self.settings, self.command = settings, command
        self.best: dict[str, Any] = {"validation_return": -np.inf, "steps": 0}
        newest = max(work.glob("step-*"), default=None)
        if newest is not None:
            self._check_settings(newest)
        done = int(newest.name.removeprefix("step-")) if newest else 0
        rng = generator(options.seed, family.name, "oracle", done)
        seed = derive_seed(options.seed, options.algorithm, done) % 2**31
        learner = {"sac": _Sac, "ppo": _Ppo}[options.algorithm]
        self.learner: _Sac | _Ppo = learner(_Beginning(family, options, work, rng, seed, newest))

    def _check_settings(self, checkpoint: Path) -> None:
        kept = json.loads((checkpoint / "state.json").read_text())
        for key, value in self.settings.items():
            before = kept["settings"].get(key, getattr(Options(), key, None))
            if before != value:
                raise UserError(
                    f"{self.work} holds a training with {key} {before}, this one has {value}: take the same, or another --work"
                )
        self.best = kept["best"]

    def train(self, progress: bool) -> None:
        model, total = self.learner.model, self.options.steps
        done = kept = model.num_timesteps
        with tqdm(total=total, initial=done, desc=self.family.name, unit=" steps", disable=not progress) as bar:

            def after_step(*_: Any) -> bool:
                nonlocal kept
                now = model.num_timesteps
                bar.update(now - bar.n)
                if now - kept >= self.options.checkpoint_every or now >= total:
                    kept = now
                    self._checkpoint()
                    bar.set_postfix_str(f"best on validation tasks {self.best['validation_return']:.1f}")
                return now < total

            if done < total:
                model.learn(
                    total - done,
                    callback=after_step,
                    log_interval=self.learner.log_interval,
                    tb_log_name=self.options.algorithm,
                    reset_num_timesteps=done == 0,
                )
        self._note_returns()

    def _checkpoint(self) -> None:
        """Play the validation tasks, keep the actor if it is the best so far, and keep all that a later call needs."""
        steps, trial = self.learner.model.num_timesteps, self.work / "trial.safetensors"
        _write(trial, self.learner.layers(), {})
        achieved = float(self._returns(OraclePolicy(trial), self.family.split().validation).mean())
        self.learner.model.logger.record("oracle/validation_return", achieved)
        if achieved > self.best["validation_return"]:
            self.best = {"validation_return": achieved, "steps": steps}
            _write(self.out, load_file(trial), self._about())
        trial.unlink()
        fresh, older = self.work / "incomplete", list(self.work.glob("step-*"))
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        self.learner.save(fresh)
        (fresh / "state.json").write_text(json.dumps({"settings": self.settings, "best": self.best}))
        fresh.rename(self.work / f"step-{steps:010}")
        for folder in older:
            shutil.rmtree(folder)

    def _returns(self, oracle: OraclePolicy, tasks: Tasks) -> Array:
        """(N,) mean return of a few episodes of an oracle."""
        env, told = self.family.make_vec(tasks), self.family.told(tasks)
        observation, _ = env.reset(seed=derive_seed(self.options.seed, "oracle"))
        total, episodes = np.zeros(len(tasks)), self.family.measured_episodes
        for _ in range(episodes * self.family.horizon):
            observation, reward, *_ = env.step(oracle(observation, told))
            total += reward
        env.close()
        return total / episodes

    def _about(self) -> dict[str, str]:
        """Metadata of the file: how it was made."""
        libraries = {name: version(name) for name in ("stable-baselines3", "gymnasium", "mujoco", "torch", "numpy")}
        return {
            "command": self.command,
            "settings": json.dumps(self.settings),
            "best": json.dumps(self.best),
            "libraries": json.dumps(libraries),
        }

    def _note_returns(self) -> None:
        """Add to the file's metadata what the oracle returns on every task of the split."""
        policy, returns = OraclePolicy(self.out), {}
        for part, tasks in self.family.split()._asdict().items():
            achieved = self._returns(policy, tasks).round(2).tolist()
            returns[part] = [{**_numbers(task), "return": value} for task, value in zip(tasks, achieved, strict=True)]
        _write(self.out, load_file(self.out), {**policy.metadata, "returns": json.dumps(returns)})


@dataclass(frozen=True)
class _Beginning:
    """What a learner begins with; with a ``checkpoint`` it goes on from there."""

    family: MujocoFamily
    options: Options
    work: Path
    rng: np.random.Generator
    seed: int
    checkpoint: Path | None


class _Sac:
    """Soft actor-critic on one robot: what it saw is kept, and learned from again and again."""

    log_interval = 10  # episodes

    def __init__(self, begin: _Beginning):
        family, options, work, seed, checkpoint = begin.family, begin.options, begin.work, begin.seed, begin.checkpoint
        from stable_baselines3 import SAC

        env, device = ToldEnv(family, begin.rng, end_when_fallen=options.end_when_fallen), device_of(options)
        if checkpoint is not None:
            self.model = SAC.load(checkpoint / "learner.zip", env=env, device=device, tensorboard_log=str(work))
            self.model.set_random_seed(seed)
            self.model.load_replay_buffer(checkpoint / "replay.pkl")
            return
        self.model = SAC(
            "MlpPolicy",
            env,
            learning_rate=_Falling(options.learning_rate),
            learning_starts=2000,
            train_freq=round(10 / options.updates_per_step),  # steps between two rounds of 10 updates
            gradient_steps=10,
            buffer_size=500_000,
            policy_kwargs={"net_arch": [options.width] * 2},
            tensorboard_log=str(work),
            seed=seed,
            device=device,
        )

    def save(self, folder: Path) -> None:
        self.model.save(folder / "learner.zip")
        self.model.save_replay_buffer(folder / "replay.pkl")

    def layers(self) -> dict[str, Array]:
        """The mean of the actor as ``OraclePolicy`` names its layers."""
        actor = self.model.actor
        return _named([*actor.latent_pi, actor.mu])


class _Ppo:
    """Proximal policy optimisation on sixteen robots at once. Its actions pass through tanh, as an ``OraclePolicy``'s do."""

    log_interval = 1  # rounds of 256 steps of every robot

    def __init__(self, begin: _Beginning):
        family, options, work, seed, checkpoint = begin.family, begin.options, begin.work, begin.seed, begin.checkpoint
        from stable_baselines3 import PPO
        from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize
        from torch import nn

        def make_env(lane: np.random.Generator) -> gym.Env:
            env = ToldEnv(family, lane, end_when_fallen=options.end_when_fallen)
            reach = gym.spaces.Box(-5, 5, env.action_space.shape, np.float32)  # to within 1e-4 of what a motor can do
            return gym.wrappers.TransformAction(env, np.tanh, reach)

        device = device_of(options)
        lanes = VecMonitor(DummyVecEnv([partial(make_env, lane) for lane in begin.rng.spawn(16)]))
        if checkpoint is not None:
            self._normal = VecNormalize.load(str(checkpoint / "normal.pkl"), lanes)
            self.model = PPO.load(
                checkpoint / "learner.zip", env=self._normal, device=device, tensorboard_log=str(work)
            )
            self.model.set_random_seed(seed)
            return
        self._normal = VecNormalize(lanes, clip_obs=np.inf)
        self.model = PPO(
            "MlpPolicy",
            self._normal,
            learning_rate=_Falling(options.learning_rate),
            n_steps=256,
            batch_size=512,
            policy_kwargs={
                "net_arch": [options.width] * 2,
                "activation_fn": nn.ReLU,
                "log_std_init": -1.0,
            },
            tensorboard_log=str(work),
            seed=seed,
            device=device,
        )

    def save(self, folder: Path) -> None:
        self.model.save(folder / "learner.zip")
        self._normal.save(str(folder / "normal.pkl"))

    def layers(self) -> dict[str, Array]:
        """The mean action as ``OraclePolicy`` names its layers, the first of which also does the normalisation."""
        from stable_baselines3.common.running_mean_std import RunningMeanStd

        policy, seen = self.model.policy, self._normal.obs_rms
        assert isinstance(seen, RunningMeanStd)
        layers = _named([*policy.mlp_extractor.policy_net, policy.action_net])
        weight = layers["weight.0"] / np.sqrt(seen.var + self._normal.epsilon)
        layers["bias.0"] = (layers["bias.0"] - weight @ seen.mean).astype(np.float32)
        layers["weight.0"] = weight.astype(np.float32)
        return layers


def _named(modules: list[Any]) -> dict[str, Array]:
    """Weights and biases of the layers that have them."""
    layers = [layer for layer in modules if hasattr(layer, "weight")]
    named = [(f"{kind}.{i}", getattr(layer, kind)) for i, layer in enumerate(layers) for kind in ("weight", "bias")]
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in named}


def _write(path: Path, layers: dict[str, Array], metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".incomplete")
    fresh.write_bytes(save(layers, metadata))
    fresh.replace(path)


@dataclass(frozen=True)
class _Falling:
    """A step size that falls linearly to a tenth; ``left`` is the share of the training that is still to come."""

    start: float

    def __call__(self, left: float) -> float:
        return self.start * (0.1 + 0.9 * left)


def _numbers(task: np.void) -> dict[str, float]:
    """The fields of a task that are single numbers; a body's many parameters follow from the split's seed."""
    return {key: round(float(task[key]), 4) for key in task.dtype.names or () if np.ndim(task[key]) == 0}


if __name__ == "__main__":
    sys.exit(run_command(command))
