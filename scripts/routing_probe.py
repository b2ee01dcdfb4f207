"""What a policy knows of its task after a while, read out by a linear probe; and how its routers divide the work.

A policy plays tasks of several families (``envs.mixed``). After some episodes two things are kept of every lane and block: the summary from which a task router would
decide (the mean of what enters the block so far), which any policy has, and what a task router makes of it where the block has one. A linear classifier that is fitted
on training tasks then tells, on held-out tasks, which family a lane plays and, within a family, in which quadrant the goal lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from envs.mixed import Mixed
from icrl.given_contexts import record_context
from icrl.in_context import InContextAgent
from icrl.interfaces import ActionRule, Array, Tasks, UserError
from icrl.metrics import Bootstrap, Estimate
from icrl.models.attention import mean_of_first, running_sums
from icrl.models.moe import Decision, TaskRouter, watched
from icrl.models.policy import Policy
from icrl.objectives.base import step_window
from icrl.objectives.routing import entropy
from icrl.probe_json import FORMAT_VERSION
from icrl.seeding import LaneStreams, derive_seed

PLACES = ("goal", "door")
"""Fields of tasks that say where the reward is, where they are two coordinates; the last that a task has counts."""
LANES_AT_ONCE = 128
IDLE = 0.02
"""Share of the choices below which an expert counts as idle."""
PENALTY = 1e-4
"""On the squared weights of the linear classifier: of 1e-2 to 1e-5 among the two best on validation tasks (families, mean over all that is read)."""
SHOWN = 300
"""Lanes in the picture of what a policy knows."""


class Known(NamedTuple):
    """What is read from a policy in L lanes."""

    features: dict[str, Array]  # (L, D) by name, as ``summary, block 0`` or ``router, block 0``
    choices: dict[str, Array]  # (E,) share of its choices that each expert of a router got
    experts: dict[str, Array]  # (L,) each task router's first choice


def known_of(policy: Policy, family: Mixed, tasks: Tasks, *, episodes: int, rule: ActionRule, seed: int) -> Known:
    """Play ``episodes`` of every task (one lane each), and look at the step that follows. Raises UserError where the window is too short for that."""
    size = episodes * family.spec.horizon + 1
    if policy.config.layout != "step" or size > policy.config.window:
        raise UserError(
            f"{episodes} episodes of up to {family.spec.horizon} steps do not fit a window of {policy.config.window} in layout {policy.config.layout}: "
            "look after fewer, at a policy of layout step"
        )
    parts = [
        _known(
            policy,
            family,
            tasks[first : first + LANES_AT_ONCE],
            episodes,
            rule,
            derive_seed(seed, "probe", first),
            size,
        )
        for first in range(0, len(tasks), LANES_AT_ONCE)
    ]
    weights = [len(part.features["summary, block 0"]) for part in parts]
    return Known(
        {name: np.concatenate([part.features[name] for part in parts]) for name in parts[0].features},
        {
            name: np.average([part.choices[name] for part in parts], axis=0, weights=weights)
            for name in parts[0].choices
        },
        {name: np.concatenate([part.experts[name] for part in parts]) for name in parts[0].experts},
    )


@torch.no_grad()
def _known(policy: Policy, family: Mixed, tasks: Tasks, episodes: int, rule: ActionRule, seed: int, size: int) -> Known:
    agent = InContextAgent(policy, streams=LaneStreams(seed, "probe", lane_ids=len(tasks)), rule=rule)
    window = record_context(agent, family.make_vec(tasks), size, seed=seed)
    lanes, at = np.arange(len(tasks)), (window.episode < episodes).sum(1)
    entering: list[Tensor] = []
    hooks = [
        block.attention_norm.register_forward_hook(lambda module, given, out: entering.append(out))  # type: ignore[union-attr]
        for block in policy.transformer.blocks
    ]
    try:
        with watched(policy) as seen:
            step_window(policy, window)
    finally:
        for hook in hooks:
            hook.remove()
    token = at * policy.config.tokens_per_step
    told = torch.as_tensor(token + 1, device=policy.device)[:, None]
    features = {
        f"summary, block {block}": mean_of_first(running_sums(x), told)[:, 0] for block, x in enumerate(entering)
    }
    experts = {}
    for decision in seen:
        if isinstance(decision.router, TaskRouter):
            name = f"router, block {decision.place[1]}"
            features[name] = decision.routes.representation[lanes, token]
            experts[name] = decision.routes.experts[lanes, token, 0].cpu().numpy()
    choices = {"{} experts, block {}".format(*decision.place): _choices(decision) for decision in seen}
    return Known({name: value.float().cpu().numpy() for name, value in features.items()}, choices, experts)


def _choices(decision: Decision) -> Array:
    experts = decision.routes.experts
    counts = experts.flatten().bincount(minlength=decision.routes.load.shape[-1])
    return (counts / experts.numel()).cpu().numpy()


def probe(fit: Array, fit_labels: Array, features: Array, labels: Array) -> tuple[Array, Array]:
    """(m,) where a linear classifier that is fitted on (n, D) with labels (n,) is right on others (m, D); (m,) where the most frequent label of (n,) is."""
    classes, numbers = np.unique(fit_labels, return_inverse=True)
    weights = _fit(_standard(fit, fit), numbers, len(classes))
    guessed = classes[(_standard(features, fit) @ weights).argmax(1)]
    return guessed == labels, labels == classes[np.bincount(numbers).argmax()]


def _standard(x: Array, like: Array) -> Array:
    """Features to mean 0 and variance 1 of ``like``, and a constant."""
    scaled = (x - like.mean(0)) / (like.std(0) + 1e-6)
    return np.concatenate([scaled, np.ones((len(x), 1))], 1)


def _fit(x: Array, labels: Array, num_classes: int) -> Array:
    """(D, C) weights of a softmax regression with a squared penalty."""
    inputs, target = torch.as_tensor(x, dtype=torch.float64), torch.as_tensor(labels)
    weights = torch.zeros(inputs.shape[1], num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(inputs @ weights, target) + PENALTY * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    return weights.detach().numpy()


def quadrants(family: Mixed, tasks: Tasks) -> Array:
    """(N,) the quadrant of its room in which a task's goal lies, 0 to 3; -1 where a family's tasks have no place."""
    found = np.full(len(tasks), -1)
    for member, rows in family.parts(tasks):
        own = family.inner_tasks(member, tasks[rows])
        fields = [name for name in PLACES if name in (own.dtype.names or ()) and own.dtype[name].shape == (2,)]
        if fields:
            nvec = family.families[member].spec.observation_space.nvec  # type: ignore[attr-defined]
            far = 2 * own[fields[-1]] >= nvec[:2]  # (n, 2)
            found[rows] = 2 * far[:, 0] + far[:, 1]
    return found


def mutual_information(labels: Array, experts: Array) -> float:
    """Of labels (L,) and experts (L,), in nats, from their counts, less what so few of them would show by chance (Miller & Madow 1955); at least 0."""
    seen = [len(np.unique(column)) for column in (labels, experts)]
    by_chance = (seen[0] - 1) * (seen[1] - 1) / (2 * len(labels))
    joint = np.zeros((labels.max() + 1, experts.max() + 1))
    np.add.at(joint, (labels, experts), 1 / len(labels))
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    there = joint > 0
    return max(0.0, float((joint[there] * np.log(joint[there] / independent[there])).sum()) - by_chance)


def probe_policy(
    policy: Policy, family: Mixed, *, episodes: int, rule: ActionRule, lanes: int, seed: int
) -> dict[str, Any]:
    """All probes of a policy, its routers' choices and a picture of what it knows, as ``icrl.probe_json`` has it, but for the families' gradients.

    ``lanes`` play training tasks to fit, as many play held-out tasks of the families that were trained on.
    """
    split = family.split()
    held_out = split.test[split.test["member"] < len(family.members)]
    lane_task = _spread(lanes, len(held_out))
    played, tested = split.train[_spread(lanes, len(split.train))], held_out[lane_task]
    fit = known_of(policy, family, played, episodes=episodes, rule=rule, seed=derive_seed(seed, "fit"))
    known = known_of(policy, family, tested, episodes=episodes, rule=rule, seed=derive_seed(seed, "test"))
    names = family_names(family)
    found: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "episodes": episodes,
        "lanes": lanes,
        "tasks": len(held_out),
        "families": dict(zip(names, family.members, strict=True)),
        "probes": _probes(family, fit, played, known, tested, lane_task),
        **choices_found(known.choices),
    }
    told = {"family": tested["member"], "task": lane_task}
    found["mutual_information"] = {
        f"{label} and the first choice of the {router}": mutual_information(values, chosen)
        for router, chosen in known.experts.items()
        for label, values in told.items()
    }
    features = [*known.features][-1]  # the last task router, or summary
    picture = embedding(known.features[features], tested["member"], quadrants(family, tested))
    found["embedding"] = {"features": features, "families": names, **picture}
    return found


def _spread(lanes: int, num_tasks: int) -> Array:
    """(L,) tasks of the lanes, evenly over a list that holds one family after the other."""
    return np.linspace(0, num_tasks, lanes, endpoint=False).astype(np.int64)


def family_names(family: Mixed) -> list[str]:
    """Short names of the families that are trained on: numbered where several are called the same."""
    words = [member.split()[0] for member in family.members]
    return [
        f"{word} {words[:number].count(word) + 1}" if words.count(word) > 1 else word
        for number, word in enumerate(words)
    ]


def _probes(
    family: Mixed, fit: Known, played: Tasks, known: Known, tested: Tasks, lane_task: Array
) -> list[dict[str, Any]]:
    """Of everything that is read, whether it tells the family and, within each family, the goal's quadrant."""
    asked = quadrants(family, tested)
    labels = {"family": (played["member"], tested["member"]), "goal's quadrant": (quadrants(family, played), asked)}
    probes = []
    for name, features in known.features.items():
        for label, (fitted, true) in labels.items():
            groups = np.unique(tested["member"][asked >= 0]).tolist() if label != "family" else [None]
            right, usual = np.zeros((2, len(tested)), bool)
            counted = np.zeros(len(tested), bool)
            for member in groups:  # a classifier of its own for each family's quadrants
                rows = fitted >= 0 if member is None else (fitted >= 0) & (played["member"] == member)
                mine = true >= 0 if member is None else (true >= 0) & (tested["member"] == member)
                right[mine], usual[mine] = probe(fit.features[name][rows], fitted[rows], features[mine], true[mine])
                counted |= mine
            probes.append(_row(name, label, right[counted], usual[counted], lane_task[counted]))
    return probes


def choices_found(choices: Mapping[str, Array]) -> dict[str, dict[str, Any]]:
    """Of every router by name: each expert's share of its choices (E,), their entropy in nats, and how many experts are idle."""
    return {
        "load": {name: shares.round(4).tolist() for name, shares in choices.items()},
        "entropy": {name: float(entropy(torch.as_tensor(shares))) for name, shares in choices.items()},
        "idle": {name: int((shares < IDLE).sum()) for name, shares in choices.items()},
    }


def embedding(features: Array, member: Array, quadrant: Array) -> dict[str, Any]:
    """At most ``SHOWN`` of L lanes as [x, y, family, quadrant], and the shares of the variance that x and y hold.

    x and y are the first two principal components of ``features`` (L, D); ``member`` and ``quadrant`` are (L,).
    """
    centred = (features - features.mean(0)).astype(np.float64)
    variances, directions = np.linalg.eigh(centred.T @ centred)  # ascending
    xy = centred @ directions[:, :-3:-1]
    shown = np.unique(np.linspace(0, len(xy) - 1, min(SHOWN, len(xy))).astype(int))
    points = [[*xy[lane].round(4).tolist(), int(member[lane]), int(quadrant[lane])] for lane in shown]
    return {"points": points, "explained": (variances[:-3:-1] / max(variances.sum(), 1e-12)).tolist()}


def _row(features: str, label: str, right: Array, usual: Array, lane_task: Array) -> dict[str, Any]:
    """Accuracy of a probe and of the usual label, with intervals over tasks, and the paired difference."""
    bootstrap = Bootstrap(np.unique(lane_task, return_inverse=True)[1], 1, 0)
    accuracy, chance = (bootstrap(array.astype(float)[None]) for array in (right, usual))
    estimates = {"accuracy": accuracy, "chance": chance, "above_chance": accuracy - chance}
    return {"features": features, "label": label, **{name: _plain(one.estimate()) for name, one in estimates.items()}}


def _plain(estimate: Estimate) -> dict[str, Any]:
    ends = None if estimate.over_tasks is None else estimate.over_tasks.ravel().tolist()
    return {"mean": estimate.mean.item(), "over_tasks": ends, "fixed_tasks": None}
