"""The part of ``icrl bench`` about mixtures of experts: a block of them, and acting with them, over a dense model of as many active weights."""

from __future__ import annotations

import dataclasses
import statistics
from itertools import islice
from typing import Any

import numpy as np

from envs import make_family
from icrl.config import MixtureConfig, ModelConfig, Recipe
from scripts.measure import Figure, rate_of

TOKENS, LANES, STEPS = 8192, 64, 300


def mixture_figures(recipe: Recipe, device: str, repeats: int) -> list[Figure]:
    """All of them, for a recipe whose policy has both mixtures."""
    dense = dataclasses.replace(recipe.model, mixture=MixtureConfig())
    return [
        _over(
            "block with both mixtures over a dense one, forward and backward", _block, recipe, dense, device, repeats
        ),
        _over(f"cached roll-out with mixtures over dense, {LANES} lanes", _acting, recipe, dense, device, repeats),
    ]


def _over(title: str, rate: Any, recipe: Recipe, dense: ModelConfig, device: str, repeats: int) -> Figure:
    """How many times as long it takes with mixtures; the two take turns, so that both see the same machine."""
    ratios = []
    for _ in range(repeats):
        plain, mixed = (rate(recipe, model, device) for model in (dense, recipe.model))
        ratios.append(plain / mixed)
    return Figure(title, "x", statistics.median(ratios), min(ratios), repeats, 1.5, True)


def _block(recipe: Recipe, model: ModelConfig, device: str) -> float:
    """Passes per second of one block over ``TOKENS`` tokens, in windows of the recipe's length."""
    import torch

    from icrl.models.attention import CausalWindow
    from icrl.models.transformer import Block, rotary_angles

    mixes = bool(model.mixture.blocks)
    block = Block(model, remembers=False, mixes=mixes).to(device)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    length = model.window
    x = torch.randn(-(-TOKENS // length), length, model.width, device=device, requires_grad=True)
    angles = rotary_angles(length, model.attention_width // model.num_heads).to(device)
    pattern = CausalWindow(length)

    def work() -> float:
        for _ in range(5):
            block(x, angles, pattern, 0, 0, None).sum().backward()
        if x.is_cuda:
            torch.cuda.synchronize()
        return 5

    return rate_of(work, 1)[0]


def _acting(recipe: Recipe, model: ModelConfig, device: str) -> float:
    """Environment steps per second of an untrained policy."""
    from icrl.in_context import InContextAgent
    from icrl.models.policy import make_policy
    from icrl.rollout import rollout
    from icrl.seeding import LaneStreams

    family = make_family(recipe.family.name, **recipe.family.options)
    policy = make_policy(family.spec, model, 0).to(device).eval()

    def work() -> float:
        env = family.make_vec(np.resize(family.split().test, LANES))
        agent = InContextAgent(policy, streams=LaneStreams(0, "bench", lane_ids=LANES))
        for _ in islice(rollout(agent, env, seed=0), STEPS):
            pass
        return STEPS * LANES

    return rate_of(work, 1)[0]
