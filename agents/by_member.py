"""One source in every family of a mixed one: each lane has an agent of its own family, which sees that family's spaces.

So a Bayes explorer knows from the start which family it is in: privileged data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from agents import make_source, source_class
from agents.base import lanes_of_reset, num_actions
from envs.mixed import MixedVectorEnv
from icrl.interfaces import Agent, Array, Decision, Family, Source, Step, TaskVectorEnv, UserError
from icrl.registry import read_option
from icrl.seeding import LaneStreams


@dataclass(frozen=True)
class ByMember:
    """The same source in all families of family `mixed`."""

    source: str = "nearest_plausible"
    """Source by name, or as `module:Class`."""
    source_options: tuple[str, ...] = ()
    """Its options, each as name=value, like epsilon=0.1."""
    greedy: bool = False
    """Where that source has probabilities: take the most probable action instead of sampling."""

    def __post_init__(self):
        if isinstance(self.source_options, str):
            raise UserError(f"by_member's source_options is {self.source_options!r}: expected a list of texts")
        object.__setattr__(self, "source_options", tuple(self.source_options))  # a list where it was read from JSON
        _ = self.inner  # wrong names and values are refused now

    @cached_property
    def inner(self) -> Source:
        """The source that plays in every family."""
        options = dict(read_option(option, "by_member's source_options") for option in self.source_options)
        if self.greedy and any(field.name == "greedy" for field in fields(source_class(self.source))):  # pyright: ignore[reportArgumentType]
            options["greedy"] = True
        return make_source(self.source, **options)

    def make(self, family: Family, env: TaskVectorEnv, streams: LaneStreams, num_steps: int) -> Agent:
        """Raises UserError where ``env`` is not of family `mixed`."""
        if not isinstance(env, MixedVectorEnv):
            raise UserError(f"by_member is for family mixed, not {family.spec.name}: choose the source itself")
        agents = [
            (lanes, own, self.inner.make(env.family.families[member], own, streams.of_lanes(lanes), num_steps))
            for member, lanes, own in env.inner
        ]
        return _Agents(agents, env.num_envs)


class _Agents:
    def __init__(self, agents: list[tuple[Array, TaskVectorEnv, Agent]], num_lanes: int):
        self._agents, self._num_lanes = agents, num_lanes

    def reset(self, lanes: int | Sequence[int] | Array) -> None:
        meant = np.zeros(self._num_lanes, bool)
        meant[lanes_of_reset(lanes, self._num_lanes)] = True
        for own, _, agent in self._agents:
            if meant[own].all():
                agent.reset(len(own))
            elif meant[own].any():
                agent.reset(np.flatnonzero(meant[own]))

    def act(self, observation: Any, action_mask: Array | None = None) -> Decision:
        decisions = []
        for lanes, env, agent in self._agents:
            allowed = None if action_mask is None else action_mask[lanes, : num_actions(env, "by_member")]
            decisions.append(agent.act(_own(observation, lanes, env), allowed))

        def joined(name: str) -> Array | None:
            values = [getattr(decision, name) for decision in decisions]
            if any(value is None for value in values):
                return None
            whole = np.zeros(self._num_lanes, values[0].dtype)
            for (lanes, _, _), value in zip(self._agents, values, strict=True):
                whole[lanes] = value
            return whole

        action = joined("action")
        assert action is not None, "every decision has an action"
        return Decision(action, joined("target_action"), joined("behaviour_log_prob"), joined("plan"))

    def observe(self, step: Step) -> None:
        for lanes, env, agent in self._agents:
            agent.observe(
                Step(
                    observation=_own(step.observation, lanes, env),
                    action=step.action[lanes],
                    reward=step.reward[lanes],
                    terminated=step.terminated[lanes],
                    truncated=step.truncated[lanes],
                    next_observation=_own(step.next_observation, lanes, env),
                )
            )


def _own(observation: Any, lanes: Array, env: TaskVectorEnv) -> Array:
    """What a family's own lanes see, without the padding."""
    return observation[lanes, : env.single_observation_space.shape[0]]  # type: ignore[index]
