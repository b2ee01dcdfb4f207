"""Decision Transformer: predict the action of the source, given the return that its episode still brought.

Chen et al. 2021, arXiv 2106.01345: windows inside one episode, conditioned on the return to go; at deployment the policy is asked for a high return. With a
memory it is RA-DT (Schmied et al. 2024, arXiv 2410.07071). As for AD, the label is the action that the source meant, where that is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from icrl.config import ObjectiveConfig
from icrl.data.sampling import Window
from icrl.models.policy import Policy
from icrl.objectives.base import LossOutput, masked_loss, step_window, tensor


@dataclass(frozen=True)
class DecisionTransformer:
    """DT's loss."""

    config: ObjectiveConfig

    def loss(self, policy: Policy, window: Window, *, rng: np.random.Generator, train: bool) -> LossOutput:
        smoothing = self.config.label_smoothing if train else 0.0
        intended = window.target_action if self.config.intended_labels else None
        labels = tensor(window.action if intended is None else intended, policy.device)
        counted = tensor(window.valid, policy.device)
        apart = None
        if train and self.config.apart:
            apart = tensor(rng.random(len(window.valid)) < self.config.apart, policy.device)
        return masked_loss(policy, step_window(policy, window, apart=apart), labels, counted, smoothing)
