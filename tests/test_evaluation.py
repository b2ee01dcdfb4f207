"""Evaluation of toy agents with known returns: lanes, pairing, offline contexts, contradictions; and the papers' Dark Room."""

import json
from typing import ClassVar

import numpy as np
import pytest
from arm_family import AGENTS, FAMILY, ArmFamily, Fixed, Try, noisy, optimal, run, zero

from agents import make_source
from envs import make_family
from icrl.config import EvaluateConfig
from icrl.controls import donor_lanes
from icrl.evaluation import evaluate
from icrl.evaluation_json import evaluation_to_json
from icrl.interfaces import UserError

# lanes, episodes, random numbers


@pytest.mark.parametrize("lanes, tasks", [(16, 8), (10, 4), (3, 8)])
def test_lanes_are_spread_evenly_over_the_tasks(lanes, tasks):
    result = run(tasks=FAMILY.tasks(tasks), lanes=lanes, hide_rewards=False)
    counts = np.bincount(result.lane_task)
    assert len(counts) == len(result.tasks) == min(lanes, tasks)
    assert counts.sum() == lanes and counts.max() - counts.min() <= 1


def test_returns_of_agents_with_known_returns():
    result = run(tasks=FAMILY.tasks(4), lanes=4)
    np.testing.assert_array_equal(result.agents["optimal"].returns, np.full((1, 4, 4), 5.0))
    np.testing.assert_array_equal(result.agents["agent"].returns[0, :, 0], [5, 4, 3, 2])  # one step lost per failed arm
    np.testing.assert_array_equal(result.agents["agent"].returns[0, :, 1:], np.full((4, 3), 5.0))


def test_every_lane_counts_the_same_number_of_episodes_whatever_their_length():
    tasks = FAMILY.tasks(4)
    tasks["length"] = [1, 2, 3, 5]
    result = run(tasks=tasks, lanes=8, hide_rewards=False)
    np.testing.assert_array_equal(result.agents["optimal"].returns[0, :, 0], [1, 2, 3, 5, 1, 2, 3, 5])
    assert (result.agents["optimal"].returns == result.agents["optimal"].returns[:, :, :1]).all()
    assert result.agents["optimal"].num_steps == 8 * 4 * 5  # until the slowest lane is done


def test_all_agents_meet_the_same_environment_streams_and_seeds_differ():
    twins = {"agent": optimal, "twin": optimal}
    result = run(ArmFamily(noise=1.0), agents=twins, seeds=(0, 1), hide_rewards=False)
    np.testing.assert_array_equal(result.agents["agent"].returns, result.agents["twin"].returns)
    assert not np.array_equal(result.agents["agent"].returns[0], result.agents["agent"].returns[1])


def test_agents_of_different_names_draw_different_numbers_but_the_hidden_twin_the_same():
    result = run(agents={"agent": noisy, "other": noisy})
    hidden = result.agents["agent, rewards hidden"]
    np.testing.assert_array_equal(result.agents["agent"].returns, hidden.returns)
    assert not np.array_equal(result.agents["agent"].returns, result.agents["other"].returns)


def test_an_evaluation_is_deterministic_but_for_times():
    def record():
        row = evaluation_to_json(run(ArmFamily(noise=0.3), seeds=(0, 1)))
        for agent in row["agents"].values():
            del agent["seconds"], agent["steps_per_second"]
        return json.dumps(row)

    assert record() == record()


def test_an_episode_longer_than_the_horizon_is_refused():
    with pytest.raises(UserError, match="horizon of 5"):
        run(tasks=FAMILY.tasks(4, length=6), hide_rewards=False)


# offline


class Loader(Fixed):
    """Keeps the window that it is given and plays what paid in it."""

    windows: ClassVar[list] = []

    def __init__(self):
        pass

    def load_context(self, window):
        self.windows.append(window)
        best = window.reward.argmax(1)
        self.arms = window.action[np.arange(len(best)), best]


def loader(family, env, streams, num_steps):
    return Loader()


def test_every_agent_gets_the_same_context_and_it_stays_fixed():
    Loader.windows.clear()
    made = []

    def remembered(*args):
        made.append(Try())
        return made[-1]

    agents = {"agent": loader, "other": loader, "observer": remembered}
    result = run(agents=agents, mode="offline", context_size=7, lanes=6, hide_rewards=False)
    first, second = Loader.windows
    np.testing.assert_array_equal(first.action, second.action)
    assert first.reward.shape == (6, 7)
    np.testing.assert_array_equal([step.action for step in made[0].shown], first.action.T)  # the context and no more
    assert result.agents["agent"].returns.shape == (1, 6, 1)


def test_random_contexts_are_single_steps_and_expert_contexts_are_episodes():
    Loader.windows.clear()
    run(agents={"agent": loader}, mode="offline", context="random", context_size=7, hide_rewards=False)
    run(agents={"agent": loader}, mode="offline", context="expert", context_size=7, hide_rewards=False)
    random, expert = Loader.windows
    assert random.episode[0].tolist() == list(range(7)) and not random.episode_step.any()
    assert expert.episode[0].tolist() == [0] * 5 + [1] * 2
    assert expert.episode_step[0].tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert expert.next_observation[0, :, 0].tolist() == [1, 2, 3, 4, 5, 1, 2]
    assert (expert.reward == 1).all() and expert.valid.all() and (expert.task == -1).all()


def test_hiding_rewards_offline_hides_those_of_the_context():
    Loader.windows.clear()
    result = run(ArmFamily(noise=0.01), agents={"agent": loader}, mode="offline", context="expert", context_size=3)
    shown, hidden = Loader.windows
    lanes = donor_lanes(result.lane_task)
    np.testing.assert_array_equal(hidden.reward, shown.reward[lanes])
    assert evaluation_to_json(result)["verdict"]["learned"] is None


@pytest.mark.parametrize("name", ["posterior_sampling", "sample_and_hold", "nearest_plausible"])
def test_exact_agents_use_a_given_context(name):
    family = make_family("darkroom", width=3, height=3, horizon=6, num_validation=0)
    agents = {"agent": make_source(name).make, "optimal": make_source("optimal").make}
    config = EvaluateConfig(lanes=40, mode="offline", context="expert", context_size=6)
    expert = {"expert": make_source("optimal").make}
    result = evaluate(family, family.split().test, agents, config, root_seed=0, context_agents=expert, progress=False)
    np.testing.assert_array_equal(result.agents["agent"].returns, result.agents["optimal"].returns)
    assert result.agents["agent, rewards hidden"].returns.mean() < result.agents["optimal"].returns.mean()


# the Dark Room of the papers


def test_exact_explorer_on_the_papers_dark_room():
    family = make_family("darkroom")
    names = ("nearest_plausible", "blind_sweep", "sweep_then_return", "random", "optimal")
    agents = {name: make_source(name).make for name in names}
    config = EvaluateConfig(lanes=40, episodes=4)
    result = evaluate(
        family, family.split().test, agents, config, root_seed=0, primary="nearest_plausible", progress=False
    )
    record = evaluation_to_json(result)
    rows = {name: row["return_by_episode"]["mean"] for name, row in record["agents"].items()}
    np.testing.assert_allclose(rows["nearest_plausible"], [43.7, 90.9, 90.9, 90.9], atol=0.05)
    np.testing.assert_allclose(rows["optimal"], [90.9] * 4)
    assert rows["sweep_then_return"][0] == rows["blind_sweep"][0] == rows["blind_sweep"][3]
    assert rows["sweep_then_return"][1] == pytest.approx(90.9)
    assert record["verdict"]["learned"] is True and result.hidden == "nearest_plausible, rewards hidden"
    assert record["agents"]["random"]["normalised_score"]["mean"] == pytest.approx(0, abs=0.02)


# contradictions


@pytest.mark.parametrize(
    "options, words",
    [
        ({"lanes": 0}, "--lanes 0: expected at least 1"),
        ({"episodes": 0}, "--episodes 0: expected at least 1"),
        ({"seeds": ()}, "seeds"),
        ({"seeds": (1, 1)}, "all different"),
        ({"tasks": FAMILY.tasks(0)}, "the test split holds 0 tasks"),
        ({"agents": {"other": zero}}, "'agent' is not among other"),
        ({"mode": "offline", "context_size": 0}, "--context-size 0"),
    ],
)
def test_contradictions_are_refused_before_any_work(options, words):
    with pytest.raises(UserError, match=words):
        run(**options)


def test_offline_needs_someone_to_leave_the_context():
    with pytest.raises(UserError, match="--context random: no agent to leave it"):
        evaluate(FAMILY, FAMILY.tasks(2), AGENTS, EvaluateConfig(mode="offline"), root_seed=0, progress=False)
