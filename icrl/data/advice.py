"""Checks of a family before its histories are collected: what would make in-context learning needless or hopeless, in advice of one line.

Nothing here is an error: a family may be meant so. Mistakes that are certain are refused by the command's own checks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from icrl.data.schema import flatten
from icrl.interfaces import Agent, Array, Family, Tasks, TaskVectorEnv, UserError
from icrl.rollout import rollout
from icrl.seeding import LaneStreams, derive_seed, generator

FEW_TASKS = 10
"""With fewer distinct training tasks a policy can only learn to tell them apart (systems.md, section 8)."""
_MOST_TASKS = 256
"""Tasks whose first observations are looked at."""
_LEAST_TASKS = 16
"""With fewer, what looks like a leak may be chance."""
_READABLE = 0.99
"""Share of a task field's variance that a linear reading explains."""
_LANES = 16
"""Tasks in which policies are tried for rewards."""

Policy = Callable[[Family, TaskVectorEnv, LaneStreams, int], Agent]
"""(family, env, streams, number of steps) -> agent; a source's ``make`` fits."""


def advice(
    family: Family, *, window: int | None = None, policies: Mapping[str, Policy] | None = None, most_steps: int = 1000
) -> list[str]:
    """Advice about a family, a line each; an empty list where there is none.

    ``window`` is the model's, in steps. ``policies``, by name, are tried for rewards (uniform actions and the sources), for one episode of at most
    ``most_steps`` steps in a few training tasks; those that refuse the family are left out.
    """
    if getattr(family, "asynchronous", False):
        family = dataclasses.replace(family, asynchronous=False)  # type: ignore[type-var]  # a process for each look would cost more than it
    tasks = _distinct(family.split().train)
    lines = [*_few_tasks(tasks), *_long_episodes(family, window), *_leaks(family, tasks)]
    return [*lines, *_no_reward(family, tasks, policies or {}, most_steps)]


def _distinct(tasks: Tasks) -> Tasks:
    return tasks[list({task.tobytes(): row for row, task in enumerate(tasks)}.values())]


def _few_tasks(tasks: Tasks) -> list[str]:
    if len(tasks) >= FEW_TASKS:
        return []
    return [
        f"only {len(tasks)} distinct training tasks: a policy will memorise them rather than learn in context; {FEW_TASKS} are few, hundreds are better "
        "(or give the family augmented, which makes more of them)"
    ]


def _long_episodes(family: Family, window: int | None) -> list[str]:
    horizon = family.spec.horizon
    if window is None or horizon <= window:
        return []
    return [
        f"an episode lasts up to {horizon} steps, the model's window holds {window}: what an episode taught is forgotten before the next one; "
        "choose a longer window or a shorter horizon"
    ]


def _leaks(family: Family, tasks: Tasks) -> list[str]:
    """Fields of the task that the first observation tells."""
    chosen = tasks[generator(0, "advice", "leak").permutation(len(tasks))[:_MOST_TASKS]]
    if len(chosen) < _LEAST_TASKS:
        return []
    env = family.make_vec(chosen)
    observation, _ = env.reset(seed=derive_seed(0, "advice", "leak"))
    env.close()
    seen = _columns(flatten("observation", observation))
    fields = _columns(
        {name: chosen[name] for name in tasks.dtype.names or () if chosen.dtype[name].base.kind in "biuf"}
    )
    return [
        f"the first observation tells the task's {name} ({how}): then nothing has to be learned in context; hide it from the observation"
        for name, values in fields.items()
        if (how := _readable(values, seen))
    ]


def _columns(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Every number of every array (N, ...) by name, float64 (N,), those that vary."""
    columns = {}
    for name, array in arrays.items():
        flat = np.asarray(array).reshape(len(array), -1).astype(np.float64)
        names = [name] if flat.shape[1] == 1 else [f"{name}[{i}]" for i in range(flat.shape[1])]
        columns |= {key: flat[:, i] for i, key in enumerate(names) if np.ptp(flat[:, i]) > 0}
    return columns


def _readable(values: Array, seen: Mapping[str, Array]) -> str:
    """How the values (N,) can be read from what is seen; empty where they cannot."""
    for name, column in seen.items():
        if np.allclose(values, column, rtol=1e-5, atol=1e-7):  # observations are often of less precision
            return f"{name} equals it"
    columns = list(seen.values())
    if 2 * (len(columns) + 1) > len(values):  # so many could fit anything
        columns = sorted(columns, key=lambda column: abs(_correlation(column, values)))[-1:]
    inputs = np.stack([np.ones(len(values)), *columns], axis=1)  # (N, D + 1)
    rest = values - inputs @ np.linalg.lstsq(inputs, values, rcond=None)[0]
    explained = 1 - np.square(rest).mean() / values.var()
    return f"{explained:.0%} of it can be read linearly" if explained >= _READABLE else ""


def _correlation(a: Array, b: Array) -> float:
    return float(((a - a.mean()) * (b - b.mean())).mean() / (a.std() * b.std()))


def _no_reward(family: Family, tasks: Tasks, policies: Mapping[str, Policy], most_steps: int) -> list[str]:
    steps = min(family.spec.horizon, most_steps)
    lanes = tasks[generator(0, "advice", "reward").permutation(len(tasks))[:_LANES]]
    tried = []
    for name, make in policies.items():
        try:
            if _meets_reward(family, lanes, make, steps):
                return []
        except UserError:
            continue
        tried.append(name)
    if not tried:
        return []
    return [
        f"{' and '.join(tried)} met no reward other than 0 in {steps} steps of each of {len(lanes)} tasks: histories without rewards teach nothing; "
        "choose an easier task, a longer horizon or a source that finds the reward"
    ]


def _meets_reward(family: Family, tasks: Tasks, make: Policy, steps: int) -> bool:
    env = family.make_vec(tasks)
    agent = make(family, env, LaneStreams(0, "advice", "source", lane_ids=len(tasks)), steps)
    turns = rollout(agent, env, seed=derive_seed(0, "advice", "env"))
    try:
        return any((next(turns).step.reward != 0).any() for _ in range(steps))
    finally:
        env.close()
