"""When an in-context agent that follows plans begins another one: what its lanes have committed themselves to, and for how long."""

from __future__ import annotations

import numpy as np

from icrl.interfaces import Array, PlanRule
from icrl.seeding import LaneStreams


class Commitment:
    """The running plans of B lanes."""

    def __init__(self, lanes: int, rule: PlanRule):
        self.rule = rule
        self.age = np.zeros(lanes, np.int64)  # (B,) actions since the plan began, 0: one must begin
        self.begins = np.ones(lanes, bool)  # (B,) whether one begins with the action that was chosen last

    def forget(self, lanes: Array) -> None:
        """A new task in some lanes."""
        self.age[lanes] = 0
        self.begins[lanes] = True

    def due(self, streams: LaneStreams) -> Array:
        """(B,) whether a plan begins now, whatever the policy thinks of the old one."""
        over = (self.age == 0) | ((self.rule.length > 0) & (self.age >= self.rule.length))
        return over | (streams.uniform() < self.rule.hazard)

    def observe(self, ended: Array) -> None:
        """The lanes have acted; the episodes of some (B,) are over, and so are their plans."""
        self.age = np.where(ended, 0, np.where(self.begins, 1, self.age + 1))
