"""The recipes: each a plain function that returns one nested frozen dataclass. Copy one to start your own."""

from __future__ import annotations

import inspect
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
from icrl.interfaces import UserError
from icrl.registry import import_named, nearest


def quickstart() -> Recipe:
    """Distil a Bayes explorer in the 10×10 Dark Room: a committed search on held-out goals, then straight to them."""
    return Recipe(
        name="quickstart",
        description=_first_line(quickstart),
        family=FamilyConfig("darkroom", {"width": 10, "height": 10, "horizon": 100}),
        collect=CollectConfig(
            sources=(SourceConfig("nearest_plausible", {"epsilon": 0.1}),),
            num_histories=8192,
            steps_per_history=600,
        ),
        model=ModelConfig(window=300, width=96, num_layers=3, num_heads=1, head_width=64),
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
        description=_first_line(darkroom_dpt),
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
        description=_first_line(darkroom_ad),
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


def bandit_dpt() -> Recipe:
    """Decision-Pretrained Transformer on 5-armed Gaussian bandits: regret beside exact Thompson sampling (Lee et al. 2023)."""
    arms = {"num_arms": 5, "horizon": 500}
    baselines = ("random", "optimal", "source", "thompson", "ucb", "empirical_mean")
    return Recipe(
        name="bandit-dpt",
        description=_first_line(bandit_dpt),
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
            steps=7000,
            batch_size=32,
            learning_rate=3e-3,
            final_learning_rate=0.02,
            warmup_steps=200,
            validate_every=1000,
            validation_episodes=1,
            validation_lanes=400,
        ),
        evaluations=tuple(
            EvaluateConfig(episodes=1, lanes=2000, family=family, baselines=baselines)
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
        description=_first_line(bernoulli_dpt),
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


def keydoor() -> Recipe:
    """Distil a Bayes explorer in the 10×10 Key-Door (Schmied et al. 2024): find the key, then the door, then straight to both."""
    baselines = ("random", "optimal", "source", "blind_sweep", "nearest_plausible", "sample_and_hold")
    return Recipe(
        name="keydoor",
        description=_first_line(keydoor),
        family=FamilyConfig("keydoor", {"width": 10, "height": 10, "horizon": 100}),
        collect=CollectConfig(
            sources=(SourceConfig("nearest_plausible", {"epsilon": 0.1}),),
            num_histories=16_384,
            steps_per_history=700,
        ),
        model=ModelConfig(window=300, width=96, num_layers=3, num_heads=4, head_width=32, episode_return=True),
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
        description=_first_line(function),
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


def point_robot() -> Recipe:
    """Decision-Pretrained Transformer on a plane with an unseen goal (Point-Robot, after T2MIR): a few distances tell where it is."""
    return Recipe(
        name="point-robot",
        description=_first_line(point_robot),
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


def tabular() -> Recipe:
    """Decision-Pretrained Transformer on random tabular MDPs: dynamics and rewards learned in context, beside posterior sampling (PSRL)."""
    horizon = 15
    return Recipe(
        name="tabular",
        description=_first_line(tabular),
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


def cheetah_vel() -> Recipe:
    """Decision-Pretrained Transformer on HalfCheetah-Vel (after T2MIR): run at a velocity that only rewards tell."""
    return Recipe(
        name="cheetah-vel",
        description=_first_line(cheetah_vel),
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


def smoke() -> Recipe:
    """The whole path in under 30 seconds, in a 5×5 Dark Room: is everything in its place?"""
    return Recipe(
        name="smoke",
        description=_first_line(smoke),
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


RECIPES: dict[str, Callable[[], Recipe]] = {
    "quickstart": quickstart,
    "darkroom-dpt": darkroom_dpt,
    "darkroom-ad": darkroom_ad,
    "bandit-dpt": bandit_dpt,
    "bernoulli-dpt": bernoulli_dpt,
    "keydoor": keydoor,
    "minigrid-empty": minigrid_empty,
    "minigrid-doors": minigrid_doors,
    "point-robot": point_robot,
    "tabular": tabular,
    "cheetah-vel": cheetah_vel,
    "smoke": smoke,
}


def load_recipe(name: str) -> Recipe:
    """A recipe by its name in ``RECIPES``, or the user's own as ``module:function``.

    Raises UserError if there is none of that name, or the function returns something else.
    """
    if ":" in name:
        return _load_function(name)
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}: {nearest(name, RECIPES)} (your own: module:function)")
    return RECIPES[name]()


def _load_function(name: str) -> Recipe:
    module_name, _, function_name = name.partition(":")
    function = getattr(import_named(module_name, "recipe", name), function_name, None)
    if not callable(function):
        raise UserError(f"recipe {name!r}: {module_name} has no function {function_name!r}")
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError) as error:  # ValueError: a built-in one that tells no signature
        raise UserError(
            f"recipe {name!r}: expected a function that needs no argument ({error}): give it defaults"
        ) from None
    recipe = function()
    if not isinstance(recipe, Recipe):
        raise UserError(f"recipe {name!r}: expected an icrl.config.Recipe, got {type(recipe).__name__}")
    return recipe


def _first_line(function: Callable[[], Recipe]) -> str:
    return (function.__doc__ or "").strip().splitlines()[0]
