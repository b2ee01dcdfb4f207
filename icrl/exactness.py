"""How far an agent's action probabilities are from the exact posterior over optimal actions, in every small context.

Trained to convergence a Decision-Pretrained Transformer outputs that posterior (Lee et al. 2023, theorem 1), so on a bandit with
rewards 0 and 1, whose contexts can be listed, the distance can be measured without sampling error: every count state (pulls and
successes of each arm) weighs the same, and its pulls come in random order. A second random order tells how much the order matters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from icrl.data.sampling import Window, returns_around
from icrl.evaluation import AgentFactory
from icrl.interfaces import Array, Family, Step, UserError
from icrl.seeding import LaneStreams, generator

STATES_AT_ONCE = 2048
"""Lanes per forward pass."""


@dataclass(frozen=True)
class PosteriorDistance:
    """Total variation, over N count states of equal weight."""

    max_pulls: int
    pulls: Array  # (N,) pulls in each state
    to_posterior: Array  # (N,) between the agent and the exact posterior
    between_orders: Array  # (N,) between the agent shown one order of the pulls and another


def posterior_distance(family: Family, factory: AgentFactory, max_pulls: int, seed: int) -> PosteriorDistance:
    """Compare the agent of ``factory`` with ``family``'s exact posterior in every count state of at most ``max_pulls`` pulls.

    Raises UserError for a family whose contexts cannot be listed.
    """
    count_states = getattr(family, "count_states", None)
    if count_states is None:
        raise UserError(
            f"the contexts of {family.spec.name} cannot be listed: posterior_pulls needs the family bernoulli_bandit"
        )
    rng = generator(seed, "posterior distance")
    pulls, to_posterior, between_orders = [], [], []
    for arm_pulls, successes in _batches(*count_states(max_pulls)):
        first, second = (_context(*_shuffled_pulls(arm_pulls, successes, rng)) for _ in range(2))
        probs = _agent_probs(family, factory, first, seed)
        to_posterior.append(_total_variation(probs, _exact_probs(family, first, seed)))
        between_orders.append(_total_variation(probs, _agent_probs(family, factory, second, seed)))
        pulls.append(arm_pulls.sum(1))
    return PosteriorDistance(max_pulls, *(np.concatenate(part) for part in (pulls, to_posterior, between_orders)))


def _batches(arm_pulls: Array, successes: Array) -> Iterator[tuple[Array, Array]]:
    """Count states (N, A) in batches of the same number of pulls."""
    totals = arm_pulls.sum(1)
    for total in np.unique(totals):
        index = np.flatnonzero(totals == total)
        for part in np.split(index, range(STATES_AT_ONCE, len(index), STATES_AT_ONCE)):
            yield arm_pulls[part], successes[part]


def _shuffled_pulls(arm_pulls: Array, successes: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Actions and rewards (n, P), in random order, that add up to the counts (n, A)."""
    num_states, num_arms = arm_pulls.shape
    kinds = np.stack([successes, arm_pulls - successes], 2).reshape(
        num_states, -1
    )  # (n, 2 A): arm 0 paid, arm 0 not, ...
    length = int(arm_pulls[0].sum())
    kind = np.repeat(np.tile(np.arange(2 * num_arms), num_states), kinds.ravel()).reshape(num_states, length)
    kind = rng.permuted(kind, axis=1)
    return kind // 2, (kind % 2 == 0).astype(np.float32)


def _context(action: Array, reward: Array) -> Window:
    """Pulls (n, P) as one unfinished episode of a bandit, whose only observation is [0]."""
    batch, length = action.shape
    observation = np.zeros((batch, length, 1), np.int16)
    nothing = np.zeros((batch, length), bool)
    steps = np.broadcast_to(np.arange(length), (batch, length))
    episode = np.zeros((batch, length), np.int16)
    earned, to_come = returns_around(reward, episode)
    lanes, none_of_training = np.arange(batch), np.full(batch, -1)
    return Window(
        observation=observation,
        action=action,
        reward=reward,
        terminated=nothing,
        truncated=nothing,
        next_observation=observation,
        target_action=None,
        optimal_action=None,
        behaviour_log_prob=None,
        plan=None,
        episode=episode,
        episode_step=steps,
        episode_return=earned,
        return_to_go=to_come,
        valid=~nothing,
        history=lanes,
        start=np.zeros(batch, np.int64),
        task=none_of_training,
        source=none_of_training,
        scattered=np.zeros(batch, bool),
    )


def _agent_probs(family: Family, factory: AgentFactory, context: Window, seed: int) -> Array:
    """(n, A) the agent's action probabilities on the context."""
    batch = len(context.reward)
    env = _some_env(family, batch)
    agent = factory(family, env, LaneStreams(seed, "posterior distance", lane_ids=batch), 1)
    agent.load_context(context, running=True)  # type: ignore[attr-defined]
    return agent.action_probs(np.zeros((batch, 1), np.int16))  # type: ignore[attr-defined]


def _exact_probs(family: Family, context: Window, seed: int) -> Array:
    """(n, A) the exact posterior probability that each arm is the best one."""
    env = _some_env(family, len(context.reward))
    posterior = family.posterior(env)
    posterior.reset(len(context.reward))
    for t in range(context.reward.shape[1]):
        columns = (getattr(context, name)[:, t] for name in Step._fields)
        posterior.update(Step(*columns))
    return posterior.optimal_action_probs(env)


def _some_env(family: Family, num_lanes: int):
    tasks = family.split().test
    return family.make_vec(tasks[np.arange(num_lanes) % len(tasks)])


def _total_variation(p: Array, q: Array) -> Array:
    """(n, A) and (n, A) -> (n,)."""
    return 0.5 * np.abs(p - q).sum(1)
