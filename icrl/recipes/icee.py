"""ICEE (Dai et al. 2024) in 9×9 rooms: explore and exploit from episodes of mixed quality, without any learner's histories.

Most variants read the same kind of histories: episodes that wander to cells drawn from all (held-out goals among them, which never pay), then those of an optimal policy
under noise that is drawn anew for each (privileged data); in ``biased`` ones the noise prefers one direction; ``..._random`` ones read random behaviour alone. The loss corrects
for the source's habits, not for what it knew of the task.
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

_LEFT = 3
GRADED = SourceConfig("graded", {"high": 0.5, "wander": 1.0})
OBJECTIVE = ObjectiveConfig("icee", start_fraction=1.0, habits_alone=True, most_weight=2.0, improving_weight=40.0)
FOUND_AT_ONCE = replace(OBJECTIVE, improving_weight=1.0)
"""Where the first episode that goes where it pays leaves little to gain, so that ways back would hardly count: all episodes alike."""
EVALUATION = EvaluateConfig(
    episodes=30, lanes=480, baselines=("random", "optimal", "source"), tilt=5.0, search_tilt=1.0
)
_BIASED = SourceConfig("graded", {**GRADED.options, "twice": _LEFT})
_EASY = FamilyConfig("darkroom", {"width": 9, "height": 9, "horizon": 20, "start": "centre", "num_validation": 4})
_ONCE = FamilyConfig("darkroom", {**_EASY.options, "reward": "once"})
_KEYDOOR = FamilyConfig(
    "keydoor",
    {"width": 9, "height": 9, "horizon": 50, "start": "random", "reward": "once", "task_split": 0, "num_tasks": 6561},
)


def icee_darkroom() -> Recipe:
    """ICEE in the 9×9 Dark Room, 20 steps, a reward for each step on the goal."""
    return _icee(icee_darkroom, _EASY)


def icee_darkroom_once() -> Recipe:
    """ICEE in the 9×9 Dark Room, 20 steps, the goal pays once."""
    return _icee(icee_darkroom_once, _ONCE)


def icee_darkroom_biased() -> Recipe:
    """ICEE in the 9×9 Dark Room on episodes whose noise prefers one direction."""
    return _icee(icee_darkroom_biased, _EASY, _BIASED)


def icee_darkroom_uncorrected() -> Recipe:
    """The same without the correction for what the source preferred."""
    biased = _icee(icee_darkroom_uncorrected, _EASY, _BIASED)
    return replace(biased, objective=replace(biased.objective, habits_alone=False, corrected=False))


def icee_darkroom_sorted() -> Recipe:
    """Algorithm Distillation of the same optimal policy, its noise falling so that histories look like learning."""
    biased = _icee(icee_darkroom_sorted, _EASY, SourceConfig("annealed", {"twice": _LEFT, "fall": 1.0}))
    collect = replace(
        biased.collect, num_histories=biased.collect.num_histories // 2, steps_per_history=2 * biased.model.window
    )  # so that windows start in the middle, too
    return replace(
        biased,
        collect=collect,
        model=replace(biased.model, return_to_go="off", cross_episode="off"),
        objective=ObjectiveConfig("ad", start_fraction=0.5, intended_labels=False),
    )


def icee_darkroom_random() -> Recipe:
    """ICEE in the 9×9 Dark Room on random behaviour alone."""
    return _icee(icee_darkroom_random, _EASY, SourceConfig("uniform"))


def icee_darkroom_no_bit() -> Recipe:
    """ICEE in the 9×9 Dark Room without being told whether an episode beats those before it."""
    return _without_bit(_icee(icee_darkroom_no_bit, _EASY))


def icee_keydoor() -> Recipe:
    """ICEE in the 9×9 Key-Door, 50 steps, random starts: 1 for the key, then 1 for the door."""
    return _icee(icee_keydoor, _KEYDOOR)


def icee_keydoor_random() -> Recipe:
    """ICEE in the 9×9 Key-Door on random behaviour alone."""
    return _icee(icee_keydoor_random, _KEYDOOR, SourceConfig("uniform"))


def icee_keydoor_no_bit() -> Recipe:
    """ICEE in the 9×9 Key-Door without being told whether an episode beats those before it."""
    return _without_bit(_icee(icee_keydoor_no_bit, _KEYDOOR))


def _icee(function: Callable[[], Recipe], family: FamilyConfig, source: SourceConfig | None = None) -> Recipe:
    keydoor, once = family.name == "keydoor", family.options.get("reward") == "once"
    options: dict[str, Any] = family.options
    most = options["horizon"] if not once else 2 if keydoor else 1
    window = 10 * options["horizon"]
    return Recipe(
        name=function.__name__.replace("_", "-"),
        description=first_line(function),
        family=family,
        collect=CollectConfig(
            (source or GRADED,), num_histories=64_000, steps_per_history=window, shard_histories=1000
        ),
        model=ModelConfig(
            window=window,
            width=96,
            num_layers=3,
            num_heads=3,
            return_to_go="predicted",
            return_bins=most + 1,
            return_high=float(most),
            cross_episode="equals",
            episode_return=keydoor,
        ),
        objective=FOUND_AT_ONCE if once else OBJECTIVE,
        train=TrainConfig(
            steps=3000,
            batch_size=16 if keydoor else 32,
            learning_rate=2e-3,
            validate_every=500,
            validation_episodes=20,
            validation_lanes=160,
        ),
        evaluations=(EVALUATION,),
    )


def _without_bit(recipe: Recipe) -> Recipe:
    return replace(recipe, model=replace(recipe.model, cross_episode="off"))


def icee_bo() -> Recipe:
    """ICEE as Bayesian optimisation: evaluations of Gaussian-process draws at random and, one of ten, at the optimum (privileged data), then functions never seen."""
    evaluation = EvaluateConfig(episodes=30, lanes=500, tilt=8.0, baselines=("random", "gp_ei"), hide_rewards=False)
    return Recipe(
        name="icee-bo",
        description=first_line(icee_bo),
        family=FamilyConfig("bayesian_optimisation"),
        collect=CollectConfig(
            (SourceConfig("graded", {"low": 0.8}),),
            num_histories=32_768,
            steps_per_history=40,
            shard_histories=4096,
        ),
        model=ModelConfig(
            window=40,
            width=96,
            num_layers=4,
            num_heads=4,
            episode_embedding=False,
            return_to_go="predicted",
            return_bins=49,
            return_low=-6.0,
            return_high=6.0,
            cross_episode="beats",
        ),
        objective=ObjectiveConfig("icee", start_fraction=1.0, corrected=False, improving_weight=100.0),
        train=TrainConfig(
            steps=5000,
            batch_size=64,
            learning_rate=2e-3,
            validate_every=500,
            validation_episodes=30,
            validation_lanes=100,
        ),
        evaluations=(evaluation,),
    )
