"""Windows: whatever the raggedness, they hold what naive slicing of the histories gives, and nothing of another history."""

from __future__ import annotations

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import random_history, without_flushing, write_histories

from icrl.data.sampling import WindowSampler, windows
from icrl.data.schema import History
from icrl.interfaces import FamilySpec, UserError

SPEC = FamilySpec(
    "toy",
    gym.spaces.Dict({"cell": gym.spaces.MultiDiscrete([9, 300]), "speed": gym.spaces.Box(-np.inf, np.inf, (2,))}),
    gym.spaces.Box(-1, 1, (3,)),
    horizon=7,
)
_fast = pytest.fixture(scope="module", autouse=True)(without_flushing)
ragged = st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=9), min_size=1, max_size=5)


def make_store(folder, shapes, seed=0, per_shard=2):
    rng = np.random.default_rng(seed)
    histories = [random_history(SPEC, rng, lengths, finished=bool(rng.random() < 0.5)) for lengths in shapes]
    return histories, write_histories(folder / "data", SPEC, histories, per_shard)


def naive_rows(history: History, start: int, length: int, keep_every: int):
    """(transition, episode number, step in episode) of every step of a window, one by one."""
    rows = []
    for number, episode in enumerate(range(start, history.num_episodes, keep_every)):
        first, end = history.episode_offset[episode], history.episode_offset[episode + 1]
        rows += [(row, number, row - first) for row in range(first, end)]
    return np.array(rows[:length])


@settings(max_examples=40, deadline=None)
@given(ragged, st.integers(1, 20), st.integers(1, 4), st.integers(0, 1000))
def test_a_window_equals_slices_of_its_history(tmp_path_factory, shapes, length, keep_every, seed):
    histories, store = make_store(tmp_path_factory.mktemp("store"), shapes, seed)
    ids = np.array([h for h in range(len(histories)) for _ in range(histories[h].num_episodes)])
    starts = np.concatenate([np.arange(history.num_episodes) for history in histories])
    window = windows(store, ids, starts, length, keep_every)
    assert window.task.tolist() == [histories[h].task for h in ids]
    assert window.optimal_action is None
    for b, (h, start) in enumerate(zip(ids, starts, strict=True)):
        rows, episode, step = naive_rows(histories[h], start, length, keep_every).T
        n = len(rows)
        assert window.valid[b].tolist() == [True] * n + [False] * (length - n)
        for name in ("action", "reward", "terminated", "truncated", "target_action", "behaviour_log_prob"):
            got = getattr(window, name)[b]
            assert np.array_equal(got[:n], getattr(histories[h], name)[rows])
            assert not got[n:].any()
        for key in ("cell", "speed"):
            assert np.array_equal(window.observation[key][b, :n], histories[h].observation[key][rows])
            assert np.array_equal(window.next_observation[key][b, :n], histories[h].next_observation[key][rows])
            assert not window.observation[key][b, n:].any() and not window.next_observation[key][b, n:].any()
        assert np.array_equal(window.episode[b, :n], episode) and not window.episode[b, n:].any()
        assert np.array_equal(window.episode_step[b, :n], step) and not window.episode_step[b, n:].any()


@settings(max_examples=40, deadline=None)
@given(ragged, st.integers(1, 20), st.booleans(), st.integers(0, 1000))
def test_windows_that_start_within_an_episode_know_what_it_earned_before_and_behind_them(
    tmp_path_factory, shapes, length, episodic, seed
):
    histories, store = make_store(tmp_path_factory.mktemp("store"), shapes, seed)
    places = [(h, row) for h, history in enumerate(histories) for row in range(history.num_transitions)]
    offsets = [history.episode_offset for history in histories]
    episode = [int(np.searchsorted(offsets[h], row, side="right")) - 1 for h, row in places]
    skip = np.array([row - offsets[h][e] for (h, row), e in zip(places, episode, strict=True)])
    window = windows(store, np.array([h for h, _ in places]), np.array(episode), length, skip=skip, episodic=episodic)
    assert window.start.tolist() == [row for _, row in places]
    for b, ((h, row), first) in enumerate(zip(places, episode, strict=True)):
        history = histories[h]
        end = min(row + length, int(offsets[h][first + 1]) if episodic else history.num_transitions)
        n = end - row
        assert window.valid[b].sum() == n
        assert np.array_equal(window.observation["cell"][b, :n], history.observation["cell"][row:end])
        assert np.array_equal(window.next_observation["cell"][b, :n], history.next_observation["cell"][row:end])
        for t in range(n):
            e = int(np.searchsorted(offsets[h], row + t, side="right")) - 1
            assert window.episode[b, t] == e - first and window.episode_step[b, t] == row + t - offsets[h][e]
            assert window.episode_return[b, t] == pytest.approx(history.reward[offsets[h][e] : row + t].sum(), abs=1e-4)
            to_go = history.reward[row + t : offsets[h][e + 1]].sum()
            assert window.return_to_go[b, t] == pytest.approx(to_go, abs=1e-4)
        assert not window.episode_return[b, n:].any() and not window.return_to_go[b, n:].any()


@pytest.mark.parametrize("options", [{"anywhere": True}, {"episodic": True}], ids=str)
def test_windows_start_at_every_step_from_which_they_are_full(tmp_path, options):
    _, store = make_store(tmp_path, [[5, 3, 6], [4, 4]], per_shard=1)
    window = WindowSampler(store, 4, start_fraction=0.0, seed=1, **options).batch(0, 3000)
    starts = {h: set(window.start[window.history == h].tolist()) for h in (0, 1)}
    episodic = "episodic" in options
    assert starts == ({0: {0, 1, 5, 8, 9, 10}, 1: {0, 4}} if episodic else {0: set(range(11)), 1: set(range(5))})
    assert np.array_equal(window.valid.all(1), window.start != 5) if episodic else window.valid.all()
    if episodic:
        assert (window.episode == 0).all()
        begun = WindowSampler(store, 4, start_fraction=1.0, seed=1, **options).batch(0, 500)
        assert set(begun.start.tolist()) == {0, 4, 5, 8} and (begun.episode_step[:, 0] == 0).all()


def test_dtypes_are_the_smallest_and_documented_ones(tmp_path):
    _, store = make_store(tmp_path, [[3, 2], [4]])
    window = windows(store, np.array([0, 1]), np.array([1, 0]), 4)
    assert window.observation["cell"].dtype == np.uint16 and window.observation["speed"].dtype == np.float32
    assert window.next_observation["cell"].shape == (2, 4, 2)
    assert window.episode.dtype == window.episode_step.dtype == np.int16
    assert window.reward.dtype == np.float32 and window.history.dtype == window.task.dtype == np.int64


@settings(max_examples=30, deadline=None)
@given(ragged, st.integers(1, 20), st.integers(1, 3), st.integers(0, 1000))
def test_drawn_starts_leave_a_full_window_where_there_is_one(tmp_path_factory, shapes, length, keep_every, seed):
    histories, store = make_store(tmp_path_factory.mktemp("store"), shapes, seed)
    sampler = WindowSampler(store, length, start_fraction=0.0, keep_every=keep_every, seed=seed)
    window = sampler.batch(0, 32)
    for h, valid in zip(window.history, window.valid, strict=True):
        starts = range(histories[h].num_episodes)
        assert valid.all() == any(len(naive_rows(histories[h], s, length, keep_every)) == length for s in starts)


def test_every_start_with_a_full_window_is_drawn_equally_often(tmp_path):
    _, store = make_store(tmp_path, [[2, 3, 1, 4, 2, 2]])
    window = WindowSampler(store, 5, start_fraction=0.0, seed=1).batch(0, 5000)
    first_reward = store.history(0).reward[store.history(0).episode_offset[:-1]]
    counts = np.array([(window.reward[:, 0] == reward).sum() for reward in first_reward])
    assert counts.sum() == 5000 and (counts[4:] == 0).all()  # from episodes 4 and 5 only 4 steps are left
    assert np.abs(counts[:4] / 5000 - 0.25).max() < 0.03


def test_start_fraction_is_the_share_of_windows_at_the_beginning(tmp_path):
    _, store = make_store(tmp_path, [[1] * 200])
    first = store.history(0).reward[0]
    for fraction in (0.0, 0.3, 1.0):
        window = WindowSampler(store, 2, start_fraction=fraction, seed=1).batch(0, 4000)
        assert abs((window.reward[:, 0] == first).mean() - fraction) < 0.04


def test_a_batch_depends_on_seed_and_number_alone(tmp_path):
    _, store = make_store(tmp_path, [[3] * 8, [5] * 8, [4, 2] * 4])

    def fields(window):
        return [np.asarray(v) for v in dataclasses.asdict(window).values() if isinstance(v, np.ndarray)]

    sampler = WindowSampler(store, 6, seed=5)
    later = fields(sampler.batch(7, 16))
    again = fields(WindowSampler(store, 6, seed=5).batch(7, 16))
    assert all(np.array_equal(a, b) for a, b in zip(later, again, strict=True))
    assert not np.array_equal(sampler.batch(8, 16).reward, sampler.batch(7, 16).reward)
    assert not np.array_equal(WindowSampler(store, 6, seed=6).batch(7, 16).reward, sampler.batch(7, 16).reward)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"length": 0}, "window length 0"),
        ({"length": 40_000}, "window length 40000"),
        ({"length": 5, "keep_every": 0}, "keep_every 0"),
        ({"length": 5, "start_fraction": 1.5}, "start_fraction 1.5"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path, options, message):
    _, store = make_store(tmp_path, [[3]])
    with pytest.raises(UserError, match=message):
        WindowSampler(store, **options)


def test_episodes_and_histories_that_do_not_exist_are_refused(tmp_path):
    _, store = make_store(tmp_path, [[3], [2, 2]])
    with pytest.raises(UserError, match="episode 1 of history 0"):
        windows(store, np.array([0]), np.array([1]), 3)
    with pytest.raises(UserError, match="history 2 was asked for"):
        windows(store, np.array([2]), np.array([0]), 3)


def test_few_maps_at_a_time_give_the_same_windows(tmp_path):
    _, store = make_store(tmp_path, [[3, 2]] * 8, per_shard=1)
    expected = windows(store, np.arange(8), np.zeros(8, int), 4)
    store._maps.clear()
    store._most_maps = 3
    got = windows(store, np.arange(8), np.zeros(8, int), 4)
    assert np.array_equal(got.reward, expected.reward)
    for name in ("action", "reward", "terminated", "truncated"):
        store.column(0, name)
    store.column(0, "reward")
    store.column(0, "action")
    assert [name for _, name in store._maps] == ["truncated", "reward", "action"]
