"""What families of simulated robots share: the sizes of T2MIR's task lists (Wu et al. 2025), and returns that have to be measured."""

from __future__ import annotations

from dataclasses import dataclass

from envs.gym_family import GymTaskFamily
from envs.tasks import check_least


@dataclass(frozen=True, kw_only=True)
class RobotFamily(GymTaskFamily):
    """45 training and 5 test tasks as in T2MIR, validation tasks beside them; an episode ends at ``horizon`` alone."""

    num_train_tasks: int = 45
    """Training tasks."""
    num_validation_tasks: int = 10
    """Tasks to choose checkpoints on."""
    num_test_tasks: int = 5
    """Tasks to report on."""
    measured_episodes: int = 4
    """Episodes of each task by which an expected return is measured."""

    def __post_init__(self):
        super().__post_init__()
        check_least(self.title, self, horizon=1)
