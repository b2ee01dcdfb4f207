"""Decision-Pretrained Transformer: predict the optimal action for a query, for every prefix of a context, the empty one included.

Lee et al. 2023, arXiv 2306.14892, eq. 2. In layout ``step`` the query of prefix t is the observation o_t itself (one token per step; right where
observations say little, as in bandits). In layout ``transition`` prefix t has a query token of its own, which asks for o_t, the state
that was reached after those t transitions (in scattered data, an independent one), or for a state out of the prefix. The latter is needed: a policy
that has found its goal stays there, and asked at o_t alone it would learn that much reward means "stay" wherever it is. Any choice
among shown states is fair, since it depends on the task only through what is shown.

Which histories are fair: what is shown must tell of the task only through what it shows. So windows start at the beginning of a history (with a memory, which
tells at least in part of what came before, anywhere), sequential
data keep their order (a random subset of a learner's history would leak what the rest taught it), and scattered transitions, which no learner chose,
are shuffled at each fetch. A source that knows the task would leak it by what it does: its prefixes count only once a reward has told as much
(``privileged_sources``). Deviation from the public code: the empty prefix is trained.

With ``model.plans`` the policy is also told where plans begin, and learns to go on with what it has begun (history-conditioned DPT): see ``agents.plans``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from icrl.config import ObjectiveConfig
from icrl.data.sampling import Window
from icrl.interfaces import Array, UserError, map_observation
from icrl.models.observations import to_tensors
from icrl.models.policy import Policy
from icrl.objectives.base import LossOutput, known_past, masked_loss, step_window, tensor


@dataclass(frozen=True)
class DecisionPretraining:
    """DPT's loss."""

    config: ObjectiveConfig

    def loss(self, policy: Policy, window: Window, *, rng: np.random.Generator, train: bool) -> LossOutput:
        if window.optimal_action is None:
            raise UserError(
                "DPT needs optimal actions, which these histories lack: collect from a family with an optimal policy"
            )
        if window.plan is not None and not policy.config.plans:
            raise UserError(
                "these are histories of plans, of which some know the task, and the policy is not told where they begin: set model.plans to True"
            )
        if policy.config.layout == "step":
            counted = window.valid & self._fair(window, window.reward) & known_past(window)[:, None]
            if policy.config.plans:
                counted = counted & self._answered(window)
            labels = tensor(window.optimal_action, policy.device)
            return masked_loss(policy, step_window(policy, window), labels, tensor(counted, policy.device))
        return self._query_loss(policy, window, window.optimal_action, rng)

    def _query_loss(
        self, policy: Policy, window: Window, optimal_action: Array, rng: np.random.Generator
    ) -> LossOutput:
        device, length = policy.device, window.reward.shape[1]
        order = shuffled_order(window, rng)  # (B, P)

        def reorder(array: Array) -> Array:
            return np.take_along_axis(array, order.reshape(order.shape + (1,) * (array.ndim - 2)), 1)

        def shown(observation):
            return to_tensors(map_observation(reorder, observation), device)

        num = self.config.num_queries or length
        prefixes = np.sort(rng.choice(length, min(num, length), replace=False))
        asked = asked_observations(prefixes, rng)
        context = (
            shown(window.observation),
            tensor(reorder(window.action), device),
            tensor(reorder(window.reward), device),
            shown(window.next_observation),
        )
        query = to_tensors(map_observation(lambda a: reorder(a)[:, asked], window.observation), device)
        output = policy.query_window(context, query, torch.as_tensor(prefixes, device=device))
        labels = tensor(reorder(optimal_action)[:, asked], device)
        fair = reorder(window.valid) & self._fair(window, reorder(window.reward))
        counted = tensor(fair[:, prefixes], device)
        result = masked_loss(policy, output, labels, counted)
        by_position = torch.full((length,), float("nan"), device=device)
        by_position[torch.as_tensor(prefixes, device=device)] = result.accuracy_by_position
        return result._replace(accuracy_by_position=by_position)

    def _answered(self, window: Window) -> Array:
        """(B, T) steps of plans at which the optimal action follows from what was shown and begun, and from nothing else.

        Those with which a plan begins, those of the task's own plan, and all after an episode has told everything.
        """
        if window.plan is None:
            raise UserError(
                "model.plans learns from histories of plans, which these are not: collect from source plans"
            )
        answered = window.plan > 0
        if self.config.told_by:
            tells = np.maximum.accumulate(window.episode_return + window.reward >= self.config.told_by, 1)
            answered[:, 1:] |= tells[:, :-1]
        return answered

    def _fair(self, window: Window, reward: Array) -> Array:
        """(B, P) whether prefix p may be trained, ``reward`` (B, P) being in the order shown: see ``privileged_sources``."""
        rewarded = np.cumsum(reward != 0, axis=1) > (reward != 0)  # a reward before p
        return rewarded | ~np.isin(window.source, self.config.privileged_sources)[:, None]


def asked_observations(prefixes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(Q,) which observation each prefix (Q,) asks for: for half of them the next one, for the others any that was shown, or the next."""
    anywhere = (rng.random(len(prefixes)) * (prefixes + 1)).astype(np.int64)
    return np.where(rng.random(len(prefixes)) < 0.5, prefixes, anywhere)


def shuffled_order(window: Window, rng: np.random.Generator) -> np.ndarray:
    """(B, P) order of the context: shuffled where transitions are scattered, as it came elsewhere; padding stays last."""
    batch, length = window.reward.shape
    keys = np.where(window.scattered[:, None], rng.random((batch, length)), np.arange(length) / length)
    return np.argsort(np.where(window.valid, keys, 2.0), 1, kind="stable")
