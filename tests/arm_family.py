"""A toy family for evaluation tests: one arm pays, so that every return can be worked out by hand; and toy agents."""

import dataclasses
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from icrl.config import EvaluateConfig
from icrl.evaluation import evaluate
from icrl.interfaces import Decision, FamilySpec, TaskVectorEnv
from icrl.seeding import LaneStreams

NUM_ACTIONS = 4


class ArmEnv(TaskVectorEnv):
    """Reward 1 for the task's arm (plus noise if asked); an episode lasts the task's ``length``; shows (step, 0)."""

    metadata: ClassVar[dict] = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, family, tasks):
        self.tasks, self.num_envs, self.family = tasks, len(tasks), family
        self.single_observation_space, self.single_action_space = (
            family.spec.observation_space,
            family.spec.action_space,
        )
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def _observation(self):
        return np.stack([self.clock, np.zeros_like(self.clock)], 1)

    def reset(self, *, seed=None, options=None):
        self.clock = np.zeros(self.num_envs, np.int64)
        self.streams = LaneStreams(seed or 0, "arm", lane_ids=self.num_envs)
        return self._observation(), {}

    def step(self, actions):
        reward = self.tasks["means"][np.arange(self.num_envs), actions].astype(np.float32)
        if self.family.noise:
            reward = reward + self.family.noise * self.streams.normal().astype(np.float32)
        self.clock += 1
        truncated = self.clock >= (1 if self.family.one_step else self.tasks["length"])
        final, self.clock = self._observation(), np.where(truncated, 0, self.clock)
        info = {"final_obs": final, "_final_obs": truncated} if truncated.any() else {}
        return self._observation(), reward, np.zeros(self.num_envs, bool), truncated, info


@dataclasses.dataclass(frozen=True)
class ArmFamily:
    noise: float = 0.0
    one_step: bool = False
    scale: float = 1.0

    @property
    def spec(self):
        return FamilySpec("arm", gym.spaces.MultiDiscrete([6, 1]), gym.spaces.Discrete(NUM_ACTIONS), 5)

    def tasks(self, num, length=5):
        tasks = np.zeros(num, [("means", np.float32, (NUM_ACTIONS,)), ("length", np.int64)])
        tasks["means"][np.arange(num), np.arange(num) % NUM_ACTIONS] = self.scale
        tasks["length"] = length
        return tasks

    def make_vec(self, tasks, lane_ids=None):
        return ArmEnv(self, tasks)

    def optimal_return(self, tasks):
        return tasks["length"] * tasks["means"].max(1)

    def random_return(self, tasks):
        return tasks["length"] * tasks["means"].mean(1)

    def scattered(self):
        return dataclasses.replace(self, one_step=True)


class Try:
    """Tries the arms in turn until one pays, then stays with it; remembers what it was shown."""

    def __init__(self, lanes=0):
        self.shown, self.reset_to = [], []

    def reset(self, lanes):
        self.reset_to.append(lanes)
        self.arm = np.zeros(lanes, np.int64)
        self.shown = []

    def act(self, observation, action_mask=None):
        return Decision(self.arm.copy())

    def observe(self, step):
        self.shown.append(step)
        self.arm = np.where(step.reward > 0.5, step.action, (step.action + 1) % NUM_ACTIONS)


class Fixed:
    """Always plays one arm per lane."""

    def __init__(self, arms):
        self.arms = arms

    def reset(self, lanes):
        pass

    def act(self, observation, action_mask=None):
        return Decision(np.asarray(self.arms))

    def observe(self, step):
        pass


class Noisy(Fixed):
    """Plays at random from the streams it was given."""

    def __init__(self, streams):
        self.streams = streams

    def act(self, observation, action_mask=None):
        return Decision(self.streams.integers(NUM_ACTIONS))


def try_arms(family, env, streams, num_steps):
    return Try()


def optimal(family, env, streams, num_steps):
    return Fixed(env.tasks["means"].argmax(1))


def zero(family, env, streams, num_steps):
    return Fixed(np.zeros(env.num_envs, np.int64))


def noisy(family, env, streams, num_steps):
    return Noisy(streams)


AGENTS = {"agent": try_arms, "optimal": optimal, "random": noisy}
FAMILY: Any = ArmFamily()  # what evaluation needs of a family, not all of one


def run(family: Any = FAMILY, tasks=None, agents=None, progress=False, **options):
    config = EvaluateConfig(**{"episodes": 4, "lanes": 16, **options})
    tasks = family.tasks(8) if tasks is None else tasks
    return evaluate(
        family,
        tasks,
        agents or AGENTS,
        config,
        root_seed=0,
        progress=progress,
        context_agents={"random": noisy, "expert": optimal},
    )
