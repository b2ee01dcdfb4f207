"""``icrl probe RUN``: what a policy of several families knows of its task, how its routers divide the work, whether the families conflict."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from envs import make_family
from icrl.data.store import HistoryStore
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
    data: Path | None = None
    """Histories that the policy was trained on, on which the gradients of its families are compared; default: RUN/data."""
    windows: int = 128
    """Windows in each of the two halves of a family, between which gradients are compared."""
    json: Path | None = None
    """Write the figures to this file; default: RUN/probe.json, where `icrl report` finds them."""


def text(found: Mapping[str, Any]) -> str:
    """The figures as a table."""
    lines = [f"{'read from':<16} {'label':<16} {'accuracy':>22} {'usual label':>12} {'above it':>24}"]
    for row in found["probes"]:
        accuracy, above = (_shown(row[key]) for key in ("accuracy", "above_chance"))
        lines.append(
            f"{row['features']:<16} {row['label']:<16} {accuracy:>22} {row['chance']['mean']:>12.3f} {above:>24}"
        )
    lines += _routing_lines(found) if found["load"] else []
    lines += _conflict_lines(found)
    return "\n".join(lines)


def _routing_lines(found: Mapping[str, Any]) -> list[str]:
    """Each router's choices, and what they tell of the task."""
    lines = []
    for name, shares in found["load"].items():
        shown = " ".join(f"{share:.3f}" for share in shares)
        spread = f"entropy {found['entropy'][name]:.3f} of at most {math.log(len(shares)):.3f} nats"
        lines.append(f"{name}: shares of the choices {shown}; {spread}; idle {found['idle'][name]}")
    lines.append(
        "idle: experts with under 2 % of the choices; no choice is ever dropped, as experts have no capacity limit"
    )
    for name, value in found["mutual_information"].items():
        lines.append(f"mutual information of {name}: {value:.3f} nats")
    return lines


def _conflict_lines(found: Mapping[str, Any]) -> list[str]:
    """The cosines between the families' gradients, and what they come to."""
    conflict = found["conflict"]
    if conflict is None:
        return [
            "gradients of families: not compared, the training histories are not in the run (--data DATA says where they lie)"
        ]
    width = max(map(len, conflict["families"]))
    lines = [f"cosines between gradients on {conflict['windows']} windows of a family and on as many others of each"]
    for name, row in zip(conflict["families"], conflict["cosines"], strict=True):
        lines.append(f"{name:<{width}} {' '.join(f'{cosine:6.3f}' for cosine in row)}")
    lines.append(f"mean within families, what noise leaves of 1: {conflict['within']:.3f}")
    if conflict["between"] is not None:
        lines.append(f"mean between families: {conflict['between']:.3f}, negative {100 * conflict['negative']:.0f} %")
    return lines


def _shown(estimate: Mapping[str, Any]) -> str:
    ends = estimate["over_tasks"]
    return f"{estimate['mean']:.3f}" + ("" if ends is None else f" [{ends[0]:.3f}, {ends[1]:.3f}]")


def trained_on(options: Options) -> HistoryStore | None:
    """The histories that the policy was trained on, None where the run has none any more. UserError for others."""
    from icrl.run_folder import read_run

    folder = options.data or options.run / "data"
    if options.data is None and not (folder / "manifest.json").exists():
        return None
    store = HistoryStore.open(folder)
    if store.dataset_hash != read_run(options.run).get("dataset_hash"):
        raise UserError(f"{folder}: is not the dataset that {options.run} was trained on: give that one as --data DATA")
    return store


def command(argv: list[str]) -> None:
    """Parse, check, play, fit, print."""
    description = (
        "What a policy of several families knows of its task after some episodes, by a linear probe on held-out tasks; how its routers divide the work; "
        "and whether the gradients of its families conflict."
    )
    options = parse(Options, argv, prog="icrl probe", description=description)
    from envs.mixed import Mixed
    from icrl.checkpoint import load_policy
    from scripts.gradient_conflict import gradient_conflict
    from scripts.routing_probe import family_names, probe_policy

    recipe = read_recipe(options.run)
    family = make_family(recipe.family.name, **recipe.family.options)
    if not isinstance(family, Mixed):
        raise UserError(
            f"{options.run} was trained on family {recipe.family.name}: a probe tells families apart, give a run on family mixed"
        )
    if min(options.episodes, options.lanes, options.windows) < 1:
        raise UserError(
            f"--episodes {options.episodes} --lanes {options.lanes} --windows {options.windows}: expected at least 1 each"
        )
    if recipe.model.memory.k:
        raise UserError(
            f"{options.run}: its policy has a memory, and a probe reads windows alone: give a run without one (model.memory.k 0)"
        )
    out = options.json or options.run / "probe.json"
    check_output_file(out, "--json")
    store = trained_on(options)
    policy, _, _ = load_policy(options.run, "best", device_of(options), family.spec)
    rule = recipe.validation_rule
    found = probe_policy(policy, family, episodes=options.episodes, rule=rule, lanes=options.lanes, seed=recipe.seed)
    found["conflict"] = None
    if store is not None:
        names = family_names(family)
        found["conflict"] = gradient_conflict(policy, recipe, store, family, names, options.windows)
    write_json(out, found)
    print(f"{text(found)}\nfigures: {out}")


def main(argv: list[str] | None = None) -> int:
    """Run as a program; returns the exit status."""
    return run_command(command, argv)


if __name__ == "__main__":
    sys.exit(main())
