"""Algorithm Distillation: predict the source agent's action from a window that spans several of its episodes.

Laskin et al. 2022, arXiv 2210.14215, eq. 2: the loss is -log p(a_t | window up to o_t). Histories of a noisy demonstrator make it AD^eps (Zisman et al.
2023), those of a Bayes explorer distil committed exploration.

Deviations: the label is the action that the source *meant* where that is known (the noise stays in the inputs). In a window that starts in the
middle of a history the first episode is context only, unless a memory tells of what came before: what the source knew from before the window cannot
be predicted from it, and at deployment, too, a window that lost its beginning starts with a whole episode that is only read. A window that holds
less than two episodes has no room for that, there or here: it counts as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from icrl.config import ObjectiveConfig
from icrl.data.sampling import Window
from icrl.models.policy import Policy
from icrl.objectives.base import LossOutput, known_past, masked_loss, step_window, tensor


@dataclass(frozen=True)
class AlgorithmDistillation:
    """AD's loss."""

    config: ObjectiveConfig

    def loss(self, policy: Policy, window: Window, *, rng: np.random.Generator, train: bool) -> LossOutput:
        config, device = self.config, policy.device
        counted = window.valid & ~self._only_read(policy, window)
        hidden = None
        if train and config.token_mask > 0:
            masked = rng.random(window.reward.shape) < config.token_mask
            counted, hidden = counted & ~masked, tensor(masked, device)
        intended = window.target_action if config.intended_labels else None
        labels = window.action if intended is None else intended
        output = step_window(policy, window, hidden)
        smoothing = config.label_smoothing if train else 0.0
        return masked_loss(policy, output, tensor(labels, device), tensor(counted, device), smoothing)

    def _only_read(self, policy: Policy, window: Window) -> np.ndarray:
        """(B, T) steps that are context and no label: the first episode, where what came before it is unknown."""
        if not policy.config.memory.k and not policy.config.keeps_episodes(policy.spec.horizon):
            return np.zeros(window.valid.shape, bool)
        return (window.episode == 0) & ~known_past(window)[:, None]
