"""Learning histories of Stable-Baselines3 (Raffin et al. 2021): a recorder for a training run of your own, and what the source ``sb3`` trains.

    model = PPO("MlpPolicy", VecNormalize(DummyVecEnv([make_env] * 4)))
    recorder = HistoryRecorder(FamilySpec("mine", observation_space, action_space, horizon), num_lanes=4)
    model.learn(100_000, callback=RecorderCallback(model, recorder.add_turn))

What is kept is what the environment saw and gave: the action after clipping, the reward before normalisation and before the library
adds the value of a truncated episode's last state to it *in place*, the true last observation. So the recorder sits directly on the
environment, below every wrapper of the library, and what the policy knew (its log-probability) joins it from the callback.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from gymnasium.vector.utils import batch_space
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from icrl.data.schema import flatten
from icrl.interfaces import (
    Array,
    Decision,
    Observation,
    Step,
    TaskVectorEnv,
    UserError,
    map_observation,
)
from icrl.rollout import Turn, true_next_observation

if TYPE_CHECKING:
    from agents.sb3_source import SB3

# --- beneath the library: environments that remember what truly happened --------------------------------------------


class LaneVecEnv(VecEnv):
    """The lanes of a family's vector environment as the library wants them. ``last`` is the last step of all lanes, untouched."""

    def __init__(self, env: TaskVectorEnv, seed: int, record_optimal: bool = False):
        self._env, self._seed, self._record_optimal = env, seed, record_optimal
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Any:
        self._observation, _ = self._env.reset(seed=self._seed)
        return self._observation

    def step_async(self, actions: Array) -> None:
        self._actions = np.array(actions)

    def step_wait(self) -> Any:
        self.optimal_action = self._env.optimal_action() if self._record_optimal else None
        first, reward, terminated, truncated, info = self._env.step(self._actions)
        following = true_next_observation(first, info)
        reward = np.asarray(reward, np.float32)
        self.last = Step(self._observation, self._actions, reward, terminated, truncated, following)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for lane in np.flatnonzero(self.last.ended).tolist():
            cut = bool(truncated[lane] and not terminated[lane])
            infos[lane] = {
                "terminal_observation": map_observation(lambda array, lane=lane: array[lane], following),
                "TimeLimit.truncated": cut,
            }
        self._observation = first
        return first, reward.copy(), self.last.ended, infos

    def close(self) -> None:
        self._env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Lanes have no attributes of their own; the library asks for the render mode."""
        if attr_name != "render_mode":
            raise AttributeError(attr_name)
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise AttributeError(attr_name)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        raise AttributeError(method_name)

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


class _Tap(VecEnvWrapper):
    """The same memory, ``last``, directly on a vector environment of somebody else's."""

    optimal_action = None

    def reset(self) -> Any:
        observation = self.venv.reset()
        self._observation = map_observation(np.array, observation)
        return observation

    def step_async(self, actions: Array) -> None:
        self._actions = np.array(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        observation, rewards, ended, infos = self.venv.step_wait()
        cut = np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos]) & ended
        first, following = (map_observation(np.array, observation) for _ in range(2))
        for lane in np.flatnonzero(ended):
            last = flatten("", infos[lane]["terminal_observation"])
            for key, values in flatten("", following).items():
                values[lane] = last[key]
        self.last = Step(self._observation, self._actions, np.array(rewards, np.float32), ended & ~cut, cut, following)
        self._observation = first
        return observation, rewards, ended, infos


def _recorded_env(model: BaseAlgorithm) -> LaneVecEnv | _Tap:
    """The environment at the bottom of a model's wrappers, made to remember what happened."""
    parent, env = None, model.env
    if env is None:
        raise UserError("the model has no environment: give it one before its run is recorded")
    while isinstance(env, VecEnvWrapper) and not isinstance(env, _Tap):
        parent, env = env, env.venv
    if isinstance(env, LaneVecEnv | _Tap):
        return env
    if any(env.env_is_wrapped(gym.wrappers.NormalizeReward)):
        raise UserError(
            "the environment normalises its rewards itself, so the true ones cannot be seen: take NormalizeReward off and put "
            "VecNormalize around the vector environment"
        )
    tap = _Tap(env)
    if parent is None:
        model.env = tap
    else:
        parent.venv = tap
    model._last_obs = None  # a run that has begun starts a new episode, whose first observation is then seen
    return tap


# --- what the policy knew ---------------------------------------------------------------------------------------------


class RecorderCallback(BaseCallback):
    """Hands every step of a training run of ``model`` to ``keep``, as a turn of all its environments; stops the run where that answers False.

    Make it after the model and before ``learn``; in a list of callbacks put it first. PPO, A2C (and others with a rollout buffer), DQN and SAC
    give log-probabilities, DQN also the greedy action that it meant before noise; the rest is recorded without. Raises UserError
    where an environment normalises rewards inside itself.
    """

    def __init__(self, model: BaseAlgorithm, keep: Callable[[Turn], object]):
        super().__init__()
        self._recorded_model, self._keep = model, keep
        self._env = _recorded_env(model)
        theirs, ours = model.action_space, self._env.action_space
        self._first_action = int(ours.start - theirs.start) if _both(Discrete, ours, theirs) else 0  # type: ignore[attr-defined]
        self._widths = np.ones(1)
        if _both(Box, ours, theirs):
            self._widths = (ours.high - ours.low).astype(np.float64)  # type: ignore[attr-defined]
            self._scale = self._widths / (theirs.high - theirs.low)  # type: ignore[attr-defined]

    def _init_callback(self) -> None:
        if self.model is not self._recorded_model:
            raise UserError("the recorder was made for another model: make one for the model that learns")

    def _on_step(self) -> bool:
        target, log_prob = self._knowledge()
        turn = Turn(self._env.last, Decision(self._env.last.action, target, log_prob), self._env.optimal_action)
        return self._keep(turn) is not False

    def _knowledge(self) -> tuple[Array | None, Array | None]:
        """What was meant before noise, and the log-probability or log-density (per unit of the environment's actions), (B,)."""
        model, now = self.model, self.locals
        if "log_probs" in now:  # of the sample before it was clipped
            log_prob = now["log_probs"].cpu().numpy().astype(np.float64)
            if isinstance(model.action_space, Box):
                squashed = getattr(model.policy, "squash_output", False)
                log_prob -= np.log(self._widths / 2 if squashed else self._scale).sum()
            return None, log_prob.astype(np.float32)
        warming_up = model.num_timesteps - model.n_envs < getattr(model, "learning_starts", 0)
        if isinstance(model, DQN):
            greedy = model.policy.predict(model._last_obs, deterministic=True)[0]  # type: ignore[arg-type]
            epsilon, choices = 1.0 if warming_up else model.exploration_rate, int(model.action_space.n)  # type: ignore[attr-defined]
            prob = epsilon / choices + (1 - epsilon) * (now["actions"] == greedy)
            return greedy + self._first_action, np.log(np.maximum(prob, 1e-30)).astype(np.float32)
        if isinstance(model, SAC) and model.action_noise is None and not model.use_sde:
            if warming_up:
                return None, np.full(model.n_envs, -np.log(self._widths).sum(), np.float32)
            return None, (_log_density(model) - np.log(self._widths / 2).sum()).astype(np.float32)
        return None, None


def _both(kind: type, *spaces: gym.Space) -> bool:
    return all(isinstance(space, kind) for space in spaces)


def _log_density(model: SAC) -> Array:
    """(B,) of the actions just sampled, on [-1, 1]: exact where tanh saturates, too."""
    distribution = model.actor.action_dist
    sample = distribution.gaussian_actions  # type: ignore[union-attr]
    assert sample is not None
    slope = 2 * (math.log(2) - sample - torch.nn.functional.softplus(-2 * sample))  # log of the derivative of tanh
    with torch.no_grad():
        return (distribution.distribution.log_prob(sample) - slope).sum(1).double().cpu().numpy()


# --- what the learner sees --------------------------------------------------------------------------------------------


def encode(space: gym.Space, observation: Observation, joint: bool = False) -> Array:
    """(B, n) float32 out of a batch of observations of ``space``: indices one-hot, bounded boxes on [-1, 1], keys side by side.

    ``joint``: one indicator for every combination of an index vector's entries (every cell of a grid) instead of one per entry.
    """
    if isinstance(space, gym.spaces.Dict):
        return np.concatenate([encode(part, observation[key], joint) for key, part in space.spaces.items()], axis=1)
    if isinstance(space, Discrete):
        return _one_hot(np.asarray(observation, np.int64) - int(space.start), int(space.n))
    flat = np.asarray(observation).reshape(len(observation), -1)  # (B, n)
    if isinstance(space, MultiDiscrete):
        sizes: list[int] = space.nvec.reshape(-1).tolist()
        index = flat.astype(np.int64) - space.start.reshape(-1)  # (B, n)
        if joint:
            index, sizes = np.array(np.ravel_multi_index(tuple(index.T), tuple(sizes)))[:, None], [int(np.prod(sizes))]
        return np.concatenate([_one_hot(index[:, i], size) for i, size in enumerate(sizes)], axis=1)
    if isinstance(space, MultiBinary):
        return flat.astype(np.float32)
    assert isinstance(space, Box), "the store knows no other space"
    if not space.is_bounded():
        return flat.astype(np.float32)
    low, high = (bound.reshape(-1).astype(np.float64) for bound in (space.low, space.high))
    return (2 * (flat - low) / np.maximum(high - low, 1e-12) - 1).astype(np.float32)


def _one_hot(index: Array, size: int) -> Array:
    """(B,) int -> (B, size) float32."""
    indicators = np.zeros((len(index), size), np.float32)
    indicators[np.arange(len(index)), index] = 1
    return indicators


class Prepared(VecEnvWrapper):
    """Flat observations for a multi-layer perceptron, actions that count from 0 or lie on [-1, 1], over a family's own spaces."""

    def __init__(self, venv: LaneVecEnv, joint: bool, show_paid: bool):
        self._joint, self._show_paid = joint, show_paid
        self._paid = np.zeros(venv.num_envs, bool)  # (B,) this episode has had a reward other than 0
        sample = batch_space(venv.observation_space, venv.num_envs).sample()
        width = self._encoded(venv.observation_space, sample, self._paid).shape[1]
        inner = venv.action_space
        if isinstance(inner, Discrete):
            action_space: gym.Space = Discrete(int(inner.n))
        else:
            action_space = Box(-1, 1, inner.shape, np.float32)
        super().__init__(venv, Box(-np.inf, np.inf, (width,), np.float32), action_space)

    def _encoded(self, space: gym.Space, observation: Observation, paid: Array) -> Array:
        encoded = encode(space, observation, self._joint)
        return np.column_stack([encoded, paid.astype(np.float32)]) if self._show_paid else encoded

    def reset(self) -> Array:
        self._paid[:] = False
        return self._encoded(self.venv.observation_space, self.venv.reset(), self._paid)

    def step_async(self, actions: Array) -> None:
        inner = self.venv.action_space
        if isinstance(inner, Discrete):
            self.venv.step_async(actions + int(inner.start))
        else:
            assert isinstance(inner, Box)
            scaled = inner.low + (np.clip(actions, -1, 1) + 1) / 2 * (inner.high - inner.low)
            self.venv.step_async(np.clip(scaled, inner.low, inner.high).astype(inner.dtype))

    def step_wait(self) -> Any:
        first, reward, ended, infos = self.venv.step_wait()
        space = self.venv.observation_space
        self._paid |= reward != 0
        for lane in np.flatnonzero(ended):
            last = map_observation(lambda array: np.asarray(array)[None], infos[lane]["terminal_observation"])
            infos[lane]["terminal_observation"] = self._encoded(space, last, self._paid[lane : lane + 1])[0]
        self._paid = self._paid & ~ended
        return self._encoded(space, first, self._paid), reward, ended, infos


# --- training ---------------------------------------------------------------------------------------------------------

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"ppo": PPO, "a2c": A2C, "dqn": DQN, "sac": SAC}
_ENTROPY_FALL = 0.6
"""Part of a history over which the entropy bonus of PPO and A2C falls to 0."""


def train(options: SB3, lane: LaneVecEnv, seed: int, num_steps: int, keep: Callable[[Turn], object]) -> BaseAlgorithm:
    """Train a fresh learner for ``num_steps`` steps, or until ``keep`` answers False; return it.

    It depends on the arguments alone, and leaves the global random state and number of threads as they were.
    """
    with apart():
        model = _make_model(options, lane, seed)
        model.set_logger(Logger(folder=None, output_formats=[]))
        entropy = _Entropy(options.arguments.get("ent_coef"), num_steps)
        model.learn(num_steps, callback=[RecorderCallback(model, keep), entropy], log_interval=None)  # type: ignore[arg-type]
    return model


def _make_model(options: SB3, lane: LaneVecEnv, seed: int) -> BaseAlgorithm:
    env: VecEnv = Prepared(lane, options.observation == "cells", options.show_paid)
    normalise = options.observation == "normalised"
    if normalise or options.normalise_reward:
        env = VecNormalize(env, norm_obs=normalise, norm_reward=options.normalise_reward, gamma=options.discount)
    arguments = options.arguments
    rate = arguments.pop("learning_rate")
    return ALGORITHMS[options.algorithm](
        "MlpPolicy",
        env,
        learning_rate=lambda left: rate * (0.1 + 0.9 * left),
        gamma=options.discount,  # type: ignore[call-arg]
        policy_kwargs={"net_arch": [options.net_width] * 2},
        seed=seed,
        device="cpu",
        **arguments,
    )


class _Entropy(BaseCallback):
    """The entropy bonus of PPO and A2C falls linearly to 0."""

    def __init__(self, start: float | None, num_steps: int):
        super().__init__()
        self._fall, self._start = _ENTROPY_FALL * num_steps, start

    def _on_rollout_end(self) -> None:
        if self._start is not None:
            self.model.ent_coef = self._start * max(0.0, 1 - self.num_timesteps / self._fall)  # type: ignore[attr-defined]

    def _on_step(self) -> bool:
        return True


@contextmanager
def apart(num_threads: int = 1) -> Iterator[None]:
    """The library draws from the global generators of torch, numpy and Python: they and the number of threads are put back afterwards."""
    threads, states = torch.get_num_threads(), (torch.get_rng_state(), np.random.get_state(), random.getstate())
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
