"""Maze-Runner: mazes are trees, the lidar measures, goals pay in order, episodes end one by one, exact returns, bad input."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from envs.maze_layout import MOVES, RAYS, free_lengths, maze
from envs.maze_runner import MazeRunner
from icrl.interfaces import UserError

SMALL = MazeRunner(size=7, horizon=40, num_train_tasks=30, num_test_tasks=10)


def steps_between(walls, start):
    """Steps from ``start`` to every free cell, by breadth-first search."""
    steps, todo = {start: 0}, deque([start])
    while todo:
        cell = todo.popleft()
        for move in MOVES:
            after = (cell[0] + move[0], cell[1] + move[1])
            if not walls[after] and after not in steps:
                steps[after] = steps[cell] + 1
                todo.append(after)
    return steps


def test_mazes_are_trees_and_differ():
    mazes = [maze(seed, 15) for seed in range(20)]
    for walls in mazes:
        assert walls[0].all() and walls[-1].all() and walls[:, 0].all() and walls[:, -1].all()
        assert not walls[1::2, 1::2].any()
        assert (~walls).sum() == 49 + 48  # rooms, and one passage fewer: a tree, if all are joined
        assert len(steps_between(walls, (1, 1))) == 97
    assert len({walls.tobytes() for walls in mazes}) == 20
    np.testing.assert_array_equal(maze(3, 15), mazes[3])


def test_the_lidar_counts_free_cells():
    walls = maze(4, 9)
    lengths = free_lengths(walls).reshape(9, 9, 8)
    for cell in np.argwhere(~walls):
        for number, ray in enumerate(RAYS):
            count = 0
            while not walls[tuple(cell + (count + 1) * ray)]:
                count += 1
            assert lengths[tuple(cell)][number] == count
    assert lengths.max() > 3 and not lengths[walls].any()


def test_goals_pay_in_order_once_and_the_last_one_ends_the_episode():
    tasks = SMALL.split().test
    env = SMALL.make_vec(tasks)
    observation, _ = env.reset(seed=0)
    legs = []
    for task in tasks:
        stops = [divmod(SMALL.start_cell, 7), *map(tuple, task["goals"][: task["num_goals"]].tolist())]
        legs.append([steps_between(maze(int(task["maze"]), 7), a)[b] for a, b in pairwise(stops)])
    assert {len(leg) for leg in legs} == {1, 2, 3} and max(map(sum, legs)) <= SMALL.horizon
    first = observation.copy()
    paid, clock = [[] for _ in tasks], np.zeros(len(tasks), int)
    for _ in range(100):
        observation, reward, terminated, truncated, info = env.step(env.optimal_action())
        clock += 1
        assert not truncated.any() and ("final_obs" in info) == terminated.any()
        for lane in np.flatnonzero(reward):
            paid[lane].append(clock[lane])
        for lane in np.flatnonzero(terminated):
            goals = tasks["goals"][lane]
            assert (
                info["_final_obs"][lane] and (info["final_obs"][lane, :2] == goals[tasks["num_goals"][lane] - 1]).all()
            )
            np.testing.assert_array_equal(paid[lane], np.cumsum(legs[lane]))
            np.testing.assert_array_equal(observation[lane], first[lane])
            paid[lane], clock[lane] = [], 0
        if terminated.any() and not terminated.all():
            going = ~terminated
            np.testing.assert_array_equal(info["final_obs"][going], observation[going])
    np.testing.assert_array_equal(SMALL.optimal_return(tasks), tasks["num_goals"])


def test_a_goal_out_of_turn_pays_nothing():
    task = SMALL.sample_tasks(np.random.default_rng(0), 1)
    walls, start = maze(int(task["maze"][0]), 7), divmod(SMALL.start_cell, 7)
    steps = steps_between(walls, start)
    far = max(steps, key=lambda cell: steps[cell])
    on_the_way = next(c for c, n in steps_between(walls, far).items() if 0 < n < steps[far] == n + steps[c])
    task["num_goals"], task["goals"] = 2, 0
    task["goals"][0, :2] = far, on_the_way
    env = SMALL.make_vec(task)
    env.reset(seed=0)
    met, rewards = set(), []
    for _ in range(steps[far]):
        observation, reward, *_ = env.step(env.optimal_action())
        met.add(tuple(observation[0, :2].tolist()))
        rewards.append(reward[0])
    assert on_the_way in met and rewards == [0.0] * (steps[far] - 1) + [1.0]


def test_lanes_run_out_of_time_by_their_own_clocks():
    tasks = SMALL.split().test
    env = SMALL.make_vec(tasks)
    env.reset(seed=0)
    rng, clock = np.random.default_rng(0), np.zeros(len(tasks), int)
    ends = set()
    for _ in range(300):
        optimal = rng.random(len(tasks)) < np.linspace(0, 0.9, len(tasks))
        *_, terminated, truncated, _ = env.step(
            np.where(optimal, env.optimal_action(), rng.integers(4, size=len(tasks)))
        )
        clock += 1
        assert not (terminated & truncated).any()
        np.testing.assert_array_equal(truncated, (clock == SMALL.horizon) & ~terminated)
        ends |= {(bool(t), int(c)) for t, c, e in zip(terminated, clock, terminated | truncated, strict=True) if e}
        clock[terminated | truncated] = 0
    assert (False, SMALL.horizon) in ends and len(ends) > 5


def test_a_lane_depends_neither_on_the_others_nor_on_their_ends():
    family = replace(SMALL, begin="anywhere")
    tasks, lanes = family.split().test, np.array([7, 2, 4])
    whole, part = family.make_vec(tasks), family.make_vec(tasks[lanes], lane_ids=lanes)
    np.testing.assert_array_equal(whole.reset(seed=3)[0][lanes], part.reset(seed=3)[0])
    rng = np.random.default_rng(0)
    for _ in range(120):
        actions = rng.integers(4, size=len(tasks))
        for a, b in zip(whole.step(actions)[:4], part.step(actions[lanes])[:4], strict=True):
            np.testing.assert_array_equal(a[lanes], b)


@pytest.mark.parametrize("family", [SMALL, replace(SMALL, begin="anywhere")], ids=["start", "anywhere"])
def test_random_return_equals_a_simulated_one(family):
    tasks = family.split().test[:4]
    env = family.make_vec(np.repeat(tasks, 2000))
    env.reset(seed=0)
    rng, going, total = np.random.default_rng(0), np.ones(8000, bool), np.zeros(8000)
    for _ in range(family.horizon):
        _, reward, terminated, *_ = env.step(rng.integers(4, size=8000))
        total += reward * going
        going &= ~terminated
    total = total.reshape(4, 2000)
    error = total.std(axis=1) / np.sqrt(2000)
    assert (np.abs(total.mean(axis=1) - family.random_return(tasks)) < 4.5 * error).all()


def test_a_scattered_step_begins_anywhere():
    env = SMALL.scattered().make_vec(np.resize(SMALL.split().train[:1], 500))
    observation, _ = env.reset(seed=0)
    assert len(np.unique(observation[:, :2], axis=0)) >= 16  # 9 rooms and 8 passages, but for one goal of one
    assert env.step(np.zeros(500, int))[3].any()


def test_frames_show_walls_goals_and_the_agent():
    tasks = SMALL.split().test
    env = SMALL.make_vec(tasks)
    env.reset(seed=0)
    frames = env.render()
    for task, frame in zip(tasks, frames, strict=True):
        assert frame.shape == (112, 112, 3) and frame.dtype == np.uint8
        cells = frame[8::16, 8::16]
        np.testing.assert_array_equal((cells == 80).all(axis=2), maze(int(task["maze"]), 7))
        assert (cells[tuple(task["goals"][0])] == (0, 230, 0)).all()
        assert (cells[divmod(SMALL.start_cell, 7)] == (220, 30, 30)).all()


def with_task(**values):
    task = SMALL.sample_tasks(np.random.default_rng(0), 1)
    for key, value in values.items():
        task[key][0] = value
    return SMALL.make_vec(task)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: MazeRunner(size=8), "size is 8: expected an odd number"),
        (lambda: MazeRunner(size=3), "size is 3"),
        (lambda: MazeRunner(size=5, max_goals=4), "max_goals is 4: expected at most 3"),
        (lambda: MazeRunner(num_test_tasks=0), "num_test_tasks"),
        (lambda: with_task(num_goals=0), "num_goals 0: expected 1 to 3"),
        (lambda: with_task(num_goals=1, goals=[(0, 0)] * 3), r"goal at \(0, 0\)"),
        (lambda: with_task(num_goals=1, goals=[(7, 1)] * 3), r"goal at \(7, 1\)"),
        (lambda: with_task(num_goals=2, goals=[(1, 1)] * 3), r"goal at \(1, 1\): .*not the one where the agent is"),
        (lambda: SMALL.posterior(with_task()), "no posterior"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
