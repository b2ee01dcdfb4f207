"""Bandits, beside exact Thompson sampling."""

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


def bandit_dpt() -> Recipe:
    """Decision-Pretrained Transformer on 5-armed Gaussian bandits: regret beside exact Thompson sampling (Lee et al. 2023)."""
    arms = {"num_arms": 5, "horizon": 500}
    baselines = ("random", "optimal", "source", "thompson", "ucb", "empirical_mean")
    return Recipe(
        name="bandit-dpt",
        description=first_line(bandit_dpt),
        family=FamilyConfig(
            "gaussian_bandit", arms | {"noise": 0.3, "num_train_tasks": 200_000, "num_validation_tasks": 400}
        ),
        collect=CollectConfig(
            sources=(
                SourceConfig("thompson", weight=3.0),
                SourceConfig("fixed_odds"),
                SourceConfig("fixed_odds", {"concentration": 0.2}),
            ),
            num_histories=200_000,  # about as many as training reads: a history that is met often is remembered, not inferred from
            steps_per_history=500,
            shard_histories=2000,
        ),
        model=ModelConfig(
            layout="transition",
            window=500,
            width=64,
            num_layers=2,
            num_heads=5,  # one per arm: attention to the pulls of one arm is their mean
            head_width=16,
            action_reward_std=0.1,
            reward_mean=0.5,
            reward_scale=0.4,
            rotary=False,
            episode_embedding=False,
            exact_set=True,
        ),
        objective=ObjectiveConfig("dpt", start_fraction=1.0, num_queries=32),
        train=TrainConfig(
            steps=4800,
            batch_size=32,
            learning_rate=3e-3,
            final_learning_rate=0.02,
            warmup_steps=200,
            validate_every=1000,
            validation_episodes=1,
            validation_lanes=400,
        ),
        evaluations=tuple(
            EvaluateConfig(episodes=1, lanes=2000, family=family, baselines=baselines, hide_rewards=family is None)
            for family in (
                None,
                FamilyConfig("gaussian_bandit", arms | {"noise": 0.0}),
                FamilyConfig("gaussian_bandit", arms | {"noise": 0.5}),
                FamilyConfig("bernoulli_bandit", arms),
            )
        ),
    )


def bernoulli_dpt() -> Recipe:
    """Decision-Pretrained Transformer on 2-armed Bernoulli bandits: the exact posterior, recovered in every small context."""
    return Recipe(
        name="bernoulli-dpt",
        description=first_line(bernoulli_dpt),
        family=FamilyConfig("bernoulli_bandit", {"num_arms": 2, "horizon": 21, "num_train_tasks": 400_000}),
        collect=CollectConfig(
            sources=(SourceConfig("fixed_odds"),),
            num_histories=400_000,
            steps_per_history=21,
            shard_histories=10_000,
        ),
        model=ModelConfig(
            layout="transition",
            window=21,
            width=64,
            num_layers=2,
            num_heads=4,
            action_reward_std=0.1,
            reward_mean=0.5,
            reward_scale=0.5,
            rotary=False,
            episode_embedding=False,
            exact_set=True,
        ),
        objective=ObjectiveConfig("dpt", start_fraction=1.0),
        train=TrainConfig(
            steps=4000,
            batch_size=256,
            learning_rate=3e-3,
            final_learning_rate=0.01,
            warmup_steps=200,
            validate_every=1000,
            validation_episodes=1,
            validation_lanes=500,
        ),
        evaluations=(
            EvaluateConfig(
                episodes=1, lanes=2000, baselines=("random", "optimal", "source", "thompson"), posterior_pulls=20
            ),
        ),
    )
