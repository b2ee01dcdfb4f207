"""``icrl train RECIPE --data DATA --out RUN``: a policy on collected histories."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from icrl.config import Recipe
from icrl.data.store import HistoryStore
from icrl.interfaces import Family, UserError
from icrl.recipes import load_recipe
from scripts.check import check_data, check_recipe
from scripts.common import MachineOptions, check_output_folder, device_of, first_argument, run_command
from scripts.recipe_options import parse_recipe, recipe_help

USAGE = "icrl train RECIPE --data DATA --out RUN [overrides]"
DESCRIPTION = (
    "Train a policy on the histories in DATA. The best checkpoint is chosen on validation tasks. A killed training resumes "
    "at its last checkpoint when the same command is run again, and ends with the same weights."
)


@dataclass(frozen=True, kw_only=True)
class Options(MachineOptions):
    """From where, to where, on what."""

    data: Path | None = None
    """Data folder that icrl collect wrote (required)."""
    out: Path | None = None
    """Run folder to write (required). It is resumed if it holds part of the same training."""


def train_policy(
    recipe: Recipe, store: HistoryStore, family: Family, run: Path, device: str, threads: int | None
) -> Path:
    """Train, or go on training; return the folder of the best checkpoint. Ctrl-C saves a checkpoint first."""
    from icrl.training import TrainingInterruptedError, train

    try:
        return train(recipe, store, family, run, device=device, threads=threads)
    except TrainingInterruptedError as stopped:
        raise KeyboardInterrupt(str(stopped)) from None


def command(argv: list[str]) -> None:
    """Parse, check, train, say what came out."""
    if recipe_help(argv, USAGE, DESCRIPTION, Options):
        return
    name, rest = first_argument(argv, "the recipe", USAGE)
    recipe, options = parse_recipe(load_recipe(name), Options, rest, prog=f"icrl train {name}", description=DESCRIPTION)
    if options.data is None or options.out is None:
        raise UserError(f"icrl train needs --data DATA and --out RUN; usage: {USAGE}")
    family = check_recipe(recipe)
    device = device_of(options)
    store = HistoryStore.open(options.data)
    check_data(store, family)
    check_output_folder(options.out, f"--out {options.out}")
    train_policy(recipe, store, family, options.out, device, options.threads)
    print(f"trained policy in {options.out}")
    print(f"evaluate it: icrl evaluate {options.out}; its curves: tensorboard --logdir {options.out}")


def main(argv: list[str] | None = None) -> int:
    """Run as a program; returns the exit status."""
    return run_command(command, argv)


if __name__ == "__main__":
    sys.exit(main())
