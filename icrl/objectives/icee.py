"""ICEE: predict the return that is still to come, and the action that was taken given it and whether the episode then beats those before it.

Dai et al. 2024, arXiv 2403.06826. Episodes are concatenated as they come, good and bad ones. The action's loss is weighted by U(a) / pi(a | o), U being uniform
and pi what the source did, noise included (their eq. 6): so the policy learns which actions lead to a return, not which ones the source liked. These weights
reach 1 / (probability x actions); they are cut at ``objective.most_weight``, and what share of the sample is left effective is logged.
Beyond the paper, pi may be given the observation alone (``objective.habits_alone``): a weight then takes away what the source liked in a place, and leaves what it knew of the task;
and episodes may count the more, the more they beat all before them (``objective.improving_weight``); the share that is left says what both come to. What an episode does that has
earned all it can is not learned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box, Discrete

from icrl.config import ModelConfig, ObjectiveConfig
from icrl.data.sampling import Window, best_before, can_earn_more, improving
from icrl.data.store import HistoryStore
from icrl.interfaces import Array, UserError
from icrl.models.policy import Policy
from icrl.objectives.base import LossOutput, masked_loss, step_inputs, tensor
from icrl.objectives.behaviour import Behaviour


@dataclass(frozen=True)
class InContextExploration:
    """ICEE's loss: that of the action and that of the return."""

    config: ObjectiveConfig
    behaviour: Behaviour | None = None
    """Says how probable actions were, if that is not what histories tell."""

    def loss(self, policy: Policy, window: Window, *, rng: np.random.Generator, train: bool) -> LossOutput:
        device = policy.device
        check_returns(window.return_to_go[window.valid], policy.config)
        assert policy.aim is not None
        bins = policy.aim.nearest(tensor(window.return_to_go, device))
        to_go = policy.aim.values().to(device)[bins]  # what the policy can go for
        best = best_before(window.episode_return + window.return_to_go, window.episode_step)
        would_bring = window.episode_return + to_go.cpu().numpy()
        improves = tensor(improving(would_bring, best, policy.config.cross_episode), device)
        output, logits = policy.window_and_returns(*step_inputs(policy, window), to_go, improves)
        matters = can_earn_more(window, policy.config.most_earned)
        weights = self._weights(policy, window) * self._emphasis(policy, window, best, matters)
        labels, counted = tensor(window.action, device), tensor(window.valid, device)
        result = masked_loss(policy, output, labels, tensor(matters, device), importance=tensor(weights, device))
        of_return = F.cross_entropy(logits.flatten(0, 1).float(), bins.flatten(), reduction="none").view(bins.shape)
        return_loss = (of_return * counted).sum() / counted.sum()
        kept = weights[matters]
        metrics = {
            "return_loss": return_loss.detach(),
            "effective_sample": torch.tensor(kept.sum() ** 2 / (kept**2).sum() / len(kept)),
        }
        return result._replace(loss=result.loss + return_loss, metrics=result.metrics | metrics)

    def _weights(self, policy: Policy, window: Window) -> Array:
        """(B, T) float32 what each action's loss counts."""
        if not self.config.corrected:
            return np.ones(window.valid.shape, np.float32)
        log_probs = window.behaviour_log_prob if self.behaviour is None else self.behaviour.log_probs(window)
        check_log_probs(None if log_probs is None else log_probs[window.valid], estimated=self.behaviour is not None)
        assert log_probs is not None
        weights = np.exp(np.minimum(_log_uniform(policy) - log_probs, np.log(self.config.most_weight)))
        return np.where(window.valid, weights, 0).astype(np.float32)

    def _emphasis(self, policy: Policy, window: Window, best: Array, matters: Array) -> Array:
        """(B, T) float32, 1 on average where it ``matters`` (B, T): an episode counts the more, the more it earns beyond the ``best`` (B, T) before it, and beyond 0 where returns may be positive."""
        least, most = policy.config.return_low, policy.config.return_high
        least = max(least, 0.0) if most > 0 else least
        gain = (window.episode_return + window.return_to_go - np.maximum(best, least)) / (most - least)
        emphasis = 1 + (self.config.improving_weight - 1) * np.maximum(gain, 0)
        return (emphasis / emphasis[matters].mean()).astype(np.float32)


def _log_uniform(policy: Policy) -> float:
    """Log-probability, or log-density, of every action of the space under uniform ones."""
    space = policy.spec.action_space
    if isinstance(space, Discrete):
        return -float(np.log(space.n))
    assert isinstance(space, Box)
    return -float(np.log(space.high - space.low).sum())


def check_histories(store: HistoryStore, config: ObjectiveConfig, model: ModelConfig) -> None:
    """Raise UserError where a store's histories bring returns that the policy cannot predict, or do not tell how probable their actions were."""
    for number in range(store.num_histories):
        history = store.history(number)
        end = np.repeat(history.episode_offset[1:], np.diff(history.episode_offset))
        lived = np.concatenate([[0.0], np.cumsum(history.reward, dtype=np.float64)])
        check_returns(lived[end] - lived[:-1], model)
        if config.corrected:
            estimated = config.estimate_behaviour or config.habits_alone
            check_log_probs(history.behaviour_log_prob, estimated=estimated)


def check_log_probs(log_probs: Array | None, *, estimated: bool) -> None:
    """Raise UserError for actions whose log-probability (n,) is not known, where it is not ``estimated``, or that were impossible."""
    if not estimated and (log_probs is None or np.isnan(log_probs).any()):
        raise UserError(
            "ICEE weights actions by how probable their source made them, which these histories do not tell: set objective.estimate_behaviour or "
            "habits_alone to True, or objective.corrected to False"
        )
    if log_probs is not None and np.isneginf(log_probs).any():
        raise UserError(
            "these histories hold actions that their source says were impossible (probability 0): correct its log-probabilities and collect again"
        )


def check_returns(returns: Array, config: ModelConfig) -> None:
    """Raise UserError for returns still to come (n,) outside what the policy predicts."""
    low, high = float(returns.min()), float(returns.max())
    if low < config.return_low - 1e-3 or high > config.return_high + 1e-3:
        raise UserError(
            f"histories bring returns from {low:g} to {high:g}, but the policy predicts {config.return_low:g} to {config.return_high:g}: set model.return_low "
            "and model.return_high to what episodes can earn"
        )
