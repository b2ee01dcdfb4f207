"""Exploring by whole plans (history-conditioned DPT): labels are optimal actions alone, and no posterior is known.

Histories are plans of drawn tasks, then that of the own task (source ``plans``), so the policy goes on with what it has begun until it doubts it. The second evaluation
of each recipe lets the same weights begin a plan with every action: that is what DPT does, a new sample at each step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from icrl.config import (
    CollectConfig,
    EvaluateConfig,
    FamilyConfig,
    ModelConfig,
    ObjectiveConfig,
    Recipe,
    SourceConfig,
    TrainConfig,
)
from icrl.recipes.description import first_line

_ROOM = {"width": 10, "height": 10, "horizon": 100}
_EXACT = ("random", "optimal", "sample_and_hold", "posterior_sampling")


def darkroom_plans() -> Recipe:
    """History-conditioned DPT in the 10×10 Dark Room: posterior sampling by whole plans, learned from optimal actions alone (privileged data)."""
    family = FamilyConfig("darkroom", {**_ROOM, "num_validation": 4})
    return _by_plans(darkroom_plans, family, told_by=1.0, episodes=40, steps=3000)


def darkroom_plans_biased() -> Recipe:
    """History-conditioned DPT as an ablation: three of ten plans that are given up are the own task's, which lets the policy trust its own (privileged data)."""
    recipe = darkroom_plans()
    (source,) = recipe.collect.sources
    biased = replace(source, options={**source.options, "biased": 0.3})
    return replace(
        recipe,
        name="darkroom-plans-biased",
        description=first_line(darkroom_plans_biased),
        collect=replace(recipe.collect, sources=(biased,)),
    )


def keydoor_plans() -> Recipe:
    """History-conditioned DPT in the 10×10 Key-Door: whole plans to a key and a door, learned from optimal actions alone (privileged data)."""
    recipe = _by_plans(
        keydoor_plans,
        FamilyConfig("keydoor", _ROOM),
        told_by=2.0,
        episodes=40,
        steps=2200,
        width=96,
        num_layers=3,
        head_width=32,
        episode_return=True,
    )
    return replace(recipe, objective=replace(recipe.objective, symmetries=True))


def minigrid_doors_plans() -> Recipe:
    """History-conditioned DPT in a MiniGrid room of closed doors: whole plans through one of them, learned from optimal actions alone (privileged data)."""
    return _by_plans(
        minigrid_doors_plans, FamilyConfig("minigrid_doors"), told_by=1.0, episodes=10, steps=800, num_layers=3
    )


def _by_plans(
    function: Callable[[], Recipe],
    family: FamilyConfig,
    *,
    told_by: float,
    episodes: int,
    steps: int,
    width: int = 64,
    num_layers: int = 4,
    **model: Any,
) -> Recipe:
    evaluation = EvaluateConfig(episodes=episodes, lanes=100, baselines=_EXACT)
    anew = EvaluateConfig(episodes=10, lanes=100, plan_hazard=1.0, plan_doubt=0.0, baselines=("random", "optimal"))
    return Recipe(
        name=function.__name__.replace("_", "-"),
        description=first_line(function),
        family=family,
        collect=CollectConfig(
            (SourceConfig("plans", {"told_by": told_by}),),
            num_histories=40_000,
            steps_per_history=300,
            shard_histories=1000,
        ),
        model=ModelConfig(window=300, width=width, num_layers=num_layers, num_heads=4, plans=True, **model),
        objective=ObjectiveConfig("dpt", start_fraction=1.0, told_by=told_by),
        train=TrainConfig(
            steps=steps,
            batch_size=32,
            learning_rate=2e-3,
            validate_every=steps // 4,
            validation_episodes=6,
        ),
        evaluations=(evaluation, replace(anew, hide_rewards=False)),
    )
