"""``icrl reproduce [RECIPE...]``: run recipes, keep what they scored under results/, write the README's tables from there.

A recipe is one cell: finished cells are small JSON files that are committed, so a table that was cut off by time goes on where it
stopped. Tables are generated from the cells alone, never typed.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from icrl.interfaces import UserError
from icrl.recipes import RECIPES, load_recipe
from scripts.cells import read_ablations, read_cells, write_cell
from scripts.common import MachineOptions, existing_folder, run_command
from scripts.comparisons import compared_runs
from scripts.options import parse
from scripts.results_table import results_text

ROOT = Path(__file__).resolve().parent.parent
MARKS = ("<!-- results: written by `icrl reproduce`, not by hand -->", "<!-- end of results -->")


@dataclass(frozen=True, kw_only=True)
class Options(MachineOptions):
    """Which recipes, and where what lies."""

    recipes: tyro.conf.Positional[tuple[str, ...]] = ()
    """Recipes to run, one after the other (NAME@SEED: with another seed); default: all but smoke, those of comparisons with each of their
    training seeds. Those already finished in their run folder are not run again."""
    runs: Path = Path("runs")
    """Folder of the run folders."""
    results: Path = ROOT / "results"
    """Folder of the cells."""
    readme: Path = ROOT / "README.md"
    """Text whose results section is written anew."""
    tables_only: bool = False
    """Write the tables from the cells that are there, and run nothing."""


def write_readme(readme: Path, text: str) -> None:
    """Put ``text`` between the two marks of the README."""
    old = readme.read_text(encoding="utf-8")
    pattern = re.compile(re.escape(MARKS[0]) + ".*?" + re.escape(MARKS[1]), re.DOTALL)
    if not pattern.search(old):
        raise UserError(f"{readme} has no place for results: put in the two lines {MARKS[0]} and {MARKS[1]}")
    readme.write_text(pattern.sub(lambda _: f"{MARKS[0]}\n{text}\n{MARKS[1]}", old), encoding="utf-8")


def command(argv: list[str]) -> None:
    """Parse, run what is missing, write cells and tables."""
    from scripts.run import run_recipe

    options = parse(
        Options,
        argv,
        prog="icrl reproduce",
        description="Run recipes (or go on with them), keep their scores under results/, and write the README's tables from these.",
    )
    names = options.recipes or dict.fromkeys([*(name for name in RECIPES if name != "smoke"), *compared_runs()])
    recipes = {name: load_recipe(name) for name in names}
    existing_folder(options.readme.parent, "the folder of the README", options.readme.name)
    for name in () if options.tables_only else recipes:
        run = options.runs / name
        run_recipe(recipes[name], run, options)
        write_cell(options.results, name, run)
    cells = read_cells(options.results)
    write_readme(options.readme, results_text(cells, read_ablations(options.results)))
    print(f"{len(cells)} cells in {options.results}, tables in {options.readme}")


def main(argv: list[str] | None = None) -> int:
    """Run as a program; returns the exit status."""
    return run_command(command, argv)


if __name__ == "__main__":
    sys.exit(main())
