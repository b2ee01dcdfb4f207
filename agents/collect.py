"""Collecting learning histories: source agents in all lanes of a shard at once, shards side by side in processes.

A shard depends on the recipe and its number alone (lane streams are named by the history's number), so neither the
workers nor an interruption change the dataset. Within a shard the histories are ordered by source; every source meets the
training tasks in balanced random order.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from agents import make_source
from agents.workers import map_in_processes
from envs import make_family
from icrl.config import Recipe, SourceConfig
from icrl.data import writer
from icrl.data.schema import Column, final_columns, flatten, join_shards, transition_columns
from icrl.data.store import HistoryStore
from icrl.interfaces import Array, Family, UserError
from icrl.rollout import Turn, rollout
from icrl.seeding import LaneStreams, derive_seed, generator


def collect(recipe: Recipe, out: Path, *, workers: int | None = None, progress: bool = True) -> HistoryStore:
    """Collect the recipe's histories into the folder ``out``, going on where an earlier run was stopped.

    ``workers`` processes (default: the recipe's) do not change the result. Raises UserError for an unfit source, for a
    folder that holds something else, bad values from a family or source, or a full disk; KeyboardInterrupt, with what to do as its
    message, after Ctrl-C. Shards that are finished are kept in every case.
    """
    out = Path(out)
    config = recipe.collect
    _check_config(recipe)
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
        parts = []
        for number in np.unique(source[ids]).tolist():
            lanes = ids[source[ids] == number]
            part = self._roll(family, number, lanes, train[task[lanes]], report)
            part["task"] = task[lanes]
            part["source"] = source[lanes]
            parts.append(part)
        writer.write_shard(self.out, index, join_shards(parts))

    def _roll(
        self, family: Family, number: int, lanes: Array, tasks: Array, report: Callable[[int], None]
    ) -> dict[str, Array]:
        """The columns of the histories ``lanes`` of one source."""
        stored = _stored_columns(self.source_columns)
        recorder = Recorder(family, stored, lanes, self.recipe.collect.steps_per_history)
        source = self.recipe.collect.sources[number]
        known = self.source_columns[number] & stored
        turns = _turns(self.recipe, family, source, tasks, lanes, record_optimal="optimal_action" in stored)
        for turn in itertools.islice(turns, recorder.num_steps):
            recorder.record(turn, known)
            report(len(lanes))
        return recorder.columns()


class Recorder:
    """Writes turns of B lanes into preallocated arrays (T, B, ...) of the store's dtypes; refuses what does not fit."""

    def __init__(self, family: Family, stored: set[str], lanes: Array, num_steps: int):
        self.num_steps = num_steps
        self._lanes = lanes
        self._columns = transition_columns(family.spec, sorted(stored))
        self._finals = final_columns(family.spec)
        shape = (num_steps, len(lanes))
        self._arrays = {name: np.empty((*shape, *c.shape), c.dtype) for name, c in self._columns.items()}
        self._ends: list[
            tuple[int, Array, dict[str, Array]]
        ] = []  # step, lanes that ended (n,), final columns (n, ...)
        self._step = 0

    def record(self, turn: Turn, known: set[str]) -> None:
        """Store one turn. ``known``: the optional columns that this source has; the rest get what stands in for them."""
        step, decision, t = turn.step, turn.decision, self._step
        values: dict[str, Any] = flatten("observation", step.observation)
        values |= {name: getattr(step, name) for name in ("action", "reward", "terminated", "truncated")}
        if "target_action" in self._columns:
            values["target_action"] = decision.target_action if "target_action" in known else step.action
        if "behaviour_log_prob" in self._columns:
            log_prob = (
                decision.behaviour_log_prob if "behaviour_log_prob" in known else np.full(len(self._lanes), np.nan)
            )
            values["behaviour_log_prob"] = log_prob
        if "optimal_action" in self._columns:
            values["optimal_action"] = turn.optimal_action
        for name, column in self._columns.items():
            self._arrays[name][t] = self._cast(column, values[name])
        ended = step.ended
        if t == self.num_steps - 1:
            self._note_ends(np.arange(len(self._lanes)), turn)
        elif ended.any():
            self._note_ends(np.flatnonzero(ended), turn)
        self._step += 1

    def _note_ends(self, rows: Array, turn: Turn) -> None:
        values = flatten("final_observation", turn.step.next_observation)
        finals = {name: self._cast(column, values[name])[rows] for name, column in self._finals.items()}
        self._ends.append((self._step, rows, finals))

    def _cast(self, column: Column, values: Any) -> Array:
        return column.cast(values, lambda row: f"history {self._lanes[row]}, step {self._step}")

    def columns(self) -> dict[str, Array]:
        """The histories end to end, without tasks and sources."""
        T, B = self.num_steps, len(self._lanes)
        flat = {}
        for name in self._columns:
            array = self._arrays.pop(name)  # (T, B, ...)
            flat[name] = np.ascontiguousarray(array.swapaxes(0, 1)).reshape(B * T, *array.shape[2:])
        lanes = np.concatenate([rows for _, rows, _ in self._ends])
        steps = np.repeat([t for t, _, _ in self._ends], [len(rows) for _, rows, _ in self._ends])
        order = np.lexsort((steps, lanes))
        for name in self._finals:
            flat[name] = np.concatenate([finals[name] for _, _, finals in self._ends])[order]
        flat["episode_offset"] = np.concatenate([[0], (lanes * T + steps + 1)[order]])
        flat["history_offset"] = np.concatenate([[0], np.cumsum(np.bincount(lanes, minlength=B))])
        return flat


def _turns(recipe: Recipe, family: Family, source: SourceConfig, tasks: Array, lanes: Array, record_optimal: bool):
    """The endless roll-out of one source in lanes numbered ``lanes`` (B,) that play ``tasks`` (B,)."""
    played = family.scattered() if source.scattered else family
    env = played.make_vec(tasks, lanes)
    streams = LaneStreams(recipe.seed, "source", lane_ids=lanes)
    agent = make_source(source.name, **source.options).make(played, env, streams, recipe.collect.steps_per_history)
    return rollout(agent, env, seed=derive_seed(recipe.seed, "env"), record_optimal=record_optimal)


def _probe(recipe: Recipe, family: Family, source: SourceConfig) -> set[str]:
    """Play one step with one lane: which optional columns there are. Raises what the source or the family raises."""
    tasks, lanes = family.split().train[:1], np.arange(1)
    known = {"optimal_action"}
    try:
        turn = next(_turns(recipe, family, source, tasks, lanes, record_optimal=True))
    except UserError:
        turn = next(_turns(recipe, family, source, tasks, lanes, record_optimal=False))
        known = set()
    return known | {
        name for name in ("target_action", "behaviour_log_prob") if getattr(turn.decision, name) is not None
    }


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
