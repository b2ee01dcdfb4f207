"""Actions that are points: policies know them by where they are, whatever their numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete, MultiDiscrete

from icrl.checkpoint import check_spec
from icrl.config import ModelConfig
from icrl.data.schema import spec_from_json, spec_to_json
from icrl.interfaces import FamilySpec, UserError
from icrl.models.policy import make_policy
from icrl.models.tokens import Previous

POINTS = np.random.default_rng(0).random((12, 2))
SPEC = FamilySpec("search", MultiDiscrete([1]), Discrete(12), 1, POINTS)
CONFIG = ModelConfig(window=6, width=16, num_layers=2, num_heads=2)


def logits(policy, actions, rewards):
    zeros = torch.zeros(1, 6)
    exists = torch.arange(6)[None] > 0
    seen = torch.zeros(1, 6, 1, dtype=torch.long)
    previous = Previous(exists, actions[None], rewards[None], exists, seen, seen, zeros, zeros)
    return policy.step_window(seen, previous, torch.arange(6)[None], zeros.long())


@torch.no_grad()
def test_renumbering_the_points_renumbers_the_answers():
    order = np.random.default_rng(1).permutation(12)
    actions, rewards = torch.tensor([3, 3, 7, 0, 11, 5]), torch.randn(6, generator=torch.Generator().manual_seed(0))
    policy = make_policy(SPEC, CONFIG, 0)
    other = make_policy(replace(SPEC, action_points=POINTS[order]), CONFIG, 0)
    number = torch.as_tensor(np.argsort(order))  # old number -> new one
    plain, renumbered = logits(policy, actions, rewards), logits(other, number[actions], rewards)
    torch.testing.assert_close(renumbered[..., number], plain)
    assert plain.std(-1).min() > 1e-3


@torch.no_grad()
def test_near_points_are_alike():
    near = POINTS.copy()
    near[1] = near[0] + 1e-4
    scores = logits(make_policy(replace(SPEC, action_points=near), CONFIG, 0), torch.zeros(6).long(), torch.zeros(6))
    assert (scores[..., 0] - scores[..., 1]).abs().max() < 1e-2 * scores.std()


def test_points_go_with_the_spec_and_a_set_of_another_size_is_refused():
    again = spec_from_json(spec_to_json(SPEC))
    np.testing.assert_array_equal(again.action_points, POINTS)  # type: ignore[arg-type]
    smaller = FamilySpec("search", MultiDiscrete([1]), Discrete(8), 1, POINTS[:8])
    with pytest.raises(UserError, match=r"has action_space Discrete\(12\), but family search has Discrete\(8\)"):
        check_spec(SPEC, smaller, "the checkpoint")
