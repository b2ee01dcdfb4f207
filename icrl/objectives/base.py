"""What an objective is: how windows become inputs, what is predicted, and the loss."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from icrl.data.chunks import Retrieved
from icrl.data.sampling import Window
from icrl.interfaces import PLAN_BEGINS, Observation, map_observation
from icrl.models.observations import to_tensors
from icrl.models.policy import Policy
from icrl.models.retrieval import RetrievedWindow, WatchedWindow
from icrl.models.tokens import Previous


class LossOutput(NamedTuple):
    """A batch's loss, and what to log of it."""

    loss: Tensor  # scalar
    metrics: dict[str, Tensor]  # scalars, detached
    accuracy_by_position: (
        Tensor  # (T,) share of labels hit at each position of the window, nan where none was predicted
    )


class Objective(Protocol):
    """One way to train a policy on windows of histories."""

    def loss(self, policy: Policy, window: Window, *, rng: np.random.Generator, train: bool) -> LossOutput: ...


def tensor(array: np.ndarray, device: torch.device) -> Tensor:
    """An array on the device."""
    return torch.as_tensor(np.ascontiguousarray(array), device=device)


def previous_steps(window: Window, policy: Policy) -> Previous:
    """What each token's previous step was: the window shifted by one; the first token has none."""
    config, device = policy.config, policy.device

    def shift(array: np.ndarray) -> Tensor:
        shifted = np.empty_like(array)
        shifted[:, 1:] = array[:, :-1]
        shifted[:, 0] = array[:, 0]
        return torch.as_tensor(shifted, device=device)

    exists = np.ones(window.reward.shape, bool)
    exists[:, 0] = False
    return Previous(
        exists=torch.as_tensor(exists, device=device),
        action=shift(window.action),
        reward=shift(window.reward),
        ended=shift(window.terminated | window.truncated),
        observation=map_observation(shift, window.observation),
        final_observation=map_observation(shift, window.next_observation),
        episode_return=torch.as_tensor(window.episode_return, device=device),
        return_to_go=torch.as_tensor(window.return_to_go, device=device),
        begins=tensor(plans_begin(window), device) if config.plans else None,
    )


def plans_begin(window: Window) -> np.ndarray:
    """(B, T) bool where plans begin; everywhere in histories of agents that have none."""
    return np.ones(window.valid.shape, bool) if window.plan is None else (window.plan & PLAN_BEGINS) > 0


def step_window(policy: Policy, window: Window, hidden: Tensor | None = None, apart: Tensor | None = None) -> Tensor:
    """Head parameters (B, T, ·) of a window in layout ``step``, with what a memory brought for it."""
    memory = None if window.retrieved is None else _memory(policy, window.retrieved, RetrievedWindow)
    return policy.step_window(*step_inputs(policy, window), hidden, memory, apart)


@torch.no_grad()
def attention_on_memory(policy: Policy, window: Window) -> float:
    """Share of the cross-attention that goes to what was retrieved, mean over layers, heads and the tokens that have something to look at."""
    assert window.retrieved is not None, "nothing was retrieved"
    policy.eval()
    memory = _memory(policy, window.retrieved, WatchedWindow)
    assert isinstance(memory, WatchedWindow)
    policy.step_window(*step_inputs(policy, window), None, memory)
    looking = memory.seen[:, :, 1:].any(-1)  # (B, R)
    nothing = torch.stack([shares[..., 0] for shares in memory.shares])  # (layers, B, R, every)
    return float(1 - nothing[:, looking].mean()) if bool(looking.any()) else 0.0


def _memory(policy: Policy, retrieved: Retrieved, kind: type[RetrievedWindow]) -> RetrievedWindow:
    return policy.window_memory(Retrieved(*(to_tensors(part, policy.device) for part in retrieved)), kind)


def step_inputs(policy: Policy, window: Window) -> tuple[Observation, Previous, Tensor, Tensor]:
    """A window as a policy of layout ``step`` reads it: observation, what the step before was, number of the episode and step within it."""
    device = policy.device
    observation, episode, step = to_tensors(window.observation, device), window.episode, window.episode_step
    return observation, previous_steps(window, policy), tensor(episode, device), tensor(step, device)


def masked_loss(
    policy: Policy,
    output: Tensor,
    labels: Tensor,
    counted: Tensor,
    smoothing: float = 0.0,
    importance: Tensor | float = 1.0,
) -> LossOutput:
    """Mean loss, weighted by ``importance`` (B, T), and accuracy over the positions that count; ``counted`` (B, T) bool."""
    weights = counted.float()
    losses = policy.head.loss(output, labels, smoothing) * importance
    loss = (losses * weights).sum() / weights.sum().clamp(min=1)
    with torch.no_grad():
        hits = policy.head.hit(output, labels) * weights
        metrics = {"accuracy": hits.sum() / weights.sum().clamp(min=1)}
        return LossOutput(loss, metrics, hits.sum(0) / weights.sum(0))


def known_past(window: Window) -> np.ndarray:
    """(B,) bool: the window starts where its history does, or a memory tells what came before."""
    remembers = np.zeros(len(window.start), bool) if window.retrieved is None else window.retrieved.valid.any((1, 2))
    return (window.start == 0) | remembers
