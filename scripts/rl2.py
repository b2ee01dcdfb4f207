"""``icrl rl2 RUN``: train RL² on the tasks of a run, as a baseline beside its policy (``icrl evaluate RUN --baselines rl2``).

All is kept in one file, RUN/rl2/learner.safetensors, replaced whole at every checkpoint: numbers and text alone, no pickles.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import tyro

from agents.rl2 import Learned, file_of, known_of
from envs import make_family
from icrl.config import Recipe, RL2Config
from icrl.interfaces import Family, UserError
from scripts.check import check_rl2
from scripts.common import MachineOptions, check_output_folder, device_of, run_command, wants_help
from scripts.options import parse
from scripts.records import read_recipe

USAGE = "icrl rl2 RUN [--steps N] [options]"
DESCRIPTION = (
    "Train RL², a recurrent policy, by reinforcement on trials of a run's training tasks: a baseline that needs no histories. What is not "
    "given is the run's recipe's; what is given becomes part of the recipe. Stopped, or with more steps, it goes on where it was. Then: "
    "icrl evaluate RUN --baselines rl2."
)


@dataclass(frozen=True, kw_only=True)
class Options(MachineOptions):
    """Which run."""

    run: tyro.conf.Positional[Path]
    """Run folder that icrl train or icrl run wrote."""


def training_module() -> ModuleType:
    """``agents.rl2_training``. Raises UserError where sb3-contrib is not installed."""
    try:
        from agents import rl2_training
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "sb3_contrib":
            raise
        raise UserError("RL² is trained by sb3-contrib, which is not installed: pip install -e '.[rl2]'") from None
    return rl2_training


def left_to_train(recipe: Recipe, family: Family, run: Path) -> bool:
    """Whether the recipe asks for more steps than ``run`` has. Raises UserError where it has a training with other options."""
    return recipe.rl2.steps > 0 and known_of(file_of(run), family, recipe.rl2).steps < recipe.rl2.steps


def train_rl2(recipe: Recipe, family: Family, run: Path, device: str) -> Learned:
    """Train what is left of the recipe's RL² in the run folder, which must be claimed; say what came out.

    Raises UserError without sb3-contrib, for other options than before, or where another process trains in the folder.
    """
    from icrl.run_folder import locked

    file = file_of(run)
    if not left_to_train(recipe, family, run):
        return known_of(file, family, recipe.rl2)
    with locked(run):
        board = run / "tensorboard" / "rl2"
        return training_module().train(family, recipe.rl2, file, seed=recipe.seed, board=board, device=device)


def parse_options(argv: list[str], config: RL2Config) -> tuple[Options, RL2Config]:
    """The command's own options, and those of the training, by default ``config``."""
    arguments = dataclasses.make_dataclass(
        "Arguments",
        [
            ("command", Annotated[Options, tyro.conf.arg(name="")]),
            ("config", Annotated[RL2Config, tyro.conf.arg(name="")], dataclasses.field(default=config)),
        ],
    )
    parsed: Any = parse(arguments, argv, prog="icrl rl2", description=DESCRIPTION)
    return parsed.command, parsed.config


def command(argv: list[str]) -> None:
    """Parse, check, train, say what came out."""
    from icrl.run_folder import claim

    run = None if not argv or argv[0].startswith("-") else Path(argv[0])
    if run is None and not wants_help(argv):
        raise UserError(f"the run comes first; usage: {USAGE}")
    recipe = None if run is None else read_recipe(run)
    options, config = parse_options(argv, recipe.rl2 if recipe else RL2Config())
    assert run is not None and recipe is not None, "help has exited"
    recipe = dataclasses.replace(recipe, rl2=config)
    family = make_family(recipe.family.name, **recipe.family.options)
    check_rl2(recipe, family)
    if config.steps == 0:
        raise UserError(f"the recipe of {run} asks for no steps of RL²: pass --steps 1000000, say")
    device = device_of(options)
    check_output_folder(run, str(run))
    if left_to_train(recipe, family, run):
        training_module()
    claim(run, recipe)
    learned = train_rl2(recipe, family, run, device)
    print(
        f"{learned.note}: {learned.best_return:.2f} an episode on validation tasks, after {learned.best_steps:,} steps"
    )
    print(f"evaluate it: icrl evaluate {run} --baselines rl2; its curves: tensorboard --logdir {run}")


def main(argv: list[str] | None = None) -> int:
    """Run as a program; returns the exit status."""
    return run_command(command, argv)


if __name__ == "__main__":
    sys.exit(main())
