"""Exploring by whole plans (history-conditioned DPT): labels are optimal actions alone, and no posterior is known.

Histories are plans of drawn tasks, then that of the own task (source ``plans``), so the policy goes on with what it has begun until it doubts it.
"""

from __future__ import annotations

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


def darkroom_plans() -> Recipe:
    """History-conditioned DPT in the 10×10 Dark Room: posterior sampling by whole plans, learned from optimal actions alone (privileged data)."""
    return Recipe(
        name="darkroom-plans",
        description=first_line(darkroom_plans),
        family=FamilyConfig("darkroom", {"width": 10, "height": 10, "horizon": 100, "num_validation": 4}),
        collect=CollectConfig(
            (SourceConfig("plans"),), num_histories=40_000, steps_per_history=300, shard_histories=1000
        ),
        model=ModelConfig(window=300, width=64, num_layers=4, num_heads=4, plans=True),
        objective=ObjectiveConfig("dpt", start_fraction=1.0, told_by=1.0),
        train=TrainConfig(steps=2000, batch_size=32, learning_rate=2e-3, validate_every=500, validation_episodes=6),
        evaluations=(
            EvaluateConfig(
                episodes=40, lanes=100, baselines=("random", "optimal", "sample_and_hold", "posterior_sampling")
            ),
        ),
    )
