"""The one loop: an agent in the lanes of a vector environment, as an endless generator.

Collection, evaluation and baselines are this loop with different agents; whoever consumes it decides when to stop and what to
record. The environment must reset ended lanes in the same step (``AutoresetMode.SAME_STEP``): a next-step autoreset would put
a phantom transition between two episodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import AutoresetMode

from icrl.interfaces import (
    Agent,
    Array,
    Decision,
    Observation,
    Step,
    TaskVectorEnv,
    UserError,
    map_observation,
    where_lanes,
)


class Turn(NamedTuple):
    """One step of every lane, with what the agent said about it."""

    step: Step
    decision: Decision
    optimal_action: Array | None  # (B,) optimal action at step.observation, where it was asked for


def rollout(agent: Agent, env: TaskVectorEnv, *, seed: int, record_optimal: bool = False) -> Iterator[Turn]:
    """Reset ``env`` with ``seed`` and ``agent`` for all lanes, then yield one ``Turn`` per step for ever.

    The agent has observed a step before it is yielded. Arrays of a turn are not overwritten by later turns as long as the
    environment returns fresh ones, as Gymnasium's do by default. Raises UserError for an environment with another autoreset
    mode, and, with ``record_optimal``, for one without an optimal policy.
    """
    mode = env.metadata.get("autoreset_mode")
    if mode != AutoresetMode.SAME_STEP:
        raise UserError(
            f"the environment declares autoreset mode {mode}, a rollout needs SAME_STEP: make it with that mode"
        )
    observation, info = env.reset(seed=seed)
    agent.reset(env.num_envs)
    while True:
        optimal_action = env.optimal_action() if record_optimal else None
        decision = agent.act(observation, info.get("action_mask"))
        first_observation, reward, terminated, truncated, info = env.step(decision.action)
        step = Step(
            observation=observation,
            action=decision.action,
            reward=np.asarray(reward, np.float32),
            terminated=terminated,
            truncated=truncated,
            next_observation=true_next_observation(first_observation, info),
        )
        agent.observe(step)
        yield Turn(step, decision, optimal_action)
        observation = first_observation


def true_next_observation(observation: Observation, info: dict[str, Any]) -> Observation:
    """What the actions led to, (B, ...): ``observation`` is already the next episode's first one where an episode ended.

    Native families give ``info["final_obs"]`` dense; Gymnasium's generic vector environments give an object array (B,) of single
    observations with None in the lanes that go on.
    """
    if "final_obs" not in info:
        return observation
    final, ended = info["final_obs"], info["_final_obs"]
    if isinstance(final, np.ndarray) and final.dtype == object:
        lanes = np.flatnonzero(ended)
        return _replace_lanes(observation, lanes, [final[lane] for lane in lanes])
    if ended.all():
        return final
    return where_lanes(ended, final, observation)


def _replace_lanes(observation: Observation, lanes: Array, singles: list[Any]) -> Observation:
    """A copy of ``observation`` (B, ...) in which lane ``lanes[k]`` shows ``singles[k]`` (...)."""
    if isinstance(observation, dict):
        return {key: _replace_lanes(observation[key], lanes, [s[key] for s in singles]) for key in observation}
    replaced = map_observation(np.copy, observation)
    replaced[lanes] = np.stack(singles)
    return replaced
