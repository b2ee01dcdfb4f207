"""Tabular decision processes: value iteration against enumeration, the belief against the prior, PSRL against its theory."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice, product

import numpy as np
import pytest

from agents import make_source
from envs.tabular import TabularMDP, TabularVectorEnv, optimal_plans
from icrl.interfaces import Step, UserError
from icrl.rollout import rollout
from icrl.seeding import LaneStreams, generator

SMALL = TabularMDP(num_states=4, num_actions=2, horizon=6, num_train_tasks=400, num_test_tasks=300)


def play(family, source, tasks, episodes, **options):
    """Returns (episodes, B), the agent and the environment afterwards."""
    env, num_steps = family.make_vec(tasks), episodes * family.horizon
    agent = make_source(source, **options).make(family, env, LaneStreams(0, "s", lane_ids=len(tasks)), num_steps)
    rewards = np.stack([turn.step.reward for turn in islice(rollout(agent, env, seed=0), num_steps)])
    return rewards.reshape(episodes, family.horizon, -1).sum(axis=1), agent, env


def test_optimum_equals_the_best_of_all_policies():
    """Three states, two actions, three steps: each of the 2^9 time-dependent policies, evaluated by hand."""
    family = TabularMDP(num_states=3, num_actions=2, horizon=3, num_test_tasks=5)
    tasks = family.split().test
    for task, best, random in zip(tasks, family.optimal_return(tasks), family.random_return(tasks), strict=True):
        returns = []
        for actions in product((0, 1), repeat=9):
            policy, at, total = np.reshape(actions, (3, 3)), np.eye(3)[0], 0.0
            for t in range(3):
                at = at @ task["transitions"][np.arange(3), policy[t]]
                total += at @ task["reward_probs"]
            returns.append(total)
        assert best == pytest.approx(max(returns), abs=1e-6)
        at, total = np.eye(3)[0], 0.0
        for _ in range(3):
            at = at @ task["transitions"].mean(axis=1)
            total += at @ task["reward_probs"]
        assert random == pytest.approx(total, abs=1e-6)


def test_the_optimal_policy_depends_on_the_steps_left():
    tasks = np.resize(SMALL.split().test, 2000)
    plans, env, lanes = optimal_plans(tasks, SMALL.horizon), SMALL.make_vec(tasks), np.arange(2000)
    env.reset(seed=0)
    assert isinstance(env, TabularVectorEnv) and (plans[:, 0] != plans[:, -1]).any()
    for t in range(2 * SMALL.horizon):
        expected = plans[lanes, SMALL.horizon - 1 - t % SMALL.horizon, env.state]
        np.testing.assert_array_equal(env.optimal_action(), expected)
        env.step(expected)
    returns, _, _ = play(SMALL, "optimal", tasks, 4)
    error = returns.mean(axis=0) - SMALL.optimal_return(tasks)
    assert abs(error.mean()) < 4.5 * error.std() / np.sqrt(2000)


def test_a_random_start_averages_the_optimum_over_states():
    tasks = SMALL.split().test[:20]
    moved = []
    for state in range(4):  # the same task with the names of states 0 and ``state`` exchanged
        order = np.arange(4)
        order[[0, state]] = state, 0
        changed = tasks.copy()
        changed["transitions"] = tasks["transitions"][:, order][:, :, :, order]
        changed["reward_probs"] = tasks["reward_probs"][:, order]
        moved.append(SMALL.optimal_return(changed))
    np.testing.assert_allclose(replace(SMALL, start="random").optimal_return(tasks), np.mean(moved, axis=0), rtol=1e-6)


def test_steps_and_rewards_have_the_probabilities_of_the_task():
    family, lanes = TabularMDP(num_states=5, num_actions=3, horizon=40), 6000
    task = family.split().test[:1]
    env = family.make_vec(np.repeat(task, lanes))
    env.reset(seed=3)
    moves, paid = np.zeros((5, 3, 5)), np.zeros((5, 2))
    rng, before = np.random.default_rng(0), np.zeros(lanes, int)
    for _ in range(39):
        actions = rng.integers(3, size=lanes)
        observation, reward, *_ = env.step(actions)
        np.add.at(moves, (before, actions, observation[:, 0]), 1)
        np.add.at(paid, (observation[:, 0], reward.astype(int)), 1)
        before = observation[:, 0]
    visits, seen = moves.sum(axis=2, keepdims=True), paid.sum(axis=1)
    p, r = task["transitions"][0], task["reward_probs"][0]
    often = visits[:, :, 0] > 500
    assert often.sum() > 8
    error = np.abs(moves / np.maximum(visits, 1) - p) - 5 * np.sqrt(p * (1 - p) / np.maximum(visits, 1)) - 1e-3
    assert (error[often] < 0).all()
    often = seen > 500
    assert (np.abs(paid[:, 1] / np.maximum(seen, 1) - r) < 5 * np.sqrt(r * (1 - r) / np.maximum(seen, 1)) + 1e-3)[
        often
    ].all()


def test_tasks_are_drawn_from_the_stated_distributions():
    family = TabularMDP(num_train_tasks=3000)
    tasks = family.split().train
    p, r, c = tasks["transitions"].astype(float), tasks["reward_probs"].astype(float), family.transition_concentration
    np.testing.assert_allclose(p.sum(axis=3), 1, atol=1e-5)
    assert p.mean() == pytest.approx(0.1, abs=1e-6) and p.var() == pytest.approx(0.09 / (10 * c + 1), rel=0.02)
    assert r.mean() == pytest.approx(0.15, abs=0.01) and r.var() == pytest.approx(0.15 * 0.85 / 1.5, rel=0.05)


def test_counts_of_the_belief():
    env = SMALL.make_vec(SMALL.split().test[:2])
    posterior = SMALL.posterior(env)
    none = np.zeros(2, bool)
    for before, action, reward, after in (((0, 0), (1, 0), (1, 0), (2, 3)), ((0, 3), (1, 1), (0, 1), (2, 3))):
        state, following = (np.array(s)[:, None] for s in (before, after))
        posterior.update(Step(state, np.array(action), np.array(reward, np.float32), none, none, following))
    moves, pays = posterior.moves, posterior.pays  # type: ignore[attr-defined]
    assert moves[0, 0, 1, 2] == 2 and moves[1, 0, 0, 3] == moves[1, 3, 1, 3] == 1 and moves.sum() == 4
    np.testing.assert_array_equal(pays[0], [[0, 0], [0, 0], [1, 1], [0, 0]])
    np.testing.assert_array_equal(pays[1, 3], [1, 1])
    posterior.reset([0])
    assert moves[0].sum() == pays[0].sum() == 0 and moves[1].sum() == 2
    assert not posterior.refuted(SMALL.split().test[:2]).any()
    for listing in (posterior.plausible, posterior.candidates):
        with pytest.raises(UserError, match="sample_and_hold"):
            listing()


def test_samples_of_the_belief_have_its_moments():
    lanes = 5000
    env = SMALL.make_vec(np.repeat(SMALL.split().test[:1], lanes))
    posterior = SMALL.posterior(env)
    posterior.moves[:, 1, 0] = [3, 0, 0, 1]  # type: ignore[attr-defined]
    posterior.pays[:, 2] = [5, 2]  # type: ignore[attr-defined]
    tasks = posterior.sample(LaneStreams(0, "s", lane_ids=lanes), np.arange(lanes))
    SMALL.make_vec(tasks)
    alpha = np.array([3.1, 0.1, 0.1, 1.1])
    np.testing.assert_allclose(tasks["transitions"][:, 1, 0].mean(axis=0), alpha / alpha.sum(), atol=0.02)
    np.testing.assert_allclose(tasks["transitions"][:, 0, 0].mean(axis=0), 0.25, atol=0.03)
    a, b = 0.075 + 2, 0.425 + 5
    assert tasks["reward_probs"][:, 2].mean() == pytest.approx(a / (a + b), abs=0.01)
    assert tasks["reward_probs"][:, 2].var() == pytest.approx(a * b / (a + b) ** 2 / (a + b + 1), rel=0.1)
    assert tasks["reward_probs"][:, 0].mean() == pytest.approx(0.15, abs=0.025)


def test_what_is_sampled_is_distributed_as_the_truth():
    """Given any history, truth and sample have one distribution (Osband et al. 2013, lemma 1): no statistic tells them apart."""
    family = replace(SMALL, num_test_tasks=3000)
    tasks = family.split().test
    _, agent, env = play(family, "q_learning", tasks, 3)  # behaviour that depends on the task through its history alone
    posterior, held = family.posterior(env), None
    for turn in islice(rollout(agent, family.make_vec(tasks), seed=4), 18):
        posterior.update(turn.step)
        held = turn.step
    assert held is not None
    sampled = posterior.sample(LaneStreams(5, "s", lane_ids=len(tasks)), np.arange(len(tasks)))
    often = posterior.pays[:, :, 1].argmax(axis=1)  # type: ignore[attr-defined]
    lanes, before, after = np.arange(len(tasks)), held.observation[:, 0], held.next_observation[:, 0]
    for statistic in (
        family.optimal_return,
        family.random_return,
        lambda t: t["reward_probs"][lanes, often],
        lambda t: t["transitions"][lanes, before, held.action, after],
    ):
        true, drawn = statistic(tasks), statistic(sampled)
        difference = true - drawn
        assert abs(difference.mean()) < 4.5 * difference.std() / np.sqrt(len(tasks))
        assert np.corrcoef(true, drawn)[0, 1] > 0.2 or statistic == family.random_return


def test_psrl_learns_and_plans_once_per_episode(monkeypatch):
    family = replace(TabularMDP(), num_test_tasks=120)
    tasks = family.split().test
    planned = []

    def counted(tasks, num_steps):
        planned.append(len(tasks))
        return optimal_plans(tasks, num_steps)

    monkeypatch.setattr("envs.tabular.optimal_plans", counted)
    returns, _, _ = play(family, "sample_and_hold", tasks, 12, hold=family.horizon)
    assert planned == [120] * 12
    curve, best, random = returns.mean(axis=1), family.optimal_return(tasks).mean(), family.random_return(tasks).mean()
    assert curve[-3:].mean() > random + 0.45 * (best - random) > curve[0]


def test_a_plan_follows_the_content_of_the_tasks():
    """An explorer keeps one array and changes tasks in it: the answer must be that of a fresh environment."""
    asked = SMALL.split().train[:50].copy()
    env = SMALL.make_vec(SMALL.split().test[:50])
    env.reset(seed=0)
    for t in range(3 * SMALL.horizon):
        asked[t % 50] = SMALL.split().train[50 + t]
        fresh = SMALL.make_vec(SMALL.split().test[:50])
        fresh.reset(seed=0)
        fresh.state, fresh._clock = env.state, env._clock  # type: ignore[attr-defined]
        np.testing.assert_array_equal(env.optimal_action(asked), fresh.optimal_action(asked.copy()))
        np.testing.assert_array_equal(env.optimal_action(), fresh.optimal_action(env.tasks))
        env.step(env.optimal_action(asked))


def test_probabilities_of_optimal_actions():
    """The belief's estimate against many samples, and a sure belief."""
    lanes = 40
    env = SMALL.make_vec(np.repeat(SMALL.split().test[:1], lanes))
    env.reset(seed=0)
    posterior = SMALL.posterior(env)
    probs = posterior.optimal_action_probs(env)
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    assert np.ptp(probs[:, 0]) > 0  # lanes have streams of their own
    tasks = SMALL.sample_tasks(generator(0, "prior"), 4000)
    many = SMALL.make_vec(tasks)
    many.reset(seed=0)
    frequency = np.bincount(many.optimal_action(), minlength=2) / 4000
    np.testing.assert_allclose(probs.mean(axis=0), frequency, atol=0.05)
    task = SMALL.split().test[0]
    posterior.moves[:] = np.rint(1e6 * task["transitions"])  # type: ignore[attr-defined]
    posterior.pays[:] = np.rint(1e6 * np.stack([1 - task["reward_probs"], task["reward_probs"]], axis=-1))  # type: ignore[attr-defined]
    assert posterior.optimal_action_probs(env)[:, env.optimal_action()[0]].min() > 0.95


def test_scattered_labels_are_the_first_actions_of_whole_episodes():
    family = SMALL.scattered()
    assert family.horizon == 1 and family.scattered().lookahead == SMALL.horizon
    tasks = np.resize(SMALL.split().test[:50], 600)
    env = family.make_vec(tasks)
    env.reset(seed=0)
    assert isinstance(env, TabularVectorEnv) and len(np.unique(env.state)) == 4
    first = optimal_plans(tasks, SMALL.horizon)[np.arange(600), -1, env.state]
    np.testing.assert_array_equal(env.optimal_action(), first)
    assert (first != optimal_plans(tasks, 1)[np.arange(600), 0, env.state]).any()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_states": 1}, "num_states"),
        ({"num_actions": 1}, "num_actions"),
        ({"horizon": 0}, "horizon"),
        ({"transition_concentration": 0.0}, "transition_concentration"),
        ({"reward_concentration": 0.01}, "reward_concentration"),
        ({"reward_mean": 1.0}, "reward_mean"),
        ({"lookahead": 3}, "lookahead"),
        ({"num_test_tasks": 0}, "num_test_tasks"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        TabularMDP(**options)


def test_bad_tasks_are_refused():
    for field, place, value, message in (
        ("transitions", (0, 1, 1, 2), 0.5, "no distribution"),
        ("transitions", (0, 1, 1), [-0.5, 0.5, 0.5, 0.5], "no distribution"),
        ("transitions", (0, 1, 1, 2), np.nan, "no distribution"),
        ("reward_probs", (0, 2), 1.5, "reward_probs"),
        ("reward_probs", (0, 2), np.nan, "reward_probs"),
    ):
        tasks = SMALL.split().test[:2].copy()
        tasks["transitions"][0, 1, 1] = [0.25, 0.25, 0.25, 0.25]
        tasks[field][place] = value
        with pytest.raises(UserError, match=message):
            SMALL.make_vec(tasks)
