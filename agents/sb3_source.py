"""The source ``sb3``: its options. What needs Stable-Baselines3 itself, slow to import, is in ``agents.sb3`` and loaded when it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
from gymnasium.spaces import Box, Discrete

from icrl.interfaces import Agent, Family, TaskVectorEnv, UserError
from icrl.rollout import Turn
from icrl.seeding import LaneStreams

DEFAULTS: dict[str, dict[str, Any]] = {
    "ppo": {
        "learning_rate": 2e-3,
        "n_steps": 500,
        "batch_size": 125,
        "n_epochs": 8,
        "gae_lambda": 0.9,
        "ent_coef": 0.05,
        "normalize_advantage": False,
    },
    "a2c": {"learning_rate": 2e-3, "n_steps": 20, "gae_lambda": 0.95, "ent_coef": 0.05},
    "dqn": {
        "learning_rate": 1e-3,
        "batch_size": 64,
        "buffer_size": 50_000,
        "learning_starts": 1000,
        "train_freq": 4,
        "target_update_interval": 500,
        "exploration_fraction": 0.4,
        "exploration_final_eps": 0.02,
    },
    "sac": {
        "learning_rate": 1e-3,
        "batch_size": 256,
        "buffer_size": 100_000,
        "learning_starts": 1000,
        "train_freq": 1,
    },
}
"""Which options each algorithm has, and their defaults here: learners of one task with one environment, in about 100,000 steps."""

_MAY_BE_0 = ("ent_coef", "learning_starts", "exploration_final_eps", "normalize_advantage")


@dataclass(frozen=True)
class SB3:
    """A learner of Stable-Baselines3, trained from scratch on one task per history: PPO, A2C, DQN (discrete actions) or SAC (boxes)."""

    algorithm: Literal["ppo", "a2c", "dqn", "sac"] = "ppo"
    """Which learner. Options below that are None take this project's default for it."""
    discount: float = 0.95
    """Discount per step."""
    net_width: int = 64
    """Units in each of the two hidden layers."""
    observation: Literal["one_hot", "cells", "normalised"] = "one_hot"
    """What the network sees. `one_hot`: indicators of index observations, boxes scaled to [-1, 1]. `cells`: one indicator for each combination of
    indices. `normalised`: as `one_hot`, then by running mean and variance."""
    show_paid: bool = True
    """Also show whether this episode has paid before: in rooms with a hidden key the best action depends on it."""
    normalise_reward: bool = False
    """Divide rewards by the running spread of returns. The history keeps the true ones."""
    learning_rate: float | None = None
    """Step size of the optimiser; it falls linearly to a tenth."""
    n_steps: int | None = None
    """PPO, A2C: steps between two updates."""
    batch_size: int | None = None
    """PPO, DQN, SAC: transitions per gradient step."""
    n_epochs: int | None = None
    """PPO: passes over the steps of an update."""
    gae_lambda: float | None = None
    """PPO, A2C: how far advantages look ahead."""
    ent_coef: float | None = None
    """PPO, A2C: weight of the entropy at the start; it falls linearly to 0 over the first 60 % of a history."""
    normalize_advantage: bool | None = None
    """PPO: scale the advantages of a batch to unit spread. Off by default: where nothing pays yet it magnifies noise and ends exploration."""
    buffer_size: int | None = None
    """DQN, SAC: transitions remembered."""
    learning_starts: int | None = None
    """DQN, SAC: uniform actions at the start."""
    train_freq: int | None = None
    """DQN, SAC: steps between two updates."""
    target_update_interval: int | None = None
    """DQN: steps between two copies to the target network."""
    exploration_fraction: float | None = None
    """DQN: part of a history over which uniform actions become rare."""
    exploration_final_eps: float | None = None
    """DQN: their share afterwards."""

    def __post_init__(self):
        known, given = DEFAULTS[self.algorithm], self._given()
        for key in given:
            if key not in known:
                raise UserError(
                    f"sb3's {key} is {given[key]}, but {self.algorithm} has none: its options are {', '.join(known)}"
                )
            if given[key] < 0 or (given[key] == 0 and key not in _MAY_BE_0):
                raise UserError(f"sb3's {key} is {given[key]}: expected more than 0")
        if not 0 <= self.discount <= 1:
            raise UserError(f"sb3's discount is {self.discount}: expected 0 to 1")
        if self.net_width < 1:
            raise UserError(f"sb3's net_width is {self.net_width}: expected at least 1")
        arguments = self.arguments
        if self.algorithm == "ppo" and arguments["n_steps"] % arguments["batch_size"]:
            raise UserError(
                f"sb3's n_steps {arguments['n_steps']} is no multiple of batch_size {arguments['batch_size']}: choose one"
            )

    @property
    def arguments(self) -> dict[str, Any]:
        """The algorithm's own arguments, as its constructor takes them."""
        return DEFAULTS[self.algorithm] | self._given()

    def _given(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in {key for known in DEFAULTS.values() for key in known}}
        return {name: value for name, value in sorted(values.items()) if value is not None}

    def make(self, family: Family, env: TaskVectorEnv, streams: LaneStreams, num_steps: int) -> Agent:
        """Always raises UserError: the library drives its own loop, so this source leaves histories (``record``) but is no agent."""
        raise UserError(
            "sb3 trains a network of its own for the whole length of a history, so it is no agent to play beside others: leave it out"
        )

    def record(
        self,
        family: Family,
        env: TaskVectorEnv,
        streams: LaneStreams,
        num_steps: int,
        *,
        seed: int,
        record_optimal: bool,
        keep: Callable[[Turn], bool],
    ) -> None:
        """Train for ``num_steps`` steps in the one lane of ``env``. Raises UserError for actions that the algorithm does not have."""
        self._check_actions(env.single_action_space)
        from agents import sb3

        lane = sb3.LaneVecEnv(env, seed, record_optimal)
        sb3.train(self, lane, int(streams.integers(2**31)[0]), num_steps, keep)

    def _check_actions(self, space: gym.Space) -> None:
        boxes, discrete = isinstance(space, Box) and space.is_bounded(), isinstance(space, Discrete)
        fits = {"ppo": boxes or discrete, "a2c": boxes or discrete, "dqn": discrete, "sac": boxes}
        if not fits[self.algorithm]:
            others = ", ".join(name for name, fit in fits.items() if fit) or "another source"
            raise UserError(f"{self.algorithm} cannot choose actions in {space}: take {others}")
