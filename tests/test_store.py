"""Datasets on disk: what is written is what is read, and everything that can be wrong with them is said in one line."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import pickle

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import random_history, without_flushing, write_histories

from icrl.data import schema, writer
from icrl.data.store import HistoryStore
from icrl.interfaces import FamilySpec, Split, UserError

GRID = FamilySpec("grid", gym.spaces.MultiDiscrete([10, 256]), gym.spaces.Discrete(5), horizon=6)
IMAGE = gym.spaces.Box(0, 255, (3, 3, 1), np.uint8)
NESTED = gym.spaces.Dict(
    {
        "view": gym.spaces.Dict({"image": IMAGE, "way": gym.spaces.Discrete(4)}),
        "at": gym.spaces.Box(-np.inf, np.inf, (2,)),
    }
)
ROBOT = FamilySpec("robot", NESTED, gym.spaces.Box(np.array([-1, -2], np.float32), 1, (2,)), horizon=6)
_fast = pytest.fixture(scope="module", autouse=True)(without_flushing)
SPACES = [
    gym.spaces.Discrete(7, start=-3),
    gym.spaces.MultiDiscrete(np.array([[3, 4], [5, 6]]), start=np.array([[1, 2], [3, 4]])),
    gym.spaces.MultiBinary(6),
    gym.spaces.MultiBinary([2, 3]),
    gym.spaces.Box(-np.inf, np.inf, (2, 3), np.float64),
    gym.spaces.Box(np.array([0.1, -np.inf], np.float32), np.array([0.7, 1e30], np.float32)),
    gym.spaces.Box(0, 1, (2,), np.int8),
    gym.spaces.Box(0, 255, (4, 4, 3), np.uint8),
    gym.spaces.Dict(z=gym.spaces.Discrete(2), a=gym.spaces.Dict(b=gym.spaces.Box(0, 1))),
]


def grid_store(path, num=6, per_shard=4):
    rng = np.random.default_rng(0)
    return write_histories(
        path, GRID, [random_history(GRID, rng, [4, 6, 2], finished=False) for _ in range(num)], per_shard
    )


def plan_of(histories_per_shard=4, **changes):
    tasks = np.zeros(3, [("goal", np.int8)])
    split = Split(tasks, tasks[:1], tasks[:1])
    options = {"family": {"name": "toy"}, "collect": {"shard_histories": histories_per_shard}, "seed": 0, "columns": []}
    return writer.make_plan(GRID, split, **{**options, **changes}), split


def plain_history(**changes):
    history = random_history(GRID, np.random.default_rng(0), [3, 3])
    return dataclasses.replace(history, target_action=None, behaviour_log_prob=None, **changes)


def forge(path, name, array_bytes=None):
    """Replace a file of shard 0 and make the manifest agree, as a careless tool would."""
    file = writer.shard_folder(path, 0) / name
    if array_bytes is not None:
        file.write_bytes(array_bytes)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["shards"][0]["files"][name] = {"bytes": file.stat().st_size, "sha256": writer.sha256(file)}
    save_manifest(path, manifest)


def save_manifest(path, manifest):
    manifest["dataset_hash"] = writer.dataset_hash(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


# --- what is written is what is read -------------------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_spaces_survive_json(space):
    there = json.loads(json.dumps(schema.space_to_json(space), allow_nan=False))
    back = schema.space_from_json(there)
    assert back == space and back.dtype == space.dtype
    assert schema.space_to_json(back) == there


def test_keys_of_dictionaries_keep_their_order():
    space = gym.spaces.Dict([("z", gym.spaces.Discrete(2)), ("a", gym.spaces.Discrete(3))])
    back = schema.space_from_json(schema.space_to_json(space))
    assert isinstance(back, gym.spaces.Dict) and list(back.spaces) == list(space.spaces)


@pytest.mark.parametrize(
    "low, high, dtype",
    [
        (0, 255, "uint8"),
        (0, 256, "uint16"),
        (0, 65536, "uint32"),
        (-1, 127, "int8"),
        (-1, 128, "int16"),
        (0, 2**40, "uint64"),
    ],
)
def test_indices_take_the_smallest_integers(low, high, dtype):
    assert schema.smallest_integer(low, high) == dtype


@pytest.mark.parametrize("space", [gym.spaces.Text(3), gym.spaces.Sequence(gym.spaces.Discrete(2))], ids=str)
def test_spaces_that_no_column_holds_are_refused(space):
    with pytest.raises(UserError, match="expected Discrete"):
        schema.space_to_json(space)
    with pytest.raises(UserError, match="expected Discrete"):
        schema.observation_columns(space)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=5), min_size=1, max_size=6), st.integers(0, 999))
@pytest.mark.parametrize("spec", [GRID, ROBOT], ids=["grid", "robot"])
def test_round_trip_of_ragged_histories(tmp_path_factory, spec, shapes, seed):
    rng = np.random.default_rng(seed)
    histories = [random_history(spec, rng, lengths, finished=bool(seed % 2)) for lengths in shapes]
    store = write_histories(tmp_path_factory.mktemp("store") / "data", spec, histories, per_shard=2)
    assert store.spec == spec and store.num_histories == len(histories)
    assert store.num_transitions == sum(map(sum, shapes)) and store.num_episodes == sum(map(len, shapes))
    for i, history in enumerate(histories):
        for name, value in dataclasses.asdict(history).items():
            np.testing.assert_equal(getattr(store.history(i), name), value, err_msg=name)
        assert store.tasks_of(i) == store.split.train[history.task]
    assert store.tasks_of(np.arange(len(histories))).shape == (len(histories),)


def test_a_history_knows_its_next_observations_and_returns():
    history = plain_history()
    assert np.array_equal(history.next_observation[[0, 1, 3, 4]], history.observation[[1, 2, 4, 5]])
    assert np.array_equal(history.next_observation[[2, 5]], history.final_observation)
    assert np.allclose(history.episode_returns, [history.reward[:3].sum(), history.reward[3:].sum()])


def test_columns_are_small_mapped_and_read_only(tmp_path):
    store = grid_store(tmp_path / "data")
    files = writer.shard_folder(store.path, 0)
    assert np.load(files / "observation.npy").dtype == np.uint8 and np.load(files / "action.npy").dtype == np.uint8
    assert not store.column(0, "reward").flags.writeable
    assert isinstance(store.column(0, "reward").base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        store.history(0).reward[0] = 1


def test_the_hash_covers_content_but_not_circumstances(tmp_path):
    first, second = grid_store(tmp_path / "a"), grid_store(tmp_path / "b")
    other = grid_store(tmp_path / "c", num=5)
    assert first.dataset_hash == second.dataset_hash != other.dataset_hash
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert writer.dataset_hash({**manifest, "about": {"created": "tomorrow"}}) == first.dataset_hash
    assert writer.dataset_hash({**manifest, "seed": 1}) != first.dataset_hash


# --- refused at writing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"reward": np.array([0, 0, 0, 0, np.nan, 0], np.float32)},
            "reward is nan at history 7, step 4, expected finite",
        ),
        ({"reward": np.array([0, np.inf, 0, 0, 0, 0])}, "reward is inf at history 7, step 1"),
        ({"reward": np.full(6, 1e300)}, "reward is 1e[+]300 at history 7, step 0"),
        ({"action": np.array([0, 1, 2, 5, 0, 0])}, "action is 5 at history 7, step 3, expected values from 0 to 4"),
        ({"action": np.array([0, 1, 2, 256, 0, 0])}, "action is 256 at history 7, step 3"),
        ({"observation": np.full((6, 2), 10)}, r"observation is \[10, 10\] at history 7, step 0"),
        ({"observation": np.zeros((6, 3), int)}, r"observation has shape \(3,\), expected \(2,\)"),
        ({"final_observation": np.full((2, 2), -1)}, r"final_observation is \[-1, -1\] at history 7, episode 0"),
    ],
)
def test_values_outside_their_space_are_refused_with_history_and_step(changes, message):
    with pytest.raises(UserError, match=message):
        schema.pack_histories(GRID, [plain_history(**changes)], first=7)


def test_continuous_actions_outside_the_box_are_refused():
    history = random_history(ROBOT, np.random.default_rng(0), [2])
    for bad in (1.5, np.nan):
        action = np.array([[0, 0], [0, bad]], np.float32)
        with pytest.raises(UserError, match=r"action is .* at history 0, step 1"):
            schema.pack_histories(ROBOT, [dataclasses.replace(history, action=action)])


def test_a_shard_is_checked_once_more_when_it_is_written(tmp_path):
    plan, split = plan_of()
    good = schema.pack_histories(GRID, [plain_history(), plain_history()])
    nan, unmarked, task = (dict(good) for _ in range(3))
    nan["reward"] = np.where(np.arange(12) == 8, np.nan, 0)
    unmarked["truncated"] = unmarked["terminated"] = np.zeros(12, bool)
    task["task"] = np.array([0, 3])
    with writer.writing(tmp_path / "data", plan, split):
        for columns, message in [
            (nan, "reward is nan at history 5, step 2"),
            (unmarked, "flags at history 4, step 2 contradict"),
            (task, "names task 3"),
            ({**good, "task": np.array([0])}, "do not fit together"),
            ({name: good[name] for name in good if name != "reward"}, r"columns \['reward'\]"),
        ]:
            with pytest.raises(UserError, match=message):
                writer.write_shard(tmp_path / "data", 1, columns)
    assert list((tmp_path / "data" / "shards").iterdir()) == []


def test_tasks_with_objects_are_refused():
    tasks = np.zeros(2, [("anything", object)])
    with pytest.raises(UserError, match="without objects"):
        writer.make_plan(GRID, Split(tasks, tasks, tasks), family={}, collect={}, seed=0, columns=[])


# --- folders -------------------------------------------------------------------------------------------------------


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path):
    plan, split = plan_of()
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="something else than a dataset"), writer.writing(tmp_path, plan, split):
        pass
    with pytest.raises(UserError, match="is a file"), writer.writing(tmp_path / "thesis.txt", plan, split):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_foreign_shards_without_a_plan_are_refused(tmp_path):
    plan, split = plan_of()
    (tmp_path / "shards" / "shard-00000").mkdir(parents=True)
    with pytest.raises(UserError, match="something else than a dataset"), writer.writing(tmp_path, plan, split):
        pass


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seed": 1}, "seed: 0 there, 1 asked"),
        ({"family": {"name": "other"}}, 'family.name: "toy" there, "other" asked'),
    ],
)
def test_another_dataset_in_the_folder_is_refused(tmp_path, finished, changes, message):
    plan, split = plan_of()
    with writer.writing(tmp_path / "data", plan, split):
        if finished:
            writer.write_shard(tmp_path / "data", 0, schema.pack_histories(GRID, [plain_history()]))
            writer.finish(tmp_path / "data", 1, {})
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "data").rglob("*")}
    with pytest.raises(UserError, match=message), writer.writing(tmp_path / "data", plan_of(**changes)[0], split):
        pass
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "data").rglob("*")}


def test_other_tasks_under_the_same_options_are_another_dataset(tmp_path):
    plan, split = plan_of()
    with writer.writing(tmp_path / "data", plan, split):
        pass
    tasks = np.ones(3, [("goal", np.int8)])
    split = Split(tasks, tasks[:1], tasks[:1])
    changed = writer.make_plan(GRID, split, family=plan["family"], collect=plan["collect"], seed=0, columns=[])
    with pytest.raises(UserError, match="train tasks"), writer.writing(tmp_path / "data", changed, split):
        pass


def test_one_process_writes_at_a_time(tmp_path):
    plan, split = plan_of()
    with writer.writing(tmp_path / "data", plan, split):
        second = writer.writing(tmp_path / "data", plan, split)
        with pytest.raises(UserError, match="being written by another process"), second:
            pass
    handle = os.open(tmp_path / "data", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released
    os.close(handle)


def test_a_kill_between_manifest_and_end_leaves_a_finished_dataset(tmp_path):
    plan, split = plan_of()
    data = tmp_path / "data"
    for _ in range(2):
        with writer.writing(data, plan, split):
            if not (data / "manifest.json").exists():
                writer.write_shard(data, 0, schema.pack_histories(GRID, [plain_history()]))
                writer.finish(data, 1, {})
                writer.write_json(data / "plan.json", plan)
    assert not (data / "plan.json").exists() and HistoryStore.open(data).num_histories == 1


def test_what_a_killed_run_left_is_swept_and_shards_are_kept(tmp_path):
    plan, split = plan_of()
    data = tmp_path / "data"
    with writer.writing(data, plan, split):
        writer.write_shard(data, 0, schema.pack_histories(GRID, [plain_history()]))
    (data / "shards" / ".tmp-shard-00001-99").mkdir()
    (data / "shards" / ".tmp-shard-00001-99" / "action.npy").write_bytes(b"half")
    (data / ".tmp-plan.json-99").write_text("{")
    with writer.writing(data, plan, split):
        assert writer.finished_shards(data) == [0]
    assert not list(data.rglob(".tmp-*"))


def test_a_shard_appears_only_after_its_files_reached_the_disk(tmp_path, monkeypatch):
    plan, split = plan_of()
    events = []
    rename = os.rename
    monkeypatch.setattr(os, "fsync", lambda file: events.append(os.readlink(f"/proc/self/fd/{file}")))
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append("rename"), rename(a, b)))
    with writer.writing(tmp_path / "data", plan, split):
        events.clear()
        writer.write_shard(tmp_path / "data", 0, schema.pack_histories(GRID, [plain_history()]))
    before, after = events[: events.index("rename")], events[events.index("rename") + 1 :]
    folder = writer.shard_folder(tmp_path / "data", 0)
    flushed = {name.removeprefix("/").rpartition("/")[2].removeprefix(".tmp-").partition("-")[0] for name in before}
    assert {file.name for file in folder.iterdir()} <= flushed and any("tmp-shard" in name for name in before)
    assert after == [str(folder.parent)]


def test_a_disk_that_fills_up_leaves_finished_shards_and_one_line(tmp_path, monkeypatch):
    plan, split = plan_of()
    data, columns = tmp_path / "data", schema.pack_histories(GRID, [plain_history()])

    def full(file, array):
        if array.dtype == np.float32:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, array)

    with writer.writing(data, plan, split):
        writer.write_shard(data, 0, columns)
        real = writer._write_npy
        monkeypatch.setattr(writer, "_write_npy", full)
        with pytest.raises(UserError, match="is full; finished shards are kept: free some space and run"):
            writer.write_shard(data, 1, columns)
    assert [folder.name for folder in (data / "shards").iterdir()] == ["shard-00000"]
    assert writer.finished_shards(data) == [0]


def test_a_finished_shard_that_was_damaged_is_not_built_upon(tmp_path):
    plan, split = plan_of()
    data = tmp_path / "data"
    with writer.writing(data, plan, split):
        writer.write_shard(data, 0, schema.pack_histories(GRID, [plain_history()]))
        flip_last_byte(writer.shard_folder(data, 0) / "action.npy")
        with pytest.raises(UserError, match=r"action.npy is damaged: delete the folder .*shard-00000 and run"):
            writer.finished_shards(data)


# --- refused at opening --------------------------------------------------------------------------------------------


def flip_last_byte(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _cut(path):
    file = writer.shard_folder(path, 0) / "reward.npy"
    os.truncate(file, file.stat().st_size - 3)


def _nan(path):
    file = writer.shard_folder(path, 0) / "reward.npy"
    reward = np.load(file)
    reward[5] = np.nan
    np.save(file, reward)
    forge(path, "reward.npy")


def _edit(**changes):
    def edit(path):
        save_manifest(path, {**json.loads((path / "manifest.json").read_text()), **changes})

    return edit


def _edit_without_hash(path):
    file = path / "manifest.json"
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))


DAMAGE = {
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing.*icrl collect --out"),
    "no json": (lambda path: (path / "manifest.json").write_text("{"), "manifest.json is damaged"),
    "version": (_edit(version=2), "version 2, expected icrl-histories version 1"),
    "edited": (_edit_without_hash, "manifest.json was changed since it was written"),
    "emptied": (_edit(split={}), "manifest.json is damaged"),
    "no column": (
        lambda path: (writer.shard_folder(path, 1) / "action.npy").unlink(),
        "shard-00001/action.npy is missing",
    ),
    "cut": (_cut, "shard-00000/reward.npy has .* bytes, expected .*truncated"),
    "flipped": (
        lambda path: flip_last_byte(writer.shard_folder(path, 1) / "observation.npy"),
        "shard-00001/observation.npy was changed",
    ),
    "flipped task": (lambda path: flip_last_byte(path / "tasks-test.npy"), "tasks-test.npy was changed"),
    "nan": (_nan, "shard-00000/reward.npy holds a reward that is not finite"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_dataset_is_refused_in_one_line(tmp_path, damage):
    grid_store(tmp_path / "data")
    break_it, message = DAMAGE[damage]
    break_it(tmp_path / "data")
    with pytest.raises(UserError, match=message) as raised:
        HistoryStore.open(tmp_path / "data")
    assert "\n" not in str(raised.value)


def test_a_missing_or_unfinished_dataset_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="is no dataset"):
        HistoryStore.open(tmp_path / "nowhere")
    plan, split = plan_of()
    with writer.writing(tmp_path / "data", plan, split):
        pass
    with pytest.raises(UserError, match="unfinished collection: run the same collect command again"):
        HistoryStore.open(tmp_path / "data")


class _Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


def test_pickles_are_never_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grid_store(tmp_path / "data")
    header = (
        np.lib.format.magic(1, 0)
        + b"\x76\x00"
        + b"{'descr': '|O', 'fortran_order': False, 'shape': (72,), }".ljust(117)
        + b"\n"
    )
    forge(tmp_path / "data", "reward.npy", header + pickle.dumps(_Bomb()))
    for verify in (True, False):
        with pytest.raises(UserError, match=r"reward.npy cannot be read"):
            HistoryStore.open(tmp_path / "data", verify=verify).history(0)
    tasks = grid_store(tmp_path / "other").path / "tasks-train.npy"
    np.save(tasks, np.array([_Bomb()], object), allow_pickle=True)
    manifest = json.loads((tmp_path / "other" / "manifest.json").read_text())
    manifest["split"]["train"]["sha256"] = writer.sha256(tasks)
    save_manifest(tmp_path / "other", manifest)
    with pytest.raises(UserError, match=r"tasks-train.npy cannot be read"):
        HistoryStore.open(tmp_path / "other")
    assert not (tmp_path / "exploded").exists()


def test_a_column_of_another_type_than_the_spec_is_refused(tmp_path):
    grid_store(tmp_path / "data")
    file = writer.shard_folder(tmp_path / "data", 0) / "action.npy"
    np.save(file, np.load(file).astype(np.int64))
    forge(tmp_path / "data", "action.npy")
    with pytest.raises(UserError, match=r"action.npy holds int64"):
        HistoryStore.open(tmp_path / "data").history(0)
