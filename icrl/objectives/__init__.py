"""Objectives: what a policy learns to predict, one file per paper."""

from __future__ import annotations

from icrl.config import ModelConfig, ObjectiveConfig
from icrl.interfaces import FamilySpec, UserError
from icrl.objectives.ad import AlgorithmDistillation
from icrl.objectives.base import LossOutput, Objective
from icrl.objectives.dpt import DecisionPretraining

__all__ = ["OBJECTIVES", "LossOutput", "Objective", "check_objective", "make_objective"]

OBJECTIVES = {"ad": AlgorithmDistillation, "dpt": DecisionPretraining}


def make_objective(config: ObjectiveConfig) -> Objective:
    """The objective that ``config`` names."""
    return OBJECTIVES[config.name](config)


def check_objective(config: ObjectiveConfig, model: ModelConfig, spec: FamilySpec) -> None:
    """Raise UserError where objective, layout and window contradict each other."""
    if config.name == "ad" and model.layout != "step":
        raise UserError(f"objective.name ad needs model.layout step, not {model.layout}")
    if config.name == "ad" and model.window < spec.horizon:
        raise UserError(
            f"model.window {model.window} is shorter than an episode of {spec.name} ({spec.horizon} steps), and AD needs windows "
            f"of several episodes: set model.window to at least {2 * spec.horizon}"
        )
    if config.name == "dpt" and config.start_fraction < 1:
        raise UserError(
            f"objective.start_fraction {config.start_fraction} cuts windows out of the middle of histories, from which DPT's labels do not "
            "follow: set it to 1"
        )
    if model.layout == "transition" and model.rotary:
        raise UserError("model.layout transition has no positions: set model.rotary to False")
