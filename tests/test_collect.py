"""Collections: aligned, the same whatever the workers and interruptions, and stopped with one clear line."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import gymnasium as gym
import numpy as np
import psutil
import pytest
from toy import CountEnv, CountFamily, CountSource, without_flushing

from agents import SOURCES, source_class
from agents.collect import assign, collect
from agents.workers import StoppedError, map_in_processes
from envs.gym_vector import GymVectorEnv
from icrl.config import CollectConfig, EvaluateConfig, FamilyConfig, Recipe, SourceConfig
from icrl.data import writer
from icrl.data.inspect import failure_lines, failures
from icrl.data.sampling import WindowSampler
from icrl.data.store import HistoryStore
from icrl.interfaces import FamilySpec, Split, UserError
from icrl.rollout import rollout
from scripts import collect as collect_command
from scripts import inspect_data
from scripts import run as run_command
from scripts.baselines import baseline_sources, left_out

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


@pytest.mark.parametrize("workers", [1, 2])
def test_a_history_with_a_number_that_is_not_finite_ends_there_and_the_others_go_on(tmp_path, workers):
    whole = gather(recipe(), tmp_path / "whole")
    store = gather(recipe(options={"poison_step": 11}), tmp_path / "data", workers=workers)
    task = int(whole.task[3])
    reason = "returned a number that is not finite"
    assert failures(store) == [{"history": 3, "task": task, "steps": 11, "reason": reason}]
    assert store.num_histories == 10 and store.num_transitions == 170 - 6
    HistoryStore.open(tmp_path / "data")
    for i in range(10):
        history, full = store.history(i), whole.history(i)
        T = 11 if i == 3 else 17
        assert history.num_transitions == T and np.array_equal(history.observation, full.observation[:T])
        assert np.array_equal(history.next_observation, full.next_observation[:T])
        assert np.array_equal(history.reward, full.reward[:T])
    assert np.isfinite(WindowSampler(store, 12, start_fraction=0.3).batch(0, 64).reward).all()


@dataclasses.dataclass(frozen=True)
class Failing(CountFamily):
    """Lanes with these numbers fail before their step n, as ``GymVectorEnv`` tells it: frozen, with the reason in ``failed``."""

    at: tuple[tuple[int, int], ...] = ()

    def make_vec(self, tasks, lane_ids=None):
        return FailingEnv(self, tasks, lane_ids)


class FailingEnv(CountEnv):
    family: Failing

    def reset(self, *, seed=None, options=None):
        self.failed = {}
        return super().reset(seed=seed)

    def step(self, actions):
        outcome = super().step(actions)
        for lane, number in enumerate(self.lane_ids):
            if self.count[lane] > dict(self.family.at).get(int(number), np.inf):
                self.failed[lane] = "raised ValueError: boom"
        return outcome


def failing(*at, **options):
    return recipe(family="test_collect:Failing", options={"at": at}, **options)


def test_failures_that_an_environment_tells_are_kept_until_the_end(tmp_path):
    chosen = failing((2, 5), (4, 0), (5, 0), (6, 0), (7, 0), (9, 16))  # the second shard has no history left
    store = gather(chosen, tmp_path / "data")
    kept = [number for number in range(10) if number not in (4, 5, 6, 7)]
    assert [history["history"] for history in failures(store)] == [2, 4, 5, 6, 7, 9]
    assert [history["steps"] for history in failures(store)] == [5, 0, 0, 0, 0, 16]
    lengths = [store.history(i).num_transitions for i in range(store.num_histories)]
    assert lengths == [{2: 5, 9: 16}.get(number, 17) for number in kept]
    assert np.array_equal(store.task, gather(recipe(), tmp_path / "whole").task[kept])
    HistoryStore.open(tmp_path / "data")
    WindowSampler(store, 5).batch(0, 32)
    assert failure_lines(store, most=1) == [
        f"history 2 (task {store.task[2]}) ended after 5 steps: its environment raised ValueError: boom",
        "and 5 more",
    ]


class Breaking(gym.Env):
    """Counts to 5; the task says before which step of its life it raises (+) or returns a reward that is not finite (-)."""

    observation_space, action_space = gym.spaces.Discrete(6), gym.spaces.Discrete(3)

    def __init__(self, breaks: int):
        self.breaks, self.age = breaks, 0

    def reset(self, *, seed=None, options=None):
        self.count = 0
        return 0, {}

    def step(self, action):
        self.count, self.age = self.count + 1, self.age + 1
        if self.age == self.breaks:
            raise ValueError("boom")
        return self.count, np.nan if self.age == -self.breaks else 1.0, self.count == 5, False, {}


@dataclasses.dataclass(frozen=True)
class BreakingFamily(CountFamily):
    """Ordinary environments as lanes, some of which break."""

    @property
    def spec(self):
        return FamilySpec("breaking", Breaking.observation_space, Breaking.action_space, horizon=5)

    def split(self):
        tasks = np.array([(99,), (1,), (8,), (-5,), (-6,), (99,)], [("breaks", np.int64)])
        return Split(tasks, tasks[:1], tasks[:1])

    def make_vec(self, tasks, lane_ids=None):
        return GymVectorEnv(self.spec, tasks, lambda task: Breaking(int(task["breaks"])), lane_ids)


@pytest.mark.parametrize("source", ["uniform", "test_collect:OwnLoop"])
def test_ordinary_environments_that_break_half_way(tmp_path, source):
    chosen = recipe(SourceConfig(source), family="test_collect:BreakingFamily", num_histories=6)
    store = gather(chosen, tmp_path / "data")
    lived = {0: 17, 1: 0, 2: 7, 3: 4, 4: 5, 5: 17}  # steps by task
    assert {f["task"]: f["steps"] for f in failures(store)} == {t: n for t, n in lived.items() if n < 17}
    assert store.num_histories == 5 and store.num_transitions == sum(lived.values())
    for i, task in enumerate(store.task.tolist()):
        history, n = store.history(i), lived[task]
        assert history.num_transitions == n and (history.reward == 1).all()
        assert history.observation.tolist() == [t % 5 for t in range(n)]
        assert history.next_observation.tolist() == [t % 5 + 1 for t in range(n)]
    reasons = " ".join(f["reason"] for f in failures(store))
    assert "raised ValueError at test_collect.py" in reasons and "returned the reward nan" in reasons


def test_a_reason_does_not_change_the_dataset(tmp_path):
    """A reason may name an address: what is hashed is what was lived."""
    one = gather(failing((2, 5)), tmp_path / "one")
    text = (tmp_path / "one" / "manifest.json").read_text()
    manifest = json.loads(text.replace("raised ValueError: boom", "another address"))
    assert manifest["about"]["failed"][0]["reason"] == "another address"
    assert writer.dataset_hash(manifest) == one.dataset_hash


def test_where_nothing_at_all_was_lived_there_is_no_dataset(tmp_path):
    with pytest.raises(
        UserError, match="no history has a single step; the first one's environment raised ValueError: boom"
    ):
        gather(failing((0, 0), (1, 0), num_histories=2), tmp_path / "data")
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_the_command_tells_what_failed_and_does_not_exit_with_0(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(collect_command, "load_recipe", lambda name: failing((1, 3), num_histories=3))
    monkeypatch.setattr(collect_command, "check_recipe", lambda chosen: Failing(at=((1, 3),)))
    for _ in range(2):  # also when all is there already
        assert collect_command.main(["mine", "--out", str(tmp_path / "data")]) == 2
        said = capsys.readouterr()
        assert "3 histories, 37 transitions" in said.out
        errors = [line for line in said.err.splitlines() if line.startswith("icrl: ")]
        assert "ended after 3 steps: its environment raised ValueError: boom" in "".join(errors[:-1])
        assert errors[-1].startswith("icrl: error: 1 of 3 histories ended early because their environment failed")
    assert inspect_data.main([str(tmp_path / "data")]) == 0
    assert "ended after 3 steps: its environment raised ValueError: boom" in capsys.readouterr().err


def test_icrl_run_finishes_and_then_does_not_exit_with_0_either(tmp_path, capsys, monkeypatch):
    page = tmp_path / "report" / "index.html"
    monkeypatch.setattr(run_command, "load_recipe", lambda name: failing((1, 3), num_histories=3))
    monkeypatch.setattr(run_command, "run_recipe", lambda recipe, out, _: gather(recipe, out / "data") and page)
    monkeypatch.setattr(run_command, "find_record", lambda *_: {})
    monkeypatch.setattr(run_command, "table", lambda _: "the table")
    assert run_command.main(["mine", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert f"the table\n\nreport: {page}" in said.out
    assert "icrl: error: 1 of 3 histories ended early because their environment failed" in said.err


def test_an_action_out_of_its_space_names_history_and_step(tmp_path):
    with pytest.raises(UserError, match="action is 7 at history 0, step 1, expected values from 0 to 2"):
        gather(recipe(SourceConfig("test_collect:Astray")), tmp_path / "data")
    assert list((tmp_path / "data" / "shards").iterdir()) == []


@dataclasses.dataclass(frozen=True)
class Astray(CountSource):
    """Acts out of the space from its second step on."""

    def make(self, family, env, streams, num_steps):
        agent = super().make(family, env, streams, num_steps)
        told = agent.act
        agent.act = lambda *given: told(*given)._replace(action=np.where(agent.count == 0, 0, 7))  # type: ignore[method-assign]
        return agent


# --- sources that drive their own loop ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class OwnLoop:
    """Acts as CountSource does, one lane at a time, in a loop of its own; ``short``: it stops too early."""

    short: int = 0
    sleep: float = 0.0

    def make(self, family, env, streams, num_steps):
        raise UserError("is no agent")

    def record(self, family, env, streams, num_steps, *, seed, record_optimal, keep):
        assert env.num_envs == streams.num_lanes == 1
        agent = CountSource(sleep=self.sleep).make(family, env, streams, num_steps)
        turns = rollout(agent, env, seed=seed, record_optimal=record_optimal)
        for turn in itertools.islice(turns, num_steps - self.short):
            if not keep(turn):
                return
        if not self.short:
            raise AssertionError("keep says when it is enough")


OWN = SourceConfig("test_collect:OwnLoop")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_source_that_drives_itself_leaves_the_same_histories_one_per_shard(tmp_path, workers):
    own, agent = (
        gather(recipe(OWN, num_histories=3), tmp_path / "own", workers=workers),
        gather(recipe(), tmp_path / "a"),
    )
    assert own.num_shards == own.num_histories == 3 and own.optional == agent.optional
    for i in range(3):
        for there, here in zip(agent.history(i).__dict__.values(), own.history(i).__dict__.values(), strict=True):
            assert np.array_equal(there, here)
    assert own.manifest["collect"]["shard_histories"] == 1


def test_beside_others_a_shard_holds_about_one_of_its_histories(tmp_path):
    chosen = recipe(dataclasses.replace(COUNT, weight=4.0), OWN, num_histories=20, shard_histories=64)
    store = gather(chosen, tmp_path / "data")
    assert np.bincount(store.source).tolist() == [16, 4]
    assert store.manifest["collect"]["shard_histories"] == 5 and store.num_shards == 4
    assert [int((store.source[i : i + 5] == 1).sum()) for i in range(0, 20, 5)] == [1, 1, 1, 1]


def test_a_source_that_drives_itself_fails_and_ends_like_others(tmp_path):
    chosen = dataclasses.replace(failing((1, 6)).collect, sources=(OWN,), num_histories=3)
    store = gather(dataclasses.replace(failing((1, 6)), collect=chosen), tmp_path / "data")
    assert [f["steps"] for f in failures(store)] == [6] and store.history(1).num_transitions == 6
    with pytest.raises(UserError, match="ended after 15 of 17 steps"):
        gather(recipe(SourceConfig("test_collect:OwnLoop", {"short": 2})), tmp_path / "short")


def test_every_registered_source_that_drives_itself_is_tested():
    """tests/test_sources.py leaves them out, since they are no agents: who adds one gives it a file of tests like tests/test_sb3.py."""
    assert {name for name in SOURCES if hasattr(source_class(name), "record")} == {"sb3"}


def test_it_has_no_row_in_an_evaluation():
    chosen, config = recipe(OWN, COUNT), EvaluateConfig()
    assert list(baseline_sources(chosen, config)) == ["random", "optimal", "source toy:CountSource"]
    assert [line[:42] for line in left_out(chosen, config)] == ["source test_collect:OwnLoop has no row: it"]
    assert left_out(chosen, EvaluateConfig(baselines=("random",))) == []


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
import os, sys, time
if __name__ == "__mp_main__":  # in a worker, which imports this: the second takes its time
    try:
        os.mkdir(sys.argv[1] + "-first")
    except FileExistsError:
        time.sleep(2)
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


def test_ctrl_c_while_workers_start_stops_them(tmp_path, monkeypatch):
    submit = ProcessPoolExecutor.submit

    def interrupted(pool, *arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return submit(pool, *arguments)

    monkeypatch.setattr(ProcessPoolExecutor, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        map_in_processes(FailsOrEndures(tmp_path), [1, 2], 2, lambda units: None)
    note = tmp_path / "note"
    assert not note.exists() or note.read_text() == "stopped"  # not worked to the end


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
    stopped = recipe(SourceConfig("test_collect:Unwell"), shard_histories=2)  # the second shard does not come about
    with pytest.raises(UserError, match="unwell"):
        gather(stopped, tmp_path / "data")
    file = writer.shard_folder(tmp_path / "data", 0) / "reward.npy"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"reward.npy is damaged: delete the folder"):
        gather(stopped, tmp_path / "data")


@dataclasses.dataclass(frozen=True)
class Unwell(CountSource):
    """Refuses lanes that hold history 3."""

    def make(self, family, env, streams, num_steps):
        if 3 in env.lane_ids:
            raise UserError("unwell")
        return super().make(family, env, streams, num_steps)
