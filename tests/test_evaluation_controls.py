"""Rewards hidden from an agent, and the verdict that rests on them."""

import numpy as np
import pytest
from arm_family import FAMILY, ArmFamily, Try, run, zero

from icrl.controls import HiddenRewards, choose_hide_mode, donor_lanes
from icrl.evaluation_json import evaluation_to_json
from icrl.interfaces import Step, UserError

# controls


def test_hidden_rewards_hide_by_zeros_where_zero_is_what_uniform_actions_earn():
    family = ArmFamily(scale=1.0)
    tasks = family.tasks(8)
    tasks["means"][:, 2:] = 0  # at most one of four arms pays, in half of the tasks
    result = run(family, tasks=tasks)
    assert "replaced by 0" in result.agents[result.hidden or ""].note


@pytest.mark.parametrize("share, tasks, mode", [(0.99, 5, "zeros"), (0.5, 5, "other_task"), (0.0, 1, "zeros")])
def test_how_rewards_are_hidden(share, tasks, mode):
    assert choose_hide_mode(share, tasks) == mode


def test_noisy_rewards_are_hidden_by_those_of_another_task():
    result = run(ArmFamily(noise=0.1))
    assert "another task" in result.agents[result.hidden or ""].note


def test_hidden_agent_sees_zeros_and_nothing_else_changes():
    inner = Try()
    env = FAMILY.make_vec(FAMILY.tasks(4))
    agent = HiddenRewards(inner, "zeros", np.arange(4))
    observation, _ = env.reset(seed=0)
    agent.reset(4)
    decision = agent.act(observation)
    step = _step(observation, decision.action, reward=[1, 0, 0, 0])
    agent.observe(step)
    assert inner.shown[0].reward.tolist() == [0, 0, 0, 0]
    assert step.reward.tolist() == [1, 0, 0, 0]
    np.testing.assert_array_equal(inner.shown[0].action, step.action)


def test_hidden_agent_sees_the_rewards_of_lanes_with_another_task():
    inner, lane_task = Try(), np.array([0, 0, 1, 1])
    agent = HiddenRewards(inner, "other_task", lane_task)
    agent.reset(4)
    agent.observe(_step(np.zeros((4, 2), int), np.zeros(4, int), reward=[1, 1, 2, 2]))
    assert inner.shown[0].reward.tolist() == [2, 2, 1, 1]


@pytest.mark.parametrize("lanes, tasks", [(7, 2), (9, 4), (2000, 3)])
def test_donors_always_play_another_task(lanes, tasks):
    lane_task = np.arange(lanes) % tasks
    assert (lane_task[donor_lanes(lane_task)] != lane_task).all()


def test_donors_need_two_tasks():
    with pytest.raises(UserError, match="at least two tasks"):
        donor_lanes(np.zeros(3, int))


def _step(observation, action, reward):
    never = np.zeros(len(action), bool)
    return Step(observation, action, np.array(reward, np.float32), never, never, observation)


# verdict


def test_learner_is_found_to_learn_in_context():
    record = evaluation_to_json(run(tasks=FAMILY.tasks(8)))
    assert record["verdict"]["learned"] is True, record["verdict"]["text"]


def test_agent_that_ignores_rewards_is_not():
    record = evaluation_to_json(run(agents={"agent": zero}))
    assert record["verdict"]["learned"] is False
    assert "late - early episodes" in record["verdict"]["text"] and "rewards hidden" in record["verdict"]["text"]


def test_one_episode_of_a_bandit_is_judged_by_its_steps():
    tasks = FAMILY.tasks(8)
    record = evaluation_to_json(run(tasks=tasks, episodes=1))
    assert record["verdict"]["unit"] == "steps" and record["verdict"]["learned"] is True


def test_no_verdict_without_the_control():
    verdict = evaluation_to_json(run(hide_rewards=False))["verdict"]
    assert verdict["learned"] is None and "not evaluated" in verdict["text"]
