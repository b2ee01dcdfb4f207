"""Minari: histories come back byte for byte, Minari reads them, and what cannot be histories is refused."""

from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from agents.collect import collect
from icrl.config import CollectConfig, FamilyConfig, Recipe, SourceConfig
from icrl.data.minari import export_minari, import_minari
from icrl.data.schema import History, pack_histories
from icrl.data.store import HistoryStore
from icrl.data.writer import write_histories
from icrl.interfaces import FamilySpec, Split, UserError
from scripts import cli

NAME = "rooms/mixed-v0"


def room_recipe() -> Recipe:
    sources = (SourceConfig("nearest_plausible", {"epsilon": 0.3}), SourceConfig("uniform", scattered=True))
    options = {"width": 4, "height": 4, "horizon": 12, "num_validation": 2}
    collecting = CollectConfig(sources, num_histories=7, steps_per_history=30, shard_histories=3, workers=1)
    return Recipe("x", "", family=FamilyConfig("darkroom", options), collect=collecting)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Histories with every optional column, several sources, an unfinished last episode and three shards."""
    folder = tmp_path_factory.mktemp("minari") / "data"
    store = collect(room_recipe(), folder, progress=False)
    assert store.num_shards == 3 and len(store.optional) == 3 and not store.history(0).truncated[-1]
    return folder


@pytest.fixture(scope="module")
def exported(data, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("root")
    export_minari(data, NAME, root, progress=False)
    return root


@pytest.fixture
def root(exported, tmp_path) -> Path:
    """A copy of the export that a test may change."""
    return Path(shutil.copytree(exported, tmp_path / "root"))


def same_bytes(a: HistoryStore, b: HistoryStore) -> None:
    assert a.num_histories == b.num_histories
    for number in range(a.num_histories):
        one, other = (pack_histories(s.spec, [s.history(number)]) for s in (a, b))
        for name in one:
            assert one[name].dtype == other[name].dtype and one[name].tobytes() == other[name].tobytes(), name


def test_round_trip_is_exact_to_the_byte(data, exported, tmp_path):
    store, identical = import_minari(NAME, tmp_path / "back", exported, progress=False)
    original = HistoryStore.open(data)
    assert identical and store.dataset_hash == original.dataset_hash
    same_bytes(original, HistoryStore.open(tmp_path / "back"))
    for file in sorted(path.relative_to(data) for path in data.rglob("*.npy")):
        assert (data / file).read_bytes() == (tmp_path / "back" / file).read_bytes()


def test_minari_reads_what_was_exported(data, exported, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(exported))
    dataset, store = minari.load_dataset(NAME), HistoryStore.open(data)
    assert list(minari.list_local_datasets()) == [NAME]
    assert (dataset.total_episodes, dataset.total_steps) == (store.num_episodes, store.num_transitions)
    assert dataset.observation_space == store.spec.observation_space and dataset.action_space == gym.spaces.Discrete(5)
    told = list(dataset.storage.get_episode_metadata(range(dataset.total_episodes)))
    number = 0
    for index in range(store.num_histories):
        history = store.history(index)
        for e, (start, end) in enumerate(zip(history.episode_offset, history.episode_offset[1:], strict=False)):
            episode, about = dataset[number], told[number]
            assert all(episode.observations[0] == history.observation[start])
            assert all(episode.observations[-1] == history.final_observation[e])
            assert len(episode.observations) == end - start + 1 and repr(episode)
            np.testing.assert_array_equal(episode.rewards, history.reward[start:end])
            np.testing.assert_array_equal(episode.infos["target_action"], history.target_action[start:end])  # type: ignore[index]
            assert (about["history"], about["episode"], about["split"]) == (index, e, "train")
            assert about["source"] == ("nearest_plausible", "uniform")[history.source]
            np.testing.assert_array_equal(about["task"]["goal"], store.split.train["goal"][history.task])
            number += 1
    assert dataset.observation_space.contains(dataset[0].observations[0])
    assert (dataset[0].observations.dtype, dataset[0].actions.dtype) == (np.int64, np.int64)  # those of the spaces


def test_every_kind_of_space_comes_back(tmp_path):
    """Dictionaries, images that Minari would compress with loss, boxes with infinite bounds, texts and numbers as tasks, no flag at the end."""
    rng = np.random.default_rng(0)
    parts = {
        "picture": gym.spaces.Box(0, 255, (32, 33, 3), np.uint8),
        "speed": gym.spaces.Box(np.array([-np.inf, -1.0], np.float32), np.array([np.inf, 2.0], np.float32)),
        "keys": gym.spaces.MultiBinary(3),
        "inner": gym.spaces.Dict({"b": gym.spaces.Discrete(3, start=-1), "a": gym.spaces.MultiDiscrete([2, 300])}),
    }
    spec = FamilySpec("mixed", gym.spaces.Dict(parts), gym.spaces.Box(-1, 1, (2,), np.float32), 5)
    tasks = np.zeros(4, [("word", "U5"), ("weights", np.float32, (2, 2)), ("big", np.float64, (9000,))])
    tasks["word"], tasks["weights"] = ["up", "down", "left", "right"], rng.random((4, 2, 2))

    def observations(n):
        some = [spec.observation_space.sample() for _ in range(n)]
        columns = {key: np.stack([o[key] for o in some]) for key in ("picture", "speed", "keys")}
        inner = {key: np.stack([o["inner"][key] for o in some]) for key in ("a", "b")}
        return columns | {"inner": inner}

    spec.observation_space.seed(0)
    histories = []
    for task in (1, 0, 1):
        truncated = np.array([False, False, True, False, True, False])
        actions, log_prob = rng.uniform(-1, 1, (6, 2)).astype(np.float32), rng.normal(size=6).astype(np.float32)
        log_prob[2] = np.nan
        offset, none = np.array([0, 3, 5, 6]), np.zeros(6, bool)
        rewards = rng.normal(size=6).astype(np.float32)
        histories.append(
            History(
                observations(6),
                actions,
                rewards,
                none,
                truncated,
                observations(3),
                offset,
                task,
                behaviour_log_prob=log_prob,
            )
        )
    write_histories(tmp_path / "data", spec, Split(tasks[:2], tasks[2:3], tasks[3:]), histories, shard_histories=2)
    export_minari(tmp_path / "data", "mixed-v3", tmp_path / "root", progress=False)
    store, identical = import_minari("mixed-v3", tmp_path / "back", tmp_path / "root", progress=False)
    assert identical
    same_bytes(HistoryStore.open(tmp_path / "data"), store)


def test_an_import_goes_on_and_nothing_is_overwritten(data, exported, tmp_path, monkeypatch):
    from icrl.data import writer

    original = writer.write_shard

    def stopped(path, index, columns):
        if index == 1:
            raise KeyboardInterrupt
        original(path, index, columns)

    monkeypatch.setattr(writer, "write_shard", stopped)
    with pytest.raises(KeyboardInterrupt):
        import_minari(NAME, tmp_path / "back", exported, progress=False)
    monkeypatch.setattr(writer, "write_shard", original)
    first = (tmp_path / "back" / "shards" / "shard-00000" / "reward.npy").stat().st_mtime_ns
    assert import_minari(NAME, tmp_path / "back", exported, progress=False).identical
    assert (tmp_path / "back" / "shards" / "shard-00000" / "reward.npy").stat().st_mtime_ns == first
    assert import_minari(NAME, tmp_path / "back", exported, progress=False).identical  # again: nothing to do
    with pytest.raises(UserError, match="already exists"):
        export_minari(data, NAME, exported, progress=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="already holds something else"):
        import_minari(NAME, tmp_path / "full", exported, progress=False)


def test_a_failed_export_leaves_nothing(data, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minari.dataset._storages.hdf5_storage.HDF5Storage.update_episode_metadata", full)
    with pytest.raises(UserError, match="No space left"):
        export_minari(data, NAME, tmp_path, progress=False)
    assert [path for path in tmp_path.rglob("*") if path.name != "rooms"] == []


def changed(root: Path) -> Any:
    return h5py.File(root / NAME / "data" / "main_data.hdf5", "a")


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("task_index", None, "episode 4 of rooms/mixed-v0 has no task_index in its metadata"),
        ("history", None, "has no history"),
        ("episode", 9, "is number 9 of history"),
        ("history", 5, "in order"),
        ("split", "test", "split test"),
        ("task_index", 999, "task 999"),
        ("task_index", 0, "another task"),
        ("task/goal", [9, 9], "another task"),
    ],
)
def test_episodes_that_are_no_history_are_refused(root, tmp_path, key, value, message):
    with changed(root) as file:
        attributes = file["episode_4"].attrs
        if value is None:
            del attributes[key]
        else:
            assert np.any(attributes[key] != value)
            attributes[key] = value
    with pytest.raises(UserError, match=message):
        import_minari(NAME, tmp_path / "back", root, progress=False)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda e: e["rewards"].resize((2,)), "entries of"),
        (lambda e: e["infos"].pop("target_action"), "no target_action"),
        (lambda e: e["actions"].__setitem__(0, 17), "action is 17 at history"),
        (lambda e: e["truncations"].__setitem__(slice(None), False), "contradict"),
    ],
)
def test_steps_that_do_not_fit_are_refused(root, tmp_path, change, message):
    with changed(root) as file:
        change(file["episode_0"])
    with pytest.raises(UserError, match=message):
        import_minari(NAME, tmp_path / "back", root, progress=False)
    assert not (tmp_path / "back" / "manifest.json").exists()


def test_changed_steps_that_fit_are_told(root, tmp_path, capsys):
    with changed(root) as file:
        file["episode_0"]["rewards"][0] += 3.0
    assert cli.main(["data", "import", NAME, "--out", str(tmp_path / "back"), "--root", str(root)]) == 0
    assert "not what was exported" in capsys.readouterr().out


def foreign(root: Path, name: str, observation_space: gym.Space) -> None:
    """A dataset as others make them."""
    steps = [observation_space.sample() for _ in range(4)]
    if isinstance(observation_space, gym.spaces.Tuple):
        steps = tuple(np.array(part) for part in zip(*steps, strict=True))
    buffer = EpisodeBuffer(None, None, None, steps, [0, 1, 0], [0.0] * 3, [False] * 3, [False, False, True], {})
    spaces = {"observation_space": observation_space, "action_space": gym.spaces.Discrete(2)}
    with pytest.warns(UserWarning):
        minari.create_dataset_from_buffers(name, [buffer], **spaces)


def test_datasets_of_others_are_refused_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    foreign(tmp_path, "plain-v0", gym.spaces.Box(0, 1, (2,), np.float32))
    foreign(tmp_path, "pair-v0", gym.spaces.Tuple([gym.spaces.Discrete(2), gym.spaces.Discrete(3)]))
    for name, message in (
        ("plain-v0", "do not say which task"),
        ("pair-v0", "Tuple"),
        ("nothing-v0", "no Minari dataset in"),
        ("plain", "with a version"),
        ("../plain-v0", "with a version"),
    ):
        with pytest.raises(UserError, match=message):
            import_minari(name, tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    "file, damage", [("manifest.json", "changed"), ("tasks-test.npy", "changed"), ("tasks-train.npy", "gone")]
)
def test_damage_beside_the_episodes_is_told(root, tmp_path, file, damage):
    path = root / NAME / "data" / "icrl" / file
    if damage == "gone":
        path.unlink()
    elif file == "manifest.json":
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 5}))
    else:
        np.save(path, np.load(path)[:1])
    with pytest.raises(UserError, match="damaged"):
        import_minari(NAME, tmp_path / "back", root, progress=False)


@pytest.mark.parametrize("missing", ["minari.dataset.minari_dataset", "h5py"])
def test_the_extra_is_named_where_it_is_missing(missing, tmp_path, monkeypatch, capsys, data):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name == missing:
            raise ImportError(f"No module named '{name}'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for argv in (["export", str(data), "--name", NAME], ["import", NAME, "--out", str(tmp_path / "back")]):
        assert cli.main(["data", *argv]) == 2
        error = capsys.readouterr().err
        assert "pip install icrl[minari]" in error and len(error.splitlines()) == 1


def test_the_commands(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "default"))
    assert cli.main(["data", "export", str(data), "--name", NAME]) == 0
    assert minari.load_dataset(NAME).total_episodes > 7
    assert cli.main(["data", "import", NAME, "--out", str(tmp_path / "back")]) == 0
    assert "byte for byte" in capsys.readouterr().out
    for argv, message in (
        (["exprot"], "export"),
        (["export", str(data)], "--name"),
        (["export", str(tmp_path / "none"), "--name", NAME], "does not exist"),
        (["import", NAME], "--out"),
    ):
        assert cli.main(["data", *argv]) == 2
        assert message in capsys.readouterr().err


def test_places_may_be_relative(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "export", str(data), "--name", NAME, "--out", "here"]) == 0
    assert cli.main(["data", "import", NAME, "--root", "here", "--out", "back"]) == 0
    assert "byte for byte" in capsys.readouterr().out
