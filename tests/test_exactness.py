"""The distance to the exact posterior: zero for an agent that is the posterior, and every count state counted once."""

import math

import numpy as np
import pytest

from envs import make_family
from icrl.evaluation import AgentFactory
from icrl.exactness import posterior_distance
from icrl.interfaces import Step, UserError

FAMILY = make_family("bernoulli_bandit", num_test_tasks=7)


class Exact:
    """The posterior as an agent with a fixed context."""

    def __init__(self, family, env):
        self.env, self.posterior = env, family.posterior(env)

    def load_context(self, window, running=False):
        self.posterior.reset(len(window.reward))
        for t in range(window.reward.shape[1]):
            self.posterior.update(Step(*(getattr(window, name)[:, t] for name in Step._fields)))

    def action_probs(self, observation):
        return self.posterior.optimal_action_probs(self.env)


class LastPull(Exact):
    """Believes in the arm pulled last: depends on nothing but the order."""

    def load_context(self, window, running=False):
        self.last = window.action[:, -1] if window.action.shape[1] else np.zeros(len(window.action), int)

    def action_probs(self, observation):
        return np.eye(2)[self.last]


def factory(agent) -> AgentFactory:
    return lambda family, env, streams, steps: agent(family, env)


def test_the_posterior_itself_has_distance_zero_over_all_count_states():
    distance = posterior_distance(FAMILY, factory(Exact), 6, seed=0)
    assert len(distance.pulls) == math.comb(6 + 4, 4)
    assert np.bincount(distance.pulls).tolist() == [math.comb(n + 3, 3) for n in range(7)]
    np.testing.assert_allclose(distance.to_posterior, 0, atol=1e-12)
    np.testing.assert_allclose(distance.between_orders, 0, atol=1e-12)


def test_an_agent_that_looks_at_the_order_is_found_out():
    distance = posterior_distance(FAMILY, factory(LastPull), 6, seed=0)
    assert distance.to_posterior.mean() > 0.2
    assert 0.2 < distance.between_orders.mean() < 0.6
    assert distance.between_orders[distance.pulls <= 1].max() == 0


def test_families_whose_contexts_cannot_be_listed_are_refused():
    with pytest.raises(UserError, match="cannot be listed"):
        posterior_distance(make_family("darkroom"), factory(Exact), 3, seed=0)
