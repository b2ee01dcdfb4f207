"""What a user's own loop hands to a trained agent, checked against its spaces: every mistake in one line, with the shapes."""

from __future__ import annotations

import gymnasium as gym
import numpy as np

from icrl.data.schema import flatten, observation_columns, transition_columns
from icrl.interfaces import Array, FamilySpec, Observation, Step, UserError


class Boundary:
    """The checks of one policy's spaces; all raise UserError. Every array has one row for each of ``lanes`` lanes."""

    def __init__(self, spec: FamilySpec):
        self._spec = spec
        self._observation = observation_columns(spec.observation_space)
        self._action = transition_columns(spec, ())["action"]

    def check_observation(self, name: str, observation: Observation, lanes: int) -> None:
        """Shapes, and values where they are indices."""
        if lanes == 0:
            raise UserError("the agent has no lanes yet: call reset(number of lanes) first")
        given = flatten("observation", observation)
        for key, column in self._observation.items():
            shape, expected = np.shape(given.get(key, ())), (lanes, *column.shape)
            part = name + key.removeprefix("observation")
            if key not in given or shape != expected:
                raise UserError(f"{part} has shape {shape}, expected {expected}: one row for each of {lanes} lanes")
            if column.dtype.kind in "iu" and not ((given[key] >= column.low) & (given[key] <= column.high)).all():
                raise UserError(
                    f"{part} has values outside {self._spec.observation_space}: this policy is for another family"
                )

    def check_step(self, step: Step, lanes: int) -> None:
        """Observations, actions within their space, finite rewards."""
        self.check_observation("observation", step.observation, lanes)
        self.check_observation("next_observation", step.next_observation, lanes)
        action, column = np.asarray(step.action), self._action
        if action.shape != (lanes, *column.shape) or not ((action >= column.low) & (action <= column.high)).all():
            raise UserError(
                f"action {action} was observed, expected one of {self._spec.action_space} for each of {lanes} lanes"
            )
        if np.shape(step.reward) != (lanes,) or not np.isfinite(step.reward).all():
            raise UserError(f"reward {step.reward} was observed, expected one finite number for each of {lanes} lanes")

    def check_mask(self, mask: Array | None, lanes: int) -> None:
        """Shape, and something allowed in every row."""
        if mask is None:
            return
        space = self._spec.action_space
        expected = (lanes, int(space.n)) if isinstance(space, gym.spaces.Discrete) else None
        if np.shape(mask) != expected or not np.asarray(mask).any(1).all():
            raise UserError(
                f"an action mask of shape {np.shape(mask)} was given, expected {expected} with a True in every row"
            )
