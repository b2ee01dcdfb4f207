"""Numbers that theory or enumeration gives for exact agents, without any network: what a trained model is measured against.

The exact posteriors of the Bernoulli bandit are in tests/test_bandits.py, the explorers on DPT's goals in tests/test_bayes.py.
"""

import numpy as np
import pytest

from agents import make_source
from envs.darkroom import DarkRoom
from icrl.config import EvaluateConfig
from icrl.evaluation import evaluate
from icrl.given_contexts import record_context
from icrl.seeding import LaneStreams

ROOM = DarkRoom()
HELD_OUT = ROOM.split().test
LANES = 4000


@pytest.fixture(scope="module")
def context():
    """200 uniform transitions in each of 4000 lanes, over the held-out goals."""
    family = ROOM.scattered()
    env = family.make_vec(np.resize(HELD_OUT, LANES))
    agent = make_source("uniform").make(family, env, LaneStreams(0, "context", lane_ids=LANES), 200)
    return record_context(agent, env, 200, seed=0)


def test_every_state_and_action_is_as_likely_in_a_uniform_context(context):
    cell = context.observation @ np.array([10, 1])
    counts = np.bincount((5 * cell + context.action).ravel(), minlength=500)
    expected = LANES * 200 / 500
    assert len(counts) == 500 and np.abs(counts - expected).max() < 5 * np.sqrt(expected)
    np.testing.assert_array_equal(
        context.next_observation @ np.array([10, 1]), ROOM.tables.next_cell[cell, context.action]
    )


@pytest.mark.parametrize("size, expected", [(100, 0.634), (200, 0.866)])
def test_how_often_a_uniform_context_contains_the_goal(context, size, expected):
    """Five of the 500 moves lead to each cell, walls included, so each transition pays with probability 1 / 100."""
    assert (np.bincount(ROOM.tables.next_cell.ravel()) == 5).all()
    assert 1 - 0.99**size == pytest.approx(expected, abs=5e-4)
    contains = (context.reward[:, :size] > 0).any(1)
    assert contains.mean() == pytest.approx(expected, abs=3 * np.sqrt(expected * (1 - expected) / LANES))


def test_exact_inference_offline_scores_what_its_context_allows():
    agents = {
        "agent": make_source("posterior_sampling").make,
        "greedy": make_source("posterior_sampling", greedy=True).make,
    }
    config = EvaluateConfig(mode="offline", context="random", context_size=100, lanes=2000, hide_rewards=False)
    uniform = {"random": make_source("uniform").make}
    result = evaluate(ROOM, HELD_OUT, agents, config, root_seed=0, context_agents=uniform, progress=False)
    for name, expected in (("agent", 58.2), ("greedy", 57.4)):
        assert result.agents[name].returns.mean() == pytest.approx(expected, abs=2.7), name


@pytest.mark.parametrize(
    "height, width, horizon, first, best", [(10, 10, 100, 46, 91), (20, 20, 400, 125, 378), (40, 20, 800, 369, 774)]
)
def test_the_exact_explorer_on_the_rooms_of_retrieval_augmented_dt(height, width, horizon, first, best):
    family = DarkRoom(width=width, height=height, horizon=horizon, goal_split="radt")
    tasks, explorer = family.split().test, {"agent": make_source("nearest_plausible").make}
    config = EvaluateConfig(lanes=20, episodes=2, hide_rewards=False)
    result = evaluate(family, tasks, explorer, config, root_seed=0, progress=False)
    returns = result.agents["agent"].returns[0]
    assert returns[:, 0].mean() == pytest.approx(first, abs=3)
    assert returns[:, 1].mean() == pytest.approx(best, abs=0.5)
    np.testing.assert_array_equal(returns[:, 1], family.optimal_return(tasks))  # from where it repeats it is optimal
