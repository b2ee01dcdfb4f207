"""Bandits: closed forms of the belief, shared noise, and regrets that are ordered as theory says."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from scipy import stats

from agents import make_source
from envs.bandit import BernoulliBandit, GaussianBandit
from envs.bandit_posterior import BernoulliPosterior, GaussianPosterior
from icrl.interfaces import Step, UserError
from icrl.rollout import rollout
from icrl.seeding import LaneStreams


def pull(posterior, arms, rewards):
    """Feed one pull per lane."""
    empty = np.zeros((len(arms), 1))
    none = np.zeros(len(arms), bool)
    posterior.update(Step(empty, np.asarray(arms), np.asarray(rewards, np.float32), none, none, empty))


def bernoulli_prob_best(successes_failures):
    """(N, 4) successes and failures of both arms -> (N,) P(arm 1 best), the counts fed pull by pull, all lanes at once."""
    posterior = BernoulliPosterior(len(successes_failures), 2)
    posterior.pulls[:, 0] = successes_failures[:, 0] + successes_failures[:, 1]
    posterior.pulls[:, 1] = successes_failures[:, 2] + successes_failures[:, 3]
    posterior.reward_sum[:] = successes_failures[:, [0, 2]]
    return posterior.optimal_action_probs(BernoulliBandit().make_vec(BernoulliBandit().split().test[:1]))[:, 0]


def test_table_of_the_two_armed_bernoulli_bandit():
    table = {
        (1, 0, 0, 0): 0.6667,
        (1, 0, 0, 1): 0.8333,
        (2, 1, 1, 2): 0.7571,
        (3, 0, 2, 1): 0.7857,
        (6, 4, 4, 6): 0.8026,
        (15, 5, 10, 10): 0.9446,
        (30, 20, 25, 25): 0.8401,
    }
    np.testing.assert_allclose(bernoulli_prob_best(np.array(list(table))), list(table.values()), atol=5e-5)


def test_bernoulli_update_counts_successes():
    posterior = BernoulliPosterior(2, 2)
    pull(posterior, [0, 1], [1, 0])
    pull(posterior, [0, 1], [0, 1])
    np.testing.assert_array_equal(posterior.pulls, [[2, 0], [0, 2]])
    np.testing.assert_array_equal(posterior.reward_sum, [[1, 0], [0, 1]])
    posterior.reset([0])
    assert posterior.pulls[0].sum() == 0 and posterior.pulls[1].sum() == 2


@pytest.mark.parametrize("rewards", [[0.4], [0.9, 1.2, 1.1], [-0.3, -0.1], [0.52] * 30, [-0.9], [1.9]])
def test_gaussian_belief_equals_a_grid(rewards):
    """Density on a fine grid by Bayes' rule, against sampled quantiles and P(best) of one pulled and one untouched arm."""
    noise, grid = 0.3, (np.arange(200_000) + 0.5) / 200_000
    log_density = sum(stats.norm.logpdf(reward, grid, noise) for reward in rewards)
    density = np.exp(log_density - np.max(log_density))
    cdf = np.cumsum(density) / density.sum()
    num_lanes = 4000
    posterior = GaussianPosterior(num_lanes, 2, noise)
    for reward in rewards:
        pull(posterior, np.zeros(num_lanes, int), np.full(num_lanes, reward))
    means = posterior.sample(LaneStreams(0, "s", lane_ids=num_lanes), np.arange(num_lanes))["means"]
    assert stats.kstest(means[:, 0], lambda x: np.interp(x, grid, cdf)).pvalue > 1e-4
    assert stats.kstest(means[:, 1], "uniform").pvalue > 1e-4
    probs = posterior.optimal_action_probs(GaussianBandit().make_vec(GaussianBandit().split().test[:1]))[0]
    np.testing.assert_allclose(probs, [(grid * density).sum() / density.sum()] * np.array([1, -1]) + [0, 1], atol=1e-4)


def test_thompson_samples_the_best_arm_as_often_as_it_is_best():
    lanes = 5000
    for posterior in (GaussianPosterior(lanes, 3, 0.5), BernoulliPosterior(lanes, 3)):
        for arm, reward in ((0, 1), (0, 0), (1, 1), (2, 0), (1, 0), (1, 1)):
            pull(posterior, np.full(lanes, arm), np.full(lanes, reward))
        means = posterior.sample(LaneStreams(1, "s", lane_ids=lanes), np.arange(lanes))["means"]
        frequency = np.bincount(means.argmax(axis=1), minlength=3) / lanes
        env = BernoulliBandit(num_arms=3).make_vec(BernoulliBandit(num_arms=3).split().test[:1])
        np.testing.assert_allclose(frequency, posterior.optimal_action_probs(env)[0], atol=0.035)


def test_without_noise_one_pull_tells_the_mean():
    posterior = GaussianPosterior(1, 2, noise=0.0)
    pull(posterior, [0], [0.7])
    tasks = posterior.sample(LaneStreams(0, "s", lane_ids=1), np.arange(1))
    assert tasks["means"][0, 0] == pytest.approx(0.7, abs=1e-4)
    env = GaussianBandit().make_vec(GaussianBandit().split().test[:1])
    np.testing.assert_allclose(posterior.optimal_action_probs(env), [[0.7, 0.3]], atol=5e-3)


def test_bandit_beliefs_never_exclude_and_have_no_list():
    posterior = BernoulliPosterior(2, 2)
    pull(posterior, [0, 0], [1, 1])
    assert not posterior.refuted(np.zeros(2)).any()
    for listing in (posterior.plausible, posterior.candidates):
        with pytest.raises(UserError, match="thompson"):
            listing()


@pytest.mark.parametrize("family", [GaussianBandit(), BernoulliBandit(num_arms=5)])
def test_noise_depends_on_lane_and_pull_only(family):
    """Two agents pull different arms of equal means: they get equal rewards."""
    tasks = family.split().test[:50].copy()
    tasks["means"] = tasks["means"][:, :1]
    rewards = []
    for actions in (np.zeros(50, int), np.arange(50) % 5):
        env = family.make_vec(tasks)
        env.reset(seed=9)
        rewards.append(np.stack([env.step((actions + t) % 5)[1] for t in range(20)]))
    np.testing.assert_array_equal(*rewards)
    assert rewards[0].std() > 0.1


def test_moments_of_rewards():
    family = GaussianBandit(noise=0.3)
    env = family.make_vec(np.repeat(family.split().test[:1], 5000))
    env.reset(seed=0)
    rewards = np.stack([env.step(np.full(5000, 2))[1] for _ in range(4)])
    assert rewards.mean() == pytest.approx(family.split().test["means"][0, 2], abs=0.01)
    assert rewards.std() == pytest.approx(0.3, abs=0.01)
    assert abs(np.corrcoef(rewards[0], rewards[1])[0, 1]) < 0.06


def regret(family, source, tasks, num_steps=200, **options):
    """Mean expected regret of a source after ``num_steps`` pulls."""
    env = family.make_vec(tasks)
    agent = make_source(source, **options).make(family, env, LaneStreams(0, "s", lane_ids=len(tasks)), num_steps)
    means, lanes, total = tasks["means"], np.arange(len(tasks)), np.zeros(len(tasks))
    for turn in islice(rollout(agent, env, seed=1), num_steps):
        total += means.max(axis=1) - means[lanes, turn.step.action]
    return total.mean()


@pytest.mark.parametrize("family", [GaussianBandit(), BernoulliBandit(num_arms=3)])
def test_thompson_and_ucb_learn(family):
    tasks = family.split().test[:150]
    random, mean = regret(family, "uniform", tasks), regret(family, "empirical_mean", tasks)
    thompson, ucb = regret(family, "thompson", tasks), regret(family, "ucb", tasks, confidence=0.3)
    assert regret(family, "optimal", tasks) == 0
    assert max(thompson, ucb) < mean < random
    assert thompson < 0.2 * random


def test_thompson_is_posterior_sampling_and_a_hold_of_one_pull():
    family = GaussianBandit()
    tasks = family.split().test[:100]
    assert regret(family, "sample_and_hold", tasks, hold=1) == regret(family, "thompson", tasks)
    assert regret(family, "posterior_sampling", tasks[:20], num_steps=30, greedy=True) > 0


def test_ucb_index_by_hand():
    """After arm 0 paid 1 and arm 1 paid 0.2, the bonus decides: large confidence prefers neither, then the less pulled one."""
    family = GaussianBandit(num_arms=2)
    env = family.make_vec(family.split().test[:1])
    for confidence, expected in ((0.1, 0), (5.0, 1)):
        agent = make_source("ucb", confidence=confidence).make(family, env, LaneStreams(0, lane_ids=1), 10)
        agent.reset(1)
        empty, none = np.zeros((1, 1)), np.zeros(1, bool)
        for arm, reward in ((0, 1.0), (1, 0.2), (0, 1.0)):
            agent.observe(Step(empty, np.array([arm]), np.array([reward], np.float32), none, none, empty))
        assert agent.act(empty).action[0] == expected
