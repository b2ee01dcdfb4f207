"""``icrl collect RECIPE --out DATA``: learning histories of the recipe's sources on its training tasks."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from icrl.interfaces import UserError
from icrl.recipes import load_recipe
from scripts.check import check_recipe
from scripts.common import check_output_folder, first_argument, run_command
from scripts.recipe_options import parse_recipe, recipe_help

USAGE = "icrl collect RECIPE --out DATA [overrides]"
DESCRIPTION = (
    "Collect learning histories: the recipe's sources play its training tasks. A killed collection resumes when the same "
    "command is run again; the data do not depend on the number of workers."
)


@dataclass(frozen=True)
class Options:
    """Where the histories go, and how many processes collect them."""

    out: Path | None = None
    """Data folder to write (required). It is resumed if it holds part of the same collection."""
    workers: int | None = None
    """Processes; default: collect.workers of the recipe."""


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
    check_recipe(recipe)
    check_output_folder(options.out, f"--out {options.out}")
    from agents.collect import collect

    store = collect(recipe, options.out)
    print(f"{store.num_histories:,} histories, {store.num_transitions:,} transitions in {options.out}")
    print(f"look at them: icrl inspect {options.out}")


def main(argv: list[str] | None = None) -> int:
    """Run as a program; returns the exit status."""
    return run_command(command, argv)


if __name__ == "__main__":
    sys.exit(main())
