"""Bayesian optimisation with a Gaussian process, for families whose actions are points: expected improvement, and Thompson sampling.

The process is BoTorch's (an optional extra, ``pip install icrl[bo]``), fitted to all evaluations at every step with that library's own
priors and optimiser. Expected improvement is taken as its logarithm (Ament et al. 2023), which has the same maximiser and does not underflow. The first
point is random. Where the family says that its evaluations have no noise, no point is evaluated twice.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import numpy as np
from scipy import linalg

from agents.base import lanes_of_reset, num_actions
from icrl.interfaces import Agent, Array, Decision, Family, Observation, Step, TaskVectorEnv, UserError
from icrl.seeding import LaneStreams

_NUGGET = 1e-8
"""Added to the variance of evaluations without noise."""
Kernel = Literal["matern", "rbf"]


@dataclass(frozen=True)
class GPExpectedImprovement:
    """Evaluate where a fitted Gaussian process expects the greatest improvement on the best value so far."""

    kernel: Kernel = "matern"
    """`matern`: Matérn-5/2, as draws of `bayesian_optimisation` have; `rbf`: squared exponential, BoTorch's default."""
    known_noise: bool = False
    """Tell the process how much noise the family has, instead of having it fitted as well, which is BoTorch's default and takes twice as long."""

    def make(self, family: Family, env: TaskVectorEnv, streams: LaneStreams, num_steps: int) -> Agent:
        return _ExpectedImprovement(family, env, streams, "gp_ei", self)


@dataclass(frozen=True)
class GPThompson:
    """Evaluate the greatest point of a function drawn from what a Gaussian process believes."""

    kernel: Kernel = "matern"
    """As for `gp_ei`; not used where hyper-parameters are `true`."""
    known_noise: bool = False
    """As for `gp_ei`; where hyper-parameters are `true`, it is known anyway."""
    hyper_parameters: Literal["fitted", "true"] = "fitted"
    """`true`: the exact belief of somebody who knows each task's length scales, for draws of a Gaussian process alone. Needs no BoTorch."""

    def make(self, family: Family, env: TaskVectorEnv, streams: LaneStreams, num_steps: int) -> Agent:
        if self.hyper_parameters == "true":
            return _ExactThompson(family, env, streams, "gp_thompson")
        return _FittedThompson(family, env, streams, "gp_thompson", self)


class _Searcher:
    """Remembers what was evaluated in each lane, and goes to the point of the highest score."""

    follows_from_history = True
    """Whether scores are a function of what was evaluated, so that every choice but the first has probability 1."""

    def __init__(self, family: Family, env: TaskVectorEnv, streams: LaneStreams, who: str):
        points = family.spec.action_points
        if points is None or len(points) != num_actions(env, who):
            raise UserError(
                f"{who} needs a family whose actions are points, as those of bayesian_optimisation are, not {family.spec.name}: choose another source"
            )
        self._points = np.asarray(points, np.float64)  # (A, d)
        noise = getattr(family, "noise", None)
        self._without_noise, self._noise = noise == 0, float(noise or 0)
        self._streams = streams
        self._actions: list[list[int]] = [[] for _ in range(env.num_envs)]
        self._rewards: list[list[float]] = [[] for _ in range(env.num_envs)]

    def reset(self, lanes: int | Sequence[int] | Array) -> None:
        num_lanes = len(self._actions)
        for lane in np.arange(num_lanes)[lanes_of_reset(lanes, num_lanes)]:
            self._actions[lane], self._rewards[lane] = [], []

    def observe(self, step: Step) -> None:
        for lane in range(len(self._actions)):
            self._actions[lane].append(int(step.action[lane]))
            self._rewards[lane].append(float(step.reward[lane]))

    def act(self, observation: Observation, action_mask: Array | None = None) -> Decision:
        allowed = np.ones((len(self._actions), len(self._points)), bool) if action_mask is None else action_mask
        first = np.array([not evaluated for evaluated in self._actions])
        action = np.array([self._choose(lane, allowed[lane]) for lane in range(len(first))])
        if not self.follows_from_history:
            return Decision(action, action)
        return Decision(action, action, np.where(first, -np.log(allowed.sum(axis=1)), 0).astype(np.float32))

    def _choose(self, lane: int, allowed: Array) -> int:
        evaluated = self._actions[lane]
        if not evaluated:
            scores = self._streams.uniform(len(self._points), np.array([lane]))[0]
        else:
            scores = np.array(self._scores(lane, evaluated, np.array(self._rewards[lane])))
            if self._without_noise and not set(np.flatnonzero(allowed)) <= set(evaluated):
                scores[evaluated] = -np.inf
        return int(np.where(allowed, scores, -np.inf).argmax())

    def _normals(self, lane: int, num: int) -> Array:
        """(num,) of the lane's stream."""
        return self._streams.normal(num, np.array([lane])).reshape(num)

    def _scores(self, lane: int, evaluated: list[int], values: Array) -> Array:
        """(A,) what each point promises, given the points (n,) that were evaluated in the lane and what they paid (n,)."""
        raise NotImplementedError


class _ExactThompson(_Searcher):
    """A draw of the prior, corrected by what was evaluated (Matheron's rule; Wilson et al. 2020)."""

    follows_from_history = False

    def __init__(self, family: Family, env: TaskVectorEnv, streams: LaneStreams, who: str):
        super().__init__(family, env, streams, who)
        if "length_scales" not in (env.tasks.dtype.names or ()) or (env.tasks["function"] >= 0).any():
            raise UserError(
                f"{who} knows true hyper-parameters only of tasks that are draws of a Gaussian process: choose hyper_parameters=fitted"
            )
        self._family: Any = family
        self._length_scales = env.tasks["length_scales"]  # (B, 2)

    def _scores(self, lane: int, evaluated: list[int], values: Array) -> Array:
        scales = self._length_scales[lane]
        draw = self._family.draw(scales, self._normals(lane, len(self._points)))
        noise = self._noise * self._normals(lane, len(evaluated))
        to_evaluated = self._family.covariance(scales, evaluated)  # (A, n)
        between = to_evaluated[evaluated] + (self._noise**2 + _NUGGET) * np.eye(len(evaluated))
        return draw + to_evaluated @ linalg.solve(between, values - draw[evaluated] - noise, assume_a="pos")


class _Fitted(_Searcher):
    """Asks a process of BoTorch's that is fitted at every step."""

    def __init__(
        self,
        family: Family,
        env: TaskVectorEnv,
        streams: LaneStreams,
        who: str,
        options: GPExpectedImprovement | GPThompson,
    ):
        super().__init__(family, env, streams, who)
        self._library = _BoTorch(who, options.kernel, self._noise**2 if options.known_noise else None)

    def _scores(self, lane: int, evaluated: list[int], values: Array) -> Array:
        seed = int(self._streams.integers(2**31, np.array([lane]))[0])
        with self._library.apart(seed):
            process = self._library.fitted(self._points[evaluated], values)
            return self._judge(process, lane, values).detach().numpy()

    def _judge(self, process: Any, lane: int, values: Array) -> Any:
        """The score of each point (A,) as a tensor."""
        raise NotImplementedError


class _ExpectedImprovement(_Fitted):
    def _judge(self, process: Any, lane: int, values: Array) -> Any:
        return self._library.log_improvement(process, values.max(), self._points)


class _FittedThompson(_Fitted):
    follows_from_history = False

    def _judge(self, process: Any, lane: int, values: Array) -> Any:
        return self._library.draw(process, self._points, self._normals(lane, len(self._points)))


class _BoTorch:
    """What is needed of that library, which is imported when a source is made. Raises UserError where it is missing."""

    def __init__(self, who: str, kernel: Kernel, variance: float | None):
        self._kernel, self._variance = kernel, variance
        try:
            with _without_warnings():  # that torch would now do otherwise what the library does
                self._torch: Any = import_module("torch")
                self._models: Any = import_module("botorch.models")
                self._kernels: Any = import_module("botorch.models.utils.gpytorch_modules")
                self._acquisition: Any = import_module("botorch.acquisition")
                self._fit: Any = import_module("botorch.fit")
                self._likelihoods: Any = import_module("gpytorch.mlls")
        except ImportError as error:
            raise UserError(f"{who} needs BoTorch ({error}): pip install icrl[bo]") from None

    @contextmanager
    def apart(self, seed: int) -> Iterator[None]:
        """One thread, and random numbers of our own for a fit that begins again: both are put back afterwards."""
        num_threads = self._torch.get_num_threads()
        with self._torch.random.fork_rng(devices=[]), _without_warnings():
            self._torch.manual_seed(seed)
            self._torch.set_num_threads(1)
            try:
                yield
            finally:
                self._torch.set_num_threads(num_threads)

    def fitted(self, points: Array, values: Array) -> Any:
        """A process that was fitted to values (n,) at points (n, d); where no fit succeeds, one with the priors' modes."""
        options = {"ard_num_dims": points.shape[1], "use_rbf_kernel": self._kernel == "rbf"}
        kernel = self._kernels.get_covar_module_with_dim_scaled_prior(**options)
        x, y = self._tensor(points), self._tensor(values)[:, None]
        known = None if self._variance is None else self._torch.full_like(y, self._variance)
        process = self._models.SingleTaskGP(x, y, train_Yvar=known, covar_module=kernel)
        likelihood = self._likelihoods.ExactMarginalLogLikelihood(process.likelihood, process)
        try:
            self._fit.fit_gpytorch_mll(likelihood)
        except self._fit.ModelFittingError:
            likelihood.eval()
        return process

    def log_improvement(self, process: Any, best: float, points: Array) -> Any:
        """(A,) logarithm of the expected improvement on ``best`` at each point (A, d)."""
        return self._acquisition.LogExpectedImprovement(process, best_f=best)(self._tensor(points)[:, None])

    def draw(self, process: Any, points: Array, normals: Array) -> Any:
        """(A,) a function drawn from the belief at points (A, d), made of standard normal numbers (A,)."""
        base = self._tensor(normals)[None]
        return process.posterior(self._tensor(points)).rsample_from_base_samples(base.shape[:1], base)[0, :, 0]

    def _tensor(self, array: Array) -> Any:
        return self._torch.as_tensor(np.array(array, np.float64))


@contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
