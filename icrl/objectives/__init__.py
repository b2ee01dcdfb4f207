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
    if config.name == "ad" and model.window < 2 * spec.horizon:
        raise UserError(
            f"model.window {model.window} is shorter than two episodes of {spec.name} ({spec.horizon} steps each), and AD learns across "
            f"episodes: set model.window to at least {2 * spec.horizon}"
        )
    if config.name == "ad" and config.privileged_sources:
        raise UserError("objective.privileged_sources is an option of DPT, not of AD: leave it empty")
    if config.name == "dpt" and config.start_fraction < 1:
        raise UserError(
            f"objective.start_fraction {config.start_fraction} cuts windows out of the middle of histories, from which DPT's labels do not "
            "follow: set it to 1"
        )
    if config.name == "dpt":
        for name, unused in (("keep_every", 1), ("token_mask", 0), ("label_smoothing", 0)):
            if getattr(config, name) != unused:
                raise UserError(
                    f"objective.{name} {getattr(config, name)} is an option of AD, not of DPT: set it to {unused}"
                )
    if model.layout == "transition" and model.rotary:
        raise UserError("model.layout transition has no positions: set model.rotary to False")
