"""T2MIR (Wu et al. 2025): one model for several families of rooms, with mixtures of experts and without; and its robots.

All variants have as many active weights; those of ``t2mir_ad`` read the same windows, and ``t2mir_ad_dense`` has no mixture. ``t2mir_radt`` has a memory, too; beside the
recipe ``radt`` its windows come in pairs of one task. On robots the dense models are the recipes ``point_robot`` and ``cheetah_vel`` for DPT, and ``..._dense``
for AD, whose histories are those of an optimal policy under falling noise (AD^eps).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from icrl.config import (
    CollectConfig,
    EvaluateConfig,
    FamilyConfig,
    MixtureConfig,
    ModelConfig,
    ObjectiveConfig,
    Recipe,
    SourceConfig,
    TrainConfig,
)
from icrl.recipes.control import cheetah_vel, point_robot
from icrl.recipes.description import first_line
from icrl.recipes.memory import radt, radt_dt

_MIXTURE = MixtureConfig(blocks=(0, 1))
_MEMBERS = [
    "darkroom width=6 height=6 horizon=36 num_validation=4",
    "darkroom width=8 height=8 horizon=64 num_validation=6",
    "darkroom width=6 height=6 horizon=36 num_validation=4 permuted_actions=true",
    "keydoor width=6 height=6 horizon=60 task_split=0 num_tasks=80",
    "minigrid_empty",
    "minigrid_doors",
]
_UNSEEN = ["darkroom width=7 height=7 horizon=49"]


def t2mir_ad() -> Recipe:
    """T2MIR-AD on several families of rooms at once: distil Bayes explorers into a mixture of experts, by token and by task."""
    return _explorers(t2mir_ad)


def t2mir_ad_dense() -> Recipe:
    """T2MIR-AD's rooms with a dense model of as many active weights."""
    return _explorers(t2mir_ad_dense, blocks=())


def t2mir_ad_token() -> Recipe:
    """T2MIR-AD with experts by token alone."""
    return _explorers(t2mir_ad_token, parts="token")


def t2mir_ad_task() -> Recipe:
    """T2MIR-AD with experts by task alone."""
    return _explorers(t2mir_ad_task, parts="task")


def t2mir_ad_no_contrast() -> Recipe:
    """T2MIR-AD without the contrastive loss of its task router."""
    return _explorers(t2mir_ad_no_contrast, contrast=0.0)


def t2mir_ad_no_balance() -> Recipe:
    """T2MIR-AD without the losses that balance its experts."""
    return _explorers(t2mir_ad_no_balance, token_balance=0.0, task_balance=0.0)


def t2mir_dpt() -> Recipe:
    """T2MIR-DPT on several families of rooms at once: optimal actions as labels (privileged data), a mixture of experts by token and by task."""
    explorers = _explorers(t2mir_dpt)
    sources = tuple(
        SourceConfig("by_member", {"source": source}) for source in ("posterior_sampling", "sample_and_hold")
    )
    return replace(
        explorers,
        collect=replace(explorers.collect, sources=sources),
        objective=ObjectiveConfig("dpt", start_fraction=1.0),
    )


def _explorers(function: Callable[[], Recipe], **mixture: Any) -> Recipe:
    explorer = SourceConfig("by_member", {"source": "nearest_plausible", "source_options": ["epsilon=0.1"]})
    return Recipe(
        name=function.__name__.replace("_", "-"),
        description=first_line(function),
        family=FamilyConfig("mixed", {"members": _MEMBERS, "unseen": _UNSEEN}),
        collect=CollectConfig((explorer,), num_histories=8240, steps_per_history=600, shard_histories=515),
        model=ModelConfig(
            window=300, width=64, num_layers=3, num_heads=4, mlp_ratio=6, mixture=replace(_MIXTURE, **mixture)
        ),
        objective=ObjectiveConfig("ad", start_fraction=0.5),
        train=TrainConfig(
            steps=1000,
            batch_size=32,
            pairs=True,
            learning_rate=2e-3,
            validate_every=500,
            validation_episodes=4,
            validation_lanes=66,
        ),
        evaluations=(EvaluateConfig(episodes=10, lanes=210),),
    )


def t2mir_dpt_point_robot() -> Recipe:
    """T2MIR-DPT on a plane with an unseen goal: the recipe point-robot with mixtures of experts."""
    return _with_experts(t2mir_dpt_point_robot, point_robot())


def t2mir_dpt_cheetah_vel() -> Recipe:
    """T2MIR-DPT on HalfCheetah-Vel: the recipe cheetah-vel with mixtures of experts."""
    return _with_experts(t2mir_dpt_cheetah_vel, cheetah_vel())


def t2mir_ad_point_robot() -> Recipe:
    """T2MIR-AD on a plane with an unseen goal, from the histories of an optimal policy under falling noise (privileged data)."""
    return _with_experts(t2mir_ad_point_robot, t2mir_ad_point_robot_dense())


def t2mir_ad_point_robot_dense() -> Recipe:
    """Algorithm Distillation on a plane with an unseen goal, from the histories of an optimal policy under falling noise (privileged data)."""
    return _falling_noise(t2mir_ad_point_robot_dense, point_robot(), episodes=20, horizon=20, histories=8000)


def t2mir_ad_cheetah_vel() -> Recipe:
    """T2MIR-AD on HalfCheetah-Vel, from the histories of an oracle under falling noise (privileged data)."""
    return _with_experts(t2mir_ad_cheetah_vel, t2mir_ad_cheetah_vel_dense())


def t2mir_ad_cheetah_vel_dense() -> Recipe:
    """Algorithm Distillation on HalfCheetah-Vel, from the histories of an oracle under falling noise (privileged data)."""
    return _falling_noise(t2mir_ad_cheetah_vel_dense, cheetah_vel(), episodes=5, horizon=200, histories=900)


def t2mir_radt() -> Recipe:
    """RA-DT in the 10×10 Dark Room, a memory and mixtures of experts together: the recipe radt with experts by token and by task."""
    return _with_experts_and_pairs(t2mir_radt, radt())


def t2mir_radt_dt() -> Recipe:
    """The same without the memory: the recipe radt-dt with mixtures of experts."""
    return _with_experts_and_pairs(t2mir_radt_dt, radt_dt())


def _with_experts_and_pairs(function: Callable[[], Recipe], dense: Recipe) -> Recipe:
    recipe = _with_experts(function, dense)
    return replace(recipe, train=replace(recipe.train, pairs=True))


def _with_experts(function: Callable[[], Recipe], dense: Recipe) -> Recipe:
    model = replace(dense.model, mixture=_MIXTURE)
    return replace(dense, name=function.__name__.replace("_", "-"), description=first_line(function), model=model)


def _falling_noise(
    function: Callable[[], Recipe], robot: Recipe, *, episodes: int, horizon: int, histories: int
) -> Recipe:
    """AD^eps on a robot's tasks: windows of two fifths of a history of that many episodes."""
    window = 2 * episodes // 5 * horizon
    return replace(
        robot,
        name=function.__name__.replace("_", "-"),
        description=first_line(function),
        collect=CollectConfig(
            (SourceConfig("annealed"),),
            num_histories=histories,
            steps_per_history=episodes * horizon,
            shard_histories=100,
        ),
        model=ModelConfig(window=window, width=64, num_layers=3, num_heads=4),
        objective=ObjectiveConfig("ad", intended_labels=False),
        train=replace(robot.train, steps=1500, batch_size=32, pairs=True, validate_every=500),
    )
