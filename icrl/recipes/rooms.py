"""Dark Room and Key-Door: where in-context RL is measured first."""

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


def quickstart() -> Recipe:
    """Distil a Bayes explorer in the 10×10 Dark Room: a committed search on held-out goals, then straight to them."""
    return Recipe(
        name="quickstart",
        description=first_line(quickstart),
        family=FamilyConfig("darkroom", {"width": 10, "height": 10, "horizon": 100}),
        collect=CollectConfig(
            sources=(SourceConfig("nearest_plausible", {"epsilon": 0.1}),),
            num_histories=8192,
            steps_per_history=600,
        ),
        model=ModelConfig(window=300, width=96, num_layers=3, num_heads=1, head_width=16),
        objective=ObjectiveConfig("ad"),
        train=TrainConfig(steps=640, batch_size=32, validate_every=320, validation_lanes=70),
        evaluations=(
            EvaluateConfig(
                episodes=3,
                lanes=500,
                baselines=(
                    "random",
                    "optimal",
                    "source",
                    "blind_sweep",
                    "sweep_then_return",
                    "nearest_plausible",
                    "sample_and_hold",
                    "posterior_sampling",
                ),
            ),
            EvaluateConfig(episodes=40, lanes=60, baselines=("random", "optimal", "source", "nearest_plausible")),
            EvaluateConfig(
                split="all",
                episodes=1,
                lanes=300,
                baselines=("random", "optimal", "source", "blind_sweep", "nearest_plausible"),
            ),
        ),
    )


def darkroom_dpt() -> Recipe:
    """Decision-Pretrained Transformer in the 10×10 Dark Room (Lee et al. 2023): offline and online."""
    offline = {
        "mode": "offline",
        "episodes": 1,
        "lanes": 2000,
        "baselines": ("random", "optimal", "source", "posterior_sampling"),
    }
    return Recipe(
        name="darkroom-dpt",
        description=first_line(darkroom_dpt),
        family=FamilyConfig("darkroom", {"width": 10, "height": 10, "horizon": 100, "num_validation": 4}),
        collect=CollectConfig(
            sources=(
                SourceConfig("uniform", scattered=True, weight=3.0),
                SourceConfig("posterior_sampling"),
                SourceConfig("sample_and_hold"),
                SourceConfig("optimal"),
            ),
            num_histories=20_000,
            steps_per_history=200,
            shard_histories=1000,
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
        objective=ObjectiveConfig("dpt", start_fraction=1.0, num_queries=50, privileged_sources=(3,)),
        train=TrainConfig(steps=4000, batch_size=64, learning_rate=1.5e-3, validate_every=500, validation_episodes=8),
        evaluations=(
            EvaluateConfig(context="random", **offline),
            EvaluateConfig(context="expert", **offline),
            EvaluateConfig(episodes=40, lanes=60, baselines=("random", "optimal", "source", "posterior_sampling")),
            EvaluateConfig(episodes=40, lanes=60, append="episode"),
        ),
    )


def darkroom_ad() -> Recipe:
    """Algorithm Distillation of tabular Q-learning in the 9×9 Dark Room, 20 steps (Laskin et al. 2022)."""
    return Recipe(
        name="darkroom-ad",
        description=first_line(darkroom_ad),
        family=FamilyConfig("darkroom", {"width": 9, "height": 9, "horizon": 20, "start": "centre"}),
        collect=CollectConfig(
            sources=(SourceConfig("q_learning", {"learning_rate": 0.9, "epsilon": 0.05}),),
            num_histories=1080,
            steps_per_history=12_000,
            shard_histories=90,
        ),
        model=ModelConfig(window=300, width=96, num_layers=2, num_heads=1),
        objective=ObjectiveConfig("ad", keep_every=5, start_fraction=0.5),
        train=TrainConfig(steps=1500, learning_rate=2e-3, validate_every=250, validation_episodes=60),
        evaluations=(EvaluateConfig(episodes=200, lanes=85),),
    )


def keydoor() -> Recipe:
    """Distil a Bayes explorer in the 10×10 Key-Door (Schmied et al. 2024): find the key, then the door, then straight to both."""
    baselines = ("random", "optimal", "source", "blind_sweep", "nearest_plausible", "sample_and_hold")
    return Recipe(
        name="keydoor",
        description=first_line(keydoor),
        family=FamilyConfig("keydoor", {"width": 10, "height": 10, "horizon": 100}),
        collect=CollectConfig(
            sources=(SourceConfig("nearest_plausible", {"epsilon": 0.1}),),
            num_histories=16_384,
            steps_per_history=700,
        ),
        model=ModelConfig(
            window=300, width=96, num_layers=3, num_heads=4, head_width=32, episode_return=True, return_scale=1.0
        ),
        objective=ObjectiveConfig("ad", start_fraction=0.4, symmetries=True),
        train=TrainConfig(
            steps=2200,
            batch_size=32,
            learning_rate=2e-3,
            validate_every=550,
            validation_episodes=8,
            validation_lanes=70,
        ),
        evaluations=(EvaluateConfig(episodes=40, lanes=60, baselines=baselines),),
    )


def smoke() -> Recipe:
    """The whole path in under 30 seconds, in a 5×5 Dark Room: is everything in its place?"""
    return Recipe(
        name="smoke",
        description=first_line(smoke),
        family=FamilyConfig("darkroom", {"width": 5, "height": 5, "horizon": 15, "num_validation": 5}),
        collect=CollectConfig(
            sources=(SourceConfig("nearest_plausible", {"epsilon": 0.1}),),
            num_histories=64,
            steps_per_history=90,
            shard_histories=32,
            workers=1,
        ),
        model=ModelConfig(window=45, width=32, num_layers=2, num_heads=2),
        objective=ObjectiveConfig("ad"),
        train=TrainConfig(
            steps=100,
            batch_size=16,
            warmup_steps=10,
            log_every=10,
            validate_every=50,
            validation_episodes=2,
            validation_lanes=8,
        ),
        evaluations=(
            EvaluateConfig(episodes=4, lanes=20, baselines=("random", "optimal", "source", "posterior_sampling")),
        ),
    )
