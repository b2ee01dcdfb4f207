"""Controls of an evaluation: the same agent with its rewards hidden, or with a context that is given and fixed.

systems.md, "Evaluation protocol": hidden rewards are 0 where 0 is what an agent mostly sees anyway (grids), otherwise the
reward stream of an independent task, because a constant 0 would there be evidence of its own (a bandit whose arms all fail).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import gymnasium as gym
import numpy as np

from icrl.interfaces import (
    Agent,
    Array,
    Decision,
    Family,
    Observation,
    Step,
    Tasks,
    TaskVectorEnv,
    UserError,
    map_observation,
)
from icrl.seeding import LaneStreams, derive_seed

if TYPE_CHECKING:
    from icrl.data.sampling import Window

HideMode = Literal["zeros", "other_task"]
ZERO_SHARE = 0.75
"""Zeros hide the rewards where uniform actions earn exactly 0 at more than this share of steps.

Not one half: Bernoulli bandits with uniform means sit exactly there."""


def choose_hide_mode(zero_share: float, num_tasks: int) -> HideMode:
    """How to hide the rewards; ``zero_share`` is the share of exact zeros that uniform actions earn."""
    return "zeros" if zero_share > ZERO_SHARE or num_tasks < 2 else "other_task"


def hide_note(mode: HideMode, zero_share: float) -> str:
    """The row's words about how its rewards were hidden."""
    how = "each reward replaced by 0" if mode == "zeros" else "rewards replaced by those of a lane with another task"
    return f"{how} (uniform actions earn 0 at {zero_share:.0%} of steps)"


def donor_lanes(lane_task: Array) -> Array:
    """(B,) for each lane the next lane that plays another task. Raises UserError if all lanes play the same."""
    if len(np.unique(lane_task)) < 2:
        raise UserError(
            "rewards of another task: all lanes play one task; evaluate at least two tasks or hide by zeros"
        )
    num_lanes = len(lane_task)
    donors = np.arange(num_lanes)
    for shift in range(1, num_lanes):
        same = lane_task[donors] == lane_task
        if not same.any():
            break
        donors = np.where(same, (np.arange(num_lanes) + shift) % num_lanes, donors)
    return donors


def hidden_rewards(reward: Array, mode: HideMode, donors: Array | None) -> Array:
    """What is shown instead of ``reward`` (B, ...), same shape and type; ``donors`` (B,) for mode ``other_task``."""
    if mode == "zeros":
        return np.zeros_like(reward)
    assert donors is not None, "mode other_task needs the donor of each lane"
    return reward[donors]


def zero_reward_share(family: Family, tasks: Tasks, root_seed: int, lanes: int = 64) -> float:
    """Share of exact zeros among the rewards of one episode of uniform actions, in ``lanes`` lanes over the tasks."""
    env = family.make_vec(tasks[np.arange(lanes) % len(tasks)])
    streams = LaneStreams(root_seed, "evaluation", "zero rewards", lane_ids=lanes)
    _, info = env.reset(seed=derive_seed(root_seed, "evaluation", "zero rewards"))
    zeros = 0.0
    for _ in range(family.spec.horizon):
        _, reward, _, _, info = env.step(_uniform_action(env, streams, info.get("action_mask")))
        zeros += float(np.mean(reward == 0))
    env.close()
    return zeros / family.spec.horizon


def _uniform_action(env: TaskVectorEnv, streams: LaneStreams, mask: Array | None) -> Array:
    """(B,) or (B, action_dim), uniform over what is allowed."""
    space = env.single_action_space
    if isinstance(space, gym.spaces.Discrete):
        weights = np.ones((env.num_envs, int(space.n))) if mask is None else mask.astype(float)
        return int(space.start) + streams.choice(weights)
    assert isinstance(space, gym.spaces.Box), "action spaces are Discrete or Box"
    shares = streams.uniform(num=int(np.prod(space.shape))).reshape(env.num_envs, *space.shape)
    return (space.low + shares * (space.high - space.low)).astype(space.dtype)


class HiddenRewards:
    """An agent that never sees its own rewards."""

    def __init__(self, agent: Agent, mode: HideMode, lane_task: Array):
        self._agent = agent
        self._mode: HideMode = mode
        self._donors = donor_lanes(lane_task) if mode == "other_task" else None

    def reset(self, lanes: int | Sequence[int] | Array) -> None:
        self._agent.reset(lanes)

    def act(self, observation: Observation, action_mask: Array | None = None) -> Decision:
        return self._agent.act(observation, action_mask)

    def observe(self, step: Step) -> None:
        self._agent.observe(step._replace(reward=hidden_rewards(step.reward, self._mode, self._donors)))


class FixedContext:
    """An agent whose context is a given window (B, P) that what it lives through does not extend.

    Agents with ``load_context(window)`` take the window whole, and themselves keep what they observe later out of it. The
    others (exact posteriors) observe its transitions one by one and nothing afterwards: such an agent must choose anew at each ``act``.
    """

    def __init__(self, agent: Any, context: Window):
        self._agent = agent
        self._context = context
        self._loads = hasattr(agent, "load_context")

    def reset(self, lanes: int | Sequence[int] | Array) -> None:
        """Only all lanes at once: a fixed context belongs to one task per lane. Raises UserError otherwise."""
        if not isinstance(lanes, (int, np.integer)):
            raise UserError("a fixed context cannot be forgotten in some lanes only: reset all lanes by their number")
        self._agent.reset(int(lanes))
        if self._loads:
            self._agent.load_context(self._context)
            return
        for column in range(self._context.reward.shape[1]):
            step = _column(self._context, column)
            self._agent.act(
                step.observation
            )  # agents may rely on having chosen before they observe; the choice is dropped
            self._agent.observe(step)

    def act(self, observation: Observation, action_mask: Array | None = None) -> Decision:
        return self._agent.act(observation, action_mask)

    def observe(self, step: Step) -> None:
        """Passed on only to agents that tell the running episode from the fixed context."""
        if self._loads:
            self._agent.observe(step)


def _column(window: Window, t: int) -> Step:
    """Transition t of every lane of a window without padding."""

    def take(array: Array) -> Array:
        return array[:, t]

    return Step(
        map_observation(take, window.observation),
        take(window.action),
        take(window.reward),
        take(window.terminated),
        take(window.truncated),
        map_observation(take, window.next_observation),
    )
