"""T2MIR (Wu et al. 2025): one model for several families of rooms, with mixtures of experts and without.

All variants have as many active weights and read the same windows; ``t2mir_ad_dense`` has no mixture.
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
from icrl.recipes.description import first_line

_MIXTURE = MixtureConfig(blocks=(1, 2))
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
