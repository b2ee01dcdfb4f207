"""``icrl families``: what the random policy, a source and the optimum earn in every family, as a table for the docs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tqdm import tqdm

from agents import make_source
from envs import FAMILIES, make_family
from icrl.config import SourceConfig
from icrl.evaluation import run_episodes
from icrl.interfaces import Family, UserError
from icrl.seeding import LaneStreams
from scripts.common import check_output_file, run_command
from scripts.options import parse

_ROBOTS = ("half_cheetah_vel", "half_cheetah_dir", "ant_dir", "walker_param", "metaworld_reach", "metaworld_push")
SHOWN = {
    "darkroom": (SourceConfig("nearest_plausible"), 10),
    "keydoor": (SourceConfig("nearest_plausible"), 10),
    "gaussian_bandit": (SourceConfig("thompson"), 1),
    "bernoulli_bandit": (SourceConfig("thompson"), 1),
    "linear_bandit": (SourceConfig("thompson"), 1),
    "odd_even_bandit": (SourceConfig("thompson"), 1),
    "tabular": (SourceConfig("sample_and_hold", {"hold": 20}), 40),
    "mixed": (SourceConfig("by_member"), 20),
    "bayesian_optimisation": (SourceConfig("gp_ei"), 20),
    **dict.fromkeys(("augmented", "maze_runner", "point_robot", *_ROBOTS), (SourceConfig("annealed"), 20)),
}
"""A source, and how many episodes it is given, by family; for those that are not named ``nearest_plausible`` and 20."""
MOST_LANES = 100


@dataclass(frozen=True)
class Options:
    """Which families, and where the table goes."""

    families: tyro.conf.Positional[tuple[str, ...]] = ()
    """Families, with their default options; default: all."""
    out: Path | None = None
    """Write the table to this file (.md) instead of the screen."""


@dataclass(frozen=True)
class Returns:
    """Mean returns of an episode on a family's test tasks."""

    source: str
    episodes: int
    tasks: int
    random: float
    first: float  # of the source
    last: float  # of the source, mean of the last tenth of its episodes
    optimal: float


def measure(name: str) -> Returns:
    """Play the family's source on its test tasks, one lane each."""
    family: Family = make_family(name)
    config, episodes = SHOWN.get(name, (SourceConfig("nearest_plausible"), 20))
    tasks = family.split().test[:MOST_LANES]
    horizon, env = family.spec.horizon, family.make_vec(tasks)
    streams = LaneStreams(0, "families", name, lane_ids=len(tasks))
    agent = make_source(config.name, **config.options).make(family, env, streams, episodes * horizon)
    returns, _ = run_episodes(agent, env, episodes, horizon=horizon, seed=0)
    env.close()
    last = returns[:, -max(1, episodes // 10) :].mean()
    random, optimal = (float(np.mean(f(tasks))) for f in (family.random_return, family.optimal_return))
    first = float(returns[:, 0].mean())
    return Returns(config.name, episodes, len(tasks), random, first, float(last), optimal)


def markdown(rows: dict[str, Returns | str]) -> str:
    """The table of returns by family, or of why there are none."""
    return "\n".join(_lines(rows))


def _lines(rows: dict[str, Returns | str]) -> Iterator[str]:
    yield "| family (default options) | random | source | its first episode | its last episodes | optimum |"
    yield "|---|---|---|---|---|---|"
    for name, row in rows.items():
        if isinstance(row, str):
            yield f"| `{name}` | not measured: {row} | | | | |"
            continue
        numbers = " | ".join(f"{value:.2f}" for value in (row.first, row.last, row.optimal))
        yield f"| `{name}`, {row.tasks} test tasks | {row.random:.2f} | `{row.source}`, {row.episodes} episodes | {numbers} |"


def _measured(name: str) -> Returns | str:
    """The returns, or in one line why a library or an oracle that the family needs is missing."""
    try:
        return measure(name)
    except UserError as error:
        return " ".join(str(error).split())


def command(argv: list[str]) -> None:
    """Parse, measure, print or write."""
    description = (
        "What uniform actions, a source and the optimum earn in every family: mean returns of an episode on test tasks."
    )
    options = parse(Options, argv, prog="icrl families", description=description)
    check_output_file(options.out, "--out")
    for name in options.families:
        if name not in FAMILIES:
            raise UserError(f"family {name!r} is not built in: known are {', '.join(FAMILIES)}")
    rows = {name: _measured(name) for name in tqdm(options.families or tuple(FAMILIES), unit="family")}
    if options.out is None:
        print(markdown(rows))
        return
    head = (
        "What an episode earns in every family, with its default options. Written by `icrl families --out docs/families.md`. The optimum is exact, "
        "but for simulated robots: there it is what a trained oracle (or a scripted one) was measured to earn, and a source can be luckier. Meta-World's rows "
        "are from an environment of their own, where it is installed; that of Bayesian optimisation needs BoTorch."
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(f"# Families\n\n{head}\n\n{markdown(rows)}\n")
    print(f"table: {options.out}")


def main(argv: list[str] | None = None) -> int:
    """Run as a program; returns the exit status."""
    return run_command(command, argv)


if __name__ == "__main__":
    sys.exit(main())
