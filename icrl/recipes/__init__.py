"""The recipes: each a plain function that returns one nested frozen dataclass. Copy one to start your own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace

from icrl.config import Recipe
from icrl.interfaces import UserError
from icrl.recipes.bandits import bandit_dpt, bernoulli_dpt
from icrl.recipes.control import cheetah_vel, point_robot
from icrl.recipes.explorers import (
    explore_darkroom_ad,
    explore_darkroom_icee,
    explore_keydoor_ad,
    explore_keydoor_dpt,
    explore_keydoor_icee,
    explore_minigrid_dpt,
)
from icrl.recipes.icee import (
    icee_bo,
    icee_darkroom,
    icee_darkroom_biased,
    icee_darkroom_no_bit,
    icee_darkroom_once,
    icee_darkroom_random,
    icee_darkroom_sorted,
    icee_darkroom_uncorrected,
    icee_keydoor,
    icee_keydoor_no_bit,
    icee_keydoor_random,
)
from icrl.recipes.memory import (
    large_darkroom_memory,
    large_darkroom_window,
    large_keydoor_memory,
    large_keydoor_window,
    radt,
    radt_ad,
    radt_dpt,
    radt_dt,
    radt_keydoor,
)
from icrl.recipes.mixture import (
    t2mir_ad,
    t2mir_ad_cheetah_vel,
    t2mir_ad_cheetah_vel_dense,
    t2mir_ad_dense,
    t2mir_ad_no_balance,
    t2mir_ad_no_contrast,
    t2mir_ad_point_robot,
    t2mir_ad_point_robot_dense,
    t2mir_ad_task,
    t2mir_ad_token,
    t2mir_dpt,
    t2mir_dpt_cheetah_vel,
    t2mir_dpt_point_robot,
    t2mir_radt,
    t2mir_radt_dt,
)
from icrl.recipes.plans import darkroom_plans, darkroom_plans_biased, keydoor_plans, minigrid_doors_plans
from icrl.recipes.rooms import darkroom_ad, darkroom_dpt, keydoor, quickstart, smoke
from icrl.recipes.worlds import minigrid_doors, minigrid_empty, tabular
from icrl.registry import import_named, nearest

RECIPES: dict[str, Callable[[], Recipe]] = {
    "quickstart": quickstart,
    "darkroom-dpt": darkroom_dpt,
    "darkroom-ad": darkroom_ad,
    "darkroom-plans": darkroom_plans,
    "darkroom-plans-biased": darkroom_plans_biased,
    "keydoor-plans": keydoor_plans,
    "minigrid-doors-plans": minigrid_doors_plans,
    "bandit-dpt": bandit_dpt,
    "bernoulli-dpt": bernoulli_dpt,
    "keydoor": keydoor,
    "minigrid-empty": minigrid_empty,
    "minigrid-doors": minigrid_doors,
    "point-robot": point_robot,
    "tabular": tabular,
    "cheetah-vel": cheetah_vel,
    "radt": radt,
    "radt-ad": radt_ad,
    "radt-dpt": radt_dpt,
    "radt-dt": radt_dt,
    "radt-keydoor": radt_keydoor,
    "large-darkroom-memory": large_darkroom_memory,
    "large-darkroom-window": large_darkroom_window,
    "large-keydoor-memory": large_keydoor_memory,
    "large-keydoor-window": large_keydoor_window,
    "t2mir-ad": t2mir_ad,
    "t2mir-ad-dense": t2mir_ad_dense,
    "t2mir-ad-token": t2mir_ad_token,
    "t2mir-ad-task": t2mir_ad_task,
    "t2mir-ad-no-contrast": t2mir_ad_no_contrast,
    "t2mir-ad-no-balance": t2mir_ad_no_balance,
    "t2mir-dpt": t2mir_dpt,
    "t2mir-radt": t2mir_radt,
    "t2mir-radt-dt": t2mir_radt_dt,
    "t2mir-ad-point-robot": t2mir_ad_point_robot,
    "t2mir-ad-point-robot-dense": t2mir_ad_point_robot_dense,
    "t2mir-ad-cheetah-vel": t2mir_ad_cheetah_vel,
    "t2mir-ad-cheetah-vel-dense": t2mir_ad_cheetah_vel_dense,
    "t2mir-dpt-point-robot": t2mir_dpt_point_robot,
    "t2mir-dpt-cheetah-vel": t2mir_dpt_cheetah_vel,
    "icee-bo": icee_bo,
    "icee-darkroom": icee_darkroom,
    "icee-darkroom-once": icee_darkroom_once,
    "icee-darkroom-biased": icee_darkroom_biased,
    "icee-darkroom-uncorrected": icee_darkroom_uncorrected,
    "icee-darkroom-sorted": icee_darkroom_sorted,
    "icee-darkroom-random": icee_darkroom_random,
    "icee-darkroom-no-bit": icee_darkroom_no_bit,
    "icee-keydoor": icee_keydoor,
    "icee-keydoor-random": icee_keydoor_random,
    "icee-keydoor-no-bit": icee_keydoor_no_bit,
    "explore-darkroom-ad": explore_darkroom_ad,
    "explore-darkroom-icee": explore_darkroom_icee,
    "explore-keydoor-ad": explore_keydoor_ad,
    "explore-keydoor-dpt": explore_keydoor_dpt,
    "explore-keydoor-icee": explore_keydoor_icee,
    "explore-minigrid-dpt": explore_minigrid_dpt,
    "smoke": smoke,
}


def load_recipe(name: str) -> Recipe:
    """A recipe by its name in ``RECIPES``, or the user's own as ``module:function``; as ``NAME@SEED`` with another seed, and so named.

    Raises UserError if there is none of that name, the function returns something else, or the seed is no number.
    """
    base, seeded, seed = name.partition("@")
    if seeded:
        if not seed.isdecimal():
            raise UserError(f"recipe {name!r}: expected NAME@SEED with a seed of at least 0, as {base}@1")
        return replace(load_recipe(base), name=name, seed=int(seed))
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
