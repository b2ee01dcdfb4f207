"""``icrl evaluate RUN``: the trained policy on held-out tasks, weights frozen, against baselines and controls."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from agents import make_source
from icrl.config import EvaluateConfig, Recipe, SourceConfig
from icrl.interfaces import UserError
from scripts.baselines import CONTEXT_SOURCES, baseline_factory, baseline_sources, left_out, source_notes
from scripts.check import check_evaluation, evaluation_family, other_memory, split_tasks
from scripts.common import MachineOptions, check_output_file, check_output_folder, device_of, run_command, wants_help
from scripts.options import parse
from scripts.recipe_options import EvaluationOptions
from scripts.records import add_record, check_records, read_recipe, table, write_json

if TYPE_CHECKING:
    from icrl.evaluation import AgentFactory, Evaluation

USAGE = "icrl evaluate RUN [--split test] [--episodes N] [--mode online|offline] [--baselines a b ...] [--json FILE]"
DESCRIPTION = (
    "Evaluate a trained policy: its weights stay frozen, all that it learns comes from its own context. By default the first "
    "evaluation of the run's recipe is repeated; every option changes one thing about it. The result goes into "
    "RUN/evaluation.json in place of the evaluation of the same options, or with --json to that file alone. Another family "
    "of the same spaces can be given by name, or the run's own with other options (--family.options...)."
)
_POSTERIOR = "the family's exact posterior over tasks"
PRIVILEGED = {
    "optimal": "the task",
    "annealed": "the task",
    "graded": "the task",
    "plans": "the task",
    "thompson": _POSTERIOR,
    "posterior_sampling": _POSTERIOR,
    "sample_and_hold": _POSTERIOR,
    "nearest_plausible": _POSTERIOR,
}
"""What sources know beyond their context, said beside their row."""


@dataclass(frozen=True, kw_only=True)
class Options(MachineOptions):
    """Which run, how often, and where the numbers go."""

    run: tyro.conf.Positional[Path]
    """Run folder that icrl train or icrl run wrote."""
    seeds: int | None = None
    """Number of evaluation seeds; default: those of the recipe."""
    seed: int | None = None
    """Root seed of the evaluation's random streams; default: the recipe's."""
    json: Path | None = None
    """Write the statistics to this file instead of RUN/evaluation.json (schema: icrl.evaluation_json.SCHEMA)."""
    save_memory: Path | None = None
    """Write what the agent remembers at the end (of the first seed) to this file, from which --memory starts again."""


def agent_factories(
    policy: Any, recipe: Recipe, config: EvaluateConfig, run: Path | None = None, made: list[Any] | None = None
) -> dict[str, AgentFactory]:
    """The in-context agent under "agent", and the baselines, which follow the same action rule, by the name of their row.

    The first agent that is made joins the empty list ``made``, with the tasks of its lanes.
    """
    from icrl.in_context import InContextAgent
    from icrl.memory.encoders import make_encoder

    if config.retrieval:
        policy = policy.with_memory(other_memory(policy.config.memory, config.retrieval))
    rule = config.rule
    memory = policy.config.memory
    own = run if memory.encoder == recipe.model.memory.encoder else None  # the copy that the run keeps of its encoder
    encoder = make_encoder(policy.spec, memory, own) if memory.k else None

    def agent(family: Any, env: Any, streams: Any, num_steps: int) -> InContextAgent:
        new = InContextAgent(
            policy,
            streams=streams,
            rule=rule,
            append=config.append,
            target_return=recipe.objective.target_return,
            search_return=recipe.objective.search_return,
            encoder=encoder,
            memory=config.memory or None,
            tasks=env.tasks,
        )
        if made is not None and not made:
            made.append((new, env.tasks))
        return new

    baselines = baseline_sources(recipe, config, run)
    return {"agent": agent, **{row: baseline_factory(source, rule) for row, source in baselines.items()}}


def evaluate_policy(
    policy: Any, recipe: Recipe, config: EvaluateConfig, run: Path | None = None, save_memory: Path | None = None
) -> tuple[dict[str, Any], Evaluation]:
    """Evaluate a policy that ``recipe`` trained; return the record (icrl.evaluation_json.SCHEMA) and what it was made from.

    The baseline "rl2" is the one in the folder ``run``. What the agent remembers at the end (of the first seed) goes to ``save_memory``.
    """
    from icrl.evaluation import evaluate
    from icrl.evaluation_json import evaluation_to_json
    from icrl.exactness import posterior_distance

    family, seed, made = evaluation_family(config, recipe), recipe.seed, []
    kept = made if save_memory is not None else None
    factories, sources = agent_factories(policy, recipe, config, run, kept), baseline_sources(recipe, config, run)
    evaluation = evaluate(
        family,
        split_tasks(family, config.split),
        factories,
        config,
        root_seed=seed,
        context_agents={name: baseline_factory(source) for name, source in CONTEXT_SOURCES.items()},
        privileged={row: told for row, source in sources.items() if (told := _privileged(source)) is not None},
        notes=source_notes(sources),
    )
    if save_memory is not None:
        agent, tasks = made[0]
        agent.save_memory(save_memory, tasks)
    distance = None
    if config.posterior_pulls:
        distance = posterior_distance(family, factories["agent"], config.posterior_pulls, seed)
    options = (config.family or recipe.family).options
    rule = config.rule.words(plans=recipe.model.plans, predicts_returns=recipe.model.predicts_returns)
    record = evaluation_to_json(evaluation, family_options=options, posterior_distance=distance, action_rule=rule)
    return record, evaluation


def _privileged(source: SourceConfig) -> str | None:
    """What a source knows beyond its context."""
    if source.name == "by_member":
        inner = make_source(source.name, **source.options).source  # type: ignore[attr-defined]
        known = PRIVILEGED.get(inner)
        return "which family it is in" + ("" if known is None else f", and there {known}")
    if source.name == "gp_thompson" and source.options.get("hyper_parameters") == "true":
        return "the task's length scales"
    return PRIVILEGED.get(source.name)


def evaluate_run(
    run: Path,
    recipe: Recipe,
    config: EvaluateConfig,
    *,
    device: str,
    out: Path | None = None,
    save_memory: Path | None = None,
) -> dict[str, Any]:
    """Evaluate the best checkpoint of ``run``; write the record and its arrays; return the record.

    ``out`` takes the record alone, otherwise it joins RUN/evaluation.json, a list. Raises UserError for a checkpoint that does not fit
    the family.
    """
    from icrl.checkpoint import load_policy

    if out is None:
        check_records(run)
    for line in left_out(recipe, config):
        print(f"icrl: warning: {line}", file=sys.stderr)
    policy, _, _ = load_policy(run, "best", device, evaluation_family(config, recipe).spec)
    record, evaluation = evaluate_policy(policy, recipe, config, run, save_memory)
    if out is not None:
        write_json(out, record)
    else:
        add_record(run, recipe.seed, config, record, evaluation)
    return record


def parse_options(argv: list[str], recipe: Recipe | None) -> tuple[Options, EvaluateConfig]:
    """The command's own options, and the evaluation: the recipe's first one with what ``argv`` changes."""
    default = recipe.evaluations[0] if recipe and recipe.evaluations else EvaluateConfig()
    family = None if recipe is None else recipe.family
    evaluation = EvaluationOptions.resolve(default, "", argv, family, omit=("seeds",))
    config = Annotated[evaluation.typed, tyro.conf.arg(name="")]
    arguments = dataclasses.make_dataclass(
        "Arguments",
        [
            ("command", Annotated[Options, tyro.conf.arg(name="")]),
            ("config", config, dataclasses.field(default=evaluation.default())),
        ],
    )
    parsed: Any = parse(arguments, argv, prog="icrl evaluate", description=DESCRIPTION)
    config, options = evaluation.plain(parsed.config), parsed.command
    if options.seeds is not None:
        if options.seeds < 1:
            raise UserError(f"--seeds {options.seeds}: expected at least 1")
        config = dataclasses.replace(config, seeds=tuple(range(options.seeds)))
    if config.family == family:
        config = dataclasses.replace(config, family=None)
    return options, config


def _warn_of_unfinished(run: Path, recipe: Recipe) -> None:
    """One line on stderr where a training that goes on may find a better checkpoint."""
    from icrl.checkpoint import find

    best, latest = find(run, "best"), find(run, "latest")
    if best is None or latest is None:
        return  # nothing to evaluate, which load_policy says
    done, step, total = int(latest.name[5:]), int(best.name[5:]), recipe.train.steps  # "step-00000250"
    if done < total:
        print(
            f"icrl: warning: {run}: the training is unfinished ({done} of {total} steps): evaluating its best checkpoint, of step {step}",
            file=sys.stderr,
        )


def command(argv: list[str]) -> None:
    """Parse, check, evaluate, print the table."""
    run = None if not argv or argv[0].startswith("-") else Path(argv[0])
    if run is None and not wants_help(argv):
        raise UserError(f"the run comes first; usage: {USAGE}")
    recipe = None if run is None else read_recipe(run)
    options, config = parse_options(argv, recipe)
    assert run is not None and recipe is not None, "help has exited"
    if options.seed is not None:
        recipe = dataclasses.replace(recipe, seed=options.seed)
    check_evaluation(config, recipe, run=run)
    check_output_file(options.json, "--json")
    check_output_file(options.save_memory, "--save-memory")
    if options.save_memory is not None and not recipe.model.memory.k:
        raise UserError(
            f"--save-memory {options.save_memory}: the policy of {run} has no memory (model.memory.k is 0): leave it out"
        )
    if options.json is None:
        check_output_folder(run, str(run))
    _warn_of_unfinished(run, recipe)
    record = evaluate_run(
        run, recipe, config, device=device_of(options), out=options.json, save_memory=options.save_memory
    )
    print(table(record))
    print(f"statistics: {options.json or run / 'evaluation.json'}")


def main(argv: list[str] | None = None) -> int:
    """Run as a program; returns the exit status."""
    return run_command(command, argv)


if __name__ == "__main__":
    sys.exit(main())
