"""Bandits with structure: exact beliefs against integrals and counting, what the structure is worth, splits that turn it round."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from scipy import stats

from agents import make_source
from agents.bandits import LinUCB
from envs import make_family
from envs.bandit import BernoulliBandit, GaussianBandit
from envs.linear_bandit import LinearBandit
from envs.odd_even_bandit import OddEvenBandit
from icrl.interfaces import Step, UserError
from icrl.rollout import rollout
from icrl.seeding import LaneStreams, generator


def pull(learner, arms, rewards):
    """Show one pull per lane to a belief or an agent."""
    empty, none = np.zeros((len(arms), 1)), np.zeros(len(arms), bool)
    see = learner.update if hasattr(learner, "update") else learner.observe
    see(Step(empty, np.asarray(arms), np.asarray(rewards, np.float32), none, none, empty))


def regret(family, source, tasks, num_steps, **options):
    """Mean expected regret of a source after ``num_steps`` pulls."""
    env = family.make_vec(tasks)
    built = source(**options) if isinstance(source, type) else make_source(source, **options)
    agent = built.make(family, env, LaneStreams(0, "s", lane_ids=len(tasks)), num_steps)
    gaps, lanes, total = tasks["means"].max(axis=1)[:, None] - tasks["means"], np.arange(len(tasks)), 0.0
    for turn in islice(rollout(agent, env, seed=1), num_steps):
        total += gaps[lanes, turn.step.action].mean()
    return total


# linear


def test_means_are_linear_in_features_that_all_tasks_share():
    family = LinearBandit(num_train_tasks=3000, num_test_tasks=50)
    train, _, test = family.split()
    theta = train["means"] @ np.linalg.pinv(family.features).T  # (N, d)
    np.testing.assert_allclose(theta @ family.features.T, train["means"], atol=1e-12)
    np.testing.assert_allclose(np.cov(theta.T), np.eye(2) / 2, atol=0.05)
    np.testing.assert_array_equal(family.features, LinearBandit(task_seed=5).features)
    assert (family.features != LinearBandit(feature_seed=1).features).all()
    family.make_vec(test)
    bent = test.copy()
    bent["means"][0, 3] += 0.1
    with pytest.raises(UserError, match="not linear"):
        family.make_vec(bent)
    with pytest.raises(UserError, match="not linear"):
        family.make_vec(make_family("gaussian_bandit", num_arms=10).split().test[:1])


@pytest.mark.parametrize("pulls", [[], [(0, 0.4)], [(2, 1.0), (2, 0.7), (5, -0.4), (9, 0.1)]])
def test_belief_over_theta_equals_a_grid(pulls):
    """Bayes' rule on a grid over theta: mean, and the probability that each arm is the best."""
    family, lanes = LinearBandit(), 4000
    env = family.make_vec(family.split().test[:1])
    axis = (np.arange(601) - 300) / 75
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    log_density = stats.norm.logpdf(grid, 0, np.sqrt(0.5)).sum(axis=1)
    posterior = family.posterior(family.make_vec(np.repeat(family.split().test[:1], lanes)))
    for arm, reward in pulls:
        log_density += stats.norm.logpdf(reward, grid @ family.features[arm], family.noise)
        pull(posterior, np.full(lanes, arm), np.full(lanes, reward))
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    expected = np.bincount((grid @ family.features.T).argmax(axis=1), density, minlength=10)
    np.testing.assert_allclose(posterior.optimal_action_probs(env)[0], expected, atol=4e-3)
    means = posterior.sample(LaneStreams(0, "s", lane_ids=lanes), np.arange(lanes))["means"]
    exact_mean = density @ (grid @ family.features.T)
    exact_sd = np.sqrt(density @ (grid @ family.features.T) ** 2 - exact_mean**2)
    np.testing.assert_allclose(means.mean(axis=0), exact_mean, atol=0.08 * exact_sd.max())
    np.testing.assert_allclose(means.std(axis=0), exact_sd, rtol=0.08)
    frequency = np.bincount(means.argmax(axis=1), minlength=10) / lanes
    np.testing.assert_allclose(frequency, expected, atol=0.035)


@pytest.mark.parametrize("noise, dimension", [(0.0, 2), (0.3, 1), (0.3, 6)])
def test_beliefs_of_other_sizes_find_the_truth(noise, dimension):
    family = LinearBandit(noise=noise, dimension=dimension, num_test_tasks=5)
    tasks = family.split().test
    posterior, env = family.posterior(family.make_vec(tasks)), family.make_vec(tasks)
    env.reset(seed=0)
    for t in range(400):
        arms = np.full(5, t % 10)
        pull(posterior, arms, env.step(arms)[1])
    sampled = posterior.sample(LaneStreams(0, lane_ids=5), np.arange(5))
    np.testing.assert_allclose(sampled["means"], tasks["means"], atol=1e-3 if noise == 0 else 0.25)
    chosen = posterior.optimal_action_probs(env).argmax(axis=1)
    assert (tasks["means"][np.arange(5), chosen] > tasks["means"].max(axis=1) - 0.15).all()


def test_knowing_the_features_is_worth_much():
    """DPT's protocol, regret after 200 pulls: about 18 for Thompson sampling that ignores the features, about 4 with them."""
    family = LinearBandit()
    tasks = family.split().test[:200]
    blind, thompson = regret(family, "ucb", tasks, 200, confidence=0.3), regret(family, "thompson", tasks, 200)
    linucb = regret(family, LinUCB, tasks, 200)
    assert max(thompson, linucb) < 0.5 * blind < 0.2 * regret(family, "uniform", tasks, 200)
    assert regret(family, "posterior_sampling", tasks[:40], 40, greedy=True) < regret(family, "uniform", tasks[:40], 40)


def test_linucb_by_hand():
    """One pull of arm 1 that paid 0.5: V = ridge I + phi phi', estimate V^-1 phi 0.5, bonus confidence sqrt(phi' V^-1 phi)."""
    family = LinearBandit(num_arms=3)
    env = family.make_vec(family.split().test[:1])
    agent = LinUCB(confidence=0.7, ridge=2.0).make(family, env, LaneStreams(0, lane_ids=1), 10)
    pull(agent, [1], [0.5])
    phi = family.features
    inverse = np.linalg.inv(2 * np.eye(2) + np.outer(phi[1], phi[1]))
    index = [p @ inverse @ phi[1] * 0.5 + 0.7 * np.sqrt(p @ inverse @ p) for p in phi]
    np.testing.assert_allclose(agent._index()[0], index)  # type: ignore[attr-defined]
    empty = np.zeros((1, 1))
    assert agent.act(empty).action[0] == np.argmax(index)
    mask = np.arange(3)[None] != np.argmax(index)
    assert agent.act(empty, mask).action[0] == np.argsort(index)[-2]


def test_linucb_without_features_tells_arms_apart():
    family = GaussianBandit()
    tasks = family.split().test[:100]
    assert regret(family, LinUCB, tasks, 200, confidence=0.5) < 0.4 * regret(family, "uniform", tasks, 200)
    room = make_family("darkroom")
    env = room.make_vec(room.split().test[:1])
    with pytest.raises(UserError, match="for bandits"):
        LinUCB().make(room, env, LaneStreams(0, lane_ids=1), 10)
    for options in ({"confidence": -1.0}, {"ridge": 0.0}):
        with pytest.raises(UserError, match=next(iter(options))):
            LinUCB(**options)


# odd and even


def test_training_favours_odd_arms_and_tests_even_ones():
    family = OddEvenBandit(num_train_tasks=8000, num_validation_tasks=4000, num_test_tasks=8000)
    for part, expected in zip(family.split(), (0.95, 0.95, 0.05), strict=True):
        odd = part["means"].argmax(axis=1) % 2 == 1
        assert odd.mean() == pytest.approx(expected, abs=0.012)
        assert stats.kstest(part["means"].max(axis=1), lambda x: x**10).pvalue > 1e-4
        family.make_vec(part)


@pytest.mark.parametrize("prior", ["training", "uniform"])
def test_belief_equals_weighing_tasks_by_their_likelihood(prior):
    """Importance weights on tasks drawn from the prior, against the belief after a few pulls."""
    family, lanes = OddEvenBandit(num_arms=4, prior=prior), 6000
    pulls = [(0, 1), (0, 1), (1, 0), (2, 1), (2, 0), (3, 1)]
    drawn = OddEvenBandit(num_arms=4) if prior == "training" else BernoulliBandit(num_arms=4)
    means = drawn.sample_tasks(generator(0, "prior"), 400_000)["means"]
    likelihood = np.prod([means[:, arm] if paid else 1 - means[:, arm] for arm, paid in pulls], axis=0)
    likelihood /= likelihood.sum()
    expected = np.bincount(means.argmax(axis=1), likelihood, minlength=4)
    env = family.make_vec(np.repeat(family.split().test[:1], lanes))
    posterior = family.posterior(env)
    for arm, paid in pulls:
        pull(posterior, np.full(lanes, arm), np.full(lanes, paid))
    np.testing.assert_allclose(posterior.optimal_action_probs(env)[0], expected, atol=6e-3)
    sampled = posterior.sample(LaneStreams(0, "s", lane_ids=lanes), np.arange(lanes))["means"]
    np.testing.assert_allclose(np.bincount(sampled.argmax(axis=1), minlength=4) / lanes, expected, atol=0.03)
    np.testing.assert_allclose(sampled.mean(axis=0), likelihood @ means, atol=0.02)


def test_samples_do_not_depend_on_the_other_lanes():
    family = OddEvenBandit()
    some, ids = np.array([7, 2, 11]), np.arange(12)
    whole, part = (
        family.posterior(family.make_vec(np.repeat(family.split().test[:1], len(lanes)))).sample(
            LaneStreams(3, "s", lane_ids=lanes), np.arange(len(lanes))
        )
        for lanes in (ids, some)
    )
    np.testing.assert_array_equal(whole[some], part)


def test_the_training_prior_helps_in_training_and_hurts_in_tests():
    family = OddEvenBandit(num_test_tasks=300)
    unknowing, (train, _, test) = replace(family, prior="uniform"), family.split()
    gain = [regret(unknowing, "thompson", t[:300], 60) - regret(family, "thompson", t[:300], 60) for t in (train, test)]
    assert gain[0] > 1 and gain[1] < -1


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: LinearBandit(dimension=0), "dimension"),
        (lambda: LinearBandit(feature_seed=-1), "feature_seed"),
        (lambda: LinearBandit(noise=-1.0), "noise"),
        (lambda: OddEvenBandit(num_arms=5), "even number"),
        (lambda: OddEvenBandit(favour=1.0), "favour"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
