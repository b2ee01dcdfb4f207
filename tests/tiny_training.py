"""A training of a second: a 4×4 Dark Room, noisily optimal histories, a model of one layer. For the trainer's tests."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from envs import make_family
from icrl.config import FamilyConfig, MemoryConfig, MixtureConfig, ModelConfig, ObjectiveConfig, Recipe, TrainConfig
from icrl.data import schema, writer
from icrl.data.store import HistoryStore
from icrl.interfaces import Decision
from icrl.rollout import rollout
from icrl.seeding import LaneStreams

OPTIONS = {"width": 4, "height": 4, "horizon": 8, "num_validation": 3}
FAMILY = make_family("darkroom", **OPTIONS)
STEPS = 9
RECIPE = Recipe(
    name="tiny",
    description="The trainer's tests.",
    seed=3,
    family=FamilyConfig("darkroom", OPTIONS),
    model=ModelConfig(window=16, width=16, num_layers=1, num_heads=2, dropout=0.1),
    objective=ObjectiveConfig("ad", token_mask=0.2, start_fraction=0.7),
    train=TrainConfig(
        steps=STEPS,
        batch_size=8,
        warmup_steps=2,
        log_every=2,
        validate_every=3,
        validation_episodes=2,
        validation_lanes=4,
    ),
)
MIXTURE = MixtureConfig(blocks=(0,), token_experts=3, task_experts=4)
LAYOUTS = {
    "ad": RECIPE,
    "dpt step": replace(RECIPE, objective=ObjectiveConfig("dpt", start_fraction=1.0)),
    "dpt transition": replace(
        RECIPE,
        model=replace(RECIPE.model, layout="transition", rotary=False, episode_embedding=False),
        objective=ObjectiveConfig("dpt", start_fraction=1.0),
    ),
    "ad memory": replace(RECIPE, model=replace(RECIPE.model, memory=MemoryConfig(k=2, chunk=3, every=4))),
    "ad mixture": replace(RECIPE, model=replace(RECIPE.model, mixture=MIXTURE)),
    "ad memory and mixture": replace(
        RECIPE, model=replace(RECIPE.model, memory=MemoryConfig(k=2, chunk=3, every=4), mixture=MIXTURE)
    ),
    "dpt transition mixture": replace(
        RECIPE,
        model=replace(RECIPE.model, layout="transition", rotary=False, episode_embedding=False, mixture=MIXTURE),
        objective=ObjectiveConfig("dpt", start_fraction=1.0),
    ),
    "dt": replace(
        RECIPE,
        model=replace(RECIPE.model, window=6, episodic=True, return_to_go="total", interleaved=True),
        objective=ObjectiveConfig("dt", target_return=5.0),
    ),
    "ra-dt": replace(
        RECIPE,
        model=replace(
            RECIPE.model, window=6, episodic=True, return_to_go="total", memory=MemoryConfig(k=1, chunk=4, every=3)
        ),
        objective=ObjectiveConfig("dt", target_return=5.0),
    ),
    "icee": replace(
        RECIPE,
        model=replace(RECIPE.model, return_to_go="predicted", return_bins=11, return_high=10.0, cross_episode="equals"),
        objective=ObjectiveConfig("icee", start_fraction=1.0, estimate_behaviour=True),
    ),
}


class _NoisyOptimal:
    """The optimal action, or one time in three any."""

    def __init__(self, env, seed: int):
        self.env, self.streams = env, LaneStreams(seed, "noisy", lane_ids=env.num_envs)

    def reset(self, lanes) -> None: ...

    def act(self, observation, action_mask=None) -> Decision:
        best = self.env.optimal_action()
        other = self.streams.integers(5)
        return Decision(np.where(self.streams.uniform() < 1 / 3, other, best), best)

    def observe(self, step) -> None: ...


def make_store(path: Path, seed: int = 0, num_histories: int = 24, num_steps: int = 40) -> HistoryStore:
    """A dataset of ``FAMILY`` at ``path``."""
    split = FAMILY.split()
    task = np.arange(num_histories) % len(split.train)
    env = FAMILY.make_vec(split.train[task])
    turns = list(islice(rollout(_NoisyOptimal(env, seed), env, seed=seed, record_optimal=True), num_steps))

    def stack(get):
        return np.stack([get(turn) for turn in turns], 1)  # (B, T, ...)

    columns = {name: stack(lambda turn, n=name: getattr(turn.step, n)) for name in turns[0].step._fields}
    columns |= {
        "target_action": stack(lambda t: t.decision.target_action),
        "optimal_action": stack(lambda t: t.optimal_action),
    }
    following = columns.pop("next_observation")
    offset = np.arange(0, num_steps + 1, FAMILY.spec.horizon)
    histories = [
        schema.History(
            final_observation=following[i, offset[1:] - 1],
            episode_offset=offset,
            task=int(task[i]),
            **{name: column[i] for name, column in columns.items()},
        )
        for i in range(num_histories)
    ]
    names = ("target_action", "optimal_action")
    family = {"name": "darkroom", "options": OPTIONS}
    plan = writer.make_plan(FAMILY.spec, split, family=family, collect={"test": seed}, seed=seed, columns=names)
    with writer.writing(path, plan, split):
        writer.write_shard(path, 0, schema.pack_histories(FAMILY.spec, histories))
        writer.finish(path, 1, {})
    return HistoryStore.open(path)
