"""Collecting learning histories: source agents in all lanes of a shard at once, shards side by side in processes.

A shard depends on the recipe and its number alone (lane streams are named by the history's number), so neither the
workers nor an interruption change the dataset. A source that drives its own loop plays one history after the other, in shards of one.
Within a shard the histories are ordered by source; every source meets the training tasks in balanced random order.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from agents import make_source, source_class
from agents.recorder import HistoryRecorder
from agents.workers import map_in_processes
from envs import make_family
from icrl.config import Recipe, SourceConfig
from icrl.data import writer
from icrl.data.schema import flatten, join_shards
from icrl.data.store import HistoryStore
from icrl.interfaces import PLAN_BEGINS, Array, Decision, Family, Source, Step, TaskVectorEnv, UserError
from icrl.rollout import Turn, rollout
from icrl.seeding import LaneStreams, derive_seed, generator


def collect(recipe: Recipe, out: Path, *, workers: int | None = None, progress: bool = True) -> HistoryStore:
    """Collect the recipe's histories into the folder ``out``, going on where an earlier run was stopped.

    ``workers`` processes (default: the recipe's) do not change the result. Raises UserError for an unfit source, for a
    folder that holds something else, bad values from a family or source, or a full disk; KeyboardInterrupt, with what to do as its
    message, after Ctrl-C. Shards that are finished are kept in every case. A history whose environment raises or returns a number that
    is not finite ends there, the others go on; ``icrl.data.inspect.failures`` tells which.
    """
    out = Path(out)
    _check_config(recipe)
    recipe = _with_small_shards(recipe)
    config = recipe.collect
    family: Family = make_family(recipe.family.name, **recipe.family.options)
    split = family.split()
    if len(split.train) == 0:
        raise UserError(f"family '{recipe.family.name}' has no training tasks: change the options of its split")
    source_columns = [_probe(recipe, family, source) for source in config.sources]
    stored = _stored_columns(source_columns)
    described = json_ready(dataclasses.asdict(config))
    del described["workers"]
    described["source_columns"] = [sorted(columns) for columns in source_columns]
    named = {"name": recipe.family.name, "options": json_ready(recipe.family.options)}
    plan = writer.make_plan(family.spec, split, family=named, collect=described, seed=recipe.seed, columns=stored)

    num_shards = -(-config.num_histories // config.shard_histories)
    started = time.time()
    with writer.writing(out, plan, split):
        if not (out / "manifest.json").exists():
            num_workers = config.workers if workers is None else workers
            _collect_missing(recipe, out, source_columns, num_shards, num_workers, progress)
            about = {"created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "workers": num_workers}
            about |= {"seconds_of_last_run": round(time.time() - started, 3), "icrl": version("icrl")}
            writer.finish(out, num_shards, about)
    return HistoryStore.open(out, verify=False)


def assign(recipe: Recipe, num_tasks: int) -> tuple[Array, Array]:
    """Source and training task of every history: two arrays (H,) int64.

    Each source gets its share of the whole by largest remainder, spread evenly over the shards. The j-th history of a source gets
    the j-th entry of an endless row of random permutations of the tasks.
    """
    config = recipe.collect
    total = config.num_histories
    weights = np.array([source.weight for source in config.sources])
    quota = weights / weights.sum() * total
    counts = np.floor(quota).astype(np.int64)
    counts[np.argsort(-(quota - counts), kind="stable")[: total - counts.sum()]] += 1
    labels = np.repeat(np.arange(len(weights)), counts)
    places = np.concatenate([(np.arange(n) + 0.5) / n for n in counts if n])
    source = labels[np.argsort(places, kind="stable")]
    for start in range(0, total, config.shard_histories):
        source[start : start + config.shard_histories].sort()
    task = np.empty(total, np.int64)
    for number in range(len(weights)):
        rows = np.flatnonzero(source == number)
        cycles = range(-(-len(rows) // num_tasks))
        order = [generator(recipe.seed, "tasks", number, c).permutation(num_tasks) for c in cycles]
        task[rows] = np.concatenate(order)[: len(rows)] if order else 0
    return source, task


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """Everything that a process needs to collect any shard; called with the shard's number and a per-step report."""

    recipe: Recipe
    out: Path
    source_columns: list[set[str]]

    def __call__(self, index: int, report: Callable[[int], None]) -> None:
        recipe, config = self.recipe, self.recipe.collect
        family: Family = make_family(recipe.family.name, **recipe.family.options)
        train = family.split().train
        source, task = assign(recipe, len(train))
        first = index * config.shard_histories
        ids = np.arange(first, min(first + config.shard_histories, config.num_histories))
        parts, failed = [], []
        for number in np.unique(source[ids]).tolist():
            lanes = ids[source[ids] == number]
            for group in np.split(lanes, len(lanes)) if drives_itself(config.sources[number]) else [lanes]:
                keeper = self._roll(family, number, group, train[task[group]], report)
                failed += keeper.failures(group, task[group])
                kept = group[keeper.recorder.num_transitions > 0]
                if len(kept):
                    parts.append(keeper.recorder.columns() | {"task": task[kept], "source": source[kept]})
        writer.write_shard(self.out, index, join_shards(parts) if parts else None, failed)

    def _roll(self, family: Family, number: int, lanes: Array, tasks: Array, report: Callable[[int], None]) -> Keeper:
        """What the histories ``lanes`` of one source left."""
        config, num_steps = self.recipe.collect.sources[number], self.recipe.collect.steps_per_history
        stored = _stored_columns(self.source_columns)
        keeper = Keeper(family, lanes, num_steps, self.source_columns[number] & stored, stored)

        def keep(env: TaskVectorEnv, turn: Turn) -> bool:
            report(len(lanes))
            return keeper.keep(env, turn)

        _play(self.recipe, family, config, tasks, lanes, "optimal_action" in stored, keep)
        left = num_steps - keeper.steps
        if left and not keeper.recorder.stopped.all():
            raise UserError(
                f"source '{config.name}' ended after {keeper.steps} of {num_steps} steps: it must go on to the end"
            )
        report(left * len(lanes))
        return keeper


class Keeper:
    """Records the turns of one source in the store's columns. A lane that fails keeps its history up to there, and the reason is noted."""

    def __init__(self, family: Family, lanes: Array, num_steps: int, known: set[str], stored: set[str]):
        self.recorder = HistoryRecorder(family.spec, len(lanes), lane_ids=lanes, capacity=num_steps)
        self.steps, self.reasons = 0, dict[int, str]()  # turns seen; why a lane (its row) failed
        self._num_steps, self._known, self._stored = num_steps, known, stored
        self._well = True  # some lane is

    def keep(self, env: TaskVectorEnv, turn: Turn) -> bool:
        """Record what happened in the lanes that are well; False when there is nothing more to record."""
        failed = _failed_lanes(env, turn.step)
        if failed:
            self.reasons = failed | self.reasons  # the first reason counts
            self.recorder.stop(np.array(list(failed), np.int64))
            self._well = not self.recorder.stopped.all()
        if self._well:
            self.recorder.add_turn(self._completed(turn))
        self.steps += 1
        return self._well and self.steps < self._num_steps

    def _completed(self, turn: Turn) -> Turn:
        """The turn with exactly the optional columns that are stored: what this source lacks gets what stands in for it."""
        decision, action = turn.decision, turn.step.action
        target, log_prob, plan = decision.target_action, decision.behaviour_log_prob, decision.plan
        if "target_action" in self._stored - self._known:
            target = action
        if "behaviour_log_prob" in self._stored - self._known:
            log_prob = np.full(len(action), np.nan, np.float32)
        if "plan" in self._stored - self._known:
            plan = np.full(len(action), PLAN_BEGINS, np.uint8)
        optimal = turn.optimal_action if "optimal_action" in self._stored else None
        return Turn(turn.step, Decision(action, target, log_prob, plan), optimal)

    def failures(self, lanes: Array, task: Array) -> list[dict[str, Any]]:
        """What failed as plain JSON, given the numbers of the histories and of their tasks, (B,) each."""
        steps = self.recorder.num_transitions
        return [
            {"history": int(lanes[row]), "task": int(task[row]), "steps": int(steps[row]), "reason": reason}
            for row, reason in sorted(self.reasons.items())
        ]


def _failed_lanes(env: TaskVectorEnv, step: Step) -> dict[int, str]:
    """Lanes whose environment says that it failed (``GymVectorEnv.failed``), or whose numbers are not finite, and why: the words after "its environment"."""
    bad = ~np.isfinite(step.reward)
    for observation in (step.observation, step.next_observation):
        for array in flatten("", observation).values():
            if array.dtype.kind == "f":
                bad |= ~np.isfinite(array).reshape(len(bad), -1).all(axis=1)
    unsaid = dict.fromkeys(np.flatnonzero(bad).tolist(), "returned a number that is not finite")
    return unsaid | getattr(env, "failed", {})


def play(
    source: Source,
    family: Family,
    env: TaskVectorEnv,
    streams: LaneStreams,
    num_steps: int,
    *,
    seed: int,
    record_optimal: bool,
    keep: Callable[[Turn], bool],
) -> None:
    """Let a source live in the lanes of ``env``; every turn goes to ``keep``, until it answers False or ``num_steps`` are over.

    A source that drives its own loop, as RL libraries do, has ``record`` with just these arguments (and is given one lane at a time);
    any other one makes an agent for the loop of ``icrl.rollout``.
    """
    record = getattr(source, "record", None)
    if record is not None:
        record(family, env, streams, num_steps, seed=seed, record_optimal=record_optimal, keep=keep)
        return
    agent = source.make(family, env, streams, num_steps)
    for turn in itertools.islice(rollout(agent, env, seed=seed, record_optimal=record_optimal), num_steps):
        if not keep(turn):
            return


def _play(
    recipe: Recipe,
    family: Family,
    config: SourceConfig,
    tasks: Array,
    lanes: Array,
    record_optimal: bool,
    keep: Callable[[TaskVectorEnv, Turn], bool],
) -> None:
    """The same for one of the recipe's sources in lanes numbered ``lanes`` (B,) that play ``tasks`` (B,)."""
    played = family.scattered() if config.scattered else family
    env = played.make_vec(tasks, lanes)
    try:
        play(
            make_source(config.name, **config.options),
            played,
            env,
            LaneStreams(recipe.seed, "source", lane_ids=lanes),
            recipe.collect.steps_per_history,
            seed=derive_seed(recipe.seed, "env"),
            record_optimal=record_optimal,
            keep=partial(keep, env),
        )
    finally:
        env.close()


def drives_itself(config: SourceConfig) -> bool:
    """Whether the source trains a learner in a loop of its own (``record``), so that it is no agent and each history is long work."""
    return hasattr(source_class(config.name), "record")


def _with_small_shards(recipe: Recipe) -> Recipe:
    """Shards of about one history of the sources that drive themselves, so that a kill loses little and workers share the work."""
    config = recipe.collect
    share = sum(s.weight for s in config.sources if drives_itself(s)) / sum(s.weight for s in config.sources)
    per_history = int(1 / share) if share else config.shard_histories
    size = min(config.shard_histories, per_history)
    return dataclasses.replace(recipe, collect=dataclasses.replace(config, shard_histories=size))


def _probe(recipe: Recipe, family: Family, source: SourceConfig) -> set[str]:
    """Play one step with one lane: which optional columns there are. Raises what the source or the family raises."""
    tasks, lanes = family.split().train[:1], np.arange(1)
    turns: list[Turn] = []

    def first(env: TaskVectorEnv, turn: Turn) -> bool:
        turns.append(turn)
        return False

    known = {"optimal_action"}
    try:
        _play(recipe, family, source, tasks, lanes, True, first)
    except UserError:
        known = set()
        _play(recipe, family, source, tasks, lanes, False, first)
    decision = turns[-1].decision
    given = ("target_action", "behaviour_log_prob", "plan")
    return known | {name for name in given if getattr(decision, name) is not None}


def _stored_columns(source_columns: list[set[str]]) -> set[str]:
    """Nothing can stand in for an unknown optimal action, so all must know it; the others need one source."""
    return set.union(*source_columns) - ({"optimal_action"} - set.intersection(*source_columns))


def _check_config(recipe: Recipe) -> None:
    config = recipe.collect
    for name in ("num_histories", "steps_per_history", "shard_histories", "workers"):
        if getattr(config, name) < 1:
            raise UserError(f"collect.{name} is {getattr(config, name)}, expected 1 or more: correct it")
    if not config.sources:
        raise UserError("collect.sources is empty, expected at least one source: name one")
    for source in config.sources:
        if not 0 < source.weight < float("inf"):
            raise UserError(
                f"source '{source.name}' has weight {source.weight}, expected a positive number: correct it"
            )


def json_ready(value: Any) -> Any:
    """Tuples as lists, so that a plan equals itself read back."""
    if isinstance(value, dict):
        return {str(key): json_ready(item) for key, item in value.items()}
    return [json_ready(item) for item in value] if isinstance(value, list | tuple) else value


def _collect_missing(
    recipe: Recipe, out: Path, source_columns: list[set[str]], num_shards: int, workers: int, progress: bool
) -> None:
    """Collect the shards that are not there yet, with a progress bar over transitions."""
    config = recipe.collect
    done = writer.finished_shards(out)
    missing = [index for index in range(num_shards) if index not in done]
    total = config.num_histories * config.steps_per_history
    sizes = [min(config.shard_histories, config.num_histories - i * config.shard_histories) for i in done]
    initial = sum(sizes) * config.steps_per_history
    job = ShardJob(recipe, out, source_columns)
    bar = tqdm(total=total, initial=initial, desc="collect", unit=" transitions", unit_scale=True, disable=not progress)
    try:
        with bar:
            map_in_processes(job, missing, workers, bar.update)
    except KeyboardInterrupt:
        kept = len(list((out / "shards").glob("shard-*")))
        raise KeyboardInterrupt(
            f"stopped with {kept} of {num_shards} shards in {out}; run the same command again to resume"
        ) from None
