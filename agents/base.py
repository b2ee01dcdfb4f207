"""What source agents share: which lanes a reset means, and epsilon noise that remembers what was intended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from gymnasium.spaces import Box, Discrete

from icrl.interfaces import Array, Decision, Step, TaskVectorEnv, UserError
from icrl.seeding import LaneStreams


class Stateless:
    """The two calls of an agent that learns nothing."""

    def reset(self, lanes: int | Sequence[int] | Array) -> None:
        """Nothing to forget."""

    def observe(self, step: Step) -> None:
        """Nothing to learn."""


def lanes_of_reset(lanes: int | Sequence[int] | Array, num_lanes: int) -> slice | Array:
    """The index of the lanes that a reset means, in arrays with ``num_lanes`` rows.

    Raises UserError for another number of lanes than the agent was made for.
    """
    if isinstance(lanes, int | np.integer):
        if lanes != num_lanes:
            raise UserError(
                f"reset for {lanes} lanes, but this agent was made for {num_lanes}: make one for this environment"
            )
        return slice(None)
    return np.asarray(lanes, np.intp)


def num_actions(env: TaskVectorEnv, who: str) -> int:
    """Number of actions. Raises UserError, naming ``who``, where actions are not discrete or do not count from 0."""
    if not isinstance(env.single_action_space, Discrete):
        raise UserError(
            f"{who} needs discrete actions, this family has {env.single_action_space}: choose another source"
        )
    if env.single_action_space.start != 0:
        raise UserError(
            f"{who} needs actions that count from 0, this family's start at {env.single_action_space.start}: shift them in the family"
        )
    return int(env.single_action_space.n)


def bounded_box(env: TaskVectorEnv, who: str) -> Box:
    """The box of actions. Raises UserError, naming ``who``, where it is no bounded box of vectors."""
    space = env.single_action_space
    if not (isinstance(space, Box) and space.is_bounded() and len(space.shape) == 1):
        raise UserError(f"{who} needs discrete actions or a bounded box of vectors, this family has {space}")
    return space


def action_noise(env: TaskVectorEnv, who: str) -> Callable[..., Decision]:
    """``epsilon_noise`` or ``epsilon_noise_in_box`` for the actions of ``env``, as a function of (intended, epsilon, streams, action_mask).

    Raises UserError, naming ``who``, where actions are neither discrete nor in a bounded box.
    """
    if isinstance(env.single_action_space, Discrete):
        return partial(epsilon_noise, num_actions=num_actions(env, who))
    return partial(epsilon_noise_in_box, space=bounded_box(env, who))


def noise_with_favourite(env: TaskVectorEnv, who: str, twice: int) -> Callable[..., Decision]:
    """``action_noise`` that takes action number ``twice``, if it is at least 0, twice as often as each other one. Raises UserError where there is none."""
    noise = action_noise(env, who)
    if twice < 0:
        return noise
    if not isinstance(env.single_action_space, Discrete) or twice >= env.single_action_space.n:
        raise UserError(
            f"{who} was to take action {twice} twice as often, this family has {env.single_action_space}: name one of them"
        )
    return partial(noise, twice=twice)


def uniform_in_box(space: Box, streams: LaneStreams) -> Array:
    """(B, action_dim) one uniform action per lane."""
    draws = streams.uniform(len(space.low)).reshape(-1, len(space.low))
    return (space.low + (space.high - space.low) * draws).astype(space.dtype)


def check_probability(who: str, **values: float) -> None:
    """Raises UserError, naming ``who`` and the option, for a value outside [0, 1]."""
    for key, value in values.items():
        if not 0 <= value <= 1:
            raise UserError(f"{who}'s {key} is {value}: expected a probability, 0 to 1")


def epsilon_noise(
    intended: Array,  # (B,) int
    epsilon: float | Array,  # scalar or (B,)
    streams: LaneStreams,
    action_mask: Array | None = None,  # (B, A) bool
    *,
    num_actions: int,
    twice: int = -1,
) -> Decision:
    """With probability ``epsilon`` execute a uniform (allowed) action instead of the intended one; the action ``twice`` is twice as likely as each other.

    The log-probability is that of the executed action given the intended one: exact where the intention is a function of the history.
    """
    if twice >= 0:
        return _biased_noise(intended, epsilon, streams, action_mask, num_actions, twice)
    allowed = np.full(len(intended), num_actions) if action_mask is None else action_mask.sum(axis=1)
    epsilon = np.broadcast_to(np.asarray(epsilon, np.float64), intended.shape)
    draw = streams.uniform()
    noisy = draw < epsilon
    choice = (draw / np.where(noisy, epsilon, 1.0) * allowed).astype(np.int64)  # one draw decides both
    if action_mask is not None:
        choice = (np.cumsum(action_mask, axis=1) > choice[:, None]).argmax(axis=1)
    action = np.where(noisy, choice, intended)
    prob = epsilon / allowed + np.where(action == intended, 1.0 - epsilon, 0.0)
    return Decision(action, intended, np.log(prob).astype(np.float32))


def _biased_noise(
    intended: Array,
    epsilon: float | Array,
    streams: LaneStreams,
    action_mask: Array | None,
    num_actions: int,
    twice: int,
) -> Decision:
    probs = noise_probs(len(intended), num_actions, action_mask, twice) * np.reshape(epsilon, (-1, 1))
    rows = np.arange(len(intended))
    probs[rows, intended] += 1 - np.asarray(epsilon)
    action = streams.choice(probs)
    return Decision(action, intended, np.log(probs[rows, action]).astype(np.float32))


def noise_probs(num_lanes: int, num_actions: int, action_mask: Array | None, twice: int) -> Array:
    """(B, A) probabilities of the allowed actions under noise alone; ``twice``, if at least 0, is twice as likely as each other one."""
    weights = np.ones((num_lanes, num_actions)) if action_mask is None else action_mask.astype(float)
    if twice >= 0:
        weights[:, twice] *= 2
    return weights / weights.sum(1, keepdims=True)


def epsilon_noise_in_box(
    intended: Array,  # (B, action_dim)
    epsilon: float | Array,  # scalar or (B,)
    streams: LaneStreams,
    action_mask: None = None,  # boxes have none
    *,
    space: Box,
) -> Decision:
    """With probability ``epsilon`` execute a uniform action of the box instead of the intended one.

    There is no log-density: the intended action has a probability of its own, which no density can express.
    """
    noisy = streams.uniform() < epsilon
    action = np.where(noisy[:, None], uniform_in_box(space, streams), intended)
    return Decision(action, intended, None)
