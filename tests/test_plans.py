"""Sources for explorers that are told nothing of a posterior: whole plans, and noise that is drawn anew for each episode."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest

from agents import make_source
from envs import make_family
from icrl.interfaces import PLAN_BEGINS, PLAN_OF_TASK, UserError
from icrl.rollout import rollout
from icrl.seeding import LaneStreams

FAMILY = make_family("darkroom", width=6, height=6, horizon=20)
STEPS = 80


def lived(source, family=FAMILY, lanes=200, steps=STEPS, **options):
    """Rewards, ends, actions, their log-probabilities, plans, optimal actions (T, B) and the tasks of lanes."""
    tasks = np.resize(family.split().train, lanes)
    env, streams = family.make_vec(tasks), LaneStreams(3, "source", lane_ids=lanes)
    agent = make_source(source, **options).make(family, env, streams, steps)
    turns = list(islice(rollout(agent, env, seed=0, record_optimal=True), steps))
    columns = {
        "reward": [t.step.reward for t in turns],
        "ended": [t.step.ended for t in turns],
        "action": [t.step.action for t in turns],
        "target": [t.decision.target_action for t in turns],
        "observation": [t.step.observation for t in turns],
        "log_prob": [t.decision.behaviour_log_prob for t in turns],
        "plan": [t.decision.plan for t in turns],
        "optimal": [t.optimal_action for t in turns],
    }
    return {name: np.array(column) for name, column in columns.items() if column[0] is not None}


def test_the_own_plan_comes_last_is_marked_and_is_not_given_up_before_it_tells():
    life = lived("plans", hazard=0.2)
    begins, own = (life["plan"] & PLAN_BEGINS) > 0, (life["plan"] & PLAN_OF_TASK) > 0
    told = np.cumsum(life["reward"], 0) - life["reward"] > 0  # before the step
    assert begins[0].all() and (life["action"] == life["optimal"])[own].all()
    first = np.where(own.any(0), own.argmax(0), STEPS)
    for lane in range(200):
        turn = first[lane]
        untold = ~told[turn:, lane]
        assert turn == STEPS or begins[turn, lane]
        if turn < STEPS and untold[0]:
            assert own[turn:, lane][untold].all() and not begins[turn + 1 :, lane][untold[1:]].any()
    starts = np.concatenate([np.ones((1, 200), bool), life["ended"][:-1]])
    searching = np.arange(STEPS)[:, None] < first
    assert begins[starts & searching].all()
    assert begins[~starts & searching & ~told].mean() == pytest.approx(0.2, abs=0.03)
    turns = first[~told[np.minimum(first, STEPS - 1), np.arange(200)] & (first < STEPS)]
    assert turns.min() < 10 and turns.max() > STEPS - 15  # anywhere


def test_earlier_plans_know_nothing_of_the_own_task_unless_they_are_biased():
    """The first action of a life is that of a drawn task: as often the own one's as another's."""
    agrees = {}
    for biased in (0.0, 1.0):
        life = lived("plans", lanes=1500, steps=30, biased=biased)
        drawn = (life["plan"][0] & PLAN_OF_TASK) == 0
        agrees[biased] = (life["action"][0] == life["optimal"][0])[drawn].mean()
        own_by_chance = np.bincount(life["optimal"][0], minlength=5) / 1500
    assert agrees[1.0] == 1
    assert agrees[0.0] == pytest.approx((own_by_chance**2).sum(), abs=0.1)


def test_once_told_plans_of_the_own_task_and_of_others_alternate():
    life = lived("plans", steps=200, hazard=0.1)
    told = np.cumsum(life["reward"], 0) - life["reward"] > 0
    follows = (life["action"] == life["optimal"])[told]
    assert 0.5 < follows.mean() < 0.9 and told.any(0).mean() > 0.9


@pytest.mark.parametrize("twice", [-1, 3])
def test_graded_noise_is_drawn_for_each_episode_and_its_probability_is_that_over_all_levels(twice):
    life = lived("graded", lanes=2000, twice=twice)
    meant = life["action"] == life["optimal"]
    agreed = meant.reshape(4, 20, 2000).mean(1)  # of an episode
    life = {name: column[::20] for name, column in life.items()}  # where an episode begins no state tells of its noise
    meant = meant[::20]
    assert agreed.std() > 0.2 and (agreed > 0.95).any() and (agreed < 0.3).any()
    for probability in np.unique(np.exp(life["log_prob"]).round(4)):
        rows = np.abs(np.exp(life["log_prob"]) - probability) < 1e-3
        intended, action = meant[rows].all(), np.unique(life["action"][rows])
        assert intended or not meant[rows].any()  # one kind of action
        for one in action:  # how often it is taken where it is meant, or where another one is
            chance = life["optimal"] == one if intended else life["optimal"] != one
            assert (life["action"] == one)[chance].mean() == pytest.approx(probability, abs=2 / chance.sum() ** 0.5)
    kinds = np.unique(np.exp(life["log_prob"]).round(4))
    expected = [1 / 10, 6 / 10] if twice < 0 else [1 / 12, 2 / 12, 7 / 12]
    np.testing.assert_allclose(kinds, expected, atol=1e-3)


def test_graded_histories_begin_with_episodes_that_wander_a_share_that_each_draws():
    life = lived("graded", lanes=2000, steps=400, high=0.0, wander=0.8)
    best = life["action"] == life["optimal"]
    aimed = best.reshape(20, 20, 2000).all(1)  # (episodes, lives)
    first = aimed.argmax(0)  # the first aimed episode, but for wandering ones that are like it by chance
    assert (aimed[16:]).all() and aimed[0].mean() < 0.1
    assert first.mean() == pytest.approx(8, abs=0.7) and first.std() == pytest.approx(16 / 12**0.5, abs=0.4)
    np.testing.assert_allclose(np.unique(np.exp(life["log_prob"]).round(4)), [0.08, 0.68], atol=1e-3)
    np.testing.assert_array_equal(np.exp(life["log_prob"]) > 0.5, best)
    np.testing.assert_array_equal(life["action"], life["target"])  # what was meant, without noise
    places = life["observation"].reshape(20, 20, 2000, 2)
    late = (places[:, 10:] != places[:, 10:11]).any((1, 3))  # still on the way in the second half
    assert late[~aimed].mean() > 0.8 and not late[aimed].any()


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_what_wanders_turns_where_it_has_arrived_and_now_and_then_before(noise):
    tasks = np.resize(FAMILY.split().train, 500)
    env, streams = FAMILY.make_vec(tasks), LaneStreams(3, "source", lane_ids=len(tasks))
    source: Any = make_source("graded", wander=1.0, low=noise, high=noise)
    agent: Any = source.make(FAMILY, env, streams, 10**6)  # nearly all wander to the end
    turned: dict[bool, list[bool]] = {True: [], False: []}
    aim: Any = None
    for turn in islice(rollout(agent, env, seed=0), 60):
        if aim is not None:
            under_way = ~turn.step.ended & (turn.step.observation != aim).any(1)
            came = (turn.step.next_observation == aim).all(1)
            changed = (agent._aim["goal"] != aim).any(1)
            for arrived, lanes in turned.items():
                lanes.extend(changed[under_way & (came == arrived)])
        aim = agent._aim["goal"].copy()
    other = 35 / 36  # what is drawn is another one
    assert np.mean(turned[True]) == pytest.approx(other, abs=0.01)
    assert np.mean(turned[False]) == pytest.approx(0.1 * other, abs=0.01)


def test_annealed_noise_may_have_a_favourite_too():
    plain, biased = (lived("annealed", twice=twice)["action"] for twice in (-1, 3))
    assert (biased == 3).mean() > 1.3 * (plain == 3).mean()


@pytest.mark.parametrize(
    "source, options, message",
    [
        ("plans", {"hazard": 1.5}, "plans's hazard is 1.5|plans' hazard is 1.5"),
        ("plans", {"told_by": 0.0}, "told_by is 0.0: expected a return above 0"),
        ("graded", {"low": 0.9, "high": 0.1}, "low is 0.9 and its high 0.1"),
        ("graded", {"wander": 1.5}, "graded's wander is 1.5"),
        ("graded", {"twice": 7}, "action 7 twice as often, this family has Discrete"),
    ],
)
def test_impossible_options_are_refused(source, options, message):
    with pytest.raises(UserError, match=message):
        lived(source, lanes=2, steps=2, **options)


def test_wandering_is_refused_where_no_task_tells_when_it_would_pay():
    with pytest.raises(UserError, match=r"wander is 0\.5, but bernoulli_bandit cannot tell when .*: set it to 0"):
        lived("graded", family=make_family("bernoulli_bandit"), lanes=2, steps=2, wander=0.5)
