"""Contradictions between the options of a recipe, found before any work."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from agents import make_source
from agents.collect import play
from agents.plans import Plans
from agents.rl2 import check_playable
from envs import make_family
from icrl.config import EvaluateConfig, MemoryConfig, Recipe, SourceConfig
from icrl.data.store import HistoryStore
from icrl.interfaces import ActionRule, Family, Tasks, UserError
from icrl.recipe_json import differing_fields
from icrl.rollout import rollout
from icrl.seeding import LaneStreams
from scripts.baselines import CONTEXT_SOURCES, baseline_factory, baseline_sources


def check_recipe(recipe: Recipe, family: Family | None = None) -> Family:
    """The recipe's family, once its options agree with each other and with the family.

    Raises UserError with one line on the first contradiction.
    """
    if recipe.seed < 0:
        raise UserError(f"--seed {recipe.seed}: expected at least 0")
    family = make_family(recipe.family.name, **recipe.family.options) if family is None else family
    for check in (_collection, _model, _training, _rl2):
        for problem in check(recipe, family):
            raise UserError(problem)
    tasks, steps = family.split().train, recipe.collect.steps_per_history
    for number, source in enumerate(recipe.collect.sources):
        _try_out(f"--collect.sources.{number}", source, family, tasks, steps, beside_others=False)
    for number, evaluation in enumerate(recipe.evaluations):
        check_evaluation(evaluation, recipe, family, f"evaluations.{number}")
    return family


def check_rl2(recipe: Recipe, family: Family) -> None:
    """Raise UserError where RL² cannot be trained as the recipe says."""
    for problem in _rl2(recipe, family):
        raise UserError(problem)


def check_evaluation(
    evaluation: EvaluateConfig, recipe: Recipe, family: Family | None = None, where: str = "", run: Path | None = None
) -> None:
    """Raise UserError if this evaluation of the recipe's policy cannot be done; ``family`` is the recipe's, ``run`` holds what was trained."""
    prefix = f"--{where}." if where else "--"
    if evaluation.family is not None or family is None:
        trained = make_family(recipe.family.name, **recipe.family.options)
        family = evaluation_family(evaluation, recipe)
        _same_spaces(trained, family, prefix)
        _held_out(trained, family, evaluation.split, prefix)
    for problem in _evaluation(evaluation, recipe, family, prefix):
        raise UserError(problem)
    tasks, steps = split_tasks(family, evaluation.split), evaluation.episodes * family.spec.horizon
    for row, source in baseline_sources(recipe, evaluation, run).items():
        if source.name == "rl2" and not source.options:
            if recipe.rl2.steps == 0:
                raise UserError(
                    f"{prefix}baselines rl2: this recipe trains no RL² policy: pass --rl2.steps 1000000, say"
                )
            continue  # there will be one
        _try_out(
            f"{prefix}baselines {row}",
            source,
            family,
            tasks,
            steps,
            evaluation.rule,
        )
    if evaluation.mode == "offline":
        context = evaluation.context
        _try_out(f"{prefix}context {context}", CONTEXT_SOURCES[context], family, tasks, evaluation.context_size)


def check_data(store: HistoryStore, family: Family) -> None:
    """Raise UserError where the histories were left in another family, or in this one with other options."""
    described = store.manifest["family"]
    there = make_family(described["name"], **described["options"])
    for name, old, new in differing_fields(_options(there), _options(family)):
        raise UserError(
            f"the dataset {store.path} was collected with family option {name} = {old}, the recipe has {new}: "
            f"pass --family.options.{name.replace('_', '-')} {old}, or collect again"
        )


def _options(family: Family) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(family), default=str))  # pyright: ignore[reportArgumentType]


def evaluation_family(evaluation: EvaluateConfig, recipe: Recipe) -> Family:
    """The family that an evaluation is done on: its own, or the recipe's."""
    config = evaluation.family or recipe.family
    return make_family(config.name, **config.options)


def split_tasks(family: Family, name: str) -> Tasks:
    """One list of a family's split, or with ``all`` the three, one after the other."""
    split = family.split()
    return np.concatenate(split) if name == "all" else getattr(split, name)


def _try_out(
    given: str,
    source: SourceConfig,
    family: Family,
    tasks: Tasks,
    num_steps: int,
    rule: ActionRule | None = None,
    beside_others: bool = True,
) -> None:
    """Play one step of a source in one lane, as an agent of an evaluation or (not ``beside_others``) to leave a history.

    Raises UserError, starting with ``given``, where it does not fit the family.
    """
    try:
        played = family.scattered() if source.scattered else family
        env = played.make_vec(tasks[:1])
        streams = LaneStreams(0, "check", lane_ids=1)
        if beside_others:
            next(rollout(baseline_factory(source, rule)(played, env, streams, num_steps), env, seed=0))
        else:
            made, stop = make_source(source.name, **source.options), lambda turn: False
            play(made, played, env, streams, num_steps, seed=0, record_optimal=False, keep=stop)
    except UserError as error:
        raise UserError(f"{given}: {error}") from None


def _same_spaces(trained: Family, family: Family, prefix: str) -> None:
    from icrl.checkpoint import check_spec

    check_spec(trained.spec, family.spec, f"a policy trained for {trained.spec.name} ({prefix}family)")


def _held_out(trained: Family, family: Family, split: str, prefix: str) -> None:
    """Tasks that are reported as held out must not be among those that the policy was trained on."""
    tasks, seen = split_tasks(family, split), trained.split().train
    if split in ("train", "all") or tasks.dtype != seen.dtype:
        return
    known = {task.tobytes() for task in seen}
    number = sum(task.tobytes() in known for task in tasks)
    if number:
        raise UserError(
            f"{prefix}split {split}: the policy was trained on {number} of the {len(tasks)} {split} tasks of this family: keep the options "
            "that choose the split, or pass --split all"
        )


def _positive(config: object, prefix: str, *names: str) -> Iterator[str]:
    for name in names:
        if getattr(config, name) < 1:
            yield f"--{prefix}{name.replace('_', '-')} {getattr(config, name)}: expected at least 1"


def _collection(recipe: Recipe, family: Family) -> Iterator[str]:
    collect = recipe.collect
    yield from _positive(collect, "collect.", "num_histories", "steps_per_history", "shard_histories", "workers")
    if not collect.sources:
        yield "collect.sources is empty: expected at least one source"
    for number, source in enumerate(collect.sources):
        if source.weight <= 0:
            yield f"--collect.sources.{number}.weight {source.weight}: expected more than 0"
        if source.scattered and recipe.objective.name == "ad":
            yield (
                f"--collect.sources.{number}.scattered with the objective ad: single transitions show no learning; "
                "pass --collect.sources.0.no-scattered or --objective.name dpt"
            )
        told_by = source.options.get("told_by", Plans.told_by)
        if source.name == "plans" and recipe.objective.told_by not in (0, told_by):
            yield (
                f"--collect.sources.{number}.options told_by {told_by} and --objective.told-by {recipe.objective.told_by}: histories and loss "
                "must agree on when plans end: pass the same"
            )
    if len(family.split().train) == 0:
        yield "the family's split leaves no training tasks: change the family's options"


def _model(recipe: Recipe, family: Family) -> Iterator[str]:
    import torch

    from icrl.models.policy import Policy, check_model
    from icrl.objectives import check_objective

    model, objective, horizon = recipe.model, recipe.objective, family.spec.horizon
    yield from _positive(model, "model.", "window", "width", "num_layers", "num_heads", "mlp_ratio")
    yield from _positive(objective, "objective.", "keep_every")
    if model.window > np.iinfo(np.int16).max:
        yield f"--model.window {model.window}: expected at most {np.iinfo(np.int16).max}, which is as far as windows count steps"
    if model.head_width < 0:
        yield f"--model.head-width {model.head_width}: expected at least 1, or 0 for model.width / model.num_heads"
    check_model(model)
    check_objective(objective, model, family.spec)
    with torch.device("meta"):  # no memory: only to see that every space has an encoder or a head
        Policy(family.spec, model)
    if not 0 <= model.dropout < 1:
        yield f"--model.dropout {model.dropout}: expected 0 <= dropout < 1"
    if model.exact_set and model.layout != "transition":
        yield "--model.exact-set needs --model.layout transition: the layout step is an ordered stream"
    for name in ("token_mask", "label_smoothing", "start_fraction"):
        if not 0 <= getattr(objective, name) <= 1:
            yield f"--objective.{name.replace('_', '-')} {getattr(objective, name)}: expected 0 to 1"
    if any(not 0 <= number < len(recipe.collect.sources) for number in objective.privileged_sources):
        yield (
            f"--objective.privileged-sources {' '.join(map(str, objective.privileged_sources))}: expected numbers of the recipe's sources, "
            f"0 to {len(recipe.collect.sources) - 1}"
        )
    if objective.num_queries < 0:
        yield f"--objective.num-queries {objective.num_queries}: expected 0 (every prefix) or more"
    needed = (objective.keep_every + 1) * horizon
    if objective.name == "ad" and recipe.collect.steps_per_history < needed:
        yield (
            f"--collect.steps-per-history {recipe.collect.steps_per_history} leaves fewer than two episodes of {horizon} steps to "
            f"--objective.keep-every {objective.keep_every}, and algorithm distillation learns across episodes: pass at least {needed}"
        )


def _training(recipe: Recipe, family: Family) -> Iterator[str]:
    from icrl.data.sampling import check_pairs
    from icrl.optimisation import check_train
    from icrl.training import makes_pairs

    train = recipe.train
    check_train(train)
    if makes_pairs(recipe):
        check_pairs(train.batch_size, len(family.split().train))
    if not 0 <= train.beta2 < 1:
        yield f"--train.beta2 {train.beta2}: expected 0 <= beta2 < 1"
    if len(family.split().validation) == 0:
        yield "the family's split leaves no validation tasks, on which the checkpoint is chosen: change its options"


def _rl2(recipe: Recipe, family: Family) -> Iterator[str]:
    rl2 = recipe.rl2
    if rl2.steps < 0 or rl2.rollout_steps < 0:
        name = "steps" if rl2.steps < 0 else "rollout_steps"
        yield f"--rl2.{name.replace('_', '-')} {getattr(rl2, name)}: expected at least 0"
    yield from _positive(rl2, "rl2.", "episodes", "num_envs", "width", "epochs", "batch_lanes", "checkpoint_every")
    if rl2.num_envs % rl2.batch_lanes:
        yield f"--rl2.batch-lanes {rl2.batch_lanes}: expected a divisor of --rl2.num-envs {rl2.num_envs}"
    for name in ("gamma", "gae_lambda"):
        if not 0 <= getattr(rl2, name) <= 1:
            yield f"--rl2.{name.replace('_', '-')} {getattr(rl2, name)}: expected 0 to 1"
    if not 0 < rl2.learning_rate < 1:
        yield f"--rl2.learning-rate {rl2.learning_rate}: expected more than 0 and less than 1"
    if rl2.entropy < 0 or not rl2.reward_scale > 0:
        yield f"--rl2.entropy {rl2.entropy} and --rl2.reward-scale {rl2.reward_scale}: expected at least 0, and more than 0"
    if rl2.steps:
        check_playable(family.spec)


def other_memory(memory: MemoryConfig, changes: dict[str, int | float | str]) -> MemoryConfig:
    """The options of a memory with some changed. Raises UserError for one that does not exist, that trained weights are for, or that the value does not fit."""
    from icrl.recipe_json import dataclass_from_json

    kinds = {
        f.name: type(getattr(memory, f.name)) for f in dataclasses.fields(memory) if f.name not in memory.WEIGHTS_FOR
    }
    for name in changes:
        if name in memory.WEIGHTS_FOR:
            raise UserError(f"--retrieval {name}: trained weights are for one model.memory.{name}, train another")
    unknown = [name for name in changes if name not in kinds]
    if unknown:
        raise UserError(f"--retrieval {unknown[0]}: no option of model.memory, expected some of {', '.join(kinds)}")
    try:
        typed = {name: kinds[name](value) for name, value in changes.items()}
    except ValueError as error:
        raise UserError(f"--retrieval: {error}") from None
    return dataclass_from_json(MemoryConfig, {**dataclasses.asdict(memory), **typed}, "--retrieval")


def _remembering(evaluation: EvaluateConfig, recipe: Recipe, prefix: str) -> Iterator[str]:
    """What an evaluation asks of a memory."""
    if (evaluation.memory or evaluation.retrieval) and not recipe.model.memory.k:
        yield f"{prefix}memory and {prefix}retrieval are for policies with a memory, and model.memory.k is 0: leave them out"
    if evaluation.memory and not Path(evaluation.memory).is_file():
        yield f"{prefix}memory {evaluation.memory}: there is no such file; icrl evaluate RUN --save-memory FILE writes one"
    if evaluation.memory and evaluation.hide_rewards:
        yield f"{prefix}memory {evaluation.memory} holds rewards, so there is no control without them: add --no-hide-rewards"
    if evaluation.mode == "offline" and (recipe.model.episodic or recipe.model.memory.k):
        yield f"{prefix}mode offline gives a fixed context, which is for policies that read whole lives and have no memory: use online"
    if evaluation.retrieval:
        other_memory(recipe.model.memory, evaluation.retrieval)


def _acting(evaluation: EvaluateConfig, prefix: str) -> Iterator[str]:
    """How actions are taken."""
    for name in ("plan_hazard", "plan_doubt"):
        if not 0 <= getattr(evaluation, name) <= 1:
            yield f"{prefix}{name.replace('_', '-')} {getattr(evaluation, name)}: expected a probability, 0 to 1"
    for name in ("plan_length", "tilt", "search_tilt"):
        value = getattr(evaluation, name)
        if value is not None and not 0 <= value < float("inf"):
            yield f"{prefix}{name.replace('_', '-')} {value}: expected at least 0"
    if not 0 < evaluation.temperature < float("inf"):
        yield f"{prefix}temperature {evaluation.temperature}: expected a positive number (--greedy takes the most probable action)"


def _evaluation(evaluation: EvaluateConfig, recipe: Recipe, family: Family, prefix: str) -> Iterator[str]:
    from icrl.in_context import check_append

    yield from _positive(evaluation, prefix[2:], "episodes", "lanes", "context_size")
    if not evaluation.seeds or min(evaluation.seeds) < 0:
        yield f"{prefix}seeds {' '.join(map(str, evaluation.seeds))}: expected at least one, none below 0"
    if len(set(evaluation.seeds)) < len(evaluation.seeds):
        yield f"{prefix}seeds {' '.join(map(str, evaluation.seeds))}: each seed once"
    if len(split_tasks(family, evaluation.split)) == 0:
        yield f"the family's split leaves no {evaluation.split} tasks to evaluate on: change the family's options"
    check_append(evaluation.append, recipe.model.layout)
    yield from _remembering(evaluation, recipe, prefix)
    room = recipe.model.window - (family.spec.horizon if recipe.model.layout == "step" else 0)
    if evaluation.mode == "offline" and evaluation.context_size > room:
        beside = " beside the running episode" if recipe.model.layout == "step" else ""
        yield (
            f"{prefix}context-size {evaluation.context_size} does not fit the model's window of {recipe.model.window}"
            f"{beside}: pass {room} or less"
        )
    if evaluation.posterior_pulls and not hasattr(family, "count_states"):
        yield f"{prefix}posterior-pulls needs the family bernoulli_bandit, whose contexts can be listed; pass 0"
    elif evaluation.posterior_pulls:
        family.count_states(evaluation.posterior_pulls)  # type: ignore[attr-defined]  # refuses too many
    if evaluation.posterior_pulls > recipe.model.window - (recipe.model.layout == "step"):
        yield f"{prefix}posterior-pulls {evaluation.posterior_pulls} does not fit the window of {recipe.model.window}"
    yield from _acting(evaluation, prefix)
    if len(set(evaluation.baselines)) < len(evaluation.baselines):
        yield f"{prefix}baselines {' '.join(evaluation.baselines)}: each baseline once"
