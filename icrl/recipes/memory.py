"""What a memory is worth.

RA-DT's protocol on the 10×10 Dark Room (Schmied et al. 2024): Q-learning's histories, and four ways to learn from them. All four read the same data and take
actions by the same rule and make as many updates. RA-DT and DT see half an episode at once; AD and DPT see three episodes, and half as many
windows in an update, which are three times RA-DT's predictions.

Committed explorers in rooms so large that they see half an episode at once, with a memory and without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from icrl.config import (
    CollectConfig,
    EvaluateConfig,
    FamilyConfig,
    MemoryConfig,
    ModelConfig,
    ObjectiveConfig,
    Recipe,
    SourceConfig,
    TrainConfig,
)
from icrl.recipes.description import first_line


def radt() -> Recipe:
    """RA-DT in the 10×10 Dark Room: a context of 50 steps, and a memory of all that was lived before."""
    memory = MemoryConfig(k=2, chunk=12, utility=5.0, own_past=0.7, pool=8192)
    return _in_dark_room(radt, replace(_HALF_AN_EPISODE, memory=memory), _CONDITIONED)


def radt_dt() -> Recipe:
    """RA-DT's Dark Room without its memory: a Decision Transformer that never learns of its task."""
    return _in_dark_room(radt_dt, _HALF_AN_EPISODE, _CONDITIONED)


def radt_ad() -> Recipe:
    """Algorithm Distillation in RA-DT's Dark Room: no memory, a context of three episodes."""
    return _in_dark_room(radt_ad, _THREE_EPISODES, ObjectiveConfig("ad"))


def radt_dpt() -> Recipe:
    """DPT in RA-DT's Dark Room: no memory, a context of three episodes, optimal actions as labels (privileged data)."""
    return _in_dark_room(radt_dpt, _THREE_EPISODES, ObjectiveConfig("dpt", start_fraction=1.0))


def radt_keydoor() -> Recipe:
    """RA-DT in the 10×10 Key-Door, on a Bayes explorer's histories (privileged data): a context of 50 steps, and a memory of all that was lived before."""
    explorer = SourceConfig("nearest_plausible", {"epsilon": 0.1})
    radt_in_dark_room = radt()
    memory = replace(
        radt_in_dark_room.model.memory, k=1, chunk=25, worth="onward", arrivals=True, repeats=False, own_past=0.9
    )
    return replace(
        radt_in_dark_room,
        name="radt-keydoor",
        description=first_line(radt_keydoor),
        family=FamilyConfig("keydoor", {"width": 10, "height": 10, "horizon": 100}),
        collect=CollectConfig((explorer,), num_histories=8192, steps_per_history=700, shard_histories=512),
        model=replace(
            radt_in_dark_room.model,
            width=96,
            dropout=0.0,
            return_scale=0.02,
            episode_return=True,
            rate_step=0.5,
            memory=memory,
        ),
        objective=replace(
            radt_in_dark_room.objective,
            intended_labels=True,
            symmetries=True,
            apart=0.5,
            target_return=87.0,
            search_return=40.0,
        ),
        train=replace(radt_in_dark_room.train, steps=5000),
    )


_HALF_AN_EPISODE = ModelConfig(
    window=50, num_layers=3, return_to_go="rate", return_scale=1.0, episodic=True, dropout=0.1
)
_THREE_EPISODES = ModelConfig(window=300, num_layers=3, dropout=0.1)
_CONDITIONED = ObjectiveConfig("dt", intended_labels=False, target_return=90.0, search_return=60.0, start_fraction=0.6)


def _in_dark_room(function: Callable[[], Recipe], model: ModelConfig, objective: ObjectiveConfig) -> Recipe:
    return Recipe(
        name=function.__name__.replace("_", "-"),
        description=first_line(function),
        family=FamilyConfig("darkroom", {"width": 10, "height": 10, "horizon": 100, "goal_split": "radt"}),
        collect=CollectConfig(
            (SourceConfig("q_learning"),), num_histories=560, steps_per_history=6000, shard_histories=70
        ),
        model=model,
        objective=objective,
        train=TrainConfig(
            steps=3000,
            batch_size=64 if model.window == 50 else 32,
            learning_rate=2e-3,
            validate_every=500,
            validation_episodes=20,
            validation_lanes=50,
        ),
        evaluations=(
            EvaluateConfig(episodes=40, lanes=100, temperature=0.5, baselines=("random", "optimal", "source")),
        ),
    )


def large_darkroom_memory() -> Recipe:
    """Distil a Bayes explorer in the 20×20 Dark Room with a window of half an episode, and a memory of all that was lived before."""
    return _in_large_room(large_darkroom_memory, "darkroom", _OWN_LIFE)


def large_darkroom_window() -> Recipe:
    """Distil a Bayes explorer in the 20×20 Dark Room with a window of half an episode, and no memory."""
    return _in_large_room(large_darkroom_window, "darkroom", MemoryConfig())


def large_keydoor_memory() -> Recipe:
    """Distil a Bayes explorer in the 20×20 Key-Door with a window of half an episode, and a memory of all that was lived before."""
    return _in_large_room(large_keydoor_memory, "keydoor", _THE_WAY)


def large_keydoor_window() -> Recipe:
    """Distil a Bayes explorer in the 20×20 Key-Door with a window of half an episode, and no memory."""
    return _in_large_room(large_keydoor_window, "keydoor", MemoryConfig())


_OWN_LIFE = MemoryConfig(k=3)
_THE_WAY = MemoryConfig(
    k=2, every=50, candidates=200, utility=100.0, worth="onward", overlap=False, arrivals=True, repeats=False
)
"""The key and the door, wherever in a life of ten episodes they were found."""


def _in_large_room(function: Callable[[], Recipe], family: str, memory: MemoryConfig) -> Recipe:
    keydoor = family == "keydoor"
    tasks = {"task_split": 0, "num_tasks": 1000} if keydoor else {"start": "random", "goal_split": "radt"}
    return Recipe(
        name=function.__name__.replace("_", "-"),
        description=first_line(function),
        family=FamilyConfig(family, {"width": 20, "height": 20, "horizon": 400, **tasks}),
        collect=CollectConfig(
            (SourceConfig("nearest_plausible", {"epsilon": 0.1}),),
            num_histories=2048,
            steps_per_history=4000,
            shard_histories=256,
        ),
        model=ModelConfig(
            window=200,
            width=96,
            num_layers=3,
            num_heads=4,
            head_width=32,
            episode_return=keydoor,
            memory=memory,
        ),
        objective=ObjectiveConfig("ad", start_fraction=0.2, short_window=memory.k == 0, symmetries=keydoor),
        train=TrainConfig(
            steps=2500 if keydoor else 1500,
            batch_size=32,
            learning_rate=2e-3,
            validate_every=500,
            validation_episodes=5,
            validation_lanes=40,
        ),
        evaluations=(
            EvaluateConfig(episodes=10, lanes=100, baselines=("random", "optimal", "source", "nearest_plausible")),
        ),
    )
