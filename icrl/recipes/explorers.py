"""Other ways to explore the 10×10 rooms of the recipes ``quickstart`` and ``keydoor``, for one table of all explorers; and DPT in a MiniGrid room.

AD learns from an optimal policy under falling noise (AD^eps), ICEE as in ``icrl.recipes.icee``, DPT from optimal labels, with
the model and the training of the recipes of whole plans.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from icrl.config import CollectConfig, EvaluateConfig, ModelConfig, ObjectiveConfig, Recipe, SourceConfig
from icrl.recipes.description import first_line
from icrl.recipes.icee import EVALUATION, FOUND_AT_ONCE, GRADED, OBJECTIVE
from icrl.recipes.plans import keydoor_plans, minigrid_doors_plans
from icrl.recipes.rooms import keydoor, quickstart


def explore_darkroom_ad() -> Recipe:
    """Algorithm Distillation in the 10×10 Dark Room, from an optimal policy under falling noise (privileged data)."""
    return _distilled(explore_darkroom_ad, quickstart())


def explore_keydoor_ad() -> Recipe:
    """Algorithm Distillation in the 10×10 Key-Door, from an optimal policy under falling noise (privileged data)."""
    return _distilled(explore_keydoor_ad, keydoor())


def explore_keydoor_dpt() -> Recipe:
    """Decision-Pretrained Transformer in the 10×10 Key-Door: optimal actions as labels, exact posterior sampling among the sources (privileged data)."""
    return _dpt(explore_keydoor_dpt, keydoor_plans())


def explore_minigrid_dpt() -> Recipe:
    """Decision-Pretrained Transformer in a MiniGrid room of closed doors: optimal actions as labels, exact posterior sampling among the sources (privileged data)."""
    return _dpt(explore_minigrid_dpt, minigrid_doors_plans())


def explore_darkroom_icee() -> Recipe:
    """ICEE in the 10×10 Dark Room, from episodes that wander and noisy optimal ones (privileged data)."""
    return _icee(explore_darkroom_icee, quickstart())


def explore_keydoor_icee() -> Recipe:
    """ICEE in the 10×10 Key-Door, from episodes that wander and noisy optimal ones (privileged data)."""
    return _icee(explore_keydoor_icee, keydoor())


def _distilled(function: Callable[[], Recipe], room: Recipe) -> Recipe:
    """Histories of 20 episodes, of which every fifth is kept: within a window of three, half of the noise is gone."""
    collect = CollectConfig(
        (SourceConfig("annealed", {"fall": 1.0}),), num_histories=8192, steps_per_history=2000, shard_histories=512
    )
    objective = ObjectiveConfig("ad", keep_every=5, start_fraction=0.5, intended_labels=False)
    return _in_room(function, replace(room, collect=collect, objective=objective))


def _dpt(function: Callable[[], Recipe], plans: Recipe) -> Recipe:
    """The model, the updates and as many histories of a recipe of whole plans."""
    sources = SourceConfig("posterior_sampling"), SourceConfig("sample_and_hold")
    return replace(
        plans,
        name=function.__name__.replace("_", "-"),
        description=first_line(function),
        collect=replace(plans.collect, sources=sources),
        model=replace(plans.model, plans=False),
        objective=replace(plans.objective, told_by=0.0),
        evaluations=(replace(plans.evaluations[0], baselines=("random", "optimal")),),
    )


def _icee(function: Callable[[], Recipe], room: Recipe) -> Recipe:
    """The source, the loss and the rule of ``icrl.recipes.icee``, which were chosen in its 9×9 rooms, in histories as long as a window."""
    collect = CollectConfig((GRADED,), num_histories=16_384, steps_per_history=300, shard_histories=512)
    model = replace(
        _MODEL,
        return_to_go="predicted",
        return_bins=101,
        return_high=100.0,
        cross_episode="equals",
    )
    objective = FOUND_AT_ONCE if room.family.name == "keydoor" else OBJECTIVE
    recipe = _in_room(function, replace(room, collect=collect, objective=objective), model)
    tilts = {"tilt": EVALUATION.tilt, "search_tilt": EVALUATION.search_tilt}
    return replace(recipe, evaluations=(replace(recipe.evaluations[0], **tilts),))


_MODEL = ModelConfig(window=300, width=64, num_layers=3, num_heads=4)


def _in_room(function: Callable[[], Recipe], recipe: Recipe, model: ModelConfig = _MODEL) -> Recipe:
    """A recipe with one model and one training for all; in Key-Door with the two helps of the recipe ``keydoor``."""
    keydoor = recipe.family.name == "keydoor"
    return replace(
        recipe,
        name=function.__name__.replace("_", "-"),
        description=first_line(function),
        model=replace(model, episode_return=keydoor),
        objective=replace(recipe.objective, symmetries=keydoor),
        train=replace(recipe.train, steps=2000, validate_every=500, validation_episodes=8, learning_rate=2e-3),
        evaluations=(EvaluateConfig(episodes=40, lanes=60, baselines=("random", "optimal")),),
    )
