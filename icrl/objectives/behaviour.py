"""How probable a source's actions were, by a small network that is fitted to what was done: given observation and task, where histories do not tell; or given the observation alone.

It stands for all of a history's noise together, the changes of it included, which is what an importance weight may be made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from icrl.data.sampling import Window, WindowSampler, can_earn_more
from icrl.data.store import HistoryStore
from icrl.interfaces import Array, FamilySpec, Observation, Symmetry
from icrl.models.heads import make_head
from icrl.models.observations import make_encoder, to_tensors
from icrl.seeding import derive_seed

WIDTH, STEPS, WINDOWS, LENGTH = 64, 400, 64, 32


class Behaviour(nn.Module):
    """Log-probabilities (or log-densities) of actions, given the observation, and the task unless ``num_tasks`` is 0."""

    def __init__(self, spec: FamilySpec, num_tasks: int):
        super().__init__()
        self.observation = make_encoder(WIDTH, spec.observation_space)
        self.task = nn.Embedding(num_tasks, WIDTH) if num_tasks else None
        self.network = nn.Sequential(nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU())
        self.head = make_head(WIDTH, spec.action_space)

    def forward(self, observation: Observation, task: Tensor, action: Tensor) -> Tensor:
        """Observations (B, T, ...), tasks (B,), actions (B, T, ...) -> (B, T)."""
        seen = self.observation(observation)
        hidden = self.network(seen if self.task is None else seen + self.task(task)[:, None])
        return -self.head.loss(self.head(hidden), action)

    @torch.no_grad()
    def log_probs(self, window: Window) -> Array:
        """(B, T) float32: its own, but where it is given the task those that the histories tell, if they do."""
        own = self(*_inputs(window)).numpy()
        told = window.behaviour_log_prob
        return own if told is None or self.task is None else np.where(np.isnan(told), own, told)


def _inputs(window: Window) -> tuple[Any, Tensor, Tensor]:
    device = torch.device("cpu")
    tasks = torch.as_tensor(window.task)
    return to_tensors(window.observation, device), tasks, torch.as_tensor(np.ascontiguousarray(window.action))


def estimate_behaviour(
    store: HistoryStore,
    seed: int,
    *,
    given_task: bool,
    most: float,
    symmetries: Sequence[Symmetry] = (),
    progress: bool = True,
) -> Behaviour:
    """Fit one to a store's histories, where episodes have not yet earned the ``most`` that one can: a function of these and the seed.

    With ``symmetries`` to histories in their mirrors, which is not for one that is given the task.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "behaviour"))
        model = Behaviour(store.spec, len(store.split.train) if given_task else 0)
    sampler = WindowSampler(
        store,
        LENGTH,
        start_fraction=0.0,
        anywhere=True,
        symmetries=symmetries,
        seed=derive_seed(seed, "behaviour windows"),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    bar = tqdm(range(STEPS), desc="behaviour", unit="step", disable=not progress)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / STEPS)
        window = sampler.batch(step, WINDOWS)
        likelihood = model(*_inputs(window))[torch.as_tensor(can_earn_more(window, most))].mean()
        optimizer.zero_grad()
        (-likelihood).backward()
        optimizer.step()
        bar.set_postfix_str(f"log-likelihood of an action {float(likelihood.detach()):.3f}", refresh=False)
    return model.requires_grad_(False)
