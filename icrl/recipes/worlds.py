"""MiniGrid and random tabular decision processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from icrl.config import (
    CollectConfig,
    EvaluateConfig,
    FamilyConfig,
    ModelConfig,
    ObjectiveConfig,
    Recipe,
    RL2Config,
    SourceConfig,
    TrainConfig,
)
from icrl.recipes.description import first_line


def minigrid_empty() -> Recipe:
    """Distil a Bayes explorer in MiniGrid's empty room: find an unseen goal, then walk straight to it."""
    return _minigrid(minigrid_empty, "minigrid_empty")


def minigrid_doors() -> Recipe:
    """Distil a Bayes explorer in a MiniGrid room of closed doors: find the one behind which is the goal, then go through it."""
    recipe = _minigrid(minigrid_doors, "minigrid_doors")
    (evaluation,) = recipe.evaluations
    beside = replace(evaluation, baselines=(*evaluation.baselines, "rl2"))
    return replace(recipe, rl2=RL2Config(steps=500_000), evaluations=(beside,))


def _minigrid(function: Callable[[], Recipe], family: str) -> Recipe:
    return Recipe(
        name=family.replace("_", "-"),
        description=first_line(function),
        family=FamilyConfig(family),
        collect=CollectConfig(
            sources=(SourceConfig("nearest_plausible", {"epsilon": 0.1}),), num_histories=2048, steps_per_history=600
        ),
        model=ModelConfig(window=300, width=64, num_layers=3, num_heads=1, head_width=64),
        objective=ObjectiveConfig("ad"),
        train=TrainConfig(
            steps=500,
            batch_size=32,
            learning_rate=2e-3,
            warmup_steps=50,
            validate_every=125,
            validation_episodes=5,
            validation_lanes=60,
        ),
        evaluations=(
            EvaluateConfig(
                episodes=10, lanes=200, baselines=("random", "optimal", "source", "blind_sweep", "nearest_plausible")
            ),
        ),
    )


def tabular() -> Recipe:
    """Decision-Pretrained Transformer on random tabular MDPs: dynamics and rewards learned in context, beside posterior sampling (PSRL)."""
    horizon = 15
    return Recipe(
        name="tabular",
        description=first_line(tabular),
        family=FamilyConfig(
            "tabular", {"num_states": 6, "num_actions": 3, "horizon": horizon, "num_train_tasks": 40_000}
        ),
        collect=CollectConfig(
            sources=(
                SourceConfig("uniform"),
                SourceConfig("sample_and_hold", {"hold": horizon}, weight=3.0),  # a sample for each episode: PSRL
            ),
            num_histories=40_000,
            steps_per_history=10 * horizon,
            shard_histories=1000,
        ),
        model=ModelConfig(
            window=10 * horizon, width=96, num_layers=4, num_heads=4, rotary=False, previous_observation=True
        ),
        objective=ObjectiveConfig("dpt", start_fraction=1.0),
        train=TrainConfig(
            steps=3400,
            batch_size=32,
            learning_rate=2e-3,
            validate_every=850,
            validation_episodes=10,
            validation_lanes=100,
        ),
        evaluations=(EvaluateConfig(episodes=10, lanes=500, greedy=True),),
    )
