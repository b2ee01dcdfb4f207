"""Robots: continuous actions."""

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


def point_robot() -> Recipe:
    """Decision-Pretrained Transformer on a plane with an unseen goal (Point-Robot, after T2MIR): a few distances tell where it is."""
    return Recipe(
        name="point-robot",
        description=first_line(point_robot),
        family=FamilyConfig("point_robot", {"num_train_tasks": 2000, "num_validation_tasks": 50}),
        collect=CollectConfig(
            sources=(
                SourceConfig("uniform"),
                SourceConfig("uniform", scattered=True),
                SourceConfig("sample_and_hold", {"epsilon": 0.2}, weight=2.0),
            ),
            num_histories=20_000,
            steps_per_history=60,
            shard_histories=1000,
        ),
        model=ModelConfig(
            layout="transition",
            window=60,
            width=64,
            num_layers=4,
            num_heads=4,
            rotary=False,
            episode_embedding=False,
        ),
        objective=ObjectiveConfig("dpt", start_fraction=1.0),
        train=TrainConfig(
            steps=9000,
            batch_size=32,
            learning_rate=2e-3,
            final_learning_rate=0.01,
            validate_every=1500,
            validation_episodes=3,
            validation_lanes=100,
        ),
        evaluations=(
            EvaluateConfig(episodes=10, lanes=200, baselines=("random", "optimal", "source", "sample_and_hold")),
        ),
    )


def cheetah_vel() -> Recipe:
    """Decision-Pretrained Transformer on HalfCheetah-Vel (after T2MIR): run at a velocity that only rewards tell."""
    return Recipe(
        name="cheetah-vel",
        description=first_line(cheetah_vel),
        family=FamilyConfig("half_cheetah_vel"),
        collect=CollectConfig(
            sources=(SourceConfig("misled", {"epsilon": 0.1}, weight=3.0), SourceConfig("uniform")),
            num_histories=2400,
            steps_per_history=200,
            shard_histories=60,
        ),
        model=ModelConfig(
            layout="transition",
            window=200,
            width=64,
            num_layers=3,
            num_heads=4,
            rotary=False,
            episode_embedding=False,
        ),
        objective=ObjectiveConfig("dpt", start_fraction=1.0, num_queries=100),
        train=TrainConfig(
            steps=2800,
            batch_size=32,
            learning_rate=2e-3,
            validate_every=700,
            validation_episodes=2,
            validation_lanes=20,
        ),
        evaluations=(EvaluateConfig(episodes=5, lanes=40),),
    )
