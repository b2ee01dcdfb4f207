"""Training of RL²: sb3-contrib's recurrent PPO on trials of a family's training tasks (``envs.trial``).

One file is the whole state, replaced in one atomic operation: the newest weights with Adam's moments, the best actor so far, and how
far it is. It is safetensors, which hold numbers and text alone; the library's own archives, which hold pickles, are not used. A training
that goes on begins new trials, so it is not bit for bit the one that was never stopped. The library knows no action masks: forbidden
actions reach the environment while it learns (the agent that plays afterwards obeys the masks).
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from agents.rl2 import ACTOR, Learned, known_of
from agents.sb3 import LaneVecEnv, Prepared, apart
from envs.trial import TrialVecEnv
from icrl.config import RL2Config
from icrl.files import replace_file
from icrl.interfaces import Array, Family
from icrl.seeding import derive_seed

VALIDATION_LANES = 100
"""Trials on validation tasks at each checkpoint, side by side."""
CURVES = {
    "return/first_episode": "mean return of the first episode of the lanes' last complete trials, on training tasks; that of a good search",
    "return/last_episode": "of their last episode: rises above the first one's where the policy learns within a trial",
    "validation/episode_*": "mean return of that episode of trials on validation tasks, at a checkpoint",
    "entropy_loss": "minus the entropy of actions, nats; rises slowly towards 0",
    "value_loss": "mean squared error of the values",
    "policy_gradient_loss": "the clipped objective, slightly negative",
    "approx_kl": "how far an update moved the policy, nats: 0.003 to 0.03",
    "clip_fraction": "share of the steps that the clipping held back: under 0.3",
    "explained_variance": "of the returns by the values: towards 1",
}
"""What is logged under ``rl2/``, and what it means."""


def train(
    family: Family,
    config: RL2Config,
    file: Path,
    *,
    seed: int,
    board: Path | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> Learned:
    """Train until ``config.steps`` steps are done, going on from ``file`` if it is there; what is known of the result.

    Parameters
    ----------
    family : Family
        Trained on its training tasks; its validation tasks choose the best checkpoint.
    file : Path
        The state, written at every checkpoint.
    seed : int
        Root of all random numbers. The global generators are left as they were.
    board : Path, optional
        Folder of TensorBoard curves; ``CURVES`` says what they mean.

    Raises
    ------
    UserError
        Where ``file`` holds a training with other options or spaces, or the family cannot be played in trials.
    """
    with apart(torch.get_num_threads()):
        run = _Training(family, config, file, seed, device)
        if run.learned.steps < config.steps:
            run.go_on(board, progress)
    return run.learned


class _Policy(RecurrentActorCriticPolicy):
    """The library's policy with one LSTM that actions and values both train (Wang et al. 2016), each sequence read once and in one call.

    The library's shared LSTM learns nothing from the values. Its buffer cuts sequences where trials begin, so only their first step can
    reset the state.
    """

    def __init__(self, observation_space: Any, action_space: Any, lr_schedule: Any, **kwargs: Any):
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)
        self.lstm_critic = self.lstm_actor
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]
        self._read: tuple[Tensor | None, Any] = (None, None)

    def _process_sequence(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, features: Tensor, lstm_states: tuple[Tensor, Tensor], episode_starts: Tensor, lstm: nn.LSTM
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if self._read[0] is not features:  # the values ask for what the actions have just asked for
            num = lstm_states[0].shape[1]
            kept = 1.0 - episode_starts.reshape(num, -1)[:, :1]  # (num, 1)
            sequences = features.reshape(num, -1, lstm.input_size).swapaxes(0, 1)
            output, states = lstm(sequences, (kept * lstm_states[0], kept * lstm_states[1]))
            self._read = features, (output.swapaxes(0, 1).flatten(0, 1), states)
        return self._read[1]


class _Training:
    """A learner, the trials that it plays, and what is known of its best actor."""

    def __init__(self, family: Family, config: RL2Config, file: Path, seed: int, device: str):
        self.family, self.config, self.file, self.seed = family, config, file, seed
        library = f"sb3-contrib {version('sb3-contrib')}"
        self.learned = replace(known_of(file, family, config), library=library)
        done = self.learned.steps
        self.trials = TrialVecEnv(family, family.split().train, config.episodes, config.num_envs)
        env = _Scaled(self.trials, derive_seed(seed, "rl2", "trials", done), config.reward_scale)
        length = config.rollout_steps or config.episodes * family.spec.horizon
        self.model = RecurrentPPO(
            _Policy,
            env,
            learning_rate=lambda left: config.learning_rate * (0.1 + 0.9 * left),
            n_steps=length,
            batch_size=config.batch_lanes * length,
            n_epochs=config.epochs,
            gamma=config.gamma,
            gae_lambda=config.gae_lambda,
            ent_coef=config.entropy,
            policy_kwargs={"lstm_hidden_size": config.width, "net_arch": []},
            seed=derive_seed(seed, "rl2", done) % 2**31,
            device=device,
        )
        self.model.set_logger(Logger(folder=None, output_formats=[]))
        self.best: dict[str, Tensor] = {}
        self._began = time.perf_counter() - self.learned.seconds
        if done:
            self._restore()

    def go_on(self, board: Path | None, progress: bool) -> None:
        """Train until the end, with curves and a bar."""
        done, total = self.learned.steps, self.config.steps
        shown = {"desc": "rl2", "unit": "step", "unit_scale": True, "disable": not progress}
        with (
            nullcontext() if board is None else SummaryWriter(str(board), purge_step=done) as writer,
            tqdm(total=total, initial=done, **shown) as bar,
        ):
            beside: Any = {"callback": _AfterUpdates(self, bar, writer), "log_interval": None}
            self.model.learn(total - done, reset_num_timesteps=False, **beside)
            self.checkpoint(writer)

    def checkpoint(self, writer: SummaryWriter | None) -> None:
        """Play validation tasks, keep the actor if it is the best so far, and write all that a later call needs."""
        steps = self.model.num_timesteps
        returns = self._validate()  # (B, episodes)
        score, best = float(returns.mean()), self.learned.best_return
        if best is None or score > best:
            self.best = {name: tensor.clone() for name, tensor in self._weights().items() if name.startswith(ACTOR)}
            self.learned = replace(self.learned, best_return=score, best_steps=steps)
        self.learned = replace(self.learned, steps=steps, seconds=round(time.perf_counter() - self._began, 1))
        tensors = {f"actor.{name}": tensor for name, tensor in self.best.items()}
        tensors |= {f"policy.{name}": tensor for name, tensor in self._weights().items()}
        for number, moments in self.model.policy.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{key}": tensor for key, tensor in moments.items()}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        replace_file(self.file, safetensors.torch.save(plain, {"learned": self.learned.to_json()}))
        if writer is not None:
            by_episode = returns.mean(axis=0)
            for number, value in enumerate(by_episode, 1):
                writer.add_scalar(f"rl2/validation/episode_{number}", value, steps)
            writer.flush()

    def _weights(self) -> dict[str, Tensor]:
        """The parameters by name, those of the shared LSTM once."""
        return {name: parameter.detach() for name, parameter in self.model.policy.named_parameters()}

    def _restore(self) -> None:
        """Weights, moments and the best actor from the file; the rest is new."""
        kept = safetensors.torch.load_file(self.file)
        self.best = _part(kept, "actor.")
        policy, optimizer = self.model.policy, self.model.policy.optimizer
        policy.load_state_dict(_part(kept, "policy."), strict=False)  # the shared LSTM has a second name
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _part(kept, "optimizer.").items():
            number, _, key = name.partition(".")
            moments.setdefault(int(number), {})[key] = tensor
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        self.model.num_timesteps = self.learned.steps

    def _validate(self) -> Array:
        """(B, episodes) returns of a trial in each of some lanes, of validation tasks."""
        trials = TrialVecEnv(self.family, self.family.split().validation, self.config.episodes, VALIDATION_LANES)
        env = _Scaled(trials, derive_seed(self.seed, "rl2", "validation"))
        observation: Any = env.reset()
        state, starts = None, np.ones(VALIDATION_LANES, bool)
        for _ in range(self.config.episodes * self.family.spec.horizon):
            actions, state = self.model.predict(observation, state, starts)
            observation, _, starts, _ = env.step(actions)
        return trials.episode_returns


class _AfterUpdates(BaseCallback):
    """What happens beside the learning: the bar, curves, checkpoints (after an update, when nothing is half done)."""

    def __init__(self, training: _Training, bar: tqdm, writer: SummaryWriter | None):
        super().__init__()
        self._training, self._bar, self._writer = training, bar, writer

    def _on_step(self) -> bool:
        self._bar.update(self.num_timesteps - self._bar.n)
        return True

    def _on_rollout_start(self) -> None:
        training, now = self._training, self.model.num_timesteps
        self.model.ent_coef = training.config.entropy * max(0.0, 1 - now / training.config.steps)  # type: ignore[attr-defined]
        returns = training.trials.episode_returns
        returns = returns[~np.isnan(returns).any(axis=1)]
        if not len(returns):
            return  # no trial is over yet
        first, last = returns.mean(axis=0)[[0, -1]]
        self._bar.set_postfix_str(f"return of a trial's first episode {first:.2f}, last {last:.2f}")
        if self._writer is not None:
            values = {"rl2/return/first_episode": first, "rl2/return/last_episode": last}
            values |= {f"rl2/{name}": self.logger.name_to_value[f"train/{name}"] for name in CURVES if "/" not in name}
            for tag, value in values.items():
                self._writer.add_scalar(tag, value, now)
        if now - training.learned.steps >= training.config.checkpoint_every:
            training.checkpoint(self._writer)


class _Scaled(Prepared):
    """Trials as the library wants them: actions that count from 0 or lie on [-1, 1], and rewards divided by ``scale``."""

    def __init__(self, trials: TrialVecEnv, seed: int, scale: float = 1.0):
        super().__init__(LaneVecEnv(trials, seed), joint=False, show_paid=False)
        self._scale = scale

    def step_wait(self) -> Any:
        seen, reward, ended, infos = super().step_wait()
        return seen, reward / self._scale, ended, infos


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names start with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
