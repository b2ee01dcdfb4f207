"""Collections: aligned, the same whatever the workers and interruptions, and stopped with one clear line."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from toy import CountSource, without_flushing

from agents.collect import assign, collect
from agents.workers import StoppedError, map_in_processes
from icrl.config import CollectConfig, FamilyConfig, Recipe, SourceConfig
from icrl.data import writer
from icrl.data.store import HistoryStore
from icrl.interfaces import UserError

ROOT = Path(__file__).resolve().parent.parent
COUNT = SourceConfig("toy:CountSource")
_fast = pytest.fixture(scope="module", autouse=True)(without_flushing)


def recipe(*sources, options=None, family="toy:CountFamily", seed=0, **collect_options):
    chosen = {"num_histories": 10, "steps_per_history": 17, "shard_histories": 4, "workers": 1, **collect_options}
    config = CollectConfig(sources=sources or (COUNT,), **chosen)
    return Recipe("toy", "toy", seed=seed, family=FamilyConfig(family, options or {}), collect=config)


def gather(chosen, out, **options):
    return collect(chosen, out, progress=False, **options)


@pytest.mark.parametrize("keyed", [False, True])
def test_action_is_taken_at_observation_and_earns_reward(tmp_path, keyed):
    store = gather(recipe(options={"keyed": keyed}), tmp_path / "data")
    assert store.num_histories == 10 and store.num_transitions == 170
    for i in range(store.num_histories):
        history, task, n = store.history(i), store.tasks_of(i), np.arange(17)
        offset, horizon = int(task["offset"]), int(task["horizon"])
        count = history.observation["count"] if keyed else history.observation
        following = history.next_observation["count"] if keyed else history.next_observation
        ended = (n + 1) % horizon == 0
        assert np.array_equal(count, n + offset)
        assert np.array_equal(following, n + 1 + offset + 50_000 * ended)
        assert history.target_action is not None and history.optimal_action is not None
        assert history.behaviour_log_prob is not None
        assert np.array_equal(history.action, n % 3) and np.array_equal(history.target_action, (n + 2) % 3)
        assert np.array_equal(history.optimal_action, (n + 1) % 3)
        assert np.allclose(history.reward, n + offset / 10_000)
        assert np.allclose(history.behaviour_log_prob, np.log1p(n))
        assert np.array_equal(history.terminated | history.truncated, ended)
        assert np.array_equal(history.terminated, ended & ((n + 1) % 2 == 0))
        assert np.diff(history.episode_offset).tolist() == [horizon] * (17 // horizon) + [17 % horizon] * (
            17 % horizon > 0
        )
        if keyed:
            assert np.array_equal(history.observation["pair"], np.stack([count % 256, count % 3], 1))


def test_sources_share_by_weight_and_what_one_lacks_is_filled(tmp_path):
    silent = SourceConfig("toy:CountSource", {"informed": False}, weight=3.0)
    store = gather(recipe(COUNT, silent, num_histories=16), tmp_path / "data")
    assert np.bincount(store.source).tolist() == [4, 12]
    assert store.manifest["collect"]["source_columns"] == [
        ["behaviour_log_prob", "optimal_action", "target_action"],
        ["optimal_action"],
    ]
    for i, source in enumerate(store.source):
        history = store.history(i)
        assert history.target_action is not None and history.behaviour_log_prob is not None
        assert np.array_equal(history.target_action, history.action) == (source == 1)
        assert np.isnan(history.behaviour_log_prob).all() == (source == 1)


def test_columns_that_no_source_knows_are_absent(tmp_path):
    store = gather(recipe(SourceConfig("toy:CountSource", {"informed": False})), tmp_path / "data")
    assert store.optional == ("optimal_action",) and store.history(0).target_action is None


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0), (0.7, 0.1, 0.2), (1e-3, 5.0)])
def test_shares_and_tasks_are_balanced(weights):
    chosen = recipe(*(dataclasses.replace(COUNT, weight=w) for w in weights), num_histories=103, shard_histories=8)
    source, task = assign(chosen, num_tasks=5)
    shares = np.array(weights) / sum(weights) * 103
    counts = np.bincount(source, minlength=len(weights))
    assert counts.sum() == 103 and (np.abs(counts - shares) < 1).all()
    for number in range(len(weights)):
        of_task = np.bincount(task[source == number], minlength=5)
        assert of_task.max() - of_task.min() <= 1
        in_shards = [(source[s : s + 8] == number).sum() for s in range(0, 103 - 8, 8)]
        assert np.ptp(in_shards) <= 2
    for start in range(0, 103, 8):
        assert (np.diff(source[start : start + 8]) >= 0).all()
    assert not np.array_equal(task, assign(dataclasses.replace(chosen, seed=1), num_tasks=5)[1])


def test_workers_do_not_change_the_dataset_and_other_seeds_do(tmp_path):
    darkroom = {"width": 4, "height": 4, "horizon": 6}
    chosen = recipe(
        SourceConfig("sample_and_hold", {"epsilon": 0.3}),
        SourceConfig("uniform", scattered=True),
        options=darkroom,
        family="darkroom",
    )
    one = gather(chosen, tmp_path / "one", workers=1)
    two = gather(chosen, tmp_path / "two", workers=2)
    other = gather(dataclasses.replace(chosen, seed=1), tmp_path / "other", workers=1)
    assert one.dataset_hash == two.dataset_hash != other.dataset_hash
    HistoryStore.open(tmp_path / "two")


def test_what_a_lane_does_does_not_depend_on_its_shard(tmp_path):
    chosen = recipe(SourceConfig("uniform"), options={"width": 4, "height": 4}, family="darkroom")
    wide = dataclasses.replace(chosen, collect=dataclasses.replace(chosen.collect, shard_histories=10))
    narrow, wide = gather(chosen, tmp_path / "narrow"), gather(wide, tmp_path / "wide")
    for i in range(10):
        assert np.array_equal(narrow.history(i).observation, wide.history(i).observation)


def test_scattered_sources_leave_single_transitions_under_the_family_s_own_spec(tmp_path):
    options = {"width": 4, "height": 4, "horizon": 6}
    store = gather(
        recipe(SourceConfig("uniform", scattered=True), options=options, family="darkroom"), tmp_path / "data"
    )
    assert store.num_episodes == store.num_transitions and store.spec.horizon == 6
    assert len(np.unique(np.concatenate([store.history(i).observation for i in range(10)]), axis=0)) == 16


def test_a_finished_collection_is_opened_and_another_refused(tmp_path):
    first = gather(recipe(), tmp_path / "data")
    before = (tmp_path / "data" / "manifest.json").stat().st_mtime_ns
    assert gather(recipe(workers=3), tmp_path / "data").dataset_hash == first.dataset_hash
    assert (tmp_path / "data" / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"another dataset \(collect.steps_per_history: 17 there, 18 asked\)"):
        gather(recipe(steps_per_history=18), tmp_path / "data")
    with pytest.raises(UserError, match=r"another dataset \(family.options: {} there, {\"num_tasks\": 6} asked\)"):
        gather(recipe(options={"num_tasks": 6}), tmp_path / "data")


def test_a_reward_that_is_not_finite_names_history_and_step(tmp_path):
    with pytest.raises(UserError, match="reward is nan at history 3, step 11, expected finite numbers"):
        gather(recipe(options={"poison_step": 11}), tmp_path / "data")
    assert list((tmp_path / "data" / "shards").iterdir()) == []
    with pytest.raises(UserError, match="reward is nan at history 3, step 11"):
        gather(recipe(options={"poison_step": 11}), tmp_path / "data", workers=2)


@pytest.mark.parametrize(
    "chosen, message",
    [
        (recipe(num_histories=0), "collect.num_histories is 0"),
        (recipe(dataclasses.replace(COUNT, weight=0.0)), "weight 0.0"),
        (recipe(options={"num_tasks": 0}), "no training tasks"),
        (recipe(SourceConfig("nearest_plausible")), "no posterior"),
        (recipe(SourceConfig("nobody")), "unknown source 'nobody'"),
    ],
)
def test_recipes_that_cannot_work_are_refused_before_any_work(tmp_path, chosen, message):
    with pytest.raises(UserError, match=message):
        gather(chosen, tmp_path / "data")
    assert not (tmp_path / "data").exists()


# --- interruptions -------------------------------------------------------------------------------------------------

SLOW = recipe(SourceConfig("toy:CountSource", {"sleep": 0.01}), num_histories=24, shard_histories=2)
PROGRAM = """
import sys
from test_collect import SLOW, gather
if __name__ == "__main__":
    try:
        gather(SLOW, sys.argv[1], workers=int(sys.argv[2]))
    except KeyboardInterrupt as stop:
        sys.exit(f"interrupted: {stop}")
"""


def start(tmp_path, workers):
    """The slow collection in another process, once its first shards are there; and that process's children."""
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "data"), str(workers)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("data/shards/shard-*")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    return process, psutil.Process(process.pid).children(recursive=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return gather(SLOW, tmp_path_factory.mktemp("slow") / "data").dataset_hash


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_run_again_gives_the_identical_dataset(tmp_path, uninterrupted, workers):
    process, children = start(tmp_path, workers)
    process.kill()
    process.communicate()
    assert psutil.wait_procs(children, timeout=20)[1] == []  # no orphans
    kept = {shard: shard.stat().st_ino for shard in tmp_path.glob("data/shards/shard-*")}
    assert 0 < len(kept) < 12 and not (tmp_path / "data" / "manifest.json").exists()
    store = gather(SLOW, tmp_path / "data", workers=1)
    assert store.dataset_hash == uninterrupted
    assert kept.items() <= {s: s.stat().st_ino for s in tmp_path.glob("data/shards/shard-*")}.items()  # not repeated
    assert not list((tmp_path / "data").rglob(".tmp-*")) and not (tmp_path / "data" / "plan.json").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_stops_cleanly_and_says_how_to_resume(tmp_path, uninterrupted, workers):
    process, children = start(tmp_path, workers)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    message = process.communicate(timeout=30)[1].strip().splitlines()
    assert len(message) == 1 and message[0].startswith("interrupted: stopped with ")
    assert message[0].endswith("run the same command again to resume")
    assert psutil.wait_procs(children, timeout=20)[1] == []
    assert not list((tmp_path / "data" / "shards").glob(".tmp-*"))
    assert gather(SLOW, tmp_path / "data", workers=1).dataset_hash == uninterrupted


@dataclasses.dataclass(frozen=True)
class FailsOrEndures:
    """Part 0 fails once part 1 is at work; part 1 works for half a minute if it is let, and notes how it ended."""

    folder: Path

    def __call__(self, part, report):
        note = self.folder / "note"
        if part == 0:
            while not note.exists():
                time.sleep(0.01)
            raise UserError("part 0 failed")
        note.write_text("at work")
        try:
            for _ in range(600):
                report(1)
                time.sleep(0.05)
        except StoppedError:
            note.write_text("stopped")


def test_an_error_stops_the_other_workers(tmp_path):
    with pytest.raises(UserError, match="part 0 failed"):
        map_in_processes(FailsOrEndures(tmp_path), [0, 1], 2, lambda units: None)
    assert (tmp_path / "note").read_text() == "stopped"


def interrupt_itself(part, report):
    os.kill(os.getpid(), signal.SIGINT)
    report(1)


def test_workers_leave_ctrl_c_to_their_parent():
    units = []
    map_in_processes(interrupt_itself, [0, 1, 2], 2, units.append)
    assert sum(units) == 3


def test_a_worker_that_is_killed_is_reported(tmp_path):
    doomed = recipe(SourceConfig("test_collect:Doomed"), num_histories=24, shard_histories=2)
    with pytest.raises(UserError, match="a worker process died: out of memory"):
        gather(doomed, tmp_path / "data", workers=2)


@dataclasses.dataclass(frozen=True)
class Doomed(CountSource):
    """Kills the process that rolls a whole shard; the probe with one lane survives."""

    def make(self, family, env, streams, num_steps):
        if env.num_envs > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().make(family, env, streams, num_steps)


def test_shards_that_exist_are_verified_before_they_are_built_upon(tmp_path):
    plan_only = recipe(options={"poison_step": 11}, shard_histories=2)  # history 3 lies in the second shard
    with pytest.raises(UserError, match="reward is nan"):
        gather(plan_only, tmp_path / "data")
    file = writer.shard_folder(tmp_path / "data", 0) / "reward.npy"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"reward.npy is damaged: delete the folder"):
        gather(plan_only, tmp_path / "data")
