"""Dark Room against breadth-first search, hand-made cases and the published splits; its belief against enumeration."""

from __future__ import annotations

from collections import deque
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs import make_family
from envs.darkroom import DarkRoom, all_permutations
from envs.room import room_tables
from icrl.interfaces import Step
from icrl.seeding import LaneStreams


def move(family, cell, action):
    """The rule, written down a second time."""
    row, column = divmod(cell, family.width)
    row = min(max(row + (1, -1, 0, 0, 0)[action], 0), family.height - 1)
    column = min(max(column + (0, 0, 1, -1, 0)[action], 0), family.width - 1)
    return row * family.width + column


def step_all(env, observation, actions):
    next_observation, reward, terminated, truncated, info = env.step(actions)
    return Step(
        observation, actions, reward, terminated, truncated, info.get("final_obs", next_observation)
    ), next_observation


def test_dpt_split_has_the_published_optimum():
    family = DarkRoom()
    parts = family.split()
    assert [len(part) for part in parts] == [70, 10, 20]
    assert family.optimal_return(parts.test).mean() == pytest.approx(90.90)
    cells = [(i, j) for i in range(10) for j in range(10)]
    np.random.RandomState(0).shuffle(cells)
    np.testing.assert_array_equal(np.concatenate([part["goal"] for part in parts]), cells)


def test_radt_split_draws_100_cells():
    parts = DarkRoom(width=20, height=40, horizon=800, goal_split="radt").split()
    assert [len(part) for part in parts] == [70, 10, 20]
    cells = np.array([(i, j) for i in range(40) for j in range(20)])
    expected = np.random.RandomState(43).permutation(cells)[:100]
    np.testing.assert_array_equal(np.concatenate([part["goal"] for part in parts]), expected)
    assert DarkRoom(width=20, height=40, horizon=800).optimal_return(parts.test).mean() == pytest.approx(774.2)


def test_permuted_split_holds_out_goals_and_permutations():
    parts = DarkRoom(permuted_actions=True).split()
    goals = [{tuple(goal) for goal in part["goal"]} for part in parts]
    permutations = [{tuple(p) for p in part["permutation"]} for part in parts]
    for sets in (goals, permutations):
        assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    assert len(parts.train) == 70 * len(permutations[0]) and len(parts.test) == 20


def test_tables_equal_breadth_first_search():
    family = DarkRoom(width=4, height=3, num_validation=1)
    tables = room_tables(3, 4)
    for start in range(12):
        distance, queue = {start: 0}, deque([start])
        while queue:
            cell = queue.popleft()
            for action in range(5):
                reached = move(family, cell, action)
                assert tables.next_cell[cell, action] == reached
                if reached not in distance:
                    distance[reached] = distance[cell] + 1
                    queue.append(reached)
        np.testing.assert_array_equal(tables.distance[start], [distance[cell] for cell in range(12)])
        for goal in range(12):  # every move shortens the way; rows come first
            action = int(tables.towards[start, goal])
            assert distance[goal] == 0 or tables.distance[move(family, start, action), goal] == distance[goal] - 1
            assert (action in (0, 1)) == (start // 4 != goal // 4)


def test_hand_made_episode_dense_and_once():
    for reward, expected in (("dense", [0, 1, 1, 0, 1]), ("once", [0, 1, 0, 0, 0])):
        env = make_family("darkroom", width=3, height=3, horizon=5, reward=reward, num_validation=1).make_vec(
            DarkRoom(width=3, height=3).make_tasks(np.array([4]))
        )
        for _ in range(2):  # `once` is once per episode
            env.reset(seed=0)
            rewards = [float(env.step(np.array([action]))[1][0]) for action in (0, 2, 4, 3, 2)]
            assert rewards == expected


@pytest.mark.parametrize("start, distance", [("corner", 3), ("centre", 1)])
def test_returns_of_a_known_goal(start: Literal["corner", "centre"], distance):
    family = DarkRoom(width=3, height=3, horizon=5, start=start)
    task = family.make_tasks(np.array([2 * 3 + 1]))
    assert family.optimal_return(task)[0] == 5 - distance + 1
    here = family.make_tasks(np.array([family.start_cell]))
    assert family.optimal_return(here)[0] == 5  # staying pays from the first step on


def test_random_return_by_hand():
    """2x1 room, 2 steps: from cell 0, three of five moves stay, ... the goal is cell 1 (one move of five leads there)."""
    tasks = DarkRoom(width=1, height=2).make_tasks(np.array([1]))
    dense = DarkRoom(width=1, height=2, horizon=2).random_return(tasks)
    assert dense[0] == pytest.approx(0.2 + (0.8 * 0.2 + 0.2 * 0.8))
    once = DarkRoom(width=1, height=2, horizon=2, reward="once").random_return(tasks)
    assert once[0] == pytest.approx(1 - 0.8**2)


def test_permuted_actions_do_what_the_task_says():
    family = DarkRoom(width=4, height=4, permuted_actions=True)
    permutations = all_permutations()
    assert len({tuple(p) for p in permutations}) == 120
    tasks = family.make_tasks(np.full(120, 5), permutations)
    env = family.make_vec(tasks)
    env.reset(seed=0)
    for action in (0, 3, 1, 2, 4, 0):
        before = env.cell.copy()  # type: ignore[attr-defined]
        env.step(np.full(120, action))
        expected = [move(family, cell, p[action]) for cell, p in zip(before, permutations, strict=True)]
        np.testing.assert_array_equal(env.cell, expected)  # type: ignore[attr-defined]


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(1, 4),
    height=st.integers(2, 4),
    start=st.sampled_from(["corner", "centre", "random"]),
    reward=st.sampled_from(["dense", "once"]),
    permuted=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_belief_equals_enumeration_of_all_tasks(width, height, start, reward, permuted, seed):
    """Every goal (and permutation) is replayed through the rules; those that reproduce the history are the belief."""
    family = DarkRoom(width, height, horizon=6, start=start, reward=reward, permuted_actions=permuted)
    rng = np.random.default_rng(seed)
    env = family.make_vec(family.sample_tasks(rng, 2))
    posterior, streams = family.posterior(env), LaneStreams(seed, "s", lane_ids=2)
    permutations = all_permutations() if permuted else np.arange(5)[None]
    alive = np.ones((2, len(permutations), family.num_cells), bool)
    observation, _ = env.reset(seed=seed)
    paid = np.zeros((2, family.num_cells), bool)
    for _ in range(14):
        step, observation = step_all(env, observation, rng.integers(5, size=2))
        posterior.update(step)
        for lane in range(2):
            cell, reached = (int(o[lane] @ (width, 1)) for o in (step.observation, step.next_observation))
            for p, permutation in enumerate(permutations):
                alive[lane, p] &= move(family, cell, permutation[step.action[lane]]) == reached
            pays = np.arange(family.num_cells) == reached
            if reward == "once":
                pays, paid[lane] = pays & ~paid[lane], paid[lane] | pays
            alive[lane] &= pays == (step.reward[lane] > 0)
        if step.ended[0]:
            paid[:] = False
    tasks, weights = posterior.candidates()
    cells = np.broadcast_to(family.goal_cells(tasks), weights.shape)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    for lane in range(2):
        expected = alive[lane].any(axis=0) / alive[lane].any(axis=0).sum()
        np.testing.assert_allclose(weights[lane][np.argsort(cells[lane])], expected)
    check_optimal_action_probs(family, env, posterior, alive, permutations)
    check_samples(family, posterior, streams, alive, permutations)


def check_optimal_action_probs(family, env, posterior, alive, permutations):
    expected = np.zeros((2, 5))
    for lane in range(2):
        for p, goal in np.argwhere(alive[lane]):
            task = family.make_tasks(np.array([goal, goal]), permutations[[p, p]])
            expected[lane, env.optimal_action(task)[lane]] += 1 / alive[lane].sum()
    np.testing.assert_allclose(posterior.optimal_action_probs(env), expected, atol=1e-9)


def check_samples(family, posterior, streams, alive, permutations):
    for _ in range(10):
        tasks = posterior.sample(streams, np.arange(2))
        assert not posterior.refuted(tasks).any()
        for lane in range(2):
            goal = family.goal_cells(tasks)[lane]
            p = (permutations == tasks["permutation"][lane]).all(axis=1).argmax() if family.permuted_actions else 0
            assert alive[lane, p, goal]
    dead = np.argwhere(~alive[0])
    if len(dead):
        p, goal = dead[0]
        assert posterior.refuted(family.make_tasks(np.array([goal, goal]), permutations[[p, p]]))[0]


def test_samples_are_uniform_over_what_is_left():
    family = DarkRoom(width=3, height=2)
    env = family.make_vec(np.repeat(family.make_tasks(np.array([5])), 6000))
    posterior = family.posterior(env)
    observation, _ = env.reset(seed=0)
    step, _ = step_all(env, observation, np.full(6000, 2))  # cell 1 pays nothing
    posterior.update(step)
    goals = family.goal_cells(posterior.sample(LaneStreams(0, "s", lane_ids=6000), np.arange(6000)))
    counts = np.bincount(goals, minlength=6)
    assert counts[1] == 0 and np.abs(counts[[0, 2, 3, 4, 5]] - 1200).max() < 5 * np.sqrt(1200)


def test_reset_of_some_lanes_leaves_the_others():
    family = DarkRoom(width=3, height=2)
    env = family.make_vec(np.repeat(family.make_tasks(np.array([1])), 2))
    posterior = family.posterior(env)
    observation, _ = env.reset(seed=0)
    step, _ = step_all(env, observation, np.full(2, 2))
    posterior.update(step)
    posterior.reset([1])
    weights = posterior.candidates()[1]
    assert weights[0].max() == 1 and weights[1].max() == pytest.approx(1 / 6)


def test_evidence_that_nothing_explains_is_forgotten():
    family = DarkRoom(width=1, height=2)
    env = family.make_vec(family.make_tasks(np.array([1])))
    posterior = family.posterior(env)
    observation, _ = env.reset(seed=0)
    for action in (4, 0):  # both cells visited, rewards hidden
        step, observation = step_all(env, observation, np.array([action]))
        posterior.update(step._replace(reward=np.zeros(1, np.float32)))
    np.testing.assert_allclose(posterior.candidates()[1], [[0.5, 0.5]])


def test_steps_to_reward_is_one_where_the_lane_stands():
    family = DarkRoom(width=3, height=2)
    tasks = family.make_tasks(np.arange(6))
    env = family.make_vec(tasks[:2])
    env.reset(seed=0)
    expected = [1, 1, 2, 1, 2, 3]
    np.testing.assert_array_equal(env.steps_to_reward(tasks), [expected, expected])
    np.testing.assert_array_equal(env.steps_to_reward(np.stack([tasks, tasks[::-1]])), [expected, expected[::-1]])
