"""Held-out evaluation with frozen weights: one agent and its baselines on the same tasks, lanes, seeds and random numbers.

systems.md, "Evaluation protocol". Lane i plays task i mod N, so lanes are spread evenly over the tasks; every lane counts
the same number of episodes, so short episodes get no more weight than long ones. All agents meet the same environment streams
(common random numbers), which is what makes their differences *paired*. What is computed from the returns is in
``icrl/evaluation_json.py``.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeAlias

import numpy as np
from tqdm import tqdm

from icrl.config import EvaluateConfig
from icrl.controls import (
    FixedContext,
    HiddenRewards,
    HideMode,
    choose_hide_mode,
    donor_lanes,
    hidden_rewards,
    hide_note,
    zero_reward_share,
)
from icrl.data.sampling import Window
from icrl.given_contexts import record_context
from icrl.interfaces import Agent, Array, Family, FamilySpec, Tasks, TaskVectorEnv, UserError
from icrl.rollout import rollout
from icrl.seeding import LaneStreams, derive_seed
from icrl.trackers import TRACKERS, Tracker, TrackerFactory

AgentFactory: TypeAlias = Callable[[Family, TaskVectorEnv, LaneStreams, int], Agent]
"""(family, env, streams, number of steps) -> agent; a source's ``make`` fits."""


@dataclass(frozen=True)
class AgentResult:
    """What one agent did. ``note`` says how a control was made or a baseline trained; ``privileged`` what it knows that an agent may not."""

    name: str
    role: str  # "agent", "baseline" or "control"
    returns: Array  # (S, L, E) float32 return of each episode
    num_steps: int  # environment steps taken, all lanes and seeds
    seconds: float  # spent in the roll-outs
    note: str = ""
    privileged: str | None = None
    tracked: Mapping[str, Array] = field(default_factory=dict)  # arrays that the trackers left

    @property
    def steps_per_second(self) -> float:
        return self.num_steps / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class Evaluation:
    """Results of all agents on the same runs: S seeds x L lanes, E episodes each, N tasks played."""

    spec: FamilySpec
    config: EvaluateConfig
    root_seed: int
    primary: str
    hidden: str | None  # the primary agent with its rewards hidden, if evaluated
    tasks: Tasks  # (N,) tasks played
    num_split_tasks: int  # tasks in the split, of which the first N were played
    lane_task: Array  # (L,) index into tasks
    optimal_return: Array  # (N,) expected return of one episode
    random_return: Array  # (N,)
    agents: Mapping[str, AgentResult]


def evaluate(
    family: Family,
    split_tasks: Tasks,
    agents: Mapping[str, AgentFactory],
    config: EvaluateConfig,
    *,
    root_seed: int,
    primary: str = "agent",
    context_agents: Mapping[str, AgentFactory] | None = None,
    privileged: Mapping[str, str] | None = None,
    notes: Mapping[str, str] | None = None,
    trackers: Mapping[str, TrackerFactory] = TRACKERS,
    progress: bool = True,
) -> Evaluation:
    """Roll all ``agents`` out on the tasks of a split; with ``config.hide_rewards`` also the primary one without rewards.

    ``privileged`` tells for some names what they know beyond the context, ``notes`` how they were trained. Offline (``config.mode``), each lane's context of
    ``config.context_size`` transitions is left by ``context_agents[config.context]`` ("random" acts in ``family.scattered()``), is
    the same for every agent, and one episode is rolled on it. Raises UserError for contradictory options, before any work.
    """
    _check(split_tasks, agents, config, primary, context_agents or {})
    if config.mode == "offline":
        config = dataclasses.replace(config, episodes=1)
    tasks = split_tasks[: config.lanes]  # every task played; all of them where there are lanes enough
    run = _Run(family, tasks, np.arange(config.lanes) % len(tasks), config, root_seed, trackers, progress)
    contexts = (
        [run.context(seed, (context_agents or {})[config.context]) for seed in config.seeds] if run.offline else []
    )
    references = {  # first, so that what a family must make for its tasks counts in no agent's time
        "optimal_return": np.asarray(family.optimal_return(tasks), np.float64),
        "random_return": np.asarray(family.random_return(tasks), np.float64),
    }
    knows, trained, results = privileged or {}, notes or {}, {}
    for name, factory in agents.items():
        role = "agent" if name == primary else "baseline"
        known, note = knows.get(name), trained.get(name, "")
        results[name] = run.agent(name, role, factory, name, contexts, note=note, privileged=known)
    hidden = f"{primary}, rewards hidden" if config.hide_rewards else None
    if hidden:
        zero_share = zero_reward_share(family, tasks, root_seed)
        mode = choose_hide_mode(zero_share, len(tasks))
        note = hide_note(mode, zero_share)
        results[hidden] = run.agent(hidden, "control", agents[primary], primary, contexts, hide=mode, note=note)
    return Evaluation(
        spec=family.spec,
        config=config,
        root_seed=root_seed,
        primary=primary,
        hidden=hidden,
        tasks=tasks,
        num_split_tasks=len(split_tasks),
        lane_task=run.lane_task,
        **references,
        agents=results,
    )


def run_episodes(
    agent: Agent,
    env: TaskVectorEnv,
    episodes: int,
    *,
    horizon: int,
    seed: int,
    trackers: Sequence[Tracker] = (),
    bar: tqdm | None = None,
) -> tuple[Array, int]:
    """Returns (B, episodes) float32 of the first episodes of every lane, and the steps taken in all lanes.

    Lanes that finish early go on but do not count, until the slowest is done; ``horizon`` bounds an episode's length.
    Raises UserError if an episode is longer.
    """
    returns = np.zeros((env.num_envs, episodes), np.float32)
    lanes, episode, steps = np.arange(env.num_envs), np.zeros(env.num_envs, np.int64), 0
    for turn in islice(rollout(agent, env, seed=seed), episodes * horizon):
        counts = episode < episodes
        returns[lanes[counts], episode[counts]] += turn.step.reward[counts]
        for tracker in trackers:
            tracker.update(turn, episode)
        episode = episode + turn.step.ended
        steps += env.num_envs
        if bar is not None:
            bar.update(env.num_envs)
        if (episode >= episodes).all():
            _refuse_failures(env)
            return returns, steps
    raise UserError(
        f"an episode did not end within the family's horizon of {horizon} steps: let the environment truncate at spec.horizon"
    )


def _refuse_failures(env: TaskVectorEnv) -> None:
    """Raise UserError where an environment failed on the way (``GymVectorEnv.failed``): its lane's zeros are no returns."""
    for lane, reason in getattr(env, "failed", {}).items():
        raise UserError(
            f"the environment of lane {lane}, task {env.tasks[lane]}, {reason}: returns need every lane, so repair it or leave the task out"
        )


@dataclass(frozen=True)
class _Run:
    """What all agents of one evaluation share."""

    family: Family
    tasks: Tasks  # (N,)
    lane_task: Array  # (L,)
    config: EvaluateConfig
    root_seed: int
    trackers: Mapping[str, TrackerFactory]
    progress: bool

    @property
    def offline(self) -> bool:
        return self.config.mode == "offline"

    def context(self, seed: int, factory: AgentFactory) -> Window:
        """(L, P) the transitions that every agent is given at this evaluation seed."""
        kind, size = self.config.context, self.config.context_size
        family = self.family.scattered() if kind == "random" else self.family
        env = family.make_vec(self.tasks[self.lane_task])
        streams = LaneStreams(self.root_seed, "evaluation", seed, "context", kind, lane_ids=len(self.lane_task))
        env_seed = derive_seed(self.root_seed, "evaluation", seed, "context", "env")
        return record_context(factory(family, env, streams, size), env, size, seed=env_seed)

    def agent(
        self,
        name: str,
        role: str,
        factory: AgentFactory,
        stream: str,
        contexts: Sequence[Window],
        *,
        hide: HideMode | None = None,
        note: str = "",
        privileged: str | None = None,
    ) -> AgentResult:
        """All seeds of one agent; ``stream`` names its random numbers."""
        horizon, seeds = self.family.spec.horizon, self.config.seeds
        most = self.config.episodes * horizon
        returns, tracked, num_steps, seconds = [], [], 0, 0.0
        total = len(seeds) * len(self.lane_task) * most
        with tqdm(total=total, desc=name, unit="step", unit_scale=True, disable=not self.progress) as bar:
            for k, seed in enumerate(seeds):
                env = self.family.make_vec(self.tasks[self.lane_task])
                streams = LaneStreams(self.root_seed, "evaluation", seed, "agent", stream, lane_ids=env.num_envs)
                agent = self._wrapped(factory(self.family, env, streams, most), contexts[k] if contexts else None, hide)
                watching = self._watch(env, first=k == 0)
                env_seed = derive_seed(self.root_seed, "evaluation", seed, "env")
                start = time.perf_counter()
                episode_returns, steps = run_episodes(
                    agent, env, self.config.episodes, horizon=horizon, seed=env_seed, trackers=watching, bar=bar
                )
                seconds += time.perf_counter() - start
                env.close()
                returns.append(episode_returns)
                tracked.append([(t.every_seed, t.arrays()) for t in watching])
                if k == 0 and hasattr(agent, "tracked"):
                    tracked[0].append((False, agent.tracked()))  # type: ignore[attr-defined]  # what the agent itself leaves
                num_steps += steps
        arrays = _join_seeds(tracked)
        return AgentResult(name, role, np.stack(returns), num_steps, seconds, note, privileged, arrays)

    def _watch(self, env: TaskVectorEnv, first: bool) -> list[Tracker]:
        """The trackers that apply; at later seeds only those that want every seed."""
        most = self.config.episodes * self.family.spec.horizon
        made = [make(env, self.config.episodes, most) for make in self.trackers.values()]
        return [tracker for tracker in made if tracker is not None and (first or tracker.every_seed)]

    def _wrapped(self, agent: Agent, context: Window | None, hide: HideMode | None) -> Agent:
        """The agent with its context given and its rewards hidden, where asked for."""
        if context is not None:
            if hide is not None:
                donors = donor_lanes(self.lane_task) if hide == "other_task" else None
                context = dataclasses.replace(context, reward=hidden_rewards(context.reward, hide, donors))
            agent = FixedContext(agent, context)
        return agent if hide is None else HiddenRewards(agent, hide, self.lane_task)


def _join_seeds(tracked: list[list[tuple[bool, dict[str, Array]]]]) -> dict[str, Array]:
    """Arrays of every seed stacked (S, ...), of the others those of the first seed."""
    joined = {}
    for every_seed, arrays in tracked[0]:
        for key, array in arrays.items():
            alike = [seed_arrays[key] for seed in tracked for _, seed_arrays in seed if key in seed_arrays]
            joined[key] = np.stack(alike) if every_seed else array
    return joined


def _check(
    tasks: Tasks,
    agents: Mapping[str, AgentFactory],
    config: EvaluateConfig,
    primary: str,
    context_agents: Mapping[str, AgentFactory],
) -> None:
    """Contradictions, found before any work."""
    if len(tasks) == 0:
        raise UserError(
            f"the {config.split} split holds 0 tasks: evaluation needs at least 1; give the family more tasks or another --split"
        )
    for name in ("lanes", "episodes"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)}: expected at least 1")
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise UserError(
            f"evaluation seeds {config.seeds}: expected at least one, all different; drop the repeated ones"
        )
    if primary not in agents:
        raise UserError(f"primary agent {primary!r} is not among {', '.join(agents)}: name one of them")
    if config.mode == "offline":
        if config.context_size < 1:
            raise UserError(
                f"--context-size {config.context_size}: expected at least 1 transition; or use --mode online"
            )
        if config.context not in context_agents:
            raise UserError(
                f"--context {config.context}: no agent to leave it; expected one of {', '.join(context_agents) or 'none'}"
            )
