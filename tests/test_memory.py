"""The memory's laws: exact search, what may be retrieved and what not, chunks that are slices of the life, lanes apart from each other."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import random_history, without_flushing, write_histories

from icrl.config import MemoryConfig
from icrl.data.sampling import WindowSampler, windows
from icrl.interfaces import FamilySpec, Step, UserError
from icrl.memory.encoders import Past, Projection, keys_of, make_encoder
from icrl.memory.index import nearest
from icrl.memory.lanes import LaneMemory
from icrl.memory.lives import Lives, RunHashes
from icrl.memory.selection import Candidates, select
from icrl.memory.training import LifeMemory, TrajectoryMemory

SPEC = FamilySpec("toy", gym.spaces.MultiDiscrete([6, 6]), gym.spaces.Discrete(3), horizon=7)
CHUNK = 4
CONFIG = MemoryConfig(k=2, chunk=CHUNK, every=3, candidates=6, key_width=16, empty=0.0, query_dropout=0.0, own_past=0.0)
ENCODER = Projection(SPEC, 16)
_fast = pytest.fixture(scope="module", autouse=True)(without_flushing)


def lives(num=3, episodes=9, seed=0):
    rng = np.random.default_rng(seed)
    return [random_history(SPEC, rng, rng.integers(3, 8, episodes).tolist(), finished=True) for _ in range(num)]


def store_of(tmp_path, histories):
    return write_histories(tmp_path / "data", SPEC, histories, 2)


def windows_at(store, histories, length, episodic=False, rng=None):
    """Windows of history 0, 1, ... at every step."""
    places = [(h, row) for h, history in enumerate(histories) for row in range(history.num_transitions)]
    episode = [int(np.searchsorted(histories[h].episode_offset, row, side="right")) - 1 for h, row in places]
    skip = np.array([row - histories[h].episode_offset[e] for (h, row), e in zip(places, episode, strict=True)])
    return windows(store, np.array([h for h, _ in places]), np.array(episode), length, skip=skip, episodic=episodic)


def chunk_steps(history, cut):
    """(o, a) of the steps around a cut."""
    rows = slice(cut - CHUNK, cut + CHUNK)
    return history.observation[rows], history.action[rows]


def cuts_of(history, observation, action):
    """The cuts of a history around which these steps lie."""
    found = []
    for cut in range(CHUNK, history.num_transitions - CHUNK + 1, CHUNK):
        o, a = chunk_steps(history, cut)
        if np.array_equal(o, observation) and np.array_equal(a, action):
            found.append(cut)
    return found


# the index


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 12), st.integers(1, 5), st.integers(1, 8), st.integers(0, 100))
def test_exact_search_is_brute_force(num_keys, num_queries, num, seed):
    rng = np.random.default_rng(seed)
    keys = rng.normal(size=(2, num_keys, 3)).astype(np.float32)
    queries = rng.normal(size=(2, num_queries, 3)).astype(np.float32)
    allowed = rng.random((2, num_keys)) < 0.7
    relevance, ids = nearest(keys, queries, num, allowed)
    assert relevance.shape == ids.shape == (2, num_queries, num)
    for b in range(2):
        for q in range(num_queries):
            order = sorted((-float(queries[b, q] @ keys[b, n]), n) for n in np.flatnonzero(allowed[b]))[:num]
            assert ids[b, q].tolist() == [n for _, n in order] + [-1] * (num - len(order))
            np.testing.assert_allclose(relevance[b, q, : len(order)], [-s for s, _ in order], rtol=1e-5, atol=1e-6)
            assert np.isneginf(relevance[b, q, len(order) :]).all()
    shared = nearest(keys[0], queries[0], num)
    everything = nearest(keys[:1], queries[:1], num, np.ones((1, num_keys), bool))
    np.testing.assert_array_equal(shared[1], everything[1][0])


@pytest.mark.parametrize("kind", ["exact", "faiss-flat", "faiss-ivf", "faiss-hnsw"])
def test_every_index_finds_the_nearest_keys(kind):
    from icrl.memory.index import make_index

    rng = np.random.default_rng(0)
    keys = rng.normal(size=(3000, 16)).astype(np.float32)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    queries = keys[rng.choice(3000, 20, replace=False)]
    exact, numbers = make_index(keys, "exact").search(queries, 10)
    cosine, ids = make_index(keys, kind).search(queries, 10)
    assert (ids[:, 0] == numbers[:, 0]).all()  # itself
    assert (cosine >= exact[:, -1:] - 1e-6).mean() >= (0.8 if kind in ("faiss-ivf", "faiss-hnsw") else 1)
    np.testing.assert_allclose(cosine, np.take_along_axis(queries @ keys.T, ids, 1), rtol=1e-4, atol=1e-5)
    few, none = make_index(keys[:4], kind).search(queries, 10)
    assert np.isneginf(few[none < 0]).all() and (none >= 0).sum(1).max() <= 4


def test_an_index_that_is_not_there_is_one_line(monkeypatch):
    from icrl.memory.index import make_index

    keys = np.eye(4, dtype=np.float32)
    with pytest.raises(UserError, match="index 'tree' is unknown, expected one of exact, faiss-flat"):
        make_index(keys, "tree")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"this index needs FAISS .* pip install icrl\[faiss\], or choose exact"):
        make_index(keys, "faiss-flat")


# the selection


def candidates(n=4, l=7, width=3, seed=0):
    rng = np.random.default_rng(seed)
    unit = lambda x: (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)  # noqa: E731
    relevance = np.sort(rng.normal(size=(n, l)), 1)[:, ::-1].copy()
    relevance[1:2, 3:] = -np.inf
    relevance[2:3] = -np.inf
    keys, futures = unit(rng.normal(size=(2, n, l, width)))
    end = 2 * CHUNK + CHUNK * rng.permuted(np.tile(np.arange(l), (n, 1)), axis=1)
    return Candidates(relevance, rng.random((n, l)), keys, futures, end), unit(rng.normal(size=(n, 5, width)))


def test_the_best_is_the_one_with_the_highest_sum_of_scaled_relevance_and_utility():
    found, parts = candidates()
    for weight in (0.0, 1.0, 5.0):
        chosen = select(found, parts, replace(CONFIG, k=1, utility=weight))[:, 0]
        for row, there in ((0, slice(None)), (1, slice(3)), (3, slice(None))):
            scaled = [
                (v - v.min()) / (v.max() - v.min()) for v in (found.relevance[row, there], found.utility[row, there])
            ]
            assert chosen[row] == (scaled[0] + weight * scaled[1]).argmax()
        assert chosen[2] == -1


@pytest.mark.parametrize("selection", ["top", "coverage", "diverse", "sequential"])
def test_what_is_absent_is_never_chosen_and_nothing_twice(selection):
    found, parts = candidates()
    chosen = select(found, parts, replace(CONFIG, k=5, twin=1.1, selection=selection))
    assert (chosen[2] == -1).all() and sorted(chosen[1].tolist()) == [-1, -1, 0, 1, 2]
    for row in (0, 3):
        assert len(set(chosen[row].tolist())) == 5 and chosen[row].min() >= 0


def test_of_twins_the_best_alone_is_chosen():
    found, parts = candidates(n=1)
    found.keys[0, 1:4], found.futures[0, 1:4] = found.keys[0, 0], found.futures[0, 0]  # 0, 1, 2 and 3 are twins
    found.utility[0] = [0.1, 0.9, 0.2, 0.3, 0.5, 0.5, 0.5]
    chosen = select(found, parts, replace(CONFIG, k=7, utility=10.0))[0]
    assert set(chosen.tolist()) == {1, 4, 5, 6, -1}
    assert set(select(found, parts, replace(CONFIG, k=7, twin=1.1))[0].tolist()) == set(range(7))


def test_chunks_of_one_retrieval_share_no_steps_where_they_may_not():
    found, parts = candidates(n=1)
    order = np.argsort(found.end[0])  # one after the other in a life
    found.utility[0, order] = [0.3, 0.9, 1.0, 0.8, 0.5, 0.4, 0.6]
    options = replace(CONFIG, k=7, utility=100.0, twin=1.1)
    apart = select(found, parts, replace(options, overlap=False))[0]
    assert apart.tolist() == [*order[[2, 6, 4, 0]], -1, -1, -1]
    found.end[:] = 0  # of lives that are over nobody knows
    assert set(select(found, parts, replace(options, overlap=False))[0].tolist()) == set(range(7))


def test_a_covering_set_covers_what_the_best_one_leaves_open():
    parts = np.eye(3, dtype=np.float32)[None, [0, 0, 1]]  # the query saw state 0 twice and state 1 once
    keys = np.stack([np.eye(3, dtype=np.float32)[[0, 0, 1, 2]]])
    keys[0, 1] = [0.99, 0, 0.14]  # nearly the first again
    found = Candidates(np.array([[0.9, 0.89, 0.6, 0.0]]), np.zeros((1, 4)), keys, -keys, np.zeros((1, 4), int))
    assert select(found, parts, replace(CONFIG, selection="coverage", twin=1.1))[0].tolist() == [0, 2]
    assert select(found, parts, replace(CONFIG, selection="top", twin=1.1))[0].tolist() == [0, 1]
    assert select(found, parts, replace(CONFIG, selection="diverse", twin=1.1))[0].tolist() == [0, 2]


def test_in_a_sequence_the_next_chunk_begins_as_the_one_before_goes_on():
    keys = np.eye(4, dtype=np.float32)[None]
    futures = keys[:, [3, 0, 0, 1]]  # chunk 0 goes on as chunk 3 begins, and 3 as 1
    found = Candidates(np.array([[0.9, 0.8, 0.7, 0.1]]), np.zeros((1, 4)), keys, futures, np.zeros((1, 4), int))
    config = replace(CONFIG, k=3, selection="sequential")
    assert select(found, np.zeros((1, 1, 4), np.float32), config)[0].tolist() == [0, 3, 1]


# what training retrieves


def test_a_life_retrieves_chunks_of_its_own_from_before_the_window(tmp_path):
    histories = lives()
    store = store_of(tmp_path, histories)
    window = LifeMemory(store, CONFIG, ENCODER).retrieve(windows_at(store, histories, 8), np.random.default_rng(0))
    retrieved = window.retrieved
    assert retrieved is not None
    full = retrieved.valid.reshape(*retrieved.valid.shape[:2], 2, -1)
    assert np.array_equal(full.all(-1), full.any(-1))
    number = 0
    for b in range(len(window.start)):
        history = histories[window.history[b]]
        held = max(0, window.start[b] // CHUNK - 1)
        for r in range(3):
            if window.start[b] + 3 * r > history.num_transitions:
                continue  # padding asks for nothing
            assert full[b, r].any(-1).sum() == min(2, held)
            for k in np.flatnonzero(full[b, r].any(-1)):
                span = slice(k * 2 * CHUNK, (k + 1) * 2 * CHUNK)
                cuts = cuts_of(history, retrieved.observation[b, r, span], retrieved.action[b, r, span])
                assert any(cut + CHUNK <= window.start[b] for cut in cuts)
                number += 1
    assert number > 100
    assert np.array_equal(retrieved.position[0, 0], np.tile(np.arange(2 * CHUNK), 2))


@pytest.mark.parametrize("kind", ["life", "pool"])
@pytest.mark.parametrize("overlap", [True, False])
def test_training_knows_which_chunks_share_steps(tmp_path, kind, overlap):
    histories = lives(episodes=16)
    store = store_of(tmp_path, histories)
    config = replace(CONFIG, k=3, candidates=20, twin=1.1, overlap=overlap)
    memory = LifeMemory(store, config, ENCODER) if kind == "life" else TrajectoryMemory(store, config, ENCODER, 0)
    retrieved = memory.retrieve(windows_at(store, histories, 4), np.random.default_rng(0)).retrieved
    assert retrieved is not None
    shared = 0
    for b, r in np.argwhere(retrieved.valid.all(-1)).tolist():
        places = []
        for k in range(3):
            span = slice(k * 2 * CHUNK, (k + 1) * 2 * CHUNK)
            steps = retrieved.observation[b, r, span], retrieved.action[b, r, span]
            places += [1000 * n + cut for n, history in enumerate(histories) for cut in cuts_of(history, *steps)]
        shared += np.diff(np.sort(places)).min() < 2 * CHUNK
    assert bool(shared > 20) is bool(shared) is overlap


@pytest.mark.parametrize("overlap", [True, False])
def test_a_lane_knows_which_chunks_share_steps(overlap):
    histories = lives(episodes=16)
    memory = LaneMemory(3, replace(CONFIG, k=3, candidates=20, overlap=overlap), ENCODER)
    least = []
    for t in range(60):
        memory.add(step_of(histories, t))
        lanes = np.arange(3)
        ids = search(memory, lanes, t)[:, 0]
        if (ids >= 0).all():
            least += np.diff(np.sort(memory.end[lanes[:, None], ids])).min(1).tolist()
    assert bool(min(least) < 2 * CHUNK) is overlap


def test_what_comes_later_changes_no_retrieval(tmp_path):
    """A retrieval at step s follows from the steps before s and the chunks before the window alone."""
    histories = lives(num=1)
    changed = lives(num=1, seed=5)[0]
    start, asked_at = 30, 36
    keep = replace(histories[0])
    mixed = {
        name: np.concatenate(
            [getattr(keep, name)[:asked_at], getattr(changed, name)[: keep.num_transitions - asked_at]]
        )
        for name in ("observation", "action", "reward")
    }
    other = replace(keep, **mixed)
    results = []
    for number, history in enumerate((keep, other)):
        store = write_histories(tmp_path / str(number), SPEC, [history], 1)
        window = windows_at(store, [history], 12)
        retrieved = LifeMemory(store, CONFIG, ENCODER).retrieve(window, np.random.default_rng(0)).retrieved
        assert retrieved is not None
        results.append((retrieved.observation[start, :3], retrieved.valid[start, :3], retrieved.observation[start, 3]))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert results[0][1].any(-1).all()


def own_episode(history, row):
    e = int(np.searchsorted(history.episode_offset, row, side="right")) - 1
    return int(history.episode_offset[e]), int(history.episode_offset[e + 1])


def test_an_episodic_policy_retrieves_other_trajectories_of_its_task_first(tmp_path):
    histories = [replace(h, task=n % 2) for n, h in enumerate(lives(num=4))]
    store = store_of(tmp_path, histories)
    config = replace(CONFIG, k=1, candidates=40, utility=5.0)
    window = windows_at(store, histories, 4, episodic=True)
    retrieved = TrajectoryMemory(store, config, ENCODER, 0).retrieve(window, np.random.default_rng(0)).retrieved
    assert retrieved is not None
    assert np.array_equal(retrieved.valid.any(2)[:, 0], window.start > 0)  # nothing was lived before the first step
    for b in np.flatnonzero(window.start > 0):
        mine = histories[window.history[b]]
        begin, end = own_episode(mine, window.start[b])
        owners = []
        for h, history in enumerate(histories):
            for cut in cuts_of(history, retrieved.observation[b, 0], retrieved.action[b, 0]):
                overlaps = h == window.history[b] and cut + CHUNK > begin and cut - CHUNK < end
                if not overlaps:
                    owners.append(h)
        assert {histories[h].task for h in owners} == {mine.task}


def useful(history, cut, worth):
    """What the episode of a cut earned, and the steps around the cut once more, or what followed their first one in it if those in it earned anything."""
    begin, end = own_episode(history, cut)
    total, first = history.reward[begin:end].sum(), max(begin, cut - CHUNK)
    if worth == "own":
        return total + history.reward[cut - CHUNK : cut + CHUNK].sum()
    pays = history.reward[first : min(end, cut + CHUNK)].sum() != 0
    return total + pays * history.reward[first:end].sum()


@pytest.mark.parametrize("worth", ["own", "onward"])
def test_an_episodic_policy_also_retrieves_from_the_episodes_before_its_own(tmp_path, worth):
    """What the lane would remember at deployment: its own chunks that ended before this episode, the most useful first."""
    histories = lives()
    store = store_of(tmp_path, histories)
    config = replace(CONFIG, k=1, own_past=1.0, utility=100.0, candidates=40, worth=worth)
    window = windows_at(store, histories, 4, episodic=True)
    retrieved = TrajectoryMemory(store, config, ENCODER, 0).retrieve(window, np.random.default_rng(0)).retrieved
    assert retrieved is not None
    number = 0
    for b in range(len(window.start)):
        history = histories[window.history[b]]
        begin, _ = own_episode(history, window.start[b])
        held = [cut for cut in range(CHUNK, history.num_transitions, CHUNK) if cut + CHUNK <= begin]
        assert retrieved.valid[b, 0].any() == bool(held)
        if held:
            cuts = cuts_of(history, retrieved.observation[b, 0], retrieved.action[b, 0])
            best = max(useful(history, cut, worth) for cut in held)  # several may be as useful
            assert any(np.isclose(useful(history, cut, worth), best) for cut in set(cuts) & set(held))
            number += 1
    assert number > 60


def test_a_trajectory_that_goes_on_as_the_window_does_is_not_retrieved(tmp_path):
    """Two histories of one task, equal but for their first steps: the twin's chunk would hand over the labels."""
    one = lives(num=1, episodes=6)[0]
    observation = one.observation.copy()
    observation[0] = (observation[0] + 1) % 6
    store = store_of(tmp_path, [one, replace(one, observation=observation)])
    config = replace(CONFIG, k=1, candidates=40, utility=0.0)
    window = windows_at(store, [one], 4, episodic=True)
    retrieved = TrajectoryMemory(store, config, ENCODER, 0).retrieve(window, np.random.default_rng(0)).retrieved
    assert retrieved is not None
    checked = 0
    for b in range(1, one.num_transitions):
        if not retrieved.valid[b, 0].any():
            continue
        end = min(b + CHUNK, own_episode(one, b)[1])
        future = np.column_stack([one.observation[b:end], one.action[b:end]])
        chunk = np.column_stack([retrieved.observation[b, 0], retrieved.action[b, 0]])
        shifts = range(len(chunk) - len(future) + 1)
        assert not any(np.array_equal(chunk[s : s + len(future)], future) for s in shifts)
        checked += 1
    assert checked > 20


def test_a_chunk_that_ends_with_the_beginning_of_what_follows_is_barred_too(tmp_path):
    """The twin again, asked at every step: wherever its chunks are cut, none holds half of the next steps or more at its end."""
    one = lives(num=1, episodes=6)[0]
    observation = one.observation.copy()
    observation[0] = (observation[0] + 1) % 6
    store = store_of(tmp_path, [one, replace(one, observation=observation)])
    config = replace(CONFIG, k=3, candidates=40, utility=0.0, twin=2.0, own_past=0.0)
    window = windows_at(store, [one], 4, episodic=True)
    retrieved = TrajectoryMemory(store, config, ENCODER, 0).retrieve(window, np.random.default_rng(0)).retrieved
    assert retrieved is not None
    steps, span, checked = np.column_stack([one.observation, one.action]), 2 * CHUNK, 0
    for b in range(1, one.num_transitions):
        end = own_episode(one, b)[1]
        told = min(CHUNK // 2, end - b)
        for chunk in range(3):
            rows = slice(chunk * span, (chunk + 1) * span)
            if retrieved.valid[b, 0, rows].all():
                tail = np.column_stack([retrieved.observation[b, 0, rows], retrieved.action[b, 0, rows]])[-told:]
                assert not np.array_equal(tail, steps[b : b + told])
                checked += 1
    assert checked > 20


def test_run_hashes_tell_equal_runs_from_others_wherever_they_begin(tmp_path):
    rng = np.random.default_rng(0)
    histories = [
        replace(h, observation=rng.integers(2, size=h.observation.shape), action=rng.integers(2, size=h.action.shape))
        for h in lives(num=3)
    ]
    store = store_of(tmp_path, histories)
    hashes = RunHashes(Lives(store))
    steps = [np.column_stack([h.observation, h.action]) for h in histories]
    equal = 0
    for _ in range(3000):
        length = int(rng.integers(5))
        which = rng.integers(3, size=2)
        starts = np.array([rng.integers(len(steps[h]) - length + 1) for h in which])
        runs = [steps[h][start : start + length] for h, start in zip(which, starts, strict=True)]
        same = np.array_equal(*runs)
        one, other = (which[:1], starts[:1]), (which[1:], starts[1:])
        assert bool(hashes.equal(one, other, np.array([length]))[0]) is same
        assert bool(hashes.constant(*one, np.array([length]))[0]) is bool((runs[0] == runs[0][:1]).all())
        equal += same and length > 1
    assert equal > 20


def test_return_to_go_of_retrieved_steps_is_that_of_their_episode(tmp_path):
    histories = lives()
    store = store_of(tmp_path, histories)
    window = windows_at(store, histories, 8)
    retrieved = LifeMemory(store, CONFIG, ENCODER).retrieve(window, np.random.default_rng(0)).retrieved
    assert retrieved is not None
    b = 50
    history = histories[window.history[b]]
    cut = cuts_of(history, retrieved.observation[b, 0, : 2 * CHUNK], retrieved.action[b, 0, : 2 * CHUNK])[0]
    for n, row in enumerate(range(cut - CHUNK, cut + CHUNK)):
        expected = history.reward[row : own_episode(history, row)[1]].sum()
        assert retrieved.return_to_go[b, 0, n] == pytest.approx(expected, abs=1e-4)


def test_emptied_memories_and_short_histories(tmp_path):
    histories = lives()
    store = store_of(tmp_path, histories)
    window = windows_at(store, histories, 8, episodic=True)
    for own_past in (0.0, 1.0):
        memory = TrajectoryMemory(store, replace(CONFIG, empty=0.5, own_past=own_past), ENCODER, 0)
        retrieved = memory.retrieve(window, np.random.default_rng(0)).retrieved
        assert retrieved is not None
        share = retrieved.valid.any((1, 2))[window.start >= 2 * CHUNK + 7].mean()
        assert 0.3 < share < 0.7
    with pytest.raises(UserError, match=r"the shortest history has \d+ steps, a chunk 400"):
        LifeMemory(store, replace(CONFIG, chunk=200), ENCODER)


def test_the_sampler_brings_what_was_retrieved(tmp_path):
    histories = lives()
    store = store_of(tmp_path, histories)
    memory = LifeMemory(store, CONFIG, ENCODER)
    sampler = WindowSampler(store, 8, start_fraction=0.2, anywhere=True, memory=memory, seed=1)
    one, again = sampler.batch(3, 16).retrieved, sampler.batch(3, 16).retrieved
    assert one is not None and again is not None
    np.testing.assert_array_equal(one.observation, again.observation)


# roll-outs


def live(memory, histories, until):
    """Lane i lives history i for ``until`` steps."""
    for t in range(until):
        memory.add(step_of(histories, t))


def search(memory, lanes, limit):
    """What the lanes find now among the chunks that ended by step ``limit`` of their lives."""
    return memory.search(lanes, memory.query(lanes)[:, None], np.full(len(lanes), limit), memory.life[lanes][:, None])


def step_of(histories, t):
    def stack(name: str) -> Any:
        return np.stack([getattr(h, name)[t] for h in histories])

    return Step(*(stack(n) for n in ("observation", "action", "reward", "terminated", "truncated", "observation")))


@pytest.mark.parametrize("worth", ["own", "onward"])
def test_a_roll_out_retrieves_what_training_does(tmp_path, worth):
    """Same life, same window, same question: the same chunks, though one side reads files and the other remembers."""
    histories = lives(episodes=12)
    shortest = min(h.num_transitions for h in histories)
    store = store_of(tmp_path, histories)
    window = windows_at(store, histories, 4)
    config = replace(CONFIG, worth=worth)
    trained = LifeMemory(store, config, ENCODER).retrieve(window, np.random.default_rng(0)).retrieved
    assert trained is not None
    memory, lanes = LaneMemory(3, config, ENCODER), np.arange(3)
    compared = 0
    for t in range(shortest):
        if t >= 2 * CHUNK:
            found = memory.read(lanes, search(memory, lanes, t))
            for lane in lanes:
                b = int(np.flatnonzero((window.history == lane) & (window.start == t))[0])
                assert np.array_equal(found.valid[lane, 0], trained.valid[b, 0])
                there = found.valid[lane, 0]
                for name in ("observation", "action", "reward", "ended", "position"):
                    got, expected = getattr(found, name)[lane, 0], getattr(trained, name)[b, 0]
                    np.testing.assert_array_equal(got[there], expected[there])
                got, expected = found.episode_return[lane, 0], trained.episode_return[b, 0]
                np.testing.assert_allclose(got[there], expected[there], rtol=1e-5, atol=1e-5)
                compared += 1
        memory.add(step_of(histories, t))
    assert compared > 60


def test_lanes_do_not_see_each_other():
    one, other = lives(num=2), lives(num=2, seed=9)
    results = []
    for second in (one[1], other[1]):
        memory = LaneMemory(2, CONFIG, ENCODER)
        live(memory, [one[0], second], 30)
        found = memory.read(np.arange(2), search(memory, np.arange(2), 30))
        results.append(found.observation)
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert not np.array_equal(results[0][1], results[1][1])


def test_a_forgotten_lane_starts_empty_and_the_others_stay():
    histories = lives(num=2)
    memory = LaneMemory(2, CONFIG, ENCODER)
    live(memory, histories, 30)
    before = search(memory, np.arange(2), 30)
    memory.forget(np.array([1]))
    assert memory.count.tolist() == [30 // CHUNK - 1, 0] and memory.life.tolist() == [30, 0]
    after = search(memory, np.arange(2), 30)
    np.testing.assert_array_equal(after[0], before[0])
    assert (after[1] == -1).all() and not memory.query(np.array([1])).any()


def test_only_chunks_that_ended_by_the_limit_are_found():
    memory = LaneMemory(1, replace(CONFIG, k=6), ENCODER)
    live(memory, lives(num=1), 32)
    lane = np.zeros(1, int)
    for limit in range(33):
        ids = search(memory, lane, limit)
        assert (ids >= 0).sum() == min(6, max(0, limit // CHUNK - 1)), limit


def test_a_full_memory_lets_the_least_useful_go_of_equals_the_oldest():
    memory = LaneMemory(1, replace(CONFIG, capacity=3), ENCODER)
    history = lives(num=1, episodes=1)[0]
    steps, rewards = 6 * CHUNK, np.repeat([5, 0, 0, 0, 0, 0], CHUNK)
    for t in range(steps):
        ended = np.array([t % CHUNK == CHUNK - 1])  # an episode is a segment
        step = Step(
            history.observation[:1], np.zeros(1, int), rewards[t : t + 1], ended, ended & False, history.observation[:1]
        )
        memory.add(step)
        assert memory.count[0] <= 3
    assert sorted(memory.end[0, :3].tolist()) == [2 * CHUNK, 5 * CHUNK, 6 * CHUNK]


@pytest.mark.parametrize("worth", ["own", "onward"])
def test_utility_is_what_a_chunk_and_its_episode_have_earned_and_all_of_it_once_it_is_over(worth):
    memory, lane = LaneMemory(1, replace(CONFIG, worth=worth), ENCODER), np.zeros(1, int)
    observation = np.zeros((1, 2), int)
    rewards = np.arange(3 * CHUNK + 5.0) ** 2
    over = 3 * CHUNK
    for t, reward in enumerate(rewards):
        ended = np.array([t == over - 1])
        memory.add(Step(observation, np.zeros(1, int), np.array([reward]), ended, ended & False, observation))
    asked = np.arange(2 * CHUNK, len(rewards) + 1)
    for chunk in (0, 1):  # whenever it is asked again
        first = chunk * CHUNK
        own = np.full(len(asked), rewards[first : first + 2 * CHUNK].sum())
        if worth == "onward":
            own = np.array([rewards[first : min(t, over)].sum() for t in asked])
        by = memory.utility(lane, asked[None])[0, :, chunk]
        assert by.tolist() == (own + [rewards[: min(t, over)].sum() for t in asked]).tolist()


def test_onward_counts_the_steps_of_the_cuts_own_episode_alone(tmp_path):
    """The chunk that holds the paid end of one episode and the unpaid beginning of the next is worth no more than what that next one earned."""
    history = random_history(SPEC, np.random.default_rng(0), [2 * CHUNK, 3 * CHUNK], finished=True)
    history = replace(history, reward=np.repeat([1, 1, 0, 1, 1], CHUNK).astype(np.float32))
    memory = LaneMemory(1, replace(CONFIG, worth="onward"), ENCODER)
    live(memory, [history], 5 * CHUNK)
    one, each = Lives(store_of(tmp_path, [history])), 2 * CHUNK  # what either episode earned
    remembered = memory.utility(np.zeros(1, int), memory.life[:, None])[0, 0, :4].tolist()
    assert remembered == [2 * each, each, 2 * each, 2 * each]  # of cuts after one to four segments
    assert one.utility(np.zeros(4, int), np.arange(4), CHUNK, memory.life, "onward").tolist() == remembered


# encoders


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Discrete(7, start=2),
        gym.spaces.MultiDiscrete([3, 4]),
        gym.spaces.MultiDiscrete([300, 300, 300]),
        gym.spaces.Box(-np.inf, np.inf, (3,)),
        gym.spaces.Dict({"a": gym.spaces.Discrete(3), "b": gym.spaces.Box(-1, 1, (2,))}),
    ],
    ids=str,
)
def test_a_projection_tells_observations_apart_and_depends_on_nothing_else(space):
    spec = replace(SPEC, observation_space=space)
    space.seed(0)
    samples = [space.sample() for _ in range(12)]

    def stack(items) -> Any:
        keyed = isinstance(items[0], dict)
        return {k: stack([i[k] for i in items]) for k in items[0]} if keyed else np.stack(items)

    observation = stack([stack(samples[:6]), stack(samples[6:])])
    past = Past(observation, np.zeros((2, 6), int), np.zeros((2, 6)), np.zeros((2, 6), bool), np.ones((2, 6), bool))
    parts = Projection(spec, 32).parts(past)
    assert parts.shape == (2, 6, 32) and parts.dtype == np.float32
    np.testing.assert_array_equal(parts, Projection(spec, 32).parts(past._replace(reward=past.reward + 1)))
    flat = parts.reshape(12, 32)
    cosine = (flat @ flat.T) / np.outer(np.linalg.norm(flat, axis=1), np.linalg.norm(flat, axis=1))
    same = np.array([[str(a) == str(b) for a in samples] for b in samples])
    assert (cosine[same] > 0.999).all() and (cosine[~same] < 0.999).all()


def test_keys_are_means_of_unit_length_and_nothing_has_none():
    parts = np.zeros((2, 3, 2), np.float32)
    parts[0, :2] = [[2, 0], [0, 2]]
    np.testing.assert_allclose(keys_of(parts), [[0.5**0.5, 0.5**0.5], [0, 0]], atol=1e-6)


def test_an_unknown_encoder_or_a_folder_without_a_model_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"model\.memory\.encoder 'clip' is unknown, expected projection"):
        make_encoder(SPEC, replace(CONFIG, encoder="clip"))
    with pytest.raises(UserError, match="holds no token embeddings of a language model"):
        make_encoder(SPEC, replace(CONFIG, encoder=f"language:{tmp_path}"))


def test_language_embeddings_are_recalled(tmp_path):
    from safetensors.numpy import save_file

    tokens = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    save_file({"model.embed_tokens.weight": tokens, "lm_head.weight": tokens}, tmp_path / "model.safetensors")
    encoder = make_encoder(SPEC, replace(CONFIG, encoder=f"language:{tmp_path}"))
    observation = np.array([[[0, 1], [2, 3], [0, 1]]])
    past = Past(observation, np.zeros((1, 3), int), np.zeros((1, 3)), np.zeros((1, 3), bool), np.ones((1, 3), bool))
    parts = encoder.parts(past)
    assert (
        parts.shape == (1, 3, 8)
        and np.array_equal(parts[0, 0], parts[0, 2])
        and not np.allclose(parts[0, 0], parts[0, 1])
    )
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read .* download the language model again"):
        make_encoder(SPEC, replace(CONFIG, encoder=f"language:{tmp_path}"))


@pytest.mark.parametrize("teacher", ["ad", "icee"])
def test_a_frozen_policy_makes_keys_and_a_copy_of_it_stays_with_the_run(tmp_path, teacher):
    """Keys are its hidden states on the steps alone, whatever stands for steps that were not lived."""
    from tiny_training import FAMILY, LAYOUTS, make_store

    from icrl import load
    from icrl.training import train

    store = make_store(tmp_path / "data")
    train(LAYOUTS[teacher], store, FAMILY, tmp_path / "teacher", progress=False, monitored=False)
    encoder = make_encoder(FAMILY.spec, replace(CONFIG, encoder=f"policy:{tmp_path / 'teacher'}"))
    window = windows(store, np.arange(3), np.zeros(3, int), 6)
    ended = window.terminated | window.truncated
    past = Past(window.observation, window.action, window.reward, ended, np.ones((3, 6), bool))
    parts = encoder.parts(past)
    assert parts.shape == (3, 6, encoder.width) and np.isfinite(parts).all()

    def behind_nothing(array):
        return np.concatenate([np.full_like(array[:, :2], 1), array], 1)

    there = behind_nothing(past.valid) & (np.arange(8) > 1)
    padded = encoder.parts(Past(**{n: behind_nothing(getattr(past, n)) for n in Past._fields[:4]}, valid=there))  # type: ignore[arg-type]
    np.testing.assert_allclose(padded[:, 2:], parts, rtol=1e-4, atol=1e-5)
    assert not padded[:, :2].any()
    recipe = LAYOUTS["ra-dt"]
    memory = replace(recipe.model.memory, encoder=f"policy:{tmp_path / 'teacher'}")
    student = replace(recipe, model=replace(recipe.model, memory=memory))
    train(student, store, FAMILY, tmp_path / "student", progress=False, monitored=False)
    (tmp_path / "teacher").rename(tmp_path / "gone")
    agent = load(tmp_path / "student")
    agent.reset(2)
    assert agent.recall is not None and agent.recall.memory.encoder.identity() == encoder.identity()
    with pytest.raises(UserError, match="its policy cannot be an encoder"):
        make_encoder(FAMILY.spec, replace(CONFIG, encoder=f"policy:{tmp_path / 'student'}"))
    with pytest.raises(UserError, match="no best checkpoint there"):
        make_encoder(FAMILY.spec, replace(CONFIG, encoder=f"policy:{tmp_path / 'teacher'}"))
