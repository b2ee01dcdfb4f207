"""Random tabular Markov decision processes: few states, Dirichlet transitions, sparse rewards, unlimited tasks (as in Osband et al. 2013).

A task draws for every state and action a distribution over next states from a symmetric Dirichlet, and for every state the
probability that a step which *ends* there pays 1, from a Beta distribution with most of its mass near 0. Episodes last exactly
``horizon`` steps, so the optimal policy depends on the steps left; it is found by value iteration backwards from the horizon.
Transitions and rewards draw from (seed, lane, number of the step) alone, so that compared agents meet the same random numbers.

Deviations from Osband et al.: rewards are Bernoulli and depend on the next state alone, so that they are sparse and found by walking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Literal, TypeAlias

import numpy as np
from gymnasium.spaces import Discrete, MultiDiscrete

from envs.base import NativeVectorEnv
from envs.tabular_posterior import TabularPosterior
from envs.tasks import LISTS, check_least, independent_split
from icrl.interfaces import Array, FamilySpec, Posterior, Split, Tasks, TaskVectorEnv, UserError

ValueOf: TypeAlias = Callable[[Array], Array]
"""The value of states (n, S) out of that of their actions (n, S, A): what is assumed of the policy."""
_TASKS_AT_ONCE = 2048
"""Tasks per piece of a value iteration, to bound its memory."""


@dataclass(frozen=True)
class TabularMDP:
    """Random Markov decision processes with a fixed first state, a fixed horizon and rewards of 0 or 1."""

    name: ClassVar[str] = "tabular"

    num_states: int = 10
    """States; episodes begin in state 0."""
    num_actions: int = 4
    """Actions."""
    horizon: int = 20
    """Steps per episode."""
    transition_concentration: float = 0.1
    """Parameter of the symmetric Dirichlet distribution of next states: the lower, the fewer next states an action has."""
    reward_mean: float = 0.15
    """Mean of the Beta distribution of a state's probability to pay."""
    reward_concentration: float = 0.5
    """Sum of the two parameters of that distribution: the lower, the nearer are the probabilities to 0 and 1."""
    start: Literal["first", "random"] = "first"
    """`first`: episodes begin in state 0. `random`: in a uniformly drawn state."""
    lookahead: int = 0
    """Steps of an episode for which the optimal policy plans; 0: the horizon. Longer than it in scattered transitions, whose labels
    are those of a whole episode's first step."""
    num_train_tasks: int = 10_000
    """Training tasks."""
    num_validation_tasks: int = 100
    """Tasks to choose checkpoints on."""
    num_test_tasks: int = 500
    """Tasks to report on."""
    task_seed: int = 0
    """Seed of the three lists of tasks."""

    def __post_init__(self):
        check_least(self.name, self, num_states=2, num_actions=2, horizon=1, **LISTS)
        if not 0 < self.reward_mean < 1:
            raise UserError(f"{self.name}'s reward_mean is {self.reward_mean}: expected a number between 0 and 1")
        for key in ("transition_concentration", "reward_concentration"):
            if not 0.05 <= getattr(self, key) < np.inf:
                raise UserError(f"{self.name}'s {key} is {getattr(self, key)}: expected at least 0.05")
        if self.lookahead and self.lookahead < self.horizon:
            raise UserError(f"{self.name}'s lookahead is {self.lookahead}: expected 0 or at least {self.horizon}")

    @property
    def spec(self) -> FamilySpec:
        """An observation is [state]."""
        space = MultiDiscrete([self.num_states], dtype=np.int16)
        return FamilySpec(self.name, space, Discrete(self.num_actions), self.horizon)

    @property
    def reward_prior(self) -> tuple[float, float]:
        """Both parameters of the Beta distribution of a state's probability to pay."""
        return self.reward_mean * self.reward_concentration, (1 - self.reward_mean) * self.reward_concentration

    @property
    def start_probs(self) -> Array:
        """(S,) distribution of an episode's first state."""
        if self.start == "random":
            return np.full(self.num_states, 1 / self.num_states)
        return np.eye(self.num_states)[0]

    def make_tasks(self, transitions: Array, reward_probs: Array) -> Tasks:
        """P(next state | state, action) (N, S, A, S) and P(reward 1 | next state) (N, S) -> tasks (N,), kept in single precision."""
        size = (self.num_states, self.num_actions, self.num_states)
        tasks = np.empty(len(transitions), [("transitions", np.float32, size), ("reward_probs", np.float32, size[:1])])
        tasks["transitions"], tasks["reward_probs"] = transitions, reward_probs
        return tasks

    def sample_tasks(self, rng: np.random.Generator, num_tasks: int) -> Tasks:
        """Independent Dirichlet rows and Beta probabilities."""
        concentration = np.full(self.num_states, self.transition_concentration)
        transitions = rng.dirichlet(concentration, (num_tasks, self.num_states, self.num_actions))
        return self.make_tasks(transitions, rng.beta(*self.reward_prior, (num_tasks, self.num_states)))

    def split(self) -> Split:
        """Three independent lists: tasks are continuous, so they share none. Read-only."""
        return _drawn_split(replace(self, horizon=1, start="first", lookahead=0))  # on which tasks do not depend

    def make_vec(self, tasks: Tasks, lane_ids: Array | None = None) -> TaskVectorEnv:
        """Lane i plays ``tasks[i]``. Raises UserError for what is no distribution or no probability."""
        transitions, reward_probs = tasks["transitions"], tasks["reward_probs"]
        if not ((transitions >= 0).all() and np.allclose(transitions.sum(axis=-1), 1, atol=1e-4)):
            raise UserError("a task's transitions hold a row that is no distribution: correct the task")
        if not ((reward_probs >= 0) & (reward_probs <= 1)).all():
            raise UserError("a task's reward_probs hold a number outside [0, 1]: correct the task")
        return TabularVectorEnv(self, tasks, lane_ids)

    def posterior(self, env: TaskVectorEnv) -> Posterior:
        """Exact: counts beside the prior, Dirichlet for transitions and Beta for rewards."""
        assert isinstance(env, TabularVectorEnv)
        return TabularPosterior(self, env)

    def scattered(self) -> TabularMDP:
        """The same tasks, one step per episode from a uniformly drawn state, labelled with the first step of a whole episode's optimum."""
        return replace(self, start="random", horizon=1, lookahead=self.lookahead or self.horizon)

    def optimal_return(self, tasks: Tasks) -> Array:
        """(N,) exact: expected return of an episode by value iteration."""
        return self._expected(tasks, _best)

    def random_return(self, tasks: Tasks) -> Array:
        """(N,) exact: expected return of an episode of uniform actions."""
        return self._expected(tasks, lambda values: values.mean(axis=2))

    def _expected(self, tasks: Tasks, value_of: ValueOf) -> Array:
        """(N,) expected return of an episode."""
        pieces = []
        for piece in np.split(tasks, range(_TASKS_AT_ONCE, len(tasks), _TASKS_AT_ONCE)):
            *_, values = action_values(piece, self.horizon, value_of)
            pieces.append(value_of(values) @ self.start_probs)
        return np.concatenate(pieces)


@lru_cache(maxsize=1)
def _drawn_split(family: TabularMDP) -> Split:
    """The split of a family, drawn once: a collection asks for it at every shard."""
    split = independent_split(family)
    for tasks in split:
        tasks.flags.writeable = False  # shared by all who ask
    return split


def action_values(tasks: Tasks, num_steps: int, value_of: ValueOf) -> Iterator[Array]:
    """Expected return (n, S, A) of every action with 1, 2, ... ``num_steps`` steps left, tasks (n,), given the value of what follows."""
    num_tasks, num_states, num_actions, _ = tasks["transitions"].shape
    transitions = tasks["transitions"].astype(np.float64).reshape(num_tasks, -1, num_states)  # (n, S A, S)
    following = np.zeros((num_tasks, num_states))
    for _ in range(num_steps):
        values = transitions @ (tasks["reward_probs"] + following)[:, :, None]  # (n, S A, 1)
        values = values.reshape(num_tasks, num_states, num_actions)
        following = value_of(values)
        yield values


def optimal_plans(tasks: Tasks, num_steps: int) -> Array:
    """(n, L, S) int16 the optimal action of every state with 1, 2, ... L steps left; the first of equals."""
    plans = [values.argmax(axis=2).astype(np.int16) for values in action_values(tasks, num_steps, _best)]
    return np.stack(plans, axis=1)


def _best(values: Array) -> Array:
    """(n, S, A) -> (n, S)."""
    return values.max(axis=2)


class TabularVectorEnv(NativeVectorEnv):
    """All lanes of a family of tabular decision processes in a few numpy operations per step."""

    state: Array  # (B,)

    def __init__(self, family: TabularMDP, tasks: Tasks, lane_ids: Array | None):
        super().__init__(family.spec, tasks, lane_ids)
        self._num_states, self._random_start = family.num_states, family.start == "random"
        self._lookahead = family.lookahead or family.horizon
        self._cumulative = np.cumsum(tasks["transitions"], axis=3)  # (B, S, A, S)
        self._own_plans: Array | None = None
        self._asked = np.empty((0, 0), np.uint32)  # (B, ...) the tasks last asked about
        self._asked_plans = np.empty(0)

    def _begin(self) -> None:
        if self._random_start:
            self.state = self.streams.integers(self._num_states)
        else:
            self.state = np.zeros(self.num_envs, np.int64)

    def _observe(self) -> Array:
        return self.state[:, None].astype(np.int16)

    def _move(self, actions: Array) -> Array:
        cumulative = self._cumulative[self._lanes, self.state, actions]  # (B, S)
        draws = self.streams.uniform(2)
        self.state = (cumulative <= draws[:, :1] * cumulative[:, -1:]).sum(axis=1)
        return (draws[:, 1] < self.tasks["reward_probs"][self._lanes, self.state]).astype(np.float32)

    def optimal_action(self, tasks: Tasks | None = None) -> Array:
        """(B,) the action that is best for the rest of the episode, by value iteration."""
        assert self._clock is not None, "reset before asking for actions"
        left = self._lookahead - self._clock
        return self._plans(tasks)[self._lanes, left - 1, self.state].astype(np.int64)

    def _plans(self, tasks: Tasks | None) -> Array:
        """(B, L, S) plans for the lanes' own or given tasks, made anew only where a lane's task differs from the one last asked about.

        Tasks are compared by content: an explorer hands in one array for ever and changes what it holds.
        """
        if tasks is None:
            if self._own_plans is None:
                self._own_plans = optimal_plans(self.tasks, self._lookahead)
            return self._own_plans
        asked = np.ascontiguousarray(tasks).view(np.uint32).reshape(len(tasks), -1)
        if self._asked.shape != asked.shape:
            self._asked, self._asked_plans = asked.copy(), optimal_plans(tasks, self._lookahead)
            return self._asked_plans
        changed = np.flatnonzero((asked != self._asked).any(axis=1))
        if changed.size:
            self._asked[changed] = asked[changed]
            self._asked_plans[changed] = optimal_plans(tasks[changed], self._lookahead)
        return self._asked_plans
