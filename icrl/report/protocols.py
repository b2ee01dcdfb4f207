"""Which published numbers belong beside an evaluation: a protocol is recognised by what was played, never by a name.

Grid size, horizon, start cell, reward and held-out goals are read from the evaluation's own arrays, so a run whose options
merely look like a paper's protocol is not compared with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from icrl.published import citation, online_curves, section
from icrl.report.inputs import EvaluationInput

MATCHED_CONTEXT_SIZE = 100
"""Transitions in the context of DPT's offline evaluation."""

RADT_SIZES = {(10, 10, 100): "10x10", (20, 20, 400): "20x20", (40, 20, 800): "40x20"}
"""(height, width, horizon) -> the name of the size in RA-DT's Dark Room; the long side is the rows (the optimum then is the published 774)."""


@dataclass(frozen=True)
class Published:
    """Numbers of one protocol that fit one evaluation; each is keyed by method."""

    name: str
    task: str
    citation: str
    how: str
    by_episode: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    final_return: Mapping[str, float] = field(default_factory=dict)
    """Return of the last episode or without an episode given."""
    regret: Mapping[str, float] = field(default_factory=dict)
    """Cumulative regret at the last step."""


def match(evaluation: EvaluationInput) -> Published | None:
    """The published numbers of the protocol that was played; None where no protocol fits."""
    record = evaluation.record
    if evaluation.artefacts is None or record["split"] != "test":
        return None
    if record["family"] == "darkroom":
        return _match_darkroom(evaluation)
    if record["family"] == "keydoor" and record["mode"] == "online":
        return _match_keydoor(evaluation)
    if record["family"] in ("gaussian_bandit", "bernoulli_bandit") and record["mode"] == "online":
        return _match_bandit(evaluation)
    return None


def held_out_goals(order: np.ndarray, width: int, count: int = 100) -> set[tuple[int, int]]:
    """The last fifth of the first ``count`` cells of ``order`` (N,), as (row, column)."""
    cells = order[:count]
    return {(int(cell) // width, int(cell) % width) for cell in cells[int(0.8 * len(cells)) :]}


def _match_darkroom(evaluation: EvaluationInput) -> Published | None:
    record, played = evaluation.record, _played_grid(evaluation)
    if played is None or record["optimal_return"] <= 1.0:  # a reward given once only is another protocol
        return None
    (height, width), starts, tasks = played
    if tasks.dtype.names != ("goal",):  # permuted actions are another protocol
        return None
    goals = {(int(row), int(column)) for row, column in tasks["goal"]}
    setting, online = (height, width, record["horizon"]), record["mode"] == "online"
    if starts == {(0, 0)} and setting == (10, 10, 100):
        order = np.arange(100)
        np.random.RandomState(0).shuffle(order)
        if goals <= held_out_goals(order, width):
            return _dpt_darkroom(record)
    if starts == {(0, 0)} and setting in RADT_SIZES and online:
        if goals <= held_out_goals(np.random.RandomState(43).permutation(height * width), width):
            final = section("darkroom_radt_protocol")["final_return"][RADT_SIZES[setting]]
            return _published(
                "darkroom_radt_protocol", by_episode={method: {40: value} for method, value in final.items()}
            )
        return None
    if starts == {(4, 4)} and setting == (9, 9, 20) and online:
        numbers = section("darkroom_9x9_ad_protocol")["ad_eps"]
        final = {f"{name} (Zisman et al. 2023)": value for name, value in numbers.items() if name.startswith("AD-eps")}
        return _published("darkroom_9x9_ad_protocol", final_return=final)
    return None


def _match_keydoor(evaluation: EvaluationInput) -> Published | None:
    """RA-DT's Key-Door (corner start, the door pays at each step), or AD's (starts that are drawn, two rewards at most)."""
    record, played = evaluation.record, _played_grid(evaluation)
    if played is None:
        return None
    (height, width), starts, tasks = played
    setting = (height, width, record["horizon"])
    if record["optimal_return"] <= 2.0:
        return _published("keydoor_9x9_ad_protocol") if setting == (9, 9, 50) and len(starts) > 1 else None
    if starts != {(0, 0)} or setting not in RADT_SIZES:
        return None
    keys, doors = (np.random.RandomState(seed).permutation(height * width)[80:100] for seed in (42, 43))
    cells = zip(tasks["key"] @ (width, 1), tasks["door"] @ (width, 1), strict=True)
    if not {(int(key), int(door)) for key, door in cells} <= set(zip(keys.tolist(), doors.tolist(), strict=True)):
        return None
    final = section("keydoor_radt_protocol")["final_return"][RADT_SIZES[setting]]
    return _published("keydoor_radt_protocol", by_episode={method: {40: value} for method, value in final.items()})


def _dpt_darkroom(record: Mapping[str, Any]) -> Published | None:
    """DPT's Dark Room: online curves, or the offline returns of the matching context."""
    name = "darkroom_10x10_dpt_protocol"
    if record["mode"] == "online":
        return _published(name)
    if record["context_size"] != MATCHED_CONTEXT_SIZE:
        return None
    offline = section(name)["offline_return"][f"{record['context']}_context"]
    return _published(name, by_episode={}, final_return=offline)


def _match_bandit(evaluation: EvaluationInput) -> Published | None:
    """DPT's 5-armed bandits with means uniform on [0, 1], at 500 steps."""
    name, record, artefacts = "bandit_5_arm_dpt_protocol", evaluation.record, evaluation.artefacts
    assert artefacts is not None
    means = artefacts.tasks["means"]
    if means.shape[-1] != 5 or record["horizon"] != 500 or means.min() < 0.0 or means.max() > 1.0:
        return None
    noise = "Bernoulli (unseen noise)"
    if record["family"] == "gaussian_bandit":
        noise = f"sd {float(record['family_options'].get('noise', 0.3)):.1f}"
    regret = section(name)["regret_500"].get(noise)
    return None if regret is None else _published(name, by_episode={}, regret=regret)


def _played_grid(evaluation: EvaluationInput) -> tuple[tuple[int, int], set[tuple[int, int]], np.ndarray] | None:
    """(height, width), the cells where episodes began and the tasks; None where visits were not recorded."""
    artefacts = evaluation.artefacts
    assert artefacts is not None
    arrays = artefacts.agents.get(evaluation.record["primary"], {})
    if "visit_mean" not in arrays:
        return None
    height, width = arrays["visit_mean"].shape[1:]
    observed, number = arrays["life_observation"], arrays["life_episode"]  # (T, n, 2), (T, n)
    begins = np.concatenate([np.ones_like(number[:1], bool), number[1:] != number[:-1]])  # (T, n)
    return (height, width), {(int(row), int(column)) for row, column in observed[begins]}, artefacts.tasks


def _published(name: str, **numbers: Any) -> Published:
    numbers.setdefault("by_episode", online_curves(name))
    data = section(name)
    read = "printed in the paper" if data["how"] == "text" else f"read off a figure, ± {data['plus_minus']:g}"
    return Published(name, data["task"], citation(name), read, **numbers)
