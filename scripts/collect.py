"""``icrl collect RECIPE --out DATA``: learning histories of the recipe's sources on its training tasks."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from agents.collect import drives_itself
from icrl.config import Recipe, SourceConfig
from icrl.data.advice import advice
from icrl.data.inspect import failures, summary
from icrl.data.store import HistoryStore
from icrl.interfaces import Family, UserError
from icrl.recipes import load_recipe
from scripts.baselines import baseline_factory
from scripts.check import check_recipe
from scripts.common import check_output_folder, first_argument, run_command
from scripts.inspect_data import warn
from scripts.recipe_options import parse_recipe, recipe_help

USAGE = "icrl collect RECIPE --out DATA [overrides]"
DESCRIPTION = (
    "Collect learning histories: the recipe's sources play its training tasks. A killed collection resumes when the same "
    "command is run again; the data do not depend on the number of workers."
)

MOST_READ = 200
"""Histories read to tell whether the sources have learned."""


@dataclass(frozen=True)
class Options:
    """Where the histories go, and how many processes collect them."""

    out: Path | None = None
    """Data folder to write (required). It is resumed if it holds part of the same collection."""
    workers: int | None = None
    """Processes; default: collect.workers of the recipe."""


def advise(recipe: Recipe, family: Family) -> None:
    """Lines on stderr about what would make in-context learning needless or hopeless in this family."""
    sources = [source for source in recipe.collect.sources if not (source.scattered or drives_itself(source))]
    policies = {source.name: baseline_factory(source) for source in (SourceConfig("uniform"), *sources)}
    for line in advice(family, window=recipe.model.window, policies=policies):
        print(f"icrl: warning: {line}", file=sys.stderr)


def refuse_failures(store: HistoryStore) -> None:
    """Raise UserError, so that the exit code says it, where environments failed; everything else was done by then."""
    if failed := failures(store):
        raise UserError(
            f"{len(failed)} of {store.num_histories} histories ended early because their environment failed (see the warnings); what "
            f"they had until then is in {store.path}: go on with it, or repair the family and collect again"
        )


def command(argv: list[str]) -> None:
    """Parse, check, collect, say what came out."""
    if recipe_help(argv, USAGE, DESCRIPTION, Options):
        return
    name, rest = first_argument(argv, "the recipe", USAGE)
    recipe, options = parse_recipe(
        load_recipe(name), Options, rest, prog=f"icrl collect {name}", description=DESCRIPTION
    )
    if options.out is None:
        raise UserError(f"icrl collect needs --out DATA; usage: {USAGE}")
    if options.workers is not None:
        recipe = replace(recipe, collect=replace(recipe.collect, workers=options.workers))
    family = check_recipe(recipe)
    check_output_folder(options.out, f"--out {options.out}")
    if not (options.out / "manifest.json").exists():
        advise(recipe, family)
    from agents.collect import collect

    store = collect(recipe, options.out)
    warn(store, summary(store, MOST_READ, family))
    print(f"{store.num_histories:,} histories, {store.num_transitions:,} transitions in {options.out}")
    print(f"look at them: icrl inspect {options.out}")
    refuse_failures(store)


def main(argv: list[str] | None = None) -> int:
    """Run as a program; returns the exit status."""
    return run_command(command, argv)


if __name__ == "__main__":
    sys.exit(main())
