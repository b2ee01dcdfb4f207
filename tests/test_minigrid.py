"""MiniGrid families: tables against the real environment, what is hidden stays hidden, shortest ways, beliefs, frames, bad input."""

from __future__ import annotations

import itertools
from collections import deque

import gymnasium as gym
import numpy as np
import pytest

from agents import make_source
from envs.finite_worlds import FiniteWorlds
from envs.minigrid_tasks import (
    MiniGridDoorKey,
    MiniGridDoors,
    MiniGridEmpty,
    MiniGridFourRooms,
    MiniGridLavaGap,
    MiniGridMemory,
    MiniGridObjects,
)
from envs.minigrid_world import World
from icrl.interfaces import Decision, UserError
from icrl.rollout import rollout
from icrl.seeding import LaneStreams

# small, so that walking them takes no time
FAMILIES = [
    MiniGridEmpty(size=6, horizon=25),
    MiniGridFourRooms(size=7, horizon=30),
    MiniGridObjects(size=7, num_objects=2, num_arrangements=8, horizon=25),
    MiniGridDoors(size=6, horizon=30),
    MiniGridDoorKey(size=6, horizon=40),
    MiniGridLavaGap(size=7, num_validation=2, horizon=35),
    MiniGridMemory(num_cues=3, passage=1, horizon=30),
]
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def mixed_actions(env, rng):
    """Half optimal, half uniform: rounds end, and strange states are met."""
    uniform = rng.integers(env.single_action_space.n, size=env.num_envs)
    return np.where(rng.random(env.num_envs) < 0.5, env.optimal_action(), uniform)


@every_family
def test_tables_agree_with_minigrid_step_by_step(family):
    tasks = family.split().test[:4]
    env, rng = family.make_vec(tasks), np.random.default_rng(0)
    first, _ = env.reset(seed=0)
    worlds = [World(family, task) for task in tasks]
    shape = worlds[0].state_shape
    for lane, world in enumerate(worlds):  # what a round draws is the lane's business: the world is told
        world._gen_grid = lambda *_, lane=lane, world=world: world.begin_round(  # type: ignore[method-assign]
            int(np.unravel_index(env.state[lane], shape)[0])
        )
        np.testing.assert_array_equal(world.reset()[0], first[lane])
    paid = 0.0
    for _ in range(3 * family.horizon):
        actions = mixed_actions(env, rng)
        observation, reward, _, truncated, info = env.step(actions)
        paid += reward.sum()
        for lane, world in enumerate(worlds):
            seen, earned, terminated, ended, _ = world.step(actions[lane])
            assert (earned, terminated, ended) == (reward[lane], False, truncated[lane])
            true = info["final_obs"][lane] if ended else observation[lane]
            if not (family.num_variants > 1 and ended):  # the lane has drawn again by now
                np.testing.assert_array_equal(seen, true)
            if ended:
                np.testing.assert_array_equal(world.reset()[0], observation[lane])
    assert paid >= 4


@every_family
def test_worlds_keep_to_their_spaces(family):
    world = World(family, family.split().train[0])
    assert world.observation_space.contains(world.reset(seed=0)[0])
    for action in range(world.action_space.n):  # type: ignore[attr-defined]
        assert world.observation_space.contains(world.step(action)[0])
    worlds = family.catalogue.worlds
    assert (worlds.observation[worlds.reached] < worlds.sizes).all() and worlds.observation.min() >= 0
    shown = worlds.codes[:, worlds.starts]
    assert all(len(set(codes)) == family.num_variants for codes in shown)  # the first look tells what a round drew


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name != "minigrid_doorkey"], ids=lambda f: f.name)
def test_what_is_hidden_is_not_seen(family):
    """Where two tasks differ in what is hidden alone, a state shows the same in both, until a door was opened."""
    layouts, worlds = family.catalogue.layouts, family.catalogue.worlds
    visible = (
        layouts["places"].reshape(len(layouts), -1)
        if family.name == "minigrid_objects"
        else np.zeros((len(layouts), 1))
    )
    shape = World(family, layouts[0]).state_shape
    untouched = np.ones(worlds.num_states, bool)
    if family.name == "minigrid_doors":
        untouched = np.unravel_index(np.arange(worlds.num_states), shape)[1] == 1
    compared = 0
    for a, b in itertools.combinations(range(len(layouts)), 2):
        if (visible[a] == visible[b]).all():
            both = worlds.reached[a] & worlds.reached[b] & untouched
            np.testing.assert_array_equal(worlds.observation[a, both], worlds.observation[b, both])
            if family.name not in (
                "minigrid_doors",
                "minigrid_lavagap",
            ):  # there the ways differ, elsewhere rewards alone
                np.testing.assert_array_equal(worlds.next_state[a], worlds.next_state[b])
                np.testing.assert_array_equal(worlds.ends[a], worlds.ends[b])
            compared += both.sum()
    assert compared > 100


@every_family
def test_distance_equals_a_search_in_the_real_environment(family):
    """From the start and from anywhere: to lose a round can be the shortest way back to the start."""
    tasks, rng = family.split().test[:3], np.random.default_rng(0)
    worlds, row, _ = family.catalogue.locate(tasks)
    for task, distance, reached in zip(tasks, worlds.distance[row], worlds.reached[row], strict=True):
        world = World(family, task)
        assert world.state() == worlds.starts[0]
        for state in (worlds.starts[0], *rng.choice(np.flatnonzero(reached), 8)):
            assert distance[state] == steps_to_pay(world, int(state), int(worlds.starts[0]))


def steps_to_pay(world, state, start):
    """Fewest steps from ``state`` to a reward, by breadth-first search."""
    todo, steps = deque([state]), {state: 0}
    world.begin_round(0)
    while True:
        state = todo.popleft()
        for move in range(len(world.family.moves)):
            world.set_state(state)
            reward, over = world.move(move)
            if reward:
                return steps[state] + 1
            after = start if over else world.state()
            if over:
                world.begin_round(0)
            if after not in steps:
                steps[after] = steps[state] + 1
                todo.append(after)


def test_optimal_return_counts_the_steps_on_the_goal():
    family = MiniGridEmpty(size=6, horizon=25)
    tasks = family.layouts()
    for task, value in zip(tasks, family.optimal_return(tasks), strict=True):
        x, y = task["goal"]
        turns = int(y > 1)
        assert value == 25 + 1 - (x - 1 + y - 1 + turns)


def test_expected_return_of_a_coin_that_ends_the_round():
    """One state; heads pays and ends, tails ends for nothing: the chance of heads at each step, or at the first one alone."""
    table = np.zeros((1, 1, 2), np.int32)
    ends, pays = np.ones((1, 1, 2), bool), np.array([[[True, False]]])
    worlds = FiniteWorlds(
        table, pays, ends, np.ones((1, 1), bool), np.zeros((1, 1, 1), np.int16), np.zeros(1, int), np.ones(1)
    )
    policy = np.array([[[0.3, 0.7]]])
    assert worlds.expected_return(policy, np.ones((1, 1)), 10, renews=True) == pytest.approx([3.0])
    assert worlds.expected_return(policy, np.ones((1, 1)), 10, renews=False) == pytest.approx([0.3])
    assert worlds.distance.tolist() == [[1]] and worlds.best.tolist() == [[0]]


BELIEFS = [
    MiniGridEmpty(size=5, horizon=15, permuted_actions=True),
    MiniGridObjects(size=7, num_objects=2, num_arrangements=8, horizon=25),
    MiniGridDoorKey(size=6, horizon=40),
    MiniGridLavaGap(size=7, num_validation=2, horizon=35),
    MiniGridMemory(num_cues=3, passage=1, horizon=30),
]


@pytest.mark.parametrize("family", BELIEFS, ids=lambda family: family.name)
def test_posterior_keeps_the_tasks_that_would_have_shown_the_same(family):
    """A task is plausible iff a lane of it, given the same actions and draws, has seen and earned the same all along."""
    tasks = family.catalogue.tasks
    truth = tasks[np.random.default_rng(1).permutation(len(tasks))[:5]]
    env, rng = family.make_vec(truth, lane_ids=np.zeros(5, int)), np.random.default_rng(2)
    others = [family.make_vec(tasks, lane_ids=np.zeros(len(tasks), int)) for _ in truth]
    posterior = family.posterior(env)
    source = rollout(_Replay(env, rng), env, seed=7)
    shown = env.reset(seed=7)[0]
    alike = np.stack(
        [(other.reset(seed=7)[0] == first).all(axis=1) for other, first in zip(others, shown, strict=True)]
    )
    for turn in itertools.islice(source, 2 * family.horizon):
        posterior.update(turn.step)
        for lane, other in enumerate(others):
            observation, reward, _, _, info = other.step(np.full(len(tasks), turn.step.action[lane]))
            observation = info.get("final_obs", observation)
            alike[lane] &= (observation == turn.step.next_observation[lane]).all(axis=1)
            alike[lane] &= reward == turn.step.reward[lane]
        np.testing.assert_array_equal(posterior.plausible()[1], alike)
        assert not posterior.refuted(truth).any()
    assert (alike.sum(axis=1) <= len(tasks) / 2).all()
    best = np.stack([_optimal_in(family, task, env.state) for task in tasks], axis=1)  # (B, N)
    votes = np.stack([((best == action) & alike).sum(axis=1) for action in range(env.single_action_space.n)], axis=1)
    np.testing.assert_allclose(posterior.optimal_action_probs(env), votes / alike.sum(axis=1, keepdims=True))


def _optimal_in(family, task, state):
    env = family.make_vec(np.repeat(task[None], len(state)))
    env.state = state
    return env.optimal_action()


class _Replay:
    """Half optimal, half uniform actions."""

    def __init__(self, env, rng):
        self._env, self._rng = env, rng

    def reset(self, lanes):
        pass

    def act(self, observation, action_mask=None):
        return Decision(mixed_actions(self._env, self._rng))

    def observe(self, step):
        pass


@pytest.mark.parametrize("family", BELIEFS, ids=lambda family: family.name)
def test_an_explorer_finds_the_optimum(family):
    tasks = family.catalogue.tasks[::2]
    env = family.make_vec(tasks)
    agent = make_source("nearest_plausible").make(family, env, LaneStreams(0, "agent", lane_ids=len(tasks)), 0)
    rewards = [turn.step.reward for turn in itertools.islice(rollout(agent, env, seed=0), 12 * family.horizon)]
    returns = np.array(rewards).reshape(12, family.horizon, -1).sum(axis=1)
    np.testing.assert_array_equal(returns[-1], family.optimal_return(tasks))
    assert returns[0].mean() < returns[-1].mean()


def test_a_reset_of_one_lane_forgets_that_lane_alone():
    family = BELIEFS[3]
    tasks = family.catalogue.tasks
    env = family.make_vec(tasks)
    posterior, untouched = family.posterior(env), family.posterior(env)
    others = np.delete(np.arange(len(tasks)), 2)
    for t, turn in enumerate(itertools.islice(rollout(_Replay(env, np.random.default_rng(0)), env, seed=0), 90)):
        posterior.update(turn.step)
        untouched.update(turn.step)
        if t == 15:  # in the middle of an episode
            posterior.reset(np.array([2]))
            left = posterior.plausible()[1].sum(axis=1)
            assert left[2] == len(tasks) > untouched.plausible()[1][2].sum() and (left[others] > 1).any()
        np.testing.assert_array_equal(posterior.plausible()[1][others], untouched.plausible()[1][others])
    sampled = posterior.sample(LaneStreams(0, "draws", lane_ids=len(tasks)), np.arange(len(tasks)))
    assert not posterior.refuted(sampled).any()
    assert posterior.candidates()[1].sum(axis=1) == pytest.approx(1)


def test_a_held_out_task_is_new_in_layout_and_permutation():
    parts = MiniGridLavaGap(size=7, num_validation=2, permuted_actions=True).split()
    for field in ("gaps", "permutation"):
        seen = [{tuple(row) for row in part[field].tolist()} for part in parts]
        assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert len(parts.train) == 18 * 3 and len(parts.test) == 5


def test_permuted_actions_do_what_the_task_says():
    plain, permuted = MiniGridEmpty(size=6, horizon=25), MiniGridEmpty(size=6, horizon=25, permuted_actions=True)
    tasks = permuted.split().test
    layouts = np.zeros(len(tasks), plain.layouts().dtype)
    layouts["goal"] = tasks["goal"]
    a, b, rng = plain.make_vec(layouts), permuted.make_vec(tasks), np.random.default_rng(0)
    a.reset(seed=0)
    b.reset(seed=0)
    for _ in range(60):
        actions = rng.integers(3, size=len(tasks))
        first, second = a.step(tasks["permutation"][np.arange(len(tasks)), actions]), b.step(actions)
        np.testing.assert_array_equal(first[0], second[0])
        np.testing.assert_array_equal(first[1], second[1])


@every_family
def test_frames_show_the_lane(family):
    env = family.make_vec(family.split().test[:2])
    env.reset(seed=0)
    frames = env.render()
    assert len(frames) == 2
    assert frames[0].shape == (16 * family.height, 16 * family.width, 3) and frames[0].dtype == np.uint8
    env.step(np.array([0, 0]))  # turn left
    assert (env.render()[0] != frames[0]).any()
    goal_green = (frames[0] == (0, 255, 0)).all(axis=2)
    assert goal_green.any() == (family.name != "minigrid_objects")


@pytest.mark.parametrize(
    "name, task",
    [
        ("MiniGridEmpty", {"goal": (3, 1)}),
        ("MazeRunner", {"maze": 0, "num_goals": 1, "goals": [(1, 1), (0, 0), (0, 0)]}),
    ],
)
def test_the_last_frame_of_an_episode_shows_where_it_ended(name, task):
    shown = []
    for horizon in (2, 3):
        env = gym.make(f"icrl/{name}-v0", render_mode="rgb_array", size=7, horizon=horizon, **task)
        env.reset(seed=0)
        frames: list = [env.render()]
        for _ in range(2):
            *_, truncated, _ = env.step(env.unwrapped._vec.optimal_action()[0])  # type: ignore[attr-defined]
            frames.append(env.render())
        assert truncated == (horizon == 2)
        shown.append(frames)
        env.reset()
        np.testing.assert_array_equal(env.render(), frames[0])  # type: ignore[arg-type]
    np.testing.assert_array_equal(*shown)
    assert (shown[0][0] != shown[0][1]).any() and (shown[0][1] != shown[0][2]).any()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: MiniGridEmpty(size=4), "size is 4: expected 5 to 19"),
        (lambda: MiniGridEmpty(horizon=0), "horizon is 0"),
        (lambda: MiniGridFourRooms(size=8), "odd"),
        (lambda: MiniGridObjects(num_objects=1), "num_objects is 1: expected 2 to 4"),
        (lambda: MiniGridObjects(arrangement_seed=-1), "arrangement_seed"),
        (lambda: MiniGridLavaGap(num_walls=4), "num_walls is 4: expected 1 to 3"),
        (lambda: MiniGridMemory(num_cues=7), "num_cues 7"),
        (lambda: MiniGridMemory(passage=0), "passage is 0"),
        (lambda: MiniGridEmpty(size=6, horizon=6).make_vec(MiniGridEmpty(size=6).layouts()), "needs 7 steps"),
        (lambda: MiniGridEmpty(size=6).make_vec(MiniGridEmpty(size=7).layouts()[-1:]), r"no task .*expected one of its 15 tasks"),
        (lambda: MiniGridEmpty().make_vec(MiniGridLavaGap().layouts()), "fields"),
        (lambda: MiniGridEmpty(size=5, num_validation=6).split(), "num_validation is 6"),
        (lambda: _posterior(MiniGridEmpty(size=5).scattered()), "begin"),
        (lambda: _posterior(MiniGridDoorKey(size=6, permuted_actions=True)), "4,096"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def _posterior(family):
    return family.posterior(family.make_vec(family.catalogue.tasks[:1]))
