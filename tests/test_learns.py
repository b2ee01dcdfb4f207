"""A small transformer learns, in seconds: DPT the exact posterior of a bandit, AD the search of a Bayes explorer."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from toy import without_flushing

import icrl
from agents.collect import collect
from envs import make_family
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
from icrl.evaluation import evaluate
from icrl.evaluation_json import evaluation_to_json
from icrl.exactness import posterior_distance
from icrl.in_context import InContextAgent
from icrl.models.policy import make_policy
from icrl.training import train

_fast = pytest.fixture(scope="module", autouse=True)(without_flushing)

BANDIT = Recipe(
    name="learns",
    description="The posterior of two arms after at most six pulls.",
    family=FamilyConfig("bernoulli_bandit", {"num_arms": 2, "horizon": 7, "num_train_tasks": 4000}),
    collect=CollectConfig((SourceConfig("fixed_odds"),), num_histories=4000, steps_per_history=7, workers=1),
    model=ModelConfig(window=7, width=32, num_layers=2, num_heads=2, rotary=False, episode_embedding=False),
    objective=ObjectiveConfig("dpt", start_fraction=1.0),
    train=TrainConfig(steps=200, batch_size=128, learning_rate=4e-3, warmup_steps=25, validate_every=200),
)
# these held-out goals all lie where a sweep comes late: to go straight to them pays
ROOM = Recipe(
    name="learns",
    description="A search, then straight to the goal.",
    family=FamilyConfig("darkroom", {"width": 4, "height": 4, "horizon": 16, "num_validation": 1, "goal_split": 28}),
    collect=CollectConfig(
        (SourceConfig("nearest_plausible", {"epsilon": 0.3}),), num_histories=1024, steps_per_history=48, workers=1
    ),
    model=ModelConfig(window=48, width=32, num_layers=2, num_heads=1),
    objective=ObjectiveConfig("ad"),
    train=TrainConfig(steps=150, batch_size=32, learning_rate=3e-3, warmup_steps=20, validate_every=150),
)


def agents_of(policy):
    return lambda family, env, streams, num_steps: InContextAgent(policy, streams=streams)


def trained(recipe: Recipe, folder):
    """The family of the recipe, and what makes agents of the policy that it trains."""
    store, family = (
        collect(recipe, folder / "data", progress=False),
        make_family(recipe.family.name, **recipe.family.options),
    )
    recipe = replace(recipe, train=replace(recipe.train, validation_episodes=1, validation_lanes=4))
    train(recipe, store, family, folder / "run", threads=1, progress=False, monitored=False)
    return family, agents_of(icrl.load(folder / "run").policy)


@pytest.mark.parametrize("layout", ["step", "transition"])
def test_dpt_learns_the_exact_posterior_of_a_bandit(layout: Literal["step", "transition"], tmp_path):
    recipe = replace(BANDIT, model=replace(BANDIT.model, layout=layout))
    family, agents = trained(recipe, tmp_path)
    distance = posterior_distance(family, agents, 6, seed=0)
    assert distance.to_posterior.mean() < 0.06
    untrained = posterior_distance(family, agents_of(make_policy(family.spec, recipe.model, 0)), 6, seed=0)
    assert untrained.to_posterior.mean() > 0.15


def test_ad_learns_to_learn_in_a_dark_room(tmp_path):
    family, agents = trained(ROOM, tmp_path)
    config = EvaluateConfig(episodes=3, lanes=64)
    result = evaluate(family, family.split().test, {"agent": agents}, config, root_seed=0, progress=False)
    verdict = evaluation_to_json(result)["verdict"]
    assert verdict["learned"] is True, verdict["text"]
    last = result.agents["agent"].returns[0, :, -1].mean()
    assert last > 0.75 * np.mean(result.optimal_return)
