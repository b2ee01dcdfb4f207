"""How much the families that one policy is trained on pull its transformer apart: cosines between their gradients.

Of every family two halves of training windows are drawn independently. The cosine between the gradient on the first half of one family and that on the
second half of another says whether a small step that serves the one serves the other as well (above 0) or harms it (below 0: they conflict; Yu et al.
2020, arXiv 2001.06782). Between the two halves of one family only the noise of sampling keeps it from 1. The losses of routers are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import count
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from icrl.config import Recipe
from icrl.data.sampling import Window, WindowSampler
from icrl.data.store import HistoryStore
from icrl.interfaces import Array, Family, map_observation
from icrl.models.policy import Policy
from icrl.objectives import Objective, make_objective
from icrl.seeding import generator
from icrl.training import make_sampler


def gradient_conflict(
    policy: Policy, recipe: Recipe, store: HistoryStore, family: Family, names: Sequence[str], num_windows: int
) -> dict[str, Any]:
    """Cosines between the gradients of all families of which there are histories, each on two halves of ``num_windows``, and what they come to, as JSON.

    ``names`` are those of the members of ``mixed``, by number. The policy stays as it is.
    """
    sampler, objective = make_sampler(recipe, store, family), make_objective(recipe.objective)
    member = store.split.train["member"]  # (N,) of each training task
    there = np.unique(member[store.task]).tolist()
    training = policy.training
    policy.eval()
    halves = []
    for half in range(2):
        drawn = windows_by_member(sampler, member, there, num_windows, recipe.train.batch_size, half)
        rng = generator(recipe.seed, "conflict", half)
        halves.append(torch.stack([gradient(policy, objective, drawn[m], rng) for m in there]))
    policy.train(training)
    found = cosines(*halves)
    return {
        "families": [names[m] for m in there],
        "windows": num_windows,
        "cosines": found.round(4).tolist(),
        **summary(found),
    }


def windows_by_member(
    sampler: WindowSampler, member: Array, members: Sequence[int], num_windows: int, batch_size: int, half: int
) -> dict[int, list[Window]]:
    """``num_windows`` training windows of each of some families, in pieces; ``member`` (N,) is the family of each training task.

    Half 0 takes them from even batches, half 1 from odd ones.
    """
    drawn: dict[int, list[Window]] = {m: [] for m in members}
    missing = dict.fromkeys(members, num_windows)
    for step in count(half, 2):
        window = sampler.batch(step, batch_size)
        for m in members:
            rows = np.flatnonzero(member[window.task] == m)[: missing[m]]
            if len(rows):
                drawn[m].append(_rows(window, rows))
                missing[m] -= len(rows)
        if not any(missing.values()):
            break
    return drawn


def _rows(window: Window, rows: Array) -> Window:
    """Some of the windows of a batch for which nothing was retrieved."""
    arrays = {field.name: getattr(window, field.name) for field in fields(window) if field.name != "retrieval"}
    taken = {name: map_observation(lambda a: a[rows], array) for name, array in arrays.items() if array is not None}
    return replace(window, **taken)


def gradient(policy: Policy, objective: Objective, pieces: Sequence[Window], rng: np.random.Generator) -> Tensor:
    """(P,) gradient of the objective's mean loss on all pieces, with respect to the P trained weights of the transformer."""
    trained = [weights for weights in policy.transformer.parameters() if weights.requires_grad]
    total = torch.zeros(sum(weights.numel() for weights in trained), device=policy.device)
    for window in pieces:
        loss = objective.loss(policy, window, rng=rng, train=False).loss
        parts = torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)
        total += len(window.reward) * torch.cat([part.flatten() for part in parts])
    return total / sum(len(window.reward) for window in pieces)


def cosines(first: Tensor, second: Tensor) -> Array:
    """(M, M) between each of the gradients (M, P) and each of other ones (M, P)."""
    one, other = (F.normalize(gradients.double(), dim=1) for gradients in (first, second))
    return (one @ other.T).cpu().numpy()


def summary(found: Array) -> dict[str, float | None]:
    """Of cosines (M, M): their mean within families and between them, and the share of families' pairs that is negative (None: one family alone)."""
    apart = found[~np.eye(len(found), dtype=bool)]
    between, negative = (float(apart.mean()), float((apart < 0).mean())) if len(apart) else (None, None)
    return {"within": float(found.diagonal().mean()), "between": between, "negative": negative}
