"""Contracts that every source obeys, over the registry: determinism, lanes that do not mix, honest probabilities."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import islice

import numpy as np
import pytest
from gymnasium.spaces import Box

from agents import SOURCES, make_source, source_class, source_names
from agents.base import Stateless, epsilon_noise
from envs import make_family
from envs.darkroom import DarkRoom
from icrl.interfaces import Step, UserError
from icrl.rollout import rollout
from icrl.seeding import LaneStreams

ROOM = ("darkroom", {"width": 4, "height": 4, "horizon": 12, "num_validation": 2})
PERMUTED = ("darkroom", {"width": 3, "height": 4, "horizon": 9, "num_validation": 2, "permuted_actions": True})
ONCE = ("darkroom", {"width": 4, "height": 3, "horizon": 15, "num_validation": 2, "reward": "once", "start": "random"})
GAUSSIAN = ("gaussian_bandit", {"horizon": 10, "num_arms": 3})
BERNOULLI = ("bernoulli_bandit", {"horizon": 10})
POINT = ("point_robot", {"horizon": 10})
MIXED = (
    "mixed",
    {
        "members": (
            "darkroom width=3 height=3 horizon=7 num_validation=1",
            "keydoor width=3 height=4 horizon=12 num_validation=2",
        ),
        "unseen": (),
    },
)
SEARCH = ("bayesian_optimisation", {"num_train_tasks": 5, "num_validation_tasks": 1})
FOR_ONE = {"by_member": MIXED, "gp_ei": SEARCH, "gp_thompson": SEARCH}
"""Sources for one family alone."""
SLOW = {"gp_ei": 4, "gp_thompson": 4}
"""Most steps that sources play here which take a tenth of a second for each."""
NEEDS_BOTORCH = pytest.mark.skipif(find_spec("botorch") is None, reason="no botorch")
FOR_BOXES = {"random", "uniform", "optimal", "annealed", "misled", "sample_and_hold", "posterior_sampling"}
FOR_BANDITS = {"ucb", "linucb", "empirical_mean"}
FOR_ROOMS = {"nearest_plausible", "blind_sweep", "sweep_then_return"}
PAIRS = [
    (source, family)
    for source in SOURCES
    if source != "rl2"  # needs a run: tests/test_rl2.py
    and not hasattr(source_class(source), "record")  # those are no agents: tests/test_sb3.py
    for family in ((FOR_ONE[source],) if source in FOR_ONE else (ROOM, PERMUTED, ONCE, GAUSSIAN, BERNOULLI, POINT))
    if not (source in FOR_BANDITS and family[0] == "darkroom")
    and not (source in FOR_ROOMS and family[0] != "darkroom")
    and not (family is POINT and source not in FOR_BOXES)
]
every_pair = pytest.mark.parametrize(
    "source, family",
    [pytest.param(*pair, marks=[NEEDS_BOTORCH] if pair[1] is SEARCH else []) for pair in PAIRS],
    ids=lambda v: v if isinstance(v, str) else v[0],
)


def small_room() -> DarkRoom:
    return DarkRoom(width=4, height=4, horizon=12, num_validation=2)


def play(source, family, lane_ids, num_steps=30, tasks=None, **options):
    """Turns of a source in lanes with the given global numbers; lane n plays test task n."""
    room, num_steps = make_family(family[0], **family[1]), min(num_steps, SLOW.get(source, num_steps))
    tasks = np.resize(room.split().test, 8)[lane_ids] if tasks is None else tasks
    env = room.make_vec(tasks, lane_ids=np.asarray(lane_ids))
    streams = LaneStreams(7, "source", lane_ids=np.asarray(lane_ids))
    agent = make_source(source, **options).make(room, env, streams, num_steps)
    return list(islice(rollout(agent, env, seed=2), num_steps))


def fields(turns):
    """What a history keeps, (T, B, ...) each; absent ones left out."""
    for name in ("observation", "action", "reward", "truncated", "next_observation"):
        yield np.stack([getattr(turn.step, name) for turn in turns])
    for name in ("target_action", "behaviour_log_prob"):
        if getattr(turns[0].decision, name) is not None:
            yield np.stack([getattr(turn.decision, name) for turn in turns])


@every_pair
def test_decisions_fit_the_action_space(source, family):
    space = make_family(family[0], **family[1]).spec.action_space
    for turn in play(source, family, np.arange(8)):
        decision = turn.decision
        for chosen in (decision.action, decision.target_action):
            assert chosen is None or (len(chosen) == 8 and all(space.contains(action) for action in chosen))
        if decision.behaviour_log_prob is not None:
            assert decision.behaviour_log_prob.shape == (8,) and np.isfinite(decision.behaviour_log_prob).all()
            assert isinstance(space, Box) or (decision.behaviour_log_prob <= 0).all()


@every_pair
def test_a_lane_does_not_depend_on_the_others(source, family):
    lanes = np.array([6, 1, 4])
    for whole, part in zip(
        fields(play(source, family, np.arange(8))), fields(play(source, family, lanes)), strict=True
    ):
        np.testing.assert_array_equal(whole[:, lanes], part)


@every_pair
def test_a_reset_lane_lives_as_if_new(source, family):
    """Resetting lane 0 in the middle leaves lane 1 alone, and lane 0's agent remembers nothing it could act on."""
    room, num_steps = make_family(family[0], **family[1]), SLOW.get(source, 60)
    tasks = np.resize(room.split().test, 2)

    def lives(reset_at):
        env = room.make_vec(tasks)
        agent = make_source(source).make(room, env, LaneStreams(0, "s", lane_ids=2), num_steps)
        actions = []
        for t, turn in enumerate(islice(rollout(agent, env, seed=2), num_steps)):
            actions.append(turn.step.action)
            if t + 1 == reset_at:
                agent.reset([0])
        return np.stack(actions)

    horizon = room.spec.horizon
    undisturbed, disturbed = lives(None), lives(2 * horizon)
    np.testing.assert_array_equal(undisturbed[:, 1], disturbed[:, 1])
    if source in FOR_ROOMS and room.start != "random":  # type: ignore[attr-defined]
        np.testing.assert_array_equal(disturbed[2 * horizon : 3 * horizon, 0], disturbed[:horizon, 0])


@every_pair
def test_wrong_number_of_lanes_is_refused(source, family):
    room = make_family(family[0], **family[1])
    env = room.make_vec(np.resize(room.split().test, 3))
    agent = make_source(source).make(room, env, LaneStreams(0, "s", lane_ids=3), 10)
    agent.reset(3)
    if not isinstance(agent, Stateless):
        with pytest.raises(UserError, match="lanes"):
            agent.reset(4)


def test_registry_knows_all_sources():
    assert set(source_names()) >= set(SOURCES)
    assert source_class("agents.uniform:Uniform") is source_class("random") is source_class("uniform")


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("unifrom", {}, "unknown source 'unifrom'"),
        ("optimal", {"eps": 0.1}, "unknown option 'eps'"),
        ("optimal", {"epsilon": 1.5}, "epsilon"),
        ("annealed", {"epsilon_end": -1.0}, "epsilon_end"),
        ("annealed", {"fall": 0.0}, "fall"),
        ("q_learning", {"learning_rate": "fast"}, "expected float"),
        ("q_learning", {"discount": 2.0}, "discount"),
        ("ucb", {"confidence": -1.0}, "confidence"),
        ("sample_and_hold", {"hold": -1}, "hold"),
        ("nearest_plausible", {"epsilon": 2.0}, "epsilon"),
    ],
)
def test_bad_options_are_refused(name, options, message):
    with pytest.raises(UserError, match=message):
        make_source(name, **options)


@pytest.mark.parametrize(
    "source, family, message",
    [
        ("ucb", ROOM, "for bandits"),
        ("empirical_mean", ROOM, "for bandits"),
        ("nearest_plausible", GAUSSIAN, "candidate"),
    ],
)
def test_sources_refuse_families_they_cannot_play(source, family, message):
    with pytest.raises(UserError, match=message):
        play(source, family, np.arange(2), num_steps=1)


@pytest.mark.parametrize("source", ["q_learning", "ucb"])
def test_continuous_spaces_are_refused(source):
    room = small_room()
    for attribute in ("single_observation_space", "single_action_space"):
        env = room.make_vec(room.split().test[:2])
        setattr(env, attribute, Box(-1, 1, (2,)))
        with pytest.raises(UserError, match=source):
            make_source(source).make(room, env, LaneStreams(0, lane_ids=2), 10)


def test_uniform_in_a_box_is_uniform_with_its_density():
    room = small_room()
    env = room.make_vec(np.resize(room.split().test, 3000))
    env.single_action_space = Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 4.0], np.float32))
    decision = make_source("uniform").make(room, env, LaneStreams(0, lane_ids=3000), 10).act(np.zeros((3000, 2)))
    np.testing.assert_allclose(decision.action.mean(axis=0), [0, 2], atol=0.1)
    assert decision.behaviour_log_prob is not None
    np.testing.assert_allclose(decision.behaviour_log_prob, -np.log(8), rtol=1e-5)


def test_uniform_obeys_the_action_mask():
    room = small_room()
    env = room.make_vec(np.resize(room.split().test, 2000))
    mask = np.tile([True, False, True, False, False], (2000, 1))
    agent = make_source("uniform").make(room, env, LaneStreams(0, lane_ids=2000), 10)
    decision = agent.act(np.zeros((2000, 2)), mask)
    assert 900 < (decision.action == 0).sum() < 1100 and set(decision.action) == {0, 2}
    assert decision.behaviour_log_prob is not None
    np.testing.assert_allclose(decision.behaviour_log_prob, np.log(0.5), rtol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_epsilon_noise_has_the_probability_it_reports(masked):
    lanes = 40_000
    mask = np.tile([True, True, False, True], (lanes, 1)) if masked else None
    decision = epsilon_noise(np.ones(lanes, int), 0.4, LaneStreams(0, lane_ids=lanes), mask, num_actions=4)
    assert decision.behaviour_log_prob is not None
    np.testing.assert_array_equal(decision.target_action, 1)
    for action in (0, 1, 3):
        chosen = decision.action == action
        prob = np.exp(decision.behaviour_log_prob[chosen])
        assert np.ptp(prob) == 0 and prob[0] == pytest.approx(chosen.mean(), abs=0.01)
    assert (decision.action == 2).any() != masked


def test_annealed_noise_falls_to_its_end_at_90_percent():
    turns = play("annealed", ROOM, np.arange(8), num_steps=120, epsilon_end=0.0)
    executed, intended = (np.stack([getattr(t.decision, key) for t in turns]) for key in ("action", "target_action"))
    assert (executed == intended)[108:].all() and (executed == intended)[:12].mean() < 0.5
    prob = np.exp(np.stack([np.asarray(t.decision.behaviour_log_prob) for t in turns]))
    assert prob[0] == pytest.approx(0.2, abs=1e-6)
    epsilon = 1 - 54 / 108
    agrees = executed[54] == intended[54]
    np.testing.assert_allclose(prob[54], np.where(agrees, 1 - epsilon + epsilon / 5, epsilon / 5), rtol=1e-5)


def test_noisy_optimal_labels_are_optimal():
    room = small_room()
    env = room.make_vec(np.resize(room.split().test, 8))
    agent = make_source("optimal", epsilon=0.5).make(room, env, LaneStreams(0, lane_ids=8), 50)
    turns = list(islice(rollout(agent, env, seed=0, record_optimal=True), 50))
    assert all((turn.optimal_action == turn.decision.target_action).all() for turn in turns)
    assert any((turn.decision.action != turn.decision.target_action).any() for turn in turns)


def test_misled_actions_tell_nothing_of_the_task():
    """Two rooms with different goals see the same actions; each episode is the shortest way to a goal of its own."""
    family, lanes = ("darkroom", {"width": 4, "height": 4, "horizon": 12, "num_validation": 2}), np.arange(8)
    goals = small_room().split()
    played = [
        np.stack([turn.step.action for turn in play("misled", family, lanes, 48, tasks=np.resize(tasks, 8))])
        for tasks in (goals.train, goals.test)
    ]
    np.testing.assert_array_equal(played[0], played[1])
    ends = [turn.step.next_observation for turn in play("misled", family, lanes, 48)[11::12]]  # (4, 8, 2)
    assert len(np.unique(np.reshape(ends, (-1, 2)), axis=0)) > 8
    assert all(turn.decision.target_action is None for turn in play("misled", family, lanes, 5, epsilon=0.5))
    noisy = np.stack([turn.step.action for turn in play("misled", family, lanes, 48, epsilon=0.5)])
    assert (noisy != played[0]).mean() > 0.2


def test_q_learning_learns_the_dark_room():
    """9x9, 20 steps, centre start, training goals: from at most 3 to near the optimum of 16.6 within 300 episodes."""
    room = make_family("darkroom", width=9, height=9, horizon=20, start="centre")
    tasks = room.split().train
    env = room.make_vec(tasks)
    agent = make_source("q_learning").make(room, env, LaneStreams(0, "s", lane_ids=len(tasks)), 300 * 20)
    rewards = np.stack([turn.step.reward for turn in islice(rollout(agent, env, seed=0), 300 * 20)])
    returns = rewards.reshape(300, 20, -1).sum(axis=1).mean(axis=1)
    assert returns[:10].mean() <= 3 and returns[-10:].mean() >= 15.5
    assert np.diff(returns.reshape(6, 50).mean(axis=1)).min() > -0.5


def test_q_learning_update_by_hand():
    """One update towards reward + discount * best next value; a truncated step bootstraps, a terminated one does not."""
    room = make_family("darkroom", width=2, height=1, horizon=3, num_validation=0)
    env = room.make_vec(np.resize(room.split().test, 2))
    options = {"learning_rate": 0.5, "discount": 0.8, "epsilon": 0.0, "initial_value": 2.0}
    agent = make_source("q_learning", **options).make(room, env, LaneStreams(0, lane_ids=2), 10)
    agent.reset(2)
    here, there = np.zeros((2, 2), np.int16), np.array([[0, 1], [0, 1]], np.int16)
    terminated = np.array([True, False])
    agent.observe(Step(here, np.array([2, 2]), np.ones(2, np.float32), terminated, ~terminated, there))
    values = agent._values[:, 0, 2]  # type: ignore[attr-defined]
    np.testing.assert_allclose(values, [0.5 * 2 + 0.5 * 1, 0.5 * 2 + 0.5 * (1 + 0.8 * 2)], atol=2e-3)
