"""The part of ``icrl bench`` about retrieval memories: searching many keys, acting with a retrieval at every step, training."""

from __future__ import annotations

import dataclasses
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from agents.collect import collect
from envs import make_family
from icrl.config import MemoryConfig, Recipe
from icrl.data.store import HistoryStore
from scripts.measure import Figure, anonymous_memory, rate_of

KEYS, STEPS_OF_KEYS, QUERIES, NEAREST = 1_000_000, 600, 128, 50
LANES, EPISODES = 20, 40
HISTORIES, TRAINING_STEPS = 64, 20


def memory_figures(recipe: Recipe, folder: Path, device: str, repeats: int) -> list[Figure]:
    """All of them, for a recipe whose policy has a memory."""
    return [
        *searching(recipe, folder, repeats),
        *remembering(recipe, device, repeats),
        training(recipe, folder, device, repeats),
    ]


def searching(recipe: Recipe, folder: Path, repeats: int) -> list[Figure]:
    """Nearest keys among a million of real histories: exact, and by an approximate index of FAISS, whose recall counts ties as hits."""
    from icrl.memory.encoders import make_encoder
    from icrl.memory.index import ExactIndex, FaissIndex
    from icrl.memory.training import LifeMemory

    memory = recipe.model.memory
    config = dataclasses.replace(
        recipe.collect,
        num_histories=-(-KEYS * memory.chunk // STEPS_OF_KEYS),
        steps_per_history=STEPS_OF_KEYS,
        workers=2,
    )
    store = collect(dataclasses.replace(recipe, collect=config), folder / "keys", progress=False)
    keys = LifeMemory(store, memory, make_encoder(store.spec, memory)).keys[:KEYS]
    queries = keys[np.random.default_rng(0).choice(len(keys), QUERIES, replace=False)]
    exact = ExactIndex(keys)
    start = time.perf_counter()
    before = anonymous_memory()
    near = FaissIndex(keys, "faiss-ivf")
    built, held = time.perf_counter() - start, anonymous_memory() - before
    slow, fast = (rate_of(lambda i=index: _asked(i, queries), repeats) for index in (exact, near))
    cosine, found = exact.search(queries, NEAREST)[0], near.search(queries, NEAREST)[0]
    recall = float((found >= cosine[:, -1:] - 1e-6).mean())
    title = f"nearest {NEAREST} of {len(keys):,} keys, {QUERIES} queries"
    return [
        Figure(f"{title}: exact", "queries/s", *slow, repeats),
        Figure("  approximate (faiss-ivf) over exact", "x", fast[0] / slow[0], fast[1] / slow[1], repeats, 10),
        Figure("  its recall, ties counted as hits", "", recall, recall, 1, 0.95),
        Figure("  time to build it", "s", built, built, 1),
        Figure("  memory that it takes", "GB", held / 1e9, held / 1e9, 1),
    ]


def _asked(index: Any, queries: Any) -> float:
    index.search(queries, NEAREST)
    return len(queries)


def remembering(recipe: Recipe, device: str, repeats: int) -> list[Figure]:
    """Roll-out that retrieves at every step while its memory fills, and what its last episode costs over the second."""
    from icrl.in_context import InContextAgent
    from icrl.memory.encoders import make_encoder
    from icrl.models.policy import make_policy
    from icrl.rollout import rollout
    from icrl.seeding import LaneStreams

    family = make_family(recipe.family.name, **recipe.family.options)
    horizon, memory = family.spec.horizon, dataclasses.replace(recipe.model.memory, every=1)
    policy = make_policy(family.spec, dataclasses.replace(recipe.model, memory=memory), 0).to(device).eval()
    encoder = make_encoder(family.spec, memory)
    last_over_second = []

    def work() -> float:
        env = family.make_vec(np.resize(family.split().test, LANES))
        streams = LaneStreams(0, "bench", lane_ids=LANES)
        agent = InContextAgent(policy, streams=streams, target_return=recipe.objective.target_return, encoder=encoder)
        marks = [time.perf_counter()]
        for _ in islice(rollout(agent, env, seed=0), EPISODES * horizon):
            marks.append(time.perf_counter())
        seconds = np.diff(marks).reshape(EPISODES, horizon).sum(1)
        last_over_second.append(seconds[-1] / seconds[1])
        return EPISODES * horizon * LANES

    median, best = rate_of(work, repeats)
    ratios = last_over_second[1:]
    return [
        Figure(f"roll-out with retrieval at every step, {LANES} lanes", "steps/s", median, best, repeats, 5000),
        Figure(
            f"  its episode {EPISODES} over its second", "x", float(np.median(ratios)), min(ratios), repeats, 1.3, True
        ),
    ]


def training(recipe: Recipe, folder: Path, device: str, repeats: int) -> Figure:
    """Optimiser steps of the recipe, windows and retrievals included, over those of the same model without a memory."""
    config = dataclasses.replace(recipe.collect, num_histories=HISTORIES, workers=2)
    store = collect(dataclasses.replace(recipe, collect=config), folder / "lives", progress=False)
    bare = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, memory=MemoryConfig()))
    rates = [_training_rate(one, store, device, repeats) for one in (bare, recipe)]
    times = rates[0][0] / rates[1][0], rates[0][1] / rates[1][1]
    return Figure("optimiser step with a memory over without", "x", *times, repeats, 1.8, True)


def _training_rate(recipe: Recipe, store: HistoryStore, device: str, repeats: int) -> tuple[float, float]:
    """Optimiser steps per second, median and best."""
    import torch

    from icrl.memory.encoders import make_encoder
    from icrl.optimisation import Learner
    from icrl.training import make_sampler, prefetched

    learner = Learner(recipe, store.spec, torch.device(device))
    encoder = make_encoder(store.spec, recipe.model.memory) if recipe.model.memory.k else None
    sampler = make_sampler(recipe, store, encoder=encoder)

    def work() -> float:
        with prefetched(sampler, 0, TRAINING_STEPS, recipe.train.batch_size) as windows:
            for step, window in enumerate(windows):
                learner.update(window, step)
        return TRAINING_STEPS

    return rate_of(work, repeats)
