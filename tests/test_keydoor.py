"""Key-Door against rules written down a second time and the published split; its belief against enumeration of all pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import make_source
from envs import make_family
from envs.keydoor import KeyDoor
from icrl.evaluation import run_episodes
from icrl.interfaces import Step
from icrl.seeding import LaneStreams


class Rules:
    """One life under a hypothetical key and door: what every step would pay."""

    def __init__(self, key: int, door: int, once: bool):
        self.key, self.door, self.once = key, door, once
        self.begin()

    def begin(self) -> None:
        self.has_key, self.opened = False, False

    def pays(self, cell: int) -> bool:
        if not self.has_key:
            self.has_key = cell == self.key
            return self.has_key
        if cell != self.door or (self.once and self.opened):
            return False
        self.opened = True
        return True


def play(env, observation, actions):
    """One step, and the observation to act on next."""
    following, reward, terminated, truncated, info = env.step(actions)
    step = Step(observation, actions, reward, terminated, truncated, info.get("final_obs", following))
    return step, following


@pytest.mark.parametrize("height, width, horizon, optimum", [(10, 10, 100, 87.0), (20, 20, 400, 368.25), (40, 20, 800, 745.9)])  # fmt: skip
def test_radt_split_has_the_published_optimum(height, width, horizon, optimum):
    family = KeyDoor(width=width, height=height, horizon=horizon)
    parts = family.split()
    assert [len(part) for part in parts] == [70, 10, 20]
    assert family.optimal_return(parts.test).mean() == pytest.approx(optimum)


def test_a_seeded_split_draws_pairs_without_repetition():
    parts = KeyDoor(width=9, height=9, task_split=1, num_tasks=81 * 81).split()
    pairs = np.concatenate([np.concatenate([part["key"], part["door"]], axis=1) for part in parts])
    assert len(np.unique(pairs, axis=0)) == 81 * 81 and len(parts.test) == 81 * 81 - int(0.8 * 81 * 81)


@pytest.mark.parametrize("reward, expected", [("dense", [0, 0, 1, 0, 1, 1, 0, 1]), ("once", [0, 0, 1, 0, 1, 0, 0, 0])])
def test_hand_made_episode(reward, expected):
    """3x3, key at (1, 0), door at (0, 1): the door is met first and pays nothing without the key."""
    family = KeyDoor(width=3, height=3, horizon=8, reward=reward)
    env = family.make_vec(family.make_tasks(np.array([3]), np.array([1])))
    env.reset(seed=0)
    for _ in range(2):  # the key is lost, and the door shut, at the end of an episode
        assert [float(env.step(np.array([action]))[1][0]) for action in (2, 3, 0, 1, 2, 4, 3, 2)] == expected


def test_key_and_door_in_one_cell_pay_one_after_the_other():
    family = KeyDoor(width=2, height=2, horizon=3)
    task = family.make_tasks(np.array([1]), np.array([1]))
    env = family.make_vec(task)
    env.reset(seed=0)
    assert [float(env.step(np.array([action]))[1][0]) for action in (2, 4, 4)] == [1, 1, 1]
    assert family.optimal_return(task)[0] == 3


def test_returns_of_an_episode_that_is_too_short():
    family = KeyDoor(width=3, height=3, horizon=3)
    tasks = family.make_tasks(
        np.array([8, 2, 2]), np.array([0, 5, 8])
    )  # key 4 steps away; key 2, door 1 more; door 2 more
    np.testing.assert_array_equal(family.optimal_return(tasks), [0, 2, 1])


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(1, 3),
    height=st.integers(2, 3),
    start=st.sampled_from(["corner", "centre", "random"]),
    reward=st.sampled_from(["dense", "once"]),
    seed=st.integers(0, 1000),
)
def test_belief_equals_enumeration_of_all_pairs(width, height, start, reward, seed):
    family = KeyDoor(width, height, horizon=9, start=start, reward=reward, num_validation=0)
    rng, cells = np.random.default_rng(seed), width * height
    env = family.make_vec(family.sample_tasks(rng, 2))
    posterior = family.posterior(env)
    lives = [[[Rules(k, d, reward == "once") for d in range(cells)] for k in range(cells)] for _ in range(2)]
    alive = np.ones((2, cells, cells), bool)
    observation, _ = env.reset(seed=seed)
    for _ in range(30):
        step, observation = play(env, observation, rng.integers(5, size=2))
        posterior.update(step)
        for lane in range(2):
            reached = int(step.next_observation[lane] @ (width, 1))
            for k, d in np.ndindex(cells, cells):
                alive[lane, k, d] &= lives[lane][k][d].pays(reached) == (step.reward[lane] > 0)
                if step.ended[lane]:
                    lives[lane][k][d].begin()
        check_belief(family, env, posterior, alive)


def check_belief(family, env, posterior, alive):
    """Weights, optimal actions, samples and refutations against the pairs that are left."""
    tasks, weights = posterior.candidates()
    key, door = family.cell_of(tasks["key"]), family.cell_of(tasks["door"])
    expected = np.zeros((2, 5))
    for lane in range(2):
        looked_for = alive[lane].any(axis=0 if env.has_key[lane] else 1)
        np.testing.assert_allclose(weights[lane], (looked_for / looked_for.sum())[door if env.has_key[lane] else key])
        pairs = np.argwhere(alive[lane])
        for k, d in pairs:
            action = env.optimal_action(family.make_tasks(np.array([k, k]), np.array([d, d])))[lane]
            expected[lane, action] += 1 / len(pairs)
    np.testing.assert_allclose(posterior.optimal_action_probs(env), expected, atol=1e-9)
    sample = posterior.sample(LaneStreams(0, "s", lane_ids=2), np.arange(2))
    assert alive[np.arange(2), family.cell_of(sample["key"]), family.cell_of(sample["door"])].all()
    for k, d in np.ndindex(*alive.shape[1:]):
        refuted = posterior.refuted(family.make_tasks(np.array([k, k]), np.array([d, d])))
        np.testing.assert_array_equal(refuted, ~alive[:, k, d])


def test_bayes_explorers_work_unchanged():
    """Episodes 1, 2 and 3 of the committed explorer in RA-DT's 10x10 room: find the key, then the door, then straight to both."""
    family = make_family("keydoor")
    tasks = family.split().test
    for name, least in (("nearest_plausible", (20, 75, 87)), ("sweep_then_return", (1, 75, 87))):
        env = family.make_vec(tasks)
        agent = make_source(name).make(family, env, LaneStreams(0, "a", lane_ids=len(tasks)), 300)
        returns, _ = run_episodes(agent, env, 3, horizon=100, seed=1)
        assert (returns.mean(axis=0) >= least).all() and (returns[:, 2] == family.optimal_return(tasks)).all()
