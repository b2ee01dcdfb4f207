"""A small evaluation of Bayesian optimisation, with an agent that follows plans and says how probable its actions were."""

from __future__ import annotations

import numpy as np

from agents import make_source
from envs import make_family
from icrl.config import EvaluateConfig
from icrl.evaluation import Evaluation, evaluate
from icrl.interfaces import PLAN_BEGINS, Decision

FAMILY = make_family("bayesian_optimisation", num_train_tasks=2, num_validation_tasks=0)


class Sweep:
    """Evaluates candidates 0, 1, 2, ...; every other one begins a plan."""

    def __init__(self, env):
        self.lanes = env.num_envs

    def reset(self, lanes):
        self.age = 0

    def act(self, observation, action_mask=None):
        action = np.full(self.lanes, self.age)
        return Decision(action, None, np.full(self.lanes, -0.5), np.full(self.lanes, PLAN_BEGINS * (self.age % 2 == 0)))

    def observe(self, step):
        self.age += 1


def run_search(episodes: int = 6) -> Evaluation:
    """The sweep beside random actions, once on each test function."""
    tasks = FAMILY.split().test
    config = EvaluateConfig(episodes=episodes, lanes=len(tasks), hide_rewards=False)
    agents = {"agent": lambda family, env, streams, steps: Sweep(env), "random": make_source("random").make}
    return evaluate(FAMILY, tasks, agents, config, root_seed=0, progress=False)  # type: ignore[arg-type]
