"""Task families by name. Importing this package registers each as a single Gymnasium environment ``icrl/<Class>-v0``.

A task is given to ``gymnasium.make`` as keyword arguments, beside the family's options:
``gymnasium.make("icrl/DarkRoom-v0", width=5, goal=(3, 4))``. Parts of a task that are not given are drawn at random.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from icrl.interfaces import Family
from icrl.registry import build, find_class, known_names

FAMILIES: dict[str, str] = {
    "darkroom": "envs.darkroom:DarkRoom",
    "keydoor": "envs.keydoor:KeyDoor",
    "gaussian_bandit": "envs.bandit:GaussianBandit",
    "bernoulli_bandit": "envs.bandit:BernoulliBandit",
    "linear_bandit": "envs.linear_bandit:LinearBandit",
    "odd_even_bandit": "envs.odd_even_bandit:OddEvenBandit",
    "tabular": "envs.tabular:TabularMDP",
    "bayesian_optimisation": "envs.bayesian_optimisation:BayesianOptimisation",
    "minigrid_empty": "envs.minigrid_tasks:MiniGridEmpty",
    "minigrid_fourrooms": "envs.minigrid_tasks:MiniGridFourRooms",
    "minigrid_objects": "envs.minigrid_tasks:MiniGridObjects",
    "minigrid_doors": "envs.minigrid_tasks:MiniGridDoors",
    "minigrid_doorkey": "envs.minigrid_tasks:MiniGridDoorKey",
    "minigrid_lavagap": "envs.minigrid_tasks:MiniGridLavaGap",
    "minigrid_memory": "envs.minigrid_tasks:MiniGridMemory",
    "maze_runner": "envs.maze_runner:MazeRunner",
    "point_robot": "envs.point_robot:PointRobot",
    "half_cheetah_vel": "envs.mujoco_tasks:HalfCheetahVel",
    "half_cheetah_dir": "envs.mujoco_tasks:HalfCheetahDir",
    "ant_dir": "envs.mujoco_tasks:AntDir",
    "walker_param": "envs.mujoco_tasks:WalkerParam",
    "metaworld_reach": "envs.metaworld_tasks:MetaworldReach",
    "metaworld_push": "envs.metaworld_tasks:MetaworldPush",
    "augmented": "envs.wrappers:Augmented",
    "mixed": "envs.mixed:Mixed",
}
GROUP = "icrl.families"
"""Entry-point group in which another package may add families."""


def family_names() -> list[str]:
    """Names of all families: the built-in ones and those that installed packages add."""
    return sorted(known_names(FAMILIES, GROUP))


def family_class(name: str) -> type:
    """The dataclass of the family called ``name``, or of "module:Class". Raises UserError where there is none."""
    return find_class("family", name, FAMILIES, GROUP)


def make_family(name: str, /, **options: Any) -> Family:
    """A family with the given options. Raises UserError for an unknown name or option or an impossible value."""
    return build("family", name, family_class(name), options)


def gymnasium_id(name: str) -> str:
    """The Gymnasium id of a built-in family."""
    return f"icrl/{FAMILIES[name].partition(':')[2]}-v0"


def _make_single(family: str, **kwargs: Any) -> gym.Env:
    from envs.base import SingleEnv

    return SingleEnv(family, family_class(family), **kwargs)


for _name in FAMILIES:
    if gymnasium_id(_name) not in gym.registry:
        gym.register(id=gymnasium_id(_name), entry_point=_make_single, kwargs={"family": _name})
