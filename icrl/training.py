"""The training loop: window, update, log; now and then a roll-out on validation tasks and a checkpoint.

Everything random in step k is a function of the seed and k: the window, the dropout, the objective's draws. So a training killed at any moment
and started again goes on from its last checkpoint to the same weights, bit for bit on a CPU with the same number of
threads. The best checkpoint is the one with the highest mean return on validation tasks; test tasks are never touched.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from icrl import checkpoint, run_folder
from icrl.checkpoint import CheckpointState, Progress
from icrl.config import Recipe
from icrl.data.sampling import Window, WindowSampler
from icrl.data.store import HistoryStore
from icrl.data.symmetry import symmetries_of
from icrl.evaluation import run_episodes
from icrl.in_context import InContextAgent
from icrl.interfaces import Array, Family, Split, Symmetry, UserError
from icrl.memory.encoders import Encoder, make_encoder
from icrl.memory.training import make_history_memory
from icrl.monitor import FileMonitor, Monitor, NullMonitor
from icrl.objectives.base import attention_on_memory
from icrl.objectives.behaviour import estimate_behaviour
from icrl.objectives.icee import InContextExploration, check_histories
from icrl.optimisation import Learner, Update
from icrl.recipe_json import recipe_to_json
from icrl.seeding import LaneStreams, derive_seed
from icrl.throughput import find_device


class TrainingInterruptedError(UserError):
    """Ctrl-C or a termination signal: a checkpoint was saved, the message says how to go on."""


def train(
    recipe: Recipe,
    store: HistoryStore,
    family: Family,
    run: Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
    progress: bool = True,
    monitored: bool = True,
) -> Path:
    """Train a policy on a store's histories, or go on with a training that was cut off.

    Parameters
    ----------
    recipe : Recipe
        Model, objective, optimisation, seed.
    store : HistoryStore
        Histories to learn from; its split holds the validation tasks.
    family : Family
        Makes the validation environments.
    run : Path
        Folder of the run; made if it does not exist.
    device, threads
        Torch device, and number of CPU threads (torch's own choice if None).
    progress, monitored
        Show a progress bar; write metrics.csv and TensorBoard.

    Returns
    -------
    Path
        Folder of the best checkpoint.

    Raises
    ------
    UserError
        Contradictory options, tasks other than the family's, a folder of another run or one that another process trains in, a loss that
        is not finite, a damaged checkpoint.
    TrainingInterruptedError
        After Ctrl-C, with a checkpoint saved.
    """
    run = Path(run)
    checkpoint.check_spec(store.spec, family.spec, "the dataset")
    _check_tasks(store, family)
    with _threads(threads), _StopRequest() as stop:
        learner = Learner(recipe, store.spec, find_device(device))
        run_folder.claim(run, recipe, store.dataset_hash)
        with run_folder.locked(run):
            done = _restore(run, learner, store.dataset_hash)
            if done.step < recipe.train.steps:
                _prepare(learner, store, family, progress)
                _record_start(run, recipe, store, device)
                monitor = (
                    FileMonitor(run, done.step, recipe_to_json(recipe), learner.device) if monitored else NullMonitor()
                )
                with _disk_trouble_told(run), closing(monitor):
                    _Training(learner, store, family, run, monitor, stop, progress).go_on(done)
            if run_folder.read_run(run).get("finished") is None:
                run_folder.update_run(run, finished=run_folder.now())
    best = checkpoint.find(run, "best")
    assert best is not None, "the last step validates"
    return best


def _prepare(learner: Learner, store: HistoryStore, family: Family, progress: bool) -> None:
    """What ICEE needs of a store's histories before it trains. Raises UserError for histories that it cannot learn from."""
    objective, recipe = learner.objective, learner.recipe
    if not isinstance(objective, InContextExploration):
        return
    check_histories(store, recipe.objective, recipe.model)
    if recipe.objective.estimate_behaviour or recipe.objective.habits_alone:
        given_task = not recipe.objective.habits_alone
        behaviour = estimate_behaviour(
            store,
            recipe.seed,
            given_task=given_task,
            most=recipe.model.most_earned,
            symmetries=_symmetries(recipe, family),
            progress=progress,
        )
        learner.objective = replace(objective, behaviour=behaviour)


def make_sampler(
    recipe: Recipe, store: HistoryStore, family: Family | None = None, encoder: Encoder | None = None
) -> WindowSampler:
    """The windows that a recipe trains on; ``family`` tells its symmetries, where they are asked for, ``encoder`` makes the keys of a memory."""
    model, objective = recipe.model, recipe.objective
    return WindowSampler(
        store,
        model.window,
        start_fraction=objective.start_fraction,
        keep_every=objective.keep_every,
        anywhere=model.layout == "step" and not model.episodic and not model.keeps_episodes(store.spec.horizon),
        episodic=model.episodic,
        memory=None if encoder is None else make_history_memory(store, model, encoder, recipe.seed),
        symmetries=() if family is None else _symmetries(recipe, family),
        paired=makes_pairs(recipe),
        seed=recipe.seed,
    )


def _symmetries(recipe: Recipe, family: Family) -> Sequence[Symmetry]:
    return symmetries_of(family) if recipe.objective.symmetries else ()


def makes_pairs(recipe: Recipe) -> bool:
    """Whether a batch holds two windows of each of its tasks."""
    return recipe.train.pairs or (recipe.model.mixture.by_task and recipe.model.mixture.contrast > 0)


class _Training:
    """The loop, and what it works with."""

    def __init__(
        self,
        learner: Learner,
        store: HistoryStore,
        family: Family,
        run: Path,
        monitor: Monitor,
        stop: _StopRequest,
        progress: bool,
    ):
        self.learner, self.store, self.family, self.run = learner, store, family, run
        self.monitor, self.stop, self.progress = monitor, stop, progress
        recipe, model = learner.recipe, learner.recipe.model
        self.encoder = make_encoder(learner.spec, model.memory, run) if model.memory.k else None
        if self.encoder is not None:
            self.encoder.keep(run)
        self.sampler = make_sampler(recipe, store, family, self.encoder)

    def go_on(self, done: Progress) -> None:
        """Train from where ``done`` says to the end."""
        config = self.learner.recipe.train
        recent = _Recent()
        began = time.perf_counter() - done.seconds
        bar = tqdm(total=config.steps, initial=done.step, desc="train", unit="step", disable=not self.progress)
        with bar, prefetched(self.sampler, done.step, config.steps, config.batch_size) as windows:
            for step in range(done.step, config.steps):
                start = time.perf_counter()
                window = next(windows)
                update = self.learner.update(window, step)
                self._check_finite(update, step, done)
                recent.add(update, window, time.perf_counter() - start)
                done = replace(done, step=step + 1, seconds=time.perf_counter() - began)
                last = done.step == config.steps
                if done.step % config.log_every == 0 or last:
                    self._log(done.step, recent, bar)
                    recent = _Recent()
                bar.update()
                if done.step % config.validate_every == 0 or last:
                    done = self._validate(done, window, bar)
                    self._save(replace(done, seconds=time.perf_counter() - began))
                elif self.stop.requested:
                    self._save(done)
                if self.stop.requested and not last:
                    raise TrainingInterruptedError(
                        f"stopped after step {done.step} of {config.steps}, checkpoint saved in {self.run}: "
                        "give the same command again to go on from there"
                    )

    def _check_finite(self, update: Update, step: int, done: Progress) -> None:
        if math.isfinite(update.loss) and math.isfinite(update.grad_norm):
            return
        good = checkpoint.find(self.run, "latest")
        kept = f"the checkpoint {good.name} is kept" if good is not None else "there is no checkpoint yet"
        raise UserError(
            f"{self.run}: step {step + 1} has loss {update.loss} and gradient norm {update.grad_norm}, {kept}: "
            "try a lower train.learning_rate, a longer train.warmup_steps or train.bf16 off, with another --out"
        )

    def _log(self, step: int, recent: _Recent, bar: Any) -> None:
        tokens, flops = self.learner.work_of(recent.batch)
        scalars = recent.scalars()
        self.monitor.scalars(step, scalars)
        self.monitor.accuracy(step, recent.accuracy())
        self.monitor.speed(step, recent.count, recent.seconds, tokens, flops)
        bar.set_postfix_str(f"loss {scalars['train/loss']:.3f}, {recent.count * tokens / recent.seconds:,.0f} tokens/s")

    def _validate(self, done: Progress, window: Window, bar: Any) -> Progress:
        """Roll out on validation tasks, log it, and note whether these are the best weights so far."""
        if window.retrieved is not None:
            share = attention_on_memory(self.learner.policy, window)
            self.monitor.scalars(done.step, {"retrieval/attention": share})
        start = time.perf_counter()
        bar.set_description("validate")
        curve = validation_curve(self.learner, self.store, self.family, self.encoder)
        bar.set_description("train")
        score = float(curve.mean())
        self.monitor.validation(done.step, curve, time.perf_counter() - start)
        if done.best_score is None or score > done.best_score:
            return replace(done, best_score=score, best_step=done.step)
        return done

    def _save(self, done: Progress) -> None:
        """Metrics first: a checkpoint must never be newer than they are."""
        self.monitor.flush()
        learner = self.learner
        state = CheckpointState(done, learner.recipe, learner.spec, self.store.dataset_hash)
        checkpoint.save(self.run, learner.policy, learner.optimizer, state)
        run_folder.update_run(self.run, steps_trained=done.step, seconds_trained=round(done.seconds, 2))


def validation_curve(learner: Learner, store: HistoryStore, family: Family, encoder: Encoder | None = None) -> Array:
    """(E,) mean return of each episode in context on validation tasks, with the same random numbers at every call and the evaluation's action rule."""
    config, seed = learner.recipe.train, learner.recipe.seed
    tasks = store.split.validation
    if len(tasks) == 0:
        raise UserError(
            "the dataset has no validation tasks, and the best checkpoint is chosen on them: collect with some"
        )
    env = family.make_vec(tasks[np.arange(config.validation_lanes) % len(tasks)])
    streams = LaneStreams(seed, "validation", "agent", lane_ids=config.validation_lanes)
    agent = InContextAgent(
        learner.policy,
        streams=streams,
        rule=learner.recipe.validation_rule,
        target_return=learner.recipe.objective.target_return,
        search_return=learner.recipe.objective.search_return,
        encoder=encoder,
    )
    try:
        returns, _ = run_episodes(
            agent,
            env,
            config.validation_episodes,
            horizon=family.spec.horizon,
            seed=derive_seed(seed, "validation", "env"),
        )
    finally:
        env.close()
    return returns.mean(0, dtype=np.float64)


class _Recent:
    """Sums over the steps since the last log line."""

    def __init__(self):
        self.count, self.seconds, self.batch, self._rate = 0, 0.0, 0, 0.0
        self._sums: dict[str, tuple[float, int]] = {}
        self._hits: Array = np.zeros(0)  # (T,)
        self._labelled: Array = np.zeros(0)  # (T,) steps in which the position had a label

    def add(self, update: Update, window: Window, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds
        self.batch = len(window.reward)
        self._rate = update.learning_rate
        trained = {"loss": update.loss, "grad_norm": update.grad_norm, **update.metrics}
        measured = {name if "/" in name else f"train/{name}": value for name, value in trained.items()}
        measured |= {f"retrieval/{name}": value for name, value in window.retrieval.items()}
        for name, value in measured.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value, count + 1)
        known = np.isfinite(update.accuracy_by_position)
        if self.count == 1:
            self._hits, self._labelled = np.zeros(len(known)), np.zeros(len(known))
        self._hits += np.where(known, update.accuracy_by_position, 0.0)
        self._labelled += known

    def scalars(self) -> dict[str, float]:
        """Means by tag, and the last learning rate."""
        means = {name: total / count for name, (total, count) in self._sums.items()}
        return {**means, "train/learning_rate": self._rate}

    def accuracy(self) -> Array:
        """(T,) mean accuracy by position, nan where nothing was predicted."""
        return np.divide(self._hits, self._labelled, out=np.full(len(self._hits), np.nan), where=self._labelled > 0)


class _StopRequest:
    """Turns the first Ctrl-C (or termination signal) into a flag, so that no step is torn; the second stops at once."""

    def __init__(self):
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, *_: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("\nstopping after this step (again: at once, back to the last checkpoint)", file=sys.stderr)


@contextmanager
def prefetched(sampler: WindowSampler, start: int, stop: int, batch_size: int) -> Iterator[Iterator[Window]]:
    """Windows of steps ``start`` to ``stop``, each drawn by one background thread while the step before it trains.

    Torch has one thread there: two pools of threads would hold each other up.
    """
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as executor:

        def windows() -> Iterator[Window]:
            future = executor.submit(sampler.batch, start, batch_size)
            for step in range(start, stop):
                window = future.result()
                if step + 1 < stop:
                    future = executor.submit(sampler.batch, step + 1, batch_size)
                yield window

        yield windows()


@contextmanager
def _disk_trouble_told(run: Path) -> Iterator[None]:
    """A disk that fills up while metrics or checkpoints are written, as one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{run}: cannot be written ({error.strerror or error}): free some space and run the command again, which goes on from "
            "the last checkpoint"
        ) from None


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Torch's number of CPU threads for a while."""
    before = torch.get_num_threads()
    if number is not None:
        if number < 1:
            raise UserError(f"--threads {number}: expected at least 1")
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_tasks(store: HistoryStore, family: Family) -> None:
    """Training on tasks that the family holds out would make every later evaluation a lie."""
    for name, there, asked in zip(Split._fields, store.split, family.split(), strict=True):
        if there.dtype != asked.dtype or not np.array_equal(there, asked):
            raise UserError(
                f"the {name} tasks of the dataset {store.path} are not those of the family with these options: give the options that "
                "the dataset was collected with, or collect another"
            )


def _restore(run: Path, learner: Learner, dataset_hash: str) -> Progress:
    """Load the latest checkpoint of the run into the learner, if there is one."""
    folder = checkpoint.find(run, "latest")
    if folder is None:
        return Progress()
    state = checkpoint.load_state(folder)
    if state.dataset_hash != dataset_hash:
        raise UserError(f"{folder}: was trained on another dataset: use the same --data or another --out")
    checkpoint.load_weights(learner.policy, folder)
    checkpoint.load_optimizer(learner.policy, learner.optimizer, folder)
    return state.progress


def _record_start(run: Path, recipe: Recipe, store: HistoryStore, device: str) -> None:
    known = run_folder.read_run(run)
    run_folder.update_run(
        run,
        command=run_folder.command_line(),
        versions=run_folder.versions(),
        machine=run_folder.machine(),
        device=device,
        threads=torch.get_num_threads(),
        seed=recipe.seed,
        dataset_hash=store.dataset_hash,
        started=known.get("started", run_folder.now()),
        finished=None,
        seconds_trained=known.get("seconds_trained", 0.0),
    )
