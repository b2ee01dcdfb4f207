"""The record of an evaluation: its statistics as JSON (documented by ``SCHEMA``), its arrays as .npz, its TensorBoard scalars.

``evaluation_to_json`` computes all statistics; ``SCHEMA`` (JSON Schema) describes every key, unit and shape; curves run over
episodes 1, 2, ... unless they carry their own ``steps``. Intervals are [low, high], 95 %, null where they cannot be had
(``over_tasks``: fewer than two tasks; ``fixed_tasks``: some task was played once).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from icrl import metrics
from icrl.evaluation import AgentResult, Evaluation
from icrl.exactness import PosteriorDistance
from icrl.files import read_arrays, write_arrays
from icrl.interfaces import Array, Tasks
from icrl.metrics import Bootstrap, Estimate, Resampled

FORMAT_VERSION = 1
NUM_REGRET_STEPS = 50  # points of a cumulative regret curve


def _object(description: str, optional: bool = False, **properties: dict) -> dict[str, Any]:
    kind: Any = ["object", "null"] if optional else "object"
    return {
        "type": kind,
        "description": description,
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _value(kind: str, description: str, optional: bool = False) -> dict[str, Any]:
    return {"type": [kind, "null"] if optional else kind, "description": description}


def _list(items: dict, description: str) -> dict[str, Any]:
    return {"type": "array", "items": items, "description": description}


_ENDS = {"type": ["array", "null"], "items": {"type": ["number", "null"]}, "minItems": 2, "maxItems": 2}
_CURVE_ENDS = {"type": ["array", "null"], "items": _ENDS}


def _estimate(description: str, optional: bool = False) -> dict[str, Any]:
    mean = _value("number", "mean over tasks of the mean over the runs of a task", optional=True)
    return _object(description, optional, mean=mean, over_tasks=_ENDS, fixed_tasks=_ENDS)


def _curve(description: str) -> dict[str, Any]:
    means = _list({"type": ["number", "null"]}, "one mean per point")
    return _object(description, mean=means, over_tasks=_CURVE_ENDS, fixed_tasks=_CURVE_ENDS)


_BANDIT = _object(
    "tasks with known arm means only: expected regret, best mean - mean of the pulled arm",
    True,
    steps=_list({"type": "integer"}, "steps from 1 at which the curve is given"),
    cumulative_regret=_curve("cumulative expected regret after each of the steps"),
    final_regret=_estimate("cumulative expected regret after the last step"),
    regret_ratio_of_agent=_estimate("primary agent's final regret over this one's, paired"),
)

_SEARCH = _object(
    "Bayesian optimisation only: simple regret, what the best evaluation so far lacks to the optimum, in units of the function's range",
    True,
    steps=_list({"type": "integer"}, "evaluations from 1 at which the curve is given"),
    simple_regret=_curve("simple regret after each of these evaluations"),
    final_regret=_estimate("simple regret after the last evaluation"),
    agent_minus_this=_estimate("primary agent's final regret - this one's, paired"),
)
_CURVE_OF_NUMBERS = {"type": "array", "items": {"type": ["number", "null"]}}
_EXPLORATION = _object(
    "how it explored, at the first seed; null where nothing was watched",
    True,
    coverage_steps=_list(
        {"type": "integer"},
        "steps of a lane's life at which coverage is given; empty where observations cannot be listed",
    ),
    coverage=_CURVE_OF_NUMBERS | {"description": "different observations that a lane has seen by then, mean"},
    surprise_by_episode=_CURVE_OF_NUMBERS
    | {"description": "mean of -log p of its actions, nats: an estimate of their entropy; null where p is not known"},
    plan_length_by_episode=_CURVE_OF_NUMBERS | {"description": "actions per plan; null for agents without plans"},
)

_AGENT = _object(
    "one row",
    role={
        "enum": ["agent", "baseline", "control"],
        "description": "the evaluated agent, a comparison, or the hidden-rewards control",
    },
    note=_value("string", "how a control was made or a baseline trained, else empty"),
    privileged=_value("string", "what it knows beyond the context; null for a fair row", optional=True),
    return_by_episode=_curve("return of episode 1, 2, ..., undiscounted"),
    mean_return=_estimate("return per episode, mean of all episodes"),
    early_return=_estimate("mean of the early episodes (see early_episodes)"),
    late_return=_estimate("mean of the late episodes (see late_episodes)"),
    late_minus_early=_estimate("paired difference; null with one episode", True),
    area_under_curve=_estimate("sum over episodes of the return"),
    normalised_score=_estimate("(mean return - random) / (optimal - random), means over tasks before dividing"),
    late_normalised_score=_estimate("the same for the late episodes"),
    regret=_estimate("expected optimal return of an episode - return, mean of all episodes"),
    regret_by_episode=_curve("expected optimal return of an episode - return"),
    agent_minus_this=_estimate("primary agent's mean return - this row's, paired by task, seed and lane"),
    late_agent_minus_this=_estimate("the same for the late episodes"),
    bandit=_BANDIT,
    search=_SEARCH,
    exploration=_EXPLORATION,
    steps_per_second=_value("number", "environment steps per second, all lanes together"),
    seconds=_value("number", "spent in the roll-outs"),
)

_AGENT["required"] = [
    key for key in _AGENT["required"] if key not in ("search", "exploration")
]  # older records lack them

SCHEMA: dict[str, Any] = _object(
    "one evaluation with frozen weights",
    format_version=_value("integer", f"{FORMAT_VERSION}"),
    family=_value("string", "name of the task family"),
    family_options={
        "type": "object",
        "description": "options that the family was made with; those not named have their defaults",
        "additionalProperties": True,
        "required": [],
    },
    horizon=_value("integer", "longest episode, in steps"),
    split=_value("string", "train, validation, test, or all three"),
    mode=_value("string", "online: the context starts empty and grows; offline: it is given and fixed"),
    context=_value("string", "offline: random or expert transitions", optional=True),
    context_size=_value("integer", "offline: transitions in the context", optional=True),
    append=_value(
        "string", "when the agent's own transitions join its context: at each step, or at the end of their episode"
    ),
    action_rule=_value(
        "string",
        "sampled or greedy, for every row that has probabilities; or, for the agent and RL², sampled at temperature T",
    ),
    root_seed=_value("integer", "root of all random streams"),
    seeds=_list({"type": "integer"}, "evaluation seeds: each repeats all roll-outs"),
    lanes=_value("integer", "lanes per seed, spread evenly over the tasks"),
    episodes=_value("integer", "episodes per lane"),
    num_tasks=_value("integer", "tasks played"),
    num_split_tasks=_value("integer", "tasks in the split; with fewer lanes than tasks only the first are played"),
    early_episodes=_list({"type": "integer"}, "first and last early episode: the first tenth, at least one"),
    late_episodes=_list({"type": "integer"}, "first and last late episode: the last quarter, at least one"),
    num_resamples=_value("integer", "bootstrap resamples per interval"),
    optimal_return=_value(
        "number", "expected return of one optimal episode, mean over tasks; null where none is known", optional=True
    ),
    random_return=_value("number", "expected return of one episode of uniform actions, mean over tasks"),
    primary=_value("string", "the row that the verdict is about"),
    hidden=_value("string", "the row with the agent's rewards hidden", optional=True),
    agents={"type": "object", "description": "rows by name", "additionalProperties": _AGENT, "required": []},
    verdict=_object(
        "learned in context iff both paired intervals over tasks exceed 0",
        learned=_value("boolean", "null where the verdict is not available", optional=True),
        text=_value("string", "the verdict in words"),
        unit=_value("string", "what early and late count: episodes, or steps of a bandit's only episode"),
        late_minus_early=_estimate("of the agent; for steps, of the expected reward per step", True),
        agent_minus_hidden=_estimate("mean over all episodes or steps", True),
    ),
    posterior_distance=_object(
        "where asked for: total variation of action probabilities, mean over all count states of a bandit",
        True,
        max_pulls=_value("integer", "most pulls in a count state"),
        num_states=_value("integer", "count states, of equal weight"),
        to_posterior=_value("number", "between the agent and the exact posterior over optimal actions"),
        between_orders=_value("number", "between the agent shown one order of the same pulls and another"),
    ),
)


class _Columns(NamedTuple):
    """One agent's resampled statistics, all with the same weights."""

    returns: Resampled  # (E,)
    references: Resampled  # (2,) random and optimal return of an episode
    cumulative_regret: Resampled | None  # (K,) at _regret_steps
    simple_regret: Resampled | None  # (K,) at _regret_steps


def evaluation_to_json(
    evaluation: Evaluation,
    *,
    family_options: Mapping[str, Any] | None = None,
    posterior_distance: PosteriorDistance | None = None,
    action_rule: str = "",
) -> dict[str, Any]:
    """All statistics of an evaluation, as ``SCHEMA`` describes; deterministic but for the times.

    ``action_rule`` tells how actions were taken, where the configuration alone does not; ``family_options`` is what the family was made with, ``posterior_distance`` what ``icrl.exactness`` measured beside.
    """
    config, episodes = evaluation.config, evaluation.config.episodes
    bootstrap = Bootstrap(evaluation.lane_task, len(config.seeds), evaluation.root_seed)
    columns = {name: _columns(evaluation, result, bootstrap) for name, result in evaluation.agents.items()}
    agent = columns[evaluation.primary]
    offline = config.mode == "offline"
    early, late = metrics.early(episodes), metrics.late(episodes)
    return {
        "format_version": FORMAT_VERSION,
        "family": evaluation.spec.name,
        "family_options": dict(family_options or {}),
        "horizon": evaluation.spec.horizon,
        "split": config.split,
        "mode": config.mode,
        "context": config.context if offline else None,
        "context_size": config.context_size if offline else None,
        "append": config.append,
        "action_rule": action_rule or str(config.rule),
        "root_seed": evaluation.root_seed,
        "seeds": list(config.seeds),
        "lanes": config.lanes,
        "episodes": episodes,
        "num_tasks": len(evaluation.tasks),
        "num_split_tasks": evaluation.num_split_tasks,
        "early_episodes": [early.start + 1, early.stop],
        "late_episodes": [late.start + 1, late.stop],
        "num_resamples": bootstrap.num_resamples,
        "optimal_return": _finite(float(evaluation.optimal_return.mean())),
        "random_return": float(evaluation.random_return.mean()),
        "primary": evaluation.primary,
        "hidden": evaluation.hidden,
        "agents": {name: _agent_json(evaluation.agents[name], own, agent) for name, own in columns.items()},
        "verdict": _verdict_json(evaluation, bootstrap),
        "posterior_distance": None if posterior_distance is None else _distance_json(posterior_distance),
    }


def _columns(evaluation: Evaluation, result: AgentResult, bootstrap: Bootstrap) -> _Columns:
    references = np.stack([evaluation.random_return, evaluation.optimal_return], 1)[evaluation.lane_task]  # (L, 2)
    columns = {"returns": result.returns, "references": np.broadcast_to(references, (*result.returns.shape[:2], 2))}
    if "regret" in result.tracked:
        columns["cumulative_regret"] = _cumulative_regret(result.tracked["regret"])
    if "simple_regret" in result.tracked:
        regret = result.tracked["simple_regret"]
        columns["simple_regret"] = regret[..., _regret_steps(regret.shape[2]) - 1]
    together = bootstrap(np.concatenate(list(columns.values()), 2))
    found: dict[str, Resampled | None] = dict.fromkeys(_Columns._fields)
    begin = 0
    for name, values in columns.items():
        part = slice(begin, begin + values.shape[2])
        found[name] = together.apply(lambda x, part=part: x[..., part])
        begin = part.stop
    return _Columns(**found)  # type: ignore[arg-type]


def _regret_steps(num_steps: int) -> Array:
    """(K,) steps from 1, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(1, num_steps, min(num_steps, NUM_REGRET_STEPS)).round().astype(int))


def _cumulative_regret(regret: Array) -> Array:
    """(S, L, T) -> (S, L, K) cumulative at ``_regret_steps``."""
    return np.cumsum(regret, axis=2, dtype=np.float64)[..., _regret_steps(regret.shape[2]) - 1]


def _mean(x: Array) -> Array:
    return x.mean(-1, keepdims=True)


def _early(x: Array) -> Array:
    return _mean(x[..., metrics.early(x.shape[-1])])


def _late(x: Array) -> Array:
    return _mean(x[..., metrics.late(x.shape[-1])])


def _score(returns: Array, references: Array) -> Array:
    return metrics.normalised_score(returns, references[..., :1], references[..., 1:])


def _agent_json(result: AgentResult, own: _Columns, agent: _Columns) -> dict[str, Any]:
    """One row; ``agent`` is the primary agent's columns."""
    returns, several = own.returns, own.returns.point.size > 1
    regret = returns.apply(lambda r, reference: reference[..., 1:] - r, own.references)
    difference = agent.returns - returns
    mean, late = returns.apply(_mean), returns.apply(_late)
    return {
        "role": result.role,
        "note": result.note,
        "privileged": result.privileged,
        "return_by_episode": _curve_json(returns),
        "mean_return": _scalar_json(mean),
        "early_return": _scalar_json(returns.apply(_early)),
        "late_return": _scalar_json(late),
        "late_minus_early": _scalar_json(returns.apply(metrics.late_minus_early)) if several else None,
        "area_under_curve": _scalar_json(returns.apply(lambda x: x.sum(-1, keepdims=True))),
        "normalised_score": _scalar_json(mean.apply(_score, own.references)),
        "late_normalised_score": _scalar_json(late.apply(_score, own.references)),
        "regret": _scalar_json(regret.apply(_mean)),
        "regret_by_episode": _curve_json(regret),
        "agent_minus_this": _scalar_json(difference.apply(_mean)),
        "late_agent_minus_this": _scalar_json(difference.apply(_late)),
        "bandit": _bandit_json(result, own, agent),
        "search": _search_json(result, own, agent),
        "exploration": _exploration_json(result),
        "steps_per_second": result.steps_per_second,
        "seconds": result.seconds,
    }


def _bandit_json(result: AgentResult, own: _Columns, agent: _Columns) -> dict[str, Any] | None:
    if own.cumulative_regret is None or agent.cumulative_regret is None:
        return None
    final = own.cumulative_regret.apply(lambda x: x[..., -1:])
    agent_final = agent.cumulative_regret.apply(lambda x: x[..., -1:])
    return {
        "steps": _regret_steps(result.tracked["regret"].shape[2]).tolist(),
        "cumulative_regret": _curve_json(own.cumulative_regret),
        "final_regret": _scalar_json(final),
        "regret_ratio_of_agent": _scalar_json(agent_final.apply(metrics.ratio, final)),
    }


def _search_json(result: AgentResult, own: _Columns, agent: _Columns) -> dict[str, Any] | None:
    if own.simple_regret is None or agent.simple_regret is None:
        return None
    final, agent_final = (columns.apply(lambda x: x[..., -1:]) for columns in (own.simple_regret, agent.simple_regret))
    return {
        "steps": _regret_steps(result.tracked["simple_regret"].shape[2]).tolist(),
        "simple_regret": _curve_json(own.simple_regret),
        "final_regret": _scalar_json(final),
        "agent_minus_this": _scalar_json(agent_final - final),
    }


def _exploration_json(result: AgentResult) -> dict[str, Any] | None:
    tracked = result.tracked
    if "surprise" not in tracked:
        return None
    return {
        "coverage_steps": tracked.get("coverage_steps", np.zeros(0, int)).tolist(),
        "coverage": tracked.get("coverage", np.zeros(0)).tolist(),
        "surprise_by_episode": _finite(tracked["surprise"].tolist()),
        "plan_length_by_episode": _finite(tracked["plan_length"].tolist()),
    }


def _verdict_json(evaluation: Evaluation, bootstrap: Bootstrap) -> dict[str, Any]:
    agent = evaluation.agents[evaluation.primary]
    by_step = evaluation.config.episodes == 1 and evaluation.config.mode == "online" and "regret" in agent.tracked
    unit = "steps" if by_step else "episodes"

    def blocks(result: AgentResult) -> Array:  # (S, L, E), or (S, L, T) expected reward per step but for a constant
        return -result.tracked["regret"].astype(np.float64) if by_step else result.returns.astype(np.float64)

    progress = hidden = None
    if blocks(agent).shape[2] > 1:
        progress = bootstrap(metrics.late_minus_early(blocks(agent))).estimate()
    if evaluation.hidden:
        difference = bootstrap(_mean(blocks(agent))) - bootstrap(_mean(blocks(evaluation.agents[evaluation.hidden])))
        hidden = difference.estimate()
    verdict = metrics.verdict(progress, hidden, unit)
    return {
        "learned": verdict.learned,
        "text": verdict.text,
        "unit": unit,
        "late_minus_early": None if progress is None else _estimate_json(progress, scalar=True),
        "agent_minus_hidden": None if hidden is None else _estimate_json(hidden, scalar=True),
    }


def _distance_json(distance: PosteriorDistance) -> dict[str, Any]:
    return {
        "max_pulls": distance.max_pulls,
        "num_states": len(distance.pulls),
        "to_posterior": float(distance.to_posterior.mean()),
        "between_orders": float(distance.between_orders.mean()),
    }


def _scalar_json(columns: Resampled) -> dict[str, Any]:
    return _estimate_json(columns.estimate(), scalar=True)


def _curve_json(columns: Resampled) -> dict[str, Any]:
    return _estimate_json(columns.estimate(), scalar=False)


def _estimate_json(estimate: Estimate, scalar: bool) -> dict[str, Any]:
    def plain(array: Array | None) -> Any:
        return None if array is None else _finite(array[0].tolist() if scalar else array.tolist())

    return {key: plain(value) for key, value in estimate._asdict().items()}


def _finite(value: Any) -> Any:
    """NaN has no JSON: null."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value if math.isfinite(value) else None


class Artefacts(NamedTuple):
    """Arrays of an evaluation: tasks (N,), lane_task (L,), and by agent ``returns`` (S, L, E) and what trackers left."""

    tasks: Tasks
    lane_task: Array
    agents: dict[str, dict[str, Array]]


def save_artefacts(evaluation: Evaluation, path: Path) -> None:
    """Write the arrays to ``path`` (.npz, no pickle), complete or not at all.

    Bandit regrets are kept as ``cumulative_regret`` (S, L, K) at ``regret_steps`` (K,); grids' arrays are listed in ``icrl.trackers``.
    """
    arrays = {"tasks": evaluation.tasks, "lane_task": evaluation.lane_task}
    for name, result in evaluation.agents.items():
        tracked = {"returns": result.returns, **result.tracked}
        if "regret" in tracked:
            regret = tracked.pop("regret")
            tracked["regret_steps"] = _regret_steps(regret.shape[2])
            tracked["cumulative_regret"] = _cumulative_regret(regret).astype(np.float32)
        arrays.update({f"{name}/{key}": array for key, array in tracked.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(path, arrays)


def load_artefacts(path: Path) -> Artefacts:
    """Read what ``save_artefacts`` wrote."""
    agents: dict[str, dict[str, Array]] = {}
    stored = read_arrays(path)
    for key, array in stored.items():
        name, slash, part = key.rpartition("/")
        if slash:
            agents.setdefault(name, {})[part] = array
    return Artefacts(stored["tasks"], stored["lane_task"], agents)


class ScalarWriter(Protocol):
    """What is needed of torch's SummaryWriter."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...


def log_evaluation(writer: ScalarWriter, record: Mapping[str, Any]) -> None:
    """Write a record's curves: return by episode (step = episode), how it explored, and cumulative or simple regret (step = step)."""
    kind = f"evaluation/{record['split']}_{record['mode']}"
    for name, row in record["agents"].items():
        for episode, value in enumerate(row["return_by_episode"]["mean"], start=1):
            writer.add_scalar(f"{kind}/return_by_episode/{name}", value, episode)
        _log_exploration(writer, kind, name, row["exploration"] or {})
        if row["search"]:
            for step, value in zip(row["search"]["steps"], row["search"]["simple_regret"]["mean"], strict=True):
                writer.add_scalar(f"{kind}/simple_regret/{name}", value, step)
        if row["bandit"]:
            curve = zip(row["bandit"]["steps"], row["bandit"]["cumulative_regret"]["mean"], strict=True)
            for step, value in curve:
                writer.add_scalar(f"{kind}/cumulative_regret/{name}", value, step)


def _log_exploration(writer: ScalarWriter, kind: str, name: str, explored: Mapping[str, Any]) -> None:
    for step, value in zip(explored.get("coverage_steps", ()), explored.get("coverage", ()), strict=True):
        writer.add_scalar(f"{kind}/coverage/{name}", value, step)
    for key in ("surprise_by_episode", "plan_length_by_episode"):
        for episode, value in enumerate(explored.get(key, ()), start=1):
            if value is not None:
                writer.add_scalar(f"{kind}/{key}/{name}", value, episode)
