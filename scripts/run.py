"""``icrl run RECIPE``: collect, train, evaluate, report, in one folder; run again, it goes on at the unfinished step."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from agents.collect import collect
from icrl.config import Recipe
from icrl.data.inspect import summary
from icrl.data.store import HistoryStore
from icrl.interfaces import Family, UserError
from icrl.recipes import load_recipe
from scripts.check import check_recipe
from scripts.collect import MOST_READ, advise, refuse_failures
from scripts.common import MachineOptions, check_output_folder, device_of, first_argument, run_command
from scripts.evaluate import evaluate_run
from scripts.inspect_data import warn
from scripts.recipe_options import parse_recipe, recipe_help
from scripts.records import check_records, find_record, records_of, table
from scripts.rl2 import left_to_train, train_rl2, training_module
from scripts.train import train_policy

USAGE = "icrl run RECIPE [--out RUN] [overrides]"
DESCRIPTION = (
    "The whole path: collect histories, train a policy on them, evaluate it on held-out tasks, build the report. "
    "Everything lands in one folder; the same command again goes on at the step that is unfinished. Every field of the "
    "recipe can be overridden, e.g. --train.steps 2000 --model.width 128 --family.options.width 12."
)


@dataclass(frozen=True, kw_only=True)
class Options(MachineOptions):
    """Where everything lands, and on what it is computed."""

    out: Path | None = None
    """Run folder; by default runs/RECIPE."""


def run_recipe(recipe: Recipe, out: Path, machine: MachineOptions) -> Path:
    """Do what is left to do of ``recipe`` in the folder ``out``; return the path of the report.

    Raises UserError for contradictory options or a folder that holds something else, before any work.
    """
    family = check_recipe(recipe)
    device = device_of(machine)
    from icrl import run_folder
    from icrl.report import build_report

    check_output_folder(out, f"--out {out}")
    run_folder.check(out, recipe)
    check_records(out)
    if left_to_train(recipe, family, out):
        training_module()  # whether it can be trained is asked before any work
    with run_folder.timed(out):
        store = _collected(recipe, family, out / "data")
        _say(1, f"{store.num_histories:,} histories, {store.num_transitions:,} transitions")
        best = train_policy(recipe, store, family, out, device, machine.threads)
        _say(2, f"best checkpoint: {best.name}")
        if recipe.rl2.steps:
            _say(2, train_rl2(recipe, family, out, device).note)
        _evaluated(recipe, out, device)
        _say(3, f"{len(records_of(out))} evaluations in {out / 'evaluation.json'}")
        page = build_report([out], out / "report")
    _say(4, f"report written, {run_folder.read_run(out)['seconds']:.0f} s in all")
    return page


def _collected(recipe: Recipe, family: Family, data: Path) -> HistoryStore:
    """The recipe's histories: collected, finished, or verified if they were complete before."""
    if (data / "manifest.json").exists():
        collect(recipe, data)  # refuses other options
        return HistoryStore.open(data)
    advise(recipe, family)
    store = collect(recipe, data)
    warn(store, summary(store, MOST_READ, family))
    return store


def _evaluated(recipe: Recipe, out: Path, device: str) -> None:
    """Do those evaluations of the recipe that are not in the folder yet."""
    for config in recipe.evaluations:
        if find_record(out, recipe.seed, config) is None:
            evaluate_run(out, recipe, config, device=device)


def _say(step: int, text: str) -> None:
    names = ("collect", "train", "evaluate", "report")
    print(f"[{step}/4] {names[step - 1]}: {text}", flush=True)


def command(argv: list[str]) -> None:
    """Parse, run, print the tables and where the report lies."""
    if recipe_help(argv, USAGE, DESCRIPTION, Options):
        return
    name, rest = first_argument(argv, "the recipe", USAGE)
    recipe, options = parse_recipe(load_recipe(name), Options, rest, prog=f"icrl run {name}", description=DESCRIPTION)
    if not recipe.evaluations:
        raise UserError(
            f"recipe {name} has no evaluations, so there is nothing to report: use icrl collect and icrl train"
        )
    out = options.out or Path("runs") / recipe.name
    page = run_recipe(recipe, out, options)
    for config in recipe.evaluations:
        record = find_record(out, recipe.seed, config)
        assert record is not None
        print(f"\n{table(record)}")
    print(f"\nreport: {page}")
    refuse_failures(HistoryStore.open(out / "data", verify=False))


def main(argv: list[str] | None = None) -> int:
    """Run as a program; returns the exit status."""
    return run_command(command, argv)


if __name__ == "__main__":
    sys.exit(main())
