"""``icrl probe RUN``: what a policy of several families knows of its task after two episodes, and how its routers divide the work."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from envs import make_family
from icrl.interfaces import UserError
from scripts.common import MachineOptions, check_output_file, device_of, run_command
from scripts.options import parse
from scripts.records import read_recipe, write_json


@dataclass(frozen=True, kw_only=True)
class Options(MachineOptions):
    """Which policy, and how it is looked at."""

    run: tyro.conf.Positional[Path]
    """Run folder of a policy that was trained on family mixed."""
    episodes: int = 2
    """Episodes that are played before it is looked at."""
    lanes: int = 600
    """Lanes that play training tasks, to fit the probe, and as many that play held-out tasks."""
    json: Path | None = None
    """Write the figures to this file; default: RUN/probe.json."""


def text(found: Mapping[str, Any]) -> str:
    """The figures as a table."""
    lines = [f"{'read from':<10} {'label':<16} {'accuracy':>22} {'usual label':>12} {'above it':>24}"]
    for row in found["probes"]:
        accuracy, above = (_shown(row[key]) for key in ("accuracy", "above_chance"))
        lines.append(
            f"{row['features']:<10} {row['label']:<16} {accuracy:>22} {row['chance']['mean']:>12.3f} {above:>24}"
        )
    for name, shares in found["load"].items():
        lines.append(f"{name}: shares of the choices {' '.join(f'{share:.3f}' for share in shares)}")
    for name, value in found.get("mutual_information", {}).items():
        lines.append(f"mutual information of {name} and task expert: {value:.3f} nats")
    return "\n".join(lines)


def _shown(estimate: Mapping[str, Any]) -> str:
    ends = estimate["over_tasks"]
    return f"{estimate['mean']:.3f}" + ("" if ends is None else f" [{ends[0]:.3f}, {ends[1]:.3f}]")


def command(argv: list[str]) -> None:
    """Parse, check, play, fit, print."""
    description = (
        "What a policy of several families knows of its task after some episodes, by a linear probe on held-out tasks."
    )
    options = parse(Options, argv, prog="icrl probe", description=description)
    from envs.mixed import Mixed
    from icrl.checkpoint import load_policy
    from scripts.routing_probe import probe_policy

    recipe = read_recipe(options.run)
    family = make_family(recipe.family.name, **recipe.family.options)
    if not isinstance(family, Mixed):
        raise UserError(
            f"{options.run} was trained on family {recipe.family.name}: a probe tells families apart, give a run on family mixed"
        )
    if options.episodes < 1 or options.lanes < 1:
        raise UserError(f"--episodes {options.episodes} --lanes {options.lanes}: expected at least 1 each")
    out = options.json or options.run / "probe.json"
    check_output_file(out, "--json")
    policy, _, _ = load_policy(options.run, "best", device_of(options), family.spec)
    rule = recipe.validation_rule
    found = probe_policy(policy, family, episodes=options.episodes, rule=rule, lanes=options.lanes, seed=recipe.seed)
    write_json(out, found)
    print(f"{text(found)}\nfigures: {out}")


def main(argv: list[str] | None = None) -> int:
    """Run as a program; returns the exit status."""
    return run_command(command, argv)


if __name__ == "__main__":
    sys.exit(main())
