"""The encoder of a finished run: hidden states of its frozen policy, which has read the same steps as a window of their own.

A copy of the weights goes into the run that uses them, so that a run folder stays whole when it is moved.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from icrl.interfaces import Array, FamilySpec, UserError, map_observation
from icrl.memory.encoders import Past
from icrl.models.attention import CausalWindow
from icrl.models.observations import to_tensors
from icrl.models.tokens import Previous

KEPT = "encoder"
"""Folder of a run with its encoder's checkpoint."""


class PolicyEncoder:
    """Keys of steps: features of a frozen policy of layout ``step`` at their tokens."""

    def __init__(self, policy: Any, folder: Path):
        self.policy, self.folder = policy.eval(), folder
        self.width = policy.config.width
        weights = hashlib.sha256()
        for name, tensor in sorted(policy.state_dict().items()):
            weights.update(name.encode() + tensor.cpu().numpy().tobytes())
        self._hash = weights.hexdigest()[:16]

    @classmethod
    def of_run(cls, spec: FamilySpec, run: Path, chunk: int) -> PolicyEncoder:
        """The best policy of a run. Raises UserError where there is none, or one that cannot read ``chunk`` of these steps."""
        from icrl.checkpoint import find, load_policy

        policy = load_policy(run, "best", "cpu", spec)[0]
        config = policy.config
        if config.layout != "step" or config.memory.k or config.plans or config.window < chunk:
            raise UserError(
                f"{run}: its policy cannot be an encoder: expected one of layout step without a memory, such as a run of objective ad, dt or icee, "
                f"that reads at least {chunk} steps (model.memory.chunk)"
            )
        folder = find(run, "best")
        assert folder is not None
        return cls(policy, folder)

    @torch.no_grad()
    def parts(self, past: Past) -> Array:
        lead = past.valid.shape[:-1]
        if len(lead) > 1:

            def flat(array: Array) -> Array:
                return np.reshape(array, (-1, *array.shape[len(lead) :]))

            return self.parts(Past(*(map_observation(flat, column) for column in past))).reshape(*lead, -1, self.width)
        num, length = past.valid.shape
        first = np.where(past.valid.any(1), past.valid.argmax(1), 0)  # what was not lived stands in front
        rows = np.arange(num)[:, None]
        order = (first[:, None] + np.arange(length)) % length  # (n, P) lived steps first, in their order

        def brought(array: Array) -> Array:
            return array[rows, order]

        features = self._features(*(map_observation(brought, column) for column in past[:4]))  # (n, P, D)
        parts = np.empty_like(features)
        parts[rows, order] = features
        return parts * past.valid[..., None]

    def _features(self, observation: Any, action: Array, reward: Array, ended: Array) -> Array:
        policy, config = self.policy, self.policy.config
        begins = np.concatenate([np.zeros_like(ended[:, :1]), ended[:, :-1]], 1)
        episode = np.cumsum(begins, 1)
        steps = np.broadcast_to(np.arange(ended.shape[1]), ended.shape)
        episode_step = steps - np.maximum.accumulate(np.where(begins, steps, 0), 1)
        nothing = np.zeros(reward.shape, np.float32)

        def before(array: Array) -> Array:
            return np.concatenate([array[:, :1], array[:, :-1]], 1)

        exists = np.broadcast_to(np.arange(ended.shape[1]) > 0, ended.shape)
        previous = {
            "exists": exists,
            "action": before(action),
            "reward": before(reward),
            "ended": before(ended),
            "observation": map_observation(before, observation),
            "final_observation": observation,
            "episode_return": nothing,
            "return_to_go": nothing,
        }
        tensors = Previous(
            **{n: to_tensors(map_observation(np.array, part), policy.device) for n, part in previous.items()}
        )  # type: ignore[arg-type]
        x = policy.tokens(
            to_tensors(observation, policy.device), tensors, torch.as_tensor(episode), torch.as_tensor(episode_step)
        )
        pattern = CausalWindow(x.shape[1], policy.told(torch.as_tensor(episode_step, device=policy.device), 0))
        features = policy.transformer(x, pattern)
        each = config.tokens_per_step
        return features[:, each - 1 :: each].numpy()

    def identity(self) -> str:
        return f"policy {self._hash}"

    def keep(self, run: Path) -> None:
        """Copy the checkpoint into a run, whole or not at all."""
        there = run / KEPT / "checkpoints"
        if there.exists():
            return
        aside = run / f".{KEPT}.partial"
        shutil.rmtree(aside, ignore_errors=True)
        folder = aside / "checkpoints" / self.folder.name
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("optimizer.safetensors"))
        (aside / "checkpoints" / "index.json").write_text(
            f'{{"latest": "{self.folder.name}", "best": "{self.folder.name}"}}\n'
        )
        aside.rename(run / KEPT)
