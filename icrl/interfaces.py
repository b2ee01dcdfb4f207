"""The contracts that everything else speaks: steps, agents, families, posteriors. No torch here.

Alignment, said once for the whole project: **action[t] is taken at observation[t] and earns reward[t]**;
next_observation[t] is what the action led to, at the end of an episode its true last observation (never the
first one of the next episode).

Axis legend, used in every shape comment of the project:
    B lanes or batch   T time or tokens   D width   H heads   A actions   N tasks or supported tasks
    K top-k            E experts          L retrieved length   Q queries   P transitions of a context

A *lane* is one running environment; lane i of a vector environment plays task i. An *observation* is an array with
a leading lane axis, or a dictionary of such arrays where the space is a ``gymnasium.spaces.Dict``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from icrl.seeding import LaneStreams

Array: TypeAlias = np.ndarray
Observation: TypeAlias = Any
"""``Array`` (B, ...) or ``dict[str, Array]`` of them."""
Tasks: TypeAlias = np.ndarray
"""Structured array (N,): one record per task; its field names are the keyword arguments that ``gymnasium.make`` takes."""


class UserError(Exception):
    """A mistake of the user's: the message says in one line what was given, what was expected and what to do.

    The command line prints the message without a traceback and exits with status 2.
    """


class Step(NamedTuple):
    """One transition of every lane."""

    observation: Observation  # (B, ...)
    action: Array  # (B,) int, or (B, action_dim) float
    reward: Array  # (B,) float32
    terminated: Array  # (B,) bool
    truncated: Array  # (B,) bool
    next_observation: Observation  # (B, ...) true last observation where the episode ended

    @property
    def ended(self) -> Array:
        """(B,) bool: the episode ended after this action."""
        return self.terminated | self.truncated


@dataclass(frozen=True)
class PlanRule:
    """When an agent that follows plans begins another one; it always does where an episode begins."""

    hazard: float = 0.1
    """Probability at each step."""
    doubt: float = 0.02
    """Where the policy, asked for a new plan, gives the action with which the old one goes on less than this probability; 0: never."""
    length: int = 0
    """After so many steps; 0: never."""

    def __post_init__(self):
        if not (0 <= self.hazard <= 1 and 0 <= self.doubt <= 1 and self.length >= 0):
            raise UserError(
                f"plans with hazard {self.hazard}, doubt {self.doubt} and length {self.length}: expected two probabilities and at least 0 steps"
            )


@dataclass(frozen=True)
class ActionRule:
    """How actions are taken from what a policy gives: the same for every compared policy."""

    greedy: bool = False
    """Take the most probable action (of a density: the mean) instead of sampling."""
    temperature: float = 1.0
    """Sample with probabilities to the power 1 / temperature, renormalised. Raises UserError unless positive."""
    plans: PlanRule = PlanRule()
    """When a policy that follows plans begins another."""
    tilt: float = 3.0
    """How far a policy that predicts returns goes for high ones: their probabilities are multiplied by ((c - c_min) / (c_max - c_min))^tilt."""
    search_tilt: float | None = None
    """The same while no step in the window has paid more than 0; None: ``tilt``."""

    def __post_init__(self):
        if not 0 < self.temperature < float("inf"):
            raise UserError(
                f"temperature {self.temperature}: expected more than 0 (greedy takes the most probable action)"
            )
        for name, tilt in (("tilt", self.tilt), ("search_tilt", self.search_tilt)):
            if tilt is not None and not 0 <= tilt < float("inf"):
                raise UserError(f"{name} {tilt}: expected at least 0, which leaves returns as they are predicted")

    def __str__(self) -> str:
        if self.greedy:
            return "greedy"
        return "sampled" if self.temperature == 1 else f"sampled at temperature {self.temperature:g}"

    def words(self, *, plans: bool = False, predicts_returns: bool = False) -> str:
        """The same, with what a policy that follows plans or predicts returns is told beside."""
        told = f"{self}"
        if plans:
            rule = self.plans
            told += f", new plan with probability {rule.hazard:g} or below doubt {rule.doubt:g}"
            told += f" or after {rule.length} steps" if rule.length else ""
        if predicts_returns:
            told += f", returns tilted by {self.tilt:g}"
            told += "" if self.search_tilt is None else f", where no reward is known by {self.search_tilt:g}"
        return told


class Decision(NamedTuple):
    """What an agent chose, and what it knows about the choice."""

    action: Array  # (B,) int, or (B, action_dim) float: what is executed
    target_action: Array | None = None  # what the agent meant to do before noise
    behaviour_log_prob: Array | None = (
        None  # (B,) log-probability (discrete) or log-density of `action`, noise included
    )
    plan: Array | None = None  # (B,) sum of PLAN_BEGINS and PLAN_OF_TASK, where the agent follows plans


PLAN_BEGINS = 1
"""A plan begins with this action; otherwise the last one goes on. An agent without plans begins one with every action."""
PLAN_OF_TASK = 2
"""The plan is that of the lane's own task, and was begun for no reason that has to do with it."""


class Agent(Protocol):
    """Anything that acts in lanes: sources, baselines, oracles and learned agents alike."""

    def reset(self, lanes: int | Sequence[int] | Array) -> None:
        """An int starts that many lanes afresh; a sequence of lane indices makes only those forget everything.

        Called when a lane gets a new *task*, not at the end of an episode.
        """
        ...

    def act(self, observation: Observation, action_mask: Array | None = None) -> Decision:
        """Choose for all lanes. ``action_mask`` (B, A) bool: True where the action is allowed."""
        ...

    def observe(self, step: Step) -> None:
        """Learn what the last action of every lane led to."""
        ...


class Posterior(Protocol):
    """Exact (or particle) belief over the tasks of a family, one per lane. All that a Bayes explorer knows."""

    def reset(self, lanes: int | Sequence[int] | Array) -> None: ...

    def update(self, step: Step) -> None: ...

    def sample(self, streams: LaneStreams, lanes: Array) -> Tasks:
        """One task per index in ``lanes`` (n,), drawn from that lane's posterior."""
        ...

    def refuted(self, tasks: Tasks) -> Array:
        """(B,) bool: lane i's evidence excludes tasks[i] (always False where evidence never excludes)."""
        ...

    def candidates(self) -> tuple[Tasks, Array]:
        """Supported tasks, (N,) shared by all lanes or (B, N), and their weights (B, N); rows sum to 1."""
        ...

    def plausible(self) -> tuple[Tasks, Array]:
        """The same tasks, and a mask (B, N) of those with positive weight: what an explorer asks for at every step."""
        ...

    def optimal_action_probs(self, env: TaskVectorEnv) -> Array:
        """(B, A): posterior probability that each action is the optimal one in the lanes' current state.

        This is what a converged Decision-Pretrained Transformer outputs (Lee et al. 2023, theorem 1).
        """
        ...


@dataclass(frozen=True)
class FamilySpec:
    """What a policy must know of a family to have the right inputs and outputs."""

    name: str
    observation_space: gym.Space  # of one lane
    action_space: gym.Space  # of one lane: Discrete or Box
    horizon: int
    """Longest possible episode, in steps."""
    action_points: Array | None = field(default=None, compare=False)
    """(A, F) where each of A discrete actions lies in the unit cube, if they are points: policies then know near ones from far ones."""


class Symmetry(NamedTuple):
    """A way to see a family in a mirror: what it makes of a task is a task of the family, though episodes may begin elsewhere."""

    observation: Callable[[Array], Array]  # observations (n, ...) -> (n, ...)
    actions: Array  # (A,) int: what becomes of each action, which is an index


class Split(NamedTuple):
    """Disjoint tasks: trained on, chosen on, reported on."""

    train: Tasks
    validation: Tasks
    test: Tasks


class TaskVectorEnv(VectorEnv):
    """A vector environment whose lane i plays ``tasks[i]``, with same-step autoreset.

    ``step`` puts the true next observations of *all* lanes under ``info["final_obs"]`` (dense, (B, ...)) whenever an
    episode ended in any lane, with the mask ``info["_final_obs"]`` (B,), and an ``info["action_mask"]`` (B, A) where actions can be illegal.
    Lane streams follow ``reset(seed=...)`` and the lane's number in ``lane_ids`` alone.
    """

    tasks: Tasks  # (B,)

    def optimal_action(self, tasks: Tasks | None = None) -> Array:
        """Optimal action in the lanes' true internal state under their own or the given tasks (B,) -> (B,)."""
        raise UserError(f"{type(self).__name__} has no optimal policy: choose a source that does not need one")

    def steps_to_reward(self, tasks: Tasks) -> Array:
        """(B, N) number of steps until each task, (N,) or (B, N), would first pay if it were the true one."""
        raise UserError(f"{type(self).__name__} cannot tell steps to a reward: choose another explorer")


class Family(Protocol):
    """A distribution over tasks that share spaces. Families are frozen dataclasses: their fields are their options."""

    @property
    def spec(self) -> FamilySpec: ...

    def sample_tasks(self, rng: np.random.Generator, num_tasks: int) -> Tasks: ...

    def split(self) -> Split: ...

    def make_vec(self, tasks: Tasks, lane_ids: Array | None = None) -> TaskVectorEnv: ...

    def optimal_return(self, tasks: Tasks) -> Array:
        """(N,) expected return of one episode of the optimal policy (or of the best known one)."""
        ...

    def random_return(self, tasks: Tasks) -> Array:
        """(N,) expected return of one episode of uniform actions."""
        ...

    def posterior(self, env: TaskVectorEnv) -> Posterior:
        """A fresh belief for the lanes of ``env``. Raises UserError where the family has none."""
        ...

    def scattered(self) -> Family:
        """The same tasks with every episode one step long from a uniformly drawn state: uniform (o, a) transitions."""
        ...


# A family may also have ``symmetries() -> Sequence[Symmetry]``, for augmentation (icrl/data/symmetry.py).


class Source(Protocol):
    """How to build an agent that leaves histories. Sources are frozen dataclasses: their fields are their options.

    A source that drives its own loop, as RL libraries do, has a method ``record`` beside ``make`` (which then refuses): it plays the one lane of
    ``env`` and hands each turn to ``keep``. See ``agents.sb3_source.SB3``.
    """

    def make(self, family: Family, env: TaskVectorEnv, streams: LaneStreams, num_steps: int) -> Agent:
        """An agent for the lanes of ``env`` that will live ``num_steps`` steps in each."""
        ...


def map_observation(function: Callable[..., Any], *observations: Observation) -> Observation:
    """Apply ``function`` to the arrays of observations of one structure."""
    if isinstance(observations[0], dict):
        return {key: map_observation(function, *(o[key] for o in observations)) for key in observations[0]}
    return function(*observations)


def take_lanes(observation: Observation, lanes: Array) -> Observation:
    """The observation of some lanes: (B, ...) -> (n, ...)."""
    return map_observation(lambda array: array[lanes], observation)


def where_lanes(mask: Array, yes: Observation, no: Observation) -> Observation:
    """Lane-wise choice between two observations; ``mask`` (B,)."""

    def choose(a: Array, b: Array) -> Array:
        return np.where(mask.reshape(mask.shape + (1,) * (np.ndim(a) - 1)), a, b)

    return map_observation(choose, yes, no)
