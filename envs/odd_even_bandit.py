"""The bandit whose structure turns round between training and test: good arms are odd, then even (Laskin et al. 2022, "adversarial bandit").

Arms pay 1 with probabilities that are uniform on [0, 1]. In a training task the best arm is an odd one with probability 0.95, in a
test task an even one: an agent that has learned the structure instead of learning from its context fails. Arms count from 0.

The paper says only that reward is more likely under odd arms 95 % of the time, with ten arms and 100 pulls; that this is about the
best arm is a reading of ours, under which the prior, and with it the exact belief, stays simple: that of independent arms, with
every task weighed by the parity of its best arm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from envs.bandit import BernoulliBandit
from envs.bandit_posterior import BernoulliPosterior
from icrl.interfaces import Array, Posterior, Split, Tasks, TaskVectorEnv, UserError
from icrl.seeding import LaneStreams


@dataclass(frozen=True)
class OddEvenBandit(BernoulliBandit):
    """Arms that pay 0 or 1; the best one is mostly odd in training and validation, mostly even in tests."""

    name: ClassVar[str] = "odd_even_bandit"

    num_arms: int = 10
    """Arms, an even number."""
    horizon: int = 100
    """Pulls per episode."""
    favour: float = 0.95
    """Probability that the best arm of a task is odd (of a test task: even)."""
    prior: Literal["training", "uniform"] = "training"
    """What exact beliefs know beforehand: `training`, how training tasks are drawn; `uniform`, nothing of odd and even."""

    def __post_init__(self):
        super().__post_init__()
        if self.num_arms % 2:
            raise UserError(f"the bandit's num_arms is {self.num_arms}: expected an even number")
        if not 0.5 <= self.favour <= 0.99:
            raise UserError(f"the bandit's favour is {self.favour}: expected 0.5 to 0.99")

    def sample_tasks(self, rng: np.random.Generator, num_tasks: int) -> Tasks:
        """Training tasks: uniform means, each pair of arms (0 and 1, 2 and 3, ...) exchanged where the best arm has the wrong parity."""
        tasks = super().sample_tasks(rng, num_tasks)
        odd = tasks["means"].argmax(axis=1) % 2 == 1
        wrong = odd != (rng.random(num_tasks) < self.favour)
        tasks[wrong] = _exchanged(tasks[wrong])
        return tasks

    def split(self) -> Split:
        """Three independent lists, validation as training, in the test tasks odd and even exchanged."""
        train, validation, test = super().split()
        return Split(train, validation, _exchanged(test))

    def posterior(self, env: TaskVectorEnv) -> Posterior:
        """Exact under the ``prior``."""
        odd = np.arange(self.num_arms) % 2 == 1
        known = self.prior == "training"
        return OddEvenPosterior(
            env.num_envs, np.where(odd, self.favour, 1 - self.favour) if known else np.ones(self.num_arms)
        )


def _exchanged(tasks: Tasks) -> Tasks:
    """The same tasks with the means of arms 0 and 1, 2 and 3, ... exchanged."""
    other = tasks.copy()
    other["means"] = tasks["means"][:, np.arange(tasks["means"].shape[1]) ^ 1]
    return other


class OddEvenPosterior(BernoulliPosterior):
    """The belief over independent arms, times the weight (A,) of the arm that is the best one."""

    def __init__(self, num_lanes: int, weights: Array):
        super().__init__(num_lanes, len(weights))
        self._weights = weights / weights.max()

    def sample(self, streams: LaneStreams, lanes: Array) -> Tasks:
        """One task (n,) for each of the lanes (n,): independent arms, kept with their weight as probability, else drawn again."""
        tasks, missing = super().sample(streams, lanes), np.arange(len(lanes))
        while missing.size:
            best = tasks["means"][missing].argmax(axis=1)
            missing = missing[streams.uniform(lanes=lanes[missing]) >= self._weights[best]]
            tasks[missing] = super().sample(streams, lanes[missing])
        return tasks

    def _weights_best(self, lanes: Array) -> Array:
        return super()._weights_best(lanes) * self._weights
