"""The command ``icrl``: an overview, and one module of scripts for each command."""

from __future__ import annotations

import importlib
import sys

from icrl.interfaces import UserError
from icrl.registry import nearest
from scripts.common import run_command

COMMANDS = {
    "run": "run",
    "collect": "collect",
    "train": "train",
    "rl2": "rl2",
    "evaluate": "evaluate",
    "report": "report",
    "ablate": "ablate",
    "probe": "probe",
    "list": "list_names",
    "inspect": "inspect_data",
    "data": "data",
    "families": "families",
    "bench": "bench",
    "reproduce": "reproduce",
}

OVERVIEW = """\
usage: icrl COMMAND ...        (icrl COMMAND --help tells more)

In-context reinforcement learning: source agents play many tasks of a family and leave learning histories; a transformer
is trained on those histories; with its weights frozen it then learns new tasks from its own context alone.

A run is a recipe: a family of tasks, the sources that play them, a model, an objective, a training, evaluations.
Every field of a recipe can be overridden, e.g. --train.steps 2000 --model.width 128.

  the whole path
    run RECIPE        collect, train, evaluate, report; run it again to go on where it stopped
  one step at a time
    collect RECIPE    histories of the recipe's sources on its training tasks   -> a data folder
    train RECIPE      a policy on such histories                                -> a run folder
    rl2 RUN           a recurrent policy by reinforcement on the same tasks (RL²), as a baseline
    evaluate RUN      the policy on held-out tasks, weights frozen, against baselines
    ablate RECIPE     what each part of a retrieval memory is worth
    probe RUN         what a policy of several families knows of its task, and how its experts divide the work
    report RUN...     one HTML page with curves, tables and pictures, for one run or several compared
  to look around
    list WHAT         families, sources, objectives or recipes, with their options
    inspect DATA      what is in a data folder
    data WHAT         export a data folder as a Minari dataset, import one again, or merge saved memories
    families          what random actions, a source and the optimum earn in every family
    bench             how fast this machine does each step
    reproduce         run recipes and write the README's tables from what they scored

in this order, for a start:
  icrl run smoke                                     the whole path in half a minute: is everything in its place?
  icrl run quickstart                                an agent that learns unseen Dark Rooms in context, in minutes
  icrl run quickstart --help                         every option of the recipe, explained, with its value
  icrl run quickstart --out runs/wide --model.width 128
  icrl evaluate runs/quickstart --episodes 100 --baselines random optimal posterior_sampling
  icrl report runs/quickstart runs/wide --out runs/comparison
  icrl run my_recipes:mine                           your own recipe: a function that returns icrl.config.Recipe"""


def dispatch(argv: list[str]) -> None:
    """Hand the arguments after the command's name to the command's own module."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(OVERVIEW)
        return
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}: {nearest(name, COMMANDS)}")
    importlib.import_module(f"scripts.{COMMANDS[name]}").command(rest)


def main(argv: list[str] | None = None) -> int:
    """Run ``icrl`` with these arguments and return the exit status."""
    return run_command(dispatch, argv)


if __name__ == "__main__":
    sys.exit(main())
