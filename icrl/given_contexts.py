"""Contexts for offline evaluation: the same P transitions of each lane's task, given to every compared agent.

``random`` (DPT's protocol): uniform actions in uniformly drawn states. ``expert``: the optimal policy from the family's start
states. The agents that leave them are handed in by the caller.
"""

from __future__ import annotations

from itertools import islice

import numpy as np

from icrl.data.sampling import Window, returns_around
from icrl.interfaces import Agent, Array, Observation, TaskVectorEnv, map_observation
from icrl.rollout import Turn, rollout


def record_context(agent: Agent, env: TaskVectorEnv, size: int, *, seed: int) -> Window:
    """``size`` transitions of every lane of ``env``, as a window (B, P) without labels; closes ``env``."""
    turns = list(islice(rollout(agent, env, seed=seed), size))
    env.close()
    return _window(turns)


def _window(turns: list[Turn]) -> Window:
    steps = [turn.step for turn in turns]
    ended = np.stack([step.ended for step in steps], 1)  # (B, P)
    episode = np.cumsum(ended, 1) - ended  # (B, P) an episode's last step still belongs to it
    starts = np.concatenate([np.ones_like(ended[:, :1]), ended[:, :-1]], 1)
    index = np.broadcast_to(np.arange(ended.shape[1]), ended.shape)
    episode_step = index - np.maximum.accumulate(np.where(starts, index, 0), 1)
    reward = _stack([step.reward for step in steps]).astype(np.float32)
    earned, to_come = returns_around(reward, episode)
    none_of_training = np.full(len(ended), -1)
    return Window(
        observation=_stack([step.observation for step in steps]),
        action=_stack([step.action for step in steps]),
        reward=reward,
        terminated=_stack([step.terminated for step in steps]),
        truncated=_stack([step.truncated for step in steps]),
        next_observation=_stack([step.next_observation for step in steps]),
        target_action=None,
        optimal_action=None,
        behaviour_log_prob=None,
        plan=None,
        episode=episode.astype(np.int16),
        episode_step=episode_step,
        episode_return=earned,
        return_to_go=to_come,
        valid=np.ones(ended.shape, bool),
        history=np.arange(len(ended)),
        start=np.zeros(len(ended), np.int64),
        task=none_of_training,
        source=none_of_training,
        scattered=np.zeros(len(ended), bool),  # a given context keeps its order
    )


def _stack(columns: list[Observation]) -> Observation:
    """P times (B, ...) -> (B, P, ...)."""

    def stack(*arrays: Array) -> Array:
        return np.stack(arrays, 1)

    return map_observation(stack, *columns)
