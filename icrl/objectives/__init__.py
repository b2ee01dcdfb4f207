"""Objectives: what a policy learns to predict, one file per paper."""

from __future__ import annotations

import math

import gymnasium as gym

from icrl.config import ModelConfig, ObjectiveConfig
from icrl.interfaces import FamilySpec, UserError
from icrl.objectives.ad import AlgorithmDistillation
from icrl.objectives.base import LossOutput, Objective
from icrl.objectives.dpt import DecisionPretraining
from icrl.objectives.dt import DecisionTransformer
from icrl.objectives.icee import InContextExploration

__all__ = ["OBJECTIVES", "LossOutput", "Objective", "check_objective", "make_objective"]

OBJECTIVES = {
    "ad": AlgorithmDistillation,
    "dpt": DecisionPretraining,
    "dt": DecisionTransformer,
    "icee": InContextExploration,
}


def make_objective(config: ObjectiveConfig) -> Objective:
    """The objective that ``config`` names."""
    return OBJECTIVES[config.name](config)


def check_objective(config: ObjectiveConfig, model: ModelConfig, spec: FamilySpec) -> None:
    """Raise UserError where objective, layout and window contradict each other."""
    remembers = model.memory.k > 0
    if config.name != "dpt" and model.layout != "step":
        raise UserError(f"objective.name {config.name} needs model.layout step, not {model.layout}")
    short = model.episodic or model.window < 2 * spec.horizon
    if config.name == "ad" and not remembers and not config.short_window and short:
        raise UserError(
            f"model.window {model.window} is shorter than two episodes of {spec.name} ({spec.horizon} steps each), and AD learns across "
            f"episodes: set model.window to at least {2 * spec.horizon} and model.episodic to False, or give the model a memory"
        )
    if config.name == "ad" and config.short_window and config.keep_every > 1:
        raise UserError(
            f"objective.keep_every {config.keep_every} joins whole episodes, which objective.short_window has no room for: set it to 1"
        )
    _check_conditioning(config, model)
    _check_plans(config, model, spec)
    _check_icee(config, model, spec)
    if config.name != "dpt" and config.privileged_sources:
        raise UserError(
            f"objective.privileged_sources is an option of DPT, not of {config.name.upper()}: leave it empty"
        )
    if config.name == "dpt" and not remembers and config.start_fraction < 1:
        raise UserError(
            f"objective.start_fraction {config.start_fraction} cuts windows out of the middle of histories, from which DPT's labels do not "
            "follow: set it to 1"
        )
    for name, unused in (("keep_every", 1), ("token_mask", 0), ("short_window", False)):
        if config.name != "ad" and getattr(config, name) != unused:
            raise UserError(
                f"objective.{name} {getattr(config, name)} is an option of AD, not of {config.name.upper()}: set it to {unused}"
            )
    if config.name in ("dpt", "icee") and config.label_smoothing:
        raise UserError(
            f"objective.label_smoothing {config.label_smoothing} is no option of {config.name.upper()}: set it to 0"
        )
    if model.layout == "transition" and model.rotary:
        raise UserError("model.layout transition has no positions: set model.rotary to False")
    if model.layout == "transition" and (model.interleaved or model.episodic or model.return_to_go != "off"):
        raise UserError(
            "model.interleaved, model.episodic and model.return_to_go are options of model.layout step: set them to False and off"
        )


def _check_plans(config: ObjectiveConfig, model: ModelConfig, spec: FamilySpec) -> None:
    """What ``model.plans`` asks for."""
    if config.told_by and not (model.plans and config.told_by > 0):
        raise UserError(
            f"objective.told_by {config.told_by} says when plans of DPT are no longer needed: set model.plans to True, or it to 0"
        )
    if model.plans and (config.name != "dpt" or model.layout != "step" or model.episodic):
        raise UserError("model.plans is for objective dpt in layout step and whole lives: set it to False")
    if model.plans and not isinstance(spec.action_space, gym.spaces.Discrete):
        raise UserError(
            f"model.plans needs discrete actions, which can be doubted, not {spec.action_space}: set it to False"
        )


def _check_icee(config: ObjectiveConfig, model: ModelConfig, spec: FamilySpec) -> None:
    """What objective ``icee`` asks for."""
    estimated = config.estimate_behaviour or config.habits_alone
    if config.name != "icee" and (estimated or not config.corrected or config.improving_weight != 1):
        raise UserError(
            "objective.corrected, estimate_behaviour, habits_alone and improving_weight are options of ICEE, "
            f"not of {config.name.upper()}: set them to True, False, False and 1"
        )
    if config.estimate_behaviour and config.habits_alone:
        raise UserError(
            "objective.estimate_behaviour is given the task and habits_alone is not: set one of them to False"
        )
    if not 0 < config.improving_weight < math.inf:
        raise UserError(f"objective.improving_weight is {config.improving_weight}, expected a number above 0")
    if not config.most_weight > 0:
        raise UserError(f"objective.most_weight is {config.most_weight}, expected more than 0")
    if (config.name == "icee") != model.predicts_returns:
        raise UserError(
            f"objective.name icee and model.return_to_go predicted belong together, not {config.name} and {model.return_to_go}: set both or neither"
        )
    if config.name == "icee" and model.window < 2 * spec.horizon:
        raise UserError(
            f"model.window {model.window} is shorter than two episodes of {spec.name} ({spec.horizon} steps each), and ICEE learns across episodes: set it to "
            f"at least {2 * spec.horizon}"
        )
    if estimated and not config.corrected:
        raise UserError(
            "objective.estimate_behaviour and habits_alone serve objective.corrected: set them to False, or it to True"
        )
    if config.estimate_behaviour and config.symmetries:
        raise UserError(
            "objective.estimate_behaviour is given tasks, which symmetries change: set one of them to False"
        )
    box = spec.action_space
    if config.name == "icee" and config.corrected and isinstance(box, gym.spaces.Box) and not box.is_bounded():
        raise UserError(
            f"ICEE compares the source with uniform actions, which {box} has none of: bound it, or set objective.corrected to False"
        )
    if config.name == "icee" and (model.episodic or model.memory.k):
        raise UserError(
            "objective.name icee reads whole lives, without a memory: set model.episodic to False, model.memory.k to 0"
        )
    if model.cross_episode != "off" and not model.predicts_returns:
        raise UserError(
            f"model.cross_episode {model.cross_episode} is about returns that a policy predicts (objective icee): set it to off"
        )
    if model.predicts_returns and not (model.return_bins > 1 and model.return_low < model.return_high):
        raise UserError(
            f"model.return_bins {model.return_bins} from model.return_low {model.return_low:g} to return_high {model.return_high:g}: expected at least 2 values, "
            "and a lower and a higher end"
        )


def _check_conditioning(config: ObjectiveConfig, model: ModelConfig) -> None:
    """What an objective asks of ``model.episodic`` and ``model.return_to_go``."""
    if config.name == "dpt" and model.episodic and not model.memory.k:
        raise UserError(
            "model.episodic cuts histories into episodes, from which DPT's labels do not follow: set it to False, or give the model a memory"
        )
    if config.name == "dt" and not (model.conditioned and model.episodic):
        raise UserError("objective.name dt needs model.return_to_go and model.episodic: set them to rate and True")
    if not 0 <= model.rate_step < float("inf") or (model.rate_step and model.return_to_go != "rate"):
        raise UserError(
            f"model.rate_step {model.rate_step:g} rounds rates, and is a number of at least 0: set model.return_to_go to rate, or it to 0"
        )
    if not 0 <= config.apart <= 1 or (config.apart and config.name != "dt"):
        raise UserError(f"objective.apart is {config.apart}: expected a share from 0 to 1 for DT, 0 for all others")
    if config.apart and not model.memory.k:
        raise UserError(
            "objective.apart without a memory leaves nothing to learn a task from: set it to 0, or model.memory.k above 0"
        )
    if config.apart and model.mixture.by_task:
        raise UserError("objective.apart hides what a task router reads: set it to 0, or model.mixture.parts to token")
    if config.search_return and config.name != "dt":
        raise UserError(f"objective.search_return is an option of DT, not of {config.name.upper()}: set it to 0")
    if model.conditioned and config.name != "dt":
        raise UserError(f"model.return_to_go is for objective dt, not {config.name}: set it to off")
