"""``icrl ablate RECIPE``: what each part of a retrieval memory is worth, on held-out tasks.

What acts only at deployment is changed in the trained policy; what shapes the training is trained anew, each in a run folder of its own beside the recipe's.
All play the same tasks with the same random numbers and action rule, so differences to the recipe itself are paired.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from envs import make_family
from icrl.config import EvaluateConfig, Recipe
from icrl.interfaces import UserError
from icrl.recipes import load_recipe
from scripts.check import check_evaluation
from scripts.common import MachineOptions, check_output_folder, device_of, run_command
from scripts.evaluate import evaluate_policy
from scripts.options import parse
from scripts.records import write_json

if TYPE_CHECKING:
    from icrl.evaluation import Evaluation

DEPLOYED: Mapping[str, Mapping[str, Any]] = {
    "a random chunk of the same task": {"selection": "random"},
    "a chunk of another task": {"selection": "foreign"},
    "without utility": {"utility": 0.0},
    "utility almost alone: weight 100": {"utility": 100.0},
    "without de-duplication": {"twin": 2.0},
    "1 chunk": {"k": 1},
    "4 chunks": {"k": 4},
    "selection: coverage": {"selection": "coverage"},
    "selection: diverse": {"selection": "diverse"},
    "selection: sequential": {"selection": "sequential"},
    "retrieval every 5 steps": {"every": 5},
    "retrieval every 50 steps": {"every": 50},
    "retrieval again only when unsure: below 0.9": {"every": 5, "confidence": 0.9},
}
"""Options of model.memory that are changed at deployment."""
TRAINED: Mapping[str, Mapping[str, Any]] = {
    "trained without query dropout": {"query_dropout": 0.0},
    "trained on other trajectories alone": {"own_past": 0.0},
    "keys of a pre-trained policy": {"encoder": "policy:{runs}/radt-dt"},
}
"""Options of model.memory with which a policy is trained anew; {runs} is the folder of the run folders."""


@dataclass(frozen=True, kw_only=True)
class Options(MachineOptions):
    """Which recipe, and where things lie."""

    recipe: tyro.conf.Positional[str] = "radt"
    """Recipe of a policy with a memory; a finished run of it is only read."""
    runs: Path = Path("runs")
    """Folder of the run folders."""
    trained: bool = True
    """Also those variants that are trained anew, as long as the recipe each; one takes its keys from the run radt-dt in that folder."""
    json: Path | None = None
    """Write the table to this file; default: ablations.json in the recipe's run folder. From results/ablations-RECIPE.json `icrl reproduce` takes it into
    the README."""


def variants(recipe: Recipe, options: Options, device: str) -> Iterator[tuple[str, Evaluation]]:
    """The recipe itself first, then each variant: its name, and how it was evaluated."""
    from icrl.checkpoint import load_policy
    from scripts.run import run_recipe

    own = options.runs / recipe.name
    run_recipe(recipe, own, options)
    policy = load_policy(own, "best", device)[0]
    for name, changes in {"the recipe": {}, **DEPLOYED}.items():
        yield name, evaluate_policy(policy, recipe, _evaluation(recipe, changes), own)[1]
    for name, changes in (TRAINED if options.trained else {}).items():
        other, run = retrained(recipe, name, changes, options.runs)
        run_recipe(other, run, options)
        yield name, evaluate_policy(load_policy(run, "best", device)[0], other, _evaluation(other, {}), run)[1]


def retrained(recipe: Recipe, name: str, changes: Mapping[str, Any], runs: Path) -> tuple[Recipe, Path]:
    """The recipe with another memory, and its run folder."""
    filled = {key: value.format(runs=runs) if isinstance(value, str) else value for key, value in changes.items()}
    memory = dataclasses.replace(recipe.model.memory, **filled)
    other = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, memory=memory))
    return other, runs / f"{recipe.name}-{name.replace(' ', '-')}"


def row(name: str, evaluation: Evaluation, first: Evaluation) -> dict[str, Any]:
    """Mean return of all, the late and the last episodes, and the first of these less the recipe's, with intervals over tasks."""
    from icrl.metrics import Bootstrap, late

    bootstrap = Bootstrap(evaluation.lane_task, len(evaluation.config.seeds), evaluation.root_seed)
    returns, others = evaluation.agents["agent"].returns, first.agents["agent"].returns
    episodes = returns.shape[-1]
    found = {"mean": returns.mean(2), "late": returns[:, :, late(episodes)].mean(2), "last": returns[:, :, -1]}
    estimates = {key: bootstrap(values).estimate() for key, values in found.items()}
    estimates["mean_minus_recipe"] = (bootstrap(returns.mean(2)) - bootstrap(others.mean(2))).estimate()
    return {
        "variant": name,
        **{
            key: {
                "mean": float(one.mean.item()),
                "over_tasks": [] if one.over_tasks is None else one.over_tasks.ravel().tolist(),
            }
            for key, one in estimates.items()
        },
    }


def text(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    width = max(len(one["variant"]) for one in rows)
    lines = [f"{'':<{width}}  {'all episodes':>22} {'less the recipe':>24} {'late episodes':>22} {'last':>6}"]
    for one in rows:
        cells = (_shown(one[key], sign) for key, sign in (("mean", ""), ("mean_minus_recipe", "+"), ("late", "")))
        mean, less, late = cells
        lines.append(f"{one['variant']:<{width}}  {mean:>22} {less:>24} {late:>22} {one['last']['mean']:6.1f}")
    return "\n".join(lines)


def _shown(estimate: Mapping[str, Any], sign: str) -> str:
    interval = "".join(f", {end:{sign}.1f}" for end in estimate["over_tasks"])[2:]
    return f"{estimate['mean']:{sign}.1f}" + (f" [{interval}]" if interval else "")


def command(argv: list[str]) -> None:
    """Parse, check, run what is missing, evaluate, print the table."""
    options = parse(
        Options,
        argv,
        prog="icrl ablate",
        description="What each part of a retrieval memory is worth: the recipe's policy with one thing changed, on the same held-out tasks.",
    )
    from icrl.memory.encoders import make_encoder

    recipe = load_recipe(options.recipe)
    if not recipe.model.memory.k or not recipe.evaluations:
        raise UserError(f"recipe {options.recipe} has no memory or no evaluation: give one that has both, as radt")
    check_output_folder(options.runs, f"--runs {options.runs}")
    for changes in DEPLOYED.values():
        check_evaluation(_evaluation(recipe, changes), recipe)
    for name, changes in (
        TRAINED if options.trained else {}
    ).items():  # whether there are such keys is asked before any work
        other, run = retrained(recipe, name, changes, options.runs)
        make_encoder(make_family(recipe.family.name, **recipe.family.options).spec, other.model.memory, run)
    rows: list[dict[str, Any]] = []
    first: Evaluation | None = None
    for name, evaluation in variants(recipe, options, device_of(options)):
        first = first or evaluation
        rows.append(row(name, evaluation, first))
        print(text(rows[-1:]).splitlines()[1], flush=True)
    out = options.json or options.runs / recipe.name / "ablations.json"
    write_json(out, {"recipe": recipe.name, "rows": rows})
    print(f"\n{text(rows)}\n\nablations: {out}")


def _evaluation(recipe: Recipe, changes: Mapping[str, Any]) -> EvaluateConfig:
    """The recipe's first evaluation, of the agent alone, with some of its memory's options changed."""
    return dataclasses.replace(recipe.evaluations[0], baselines=(), hide_rewards=False, retrieval=dict(changes))


def main(argv: list[str] | None = None) -> int:
    """Run as a program; returns the exit status."""
    return run_command(command, argv)


if __name__ == "__main__":
    sys.exit(main())
