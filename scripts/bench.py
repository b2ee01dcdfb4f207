"""``icrl bench``: how fast this machine steps, collects, trains and acts, beside the bars that the project sets itself.

Everything is warmed up once and repeated; the table shows the median and the best. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from agents.collect import collect
from envs import FAMILIES, family_class, make_family
from envs.gym_family import GymTaskFamily
from icrl.config import CollectConfig, FamilyConfig, Recipe, SourceConfig
from icrl.data.sampling import WindowSampler
from icrl.data.store import HistoryStore
from icrl.interfaces import UserError
from icrl.recipes import load_recipe
from scripts.bench_memory import memory_figures
from scripts.bench_mixture import mixture_figures
from scripts.common import MachineOptions, check_output_file, device_of, run_command
from scripts.measure import Figure, peak_memory, rate_of, table
from scripts.options import parse

STEPPING_LANES, ROLLOUT_LANES = 1024, 64
COLLECTED = 8192  # histories of some hundred steps: long enough for the start of two processes not to matter
PPO_STEPS = 20_000


@dataclass(frozen=True, kw_only=True)
class Options(MachineOptions):
    """How carefully, and where the numbers go."""

    json: Path | None = None
    """Write the figures to this file, too."""
    repeats: int = 5
    """Timed repeats of each measurement, after a warm-up."""


def stepping(repeats: int) -> Figure:
    """Dark Room, all lanes in one numpy operation, on one core."""
    family = make_family("darkroom")
    env = family.make_vec(np.resize(family.split().train, STEPPING_LANES))
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(5, size=(100, STEPPING_LANES))

    def work() -> float:
        for t in range(1000):
            env.step(actions[t % 100])
        return 1000 * STEPPING_LANES

    median, best = rate_of(work, repeats)
    return Figure(f"Dark Room stepping, {STEPPING_LANES} lanes, one core", "steps/s", median, best, repeats, 5e6)


def collection(recipe: Recipe, folder: Path, repeats: int) -> Figure:
    """The quickstart's Bayes explorer, from starting the processes to a finished dataset on the disk."""
    collected = dataclasses.replace(recipe.collect, num_histories=COLLECTED, workers=2)
    recipe = dataclasses.replace(recipe, collect=collected)
    numbers = iter(range(10**6))

    def work() -> float:
        return collect(recipe, folder / f"data-{next(numbers)}", progress=False).num_transitions

    median, best = rate_of(work, repeats)
    return Figure("collection with a Bayes explorer to disk, 2 workers", "transitions/s", median, best, repeats, 5e5)


def native_collection(folder: Path, repeats: int) -> list[Figure]:
    """Uniform actions in every family whose lanes are stepped together (not through Gymnasium), from starting the processes to the disk."""
    figures = []
    for name in (name for name in FAMILIES if not issubclass(family_class(name), GymTaskFamily)):
        config = CollectConfig((SourceConfig("uniform"),), num_histories=COLLECTED, steps_per_history=400, workers=2)
        recipe = Recipe(name="bench", description="", family=FamilyConfig(name), collect=config)

        def work(recipe: Recipe = recipe) -> float:
            with tempfile.TemporaryDirectory(dir=folder) as data:
                return collect(recipe, Path(data), progress=False).num_transitions

        median, best = rate_of(work, repeats)
        title = f"  collection of uniform actions, {name}"
        figures.append(Figure(title, "transitions/s", median, best, repeats, 3e5))
    return figures


def ppo_collection(recipe: Recipe, folder: Path) -> Figure:
    """Stable-Baselines3's PPO on eight tasks: how much faster two processes are than one, once."""
    config = dataclasses.replace(
        recipe.collect, sources=(SourceConfig("sb3"),), num_histories=8, steps_per_history=PPO_STEPS
    )
    recipe = dataclasses.replace(recipe, collect=config)
    seconds = []
    for workers in (1, 2):
        start = time.perf_counter()
        collect(recipe, folder / f"ppo-{workers}", workers=workers, progress=False)
        seconds.append(time.perf_counter() - start)
    speedup = seconds[0] / seconds[1]
    return Figure("PPO histories of 8 tasks, 2 workers over 1", "x", speedup, speedup, 1, 1.6)


def training(recipe: Recipe, store: HistoryStore, device: str, repeats: int) -> list[Figure]:
    """The matrix rate, and the quickstart's optimiser steps: tokens per second and the share of that rate they use."""
    import torch

    from icrl.optimisation import Learner
    from icrl.throughput import matrix_rate

    target = torch.device(device)
    learner = Learner(recipe, store.spec, target)
    batch = recipe.train.batch_size
    tokens, flops = learner.work_of(batch)
    sampler = WindowSampler(
        store, recipe.model.window, start_fraction=recipe.objective.start_fraction, seed=recipe.seed
    )
    windows = [sampler.batch(step, batch) for step in range(4)]
    steps = iter(range(10**9))

    def work() -> float:
        for window in windows:
            learner.update(window, next(steps))
        return len(windows) * tokens

    median, best = rate_of(work, repeats)
    peak = matrix_rate(target)
    share = flops / tokens / peak  # of the matrix rate, by tokens per second
    return [
        Figure("matrix rate (best fp32 product of 1024² and 2048²)", "GFLOP/s", peak / 1e9, peak / 1e9, repeats),
        Figure("training, quickstart model", "tokens/s", median, best, repeats),
        Figure("training, share of the matrix rate", "", median * share, best * share, repeats, 0.45),
    ]


def acting(recipe: Recipe, device: str, repeats: int) -> list[Figure]:
    """Roll-out through the cache, against encoding the whole window at every step; and its cost by keys attended to."""
    from icrl.in_context import InContextAgent
    from icrl.models.policy import make_policy
    from icrl.rollout import rollout
    from icrl.seeding import LaneStreams

    family = make_family(recipe.family.name, **recipe.family.options)
    policy = make_policy(family.spec, recipe.model, 0).to(device).eval()
    window, horizon = recipe.model.window, family.spec.horizon
    seconds: list[list[float]] = []  # per repeat, of every step

    def work() -> float:
        env = family.make_vec(np.resize(family.split().test, ROLLOUT_LANES))
        agent = InContextAgent(policy, streams=LaneStreams(0, "bench", lane_ids=ROLLOUT_LANES))
        marks = [time.perf_counter()]
        for _ in islice(rollout(agent, env, seed=0), 2 * window):  # the window fills, then moves on by re-reading
            marks.append(time.perf_counter())
        seconds.append(np.diff(marks).tolist())
        return 2 * window * ROLLOUT_LANES

    median, best = rate_of(work, repeats)
    by_step = np.median(np.array(seconds[1:]), 0)  # (2 W,)
    re_encoding = _re_encoding(policy, window, horizon, device, repeats)
    figures = [
        Figure(f"cached roll-out, {ROLLOUT_LANES} lanes, quickstart model", "steps/s", median, best, repeats, 25_000),
        Figure(
            "cached roll-out over re-encoding the window", "x", median / re_encoding, best / re_encoding, repeats, 15
        ),
    ]
    for keys in (window // 12, window // 4, window // 2, window - 8):
        near = by_step[max(1, keys - 8) : keys + 8]
        figures.append(
            Figure(f"  one step with {keys} keys", "ms", 1e3 * float(np.median(near)), 1e3 * float(near.min()), repeats)
        )
    return figures


def _re_encoding(policy: Any, window: int, horizon: int, device: str, repeats: int) -> float:
    """Steps per second if every step encoded the full window again, all lanes together."""
    import torch

    from icrl.models.tokens import Previous

    shape = (ROLLOUT_LANES, window)
    row = torch.zeros((*shape, 2), dtype=torch.int64, device=device)
    off = torch.zeros(shape, dtype=torch.bool, device=device)
    index = torch.arange(window, device=device).expand(shape)
    previous = Previous(
        off, torch.zeros(shape, dtype=torch.int64, device=device), off.float(), off, row, row, off.float(), off.float()
    )

    @torch.no_grad()
    def work() -> float:
        policy.step_window(row, previous, index // horizon, index % horizon)
        return ROLLOUT_LANES

    return rate_of(work, repeats)[0]


def _announce(what: str) -> None:
    print(f"measuring {what} ...", file=sys.stderr, flush=True)


def command(argv: list[str]) -> None:
    """Measure everything, print the table, write the JSON."""
    description = "Measure speed and memory on this machine, beside the project's bars (two cores, otherwise idle)."
    options = parse(Options, argv, prog="icrl bench", description=description)
    if options.repeats < 1:
        raise UserError(f"--repeats {options.repeats}: expected at least 1")
    check_output_file(options.json, "--json")
    device = device_of(options)
    recipe = load_recipe("quickstart")
    with tempfile.TemporaryDirectory(prefix="icrl-bench-") as temporary, peak_memory() as peak:
        _announce("stepping, collection")
        figures = [stepping(options.repeats)]
        figures.append(collection(recipe, Path(temporary), max(1, options.repeats // 2)))
        figures += native_collection(Path(temporary), max(1, options.repeats // 2))
        _announce("collection by PPO")
        figures.append(ppo_collection(recipe, Path(temporary)))
        store = HistoryStore.open(Path(temporary) / "data-0", verify=False)
        _announce("training")
        figures += training(recipe, store, device, options.repeats)
        _announce("acting")
        figures += acting(recipe, device, options.repeats)
        _announce("remembering")
        figures += memory_figures(load_recipe("radt"), Path(temporary), device, options.repeats)
        _announce("mixtures of experts")
        figures += mixture_figures(load_recipe("t2mir-ad"), device, options.repeats)
    figures.append(
        Figure("peak anonymous memory of the process tree", "GB", peak[0] / 1e9, peak[0] / 1e9, 1, 2.0, True)
    )
    print(table(figures))
    if options.json is not None:
        import torch

        from icrl.run_folder import machine, versions
        from scripts.records import write_json

        about = {"device": device, "threads": torch.get_num_threads(), "machine": machine(), "versions": versions()}
        write_json(options.json, {**about, "figures": [dataclasses.asdict(figure) for figure in figures]})
        print(f"figures: {options.json}")


def main(argv: list[str] | None = None) -> int:
    """Run as a program; returns the exit status."""
    return run_command(command, argv)


if __name__ == "__main__":
    sys.exit(main())
