"""``icrl report RUN... --out DIR``: one HTML page, for one run or several compared."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from icrl.interfaces import UserError
from scripts.common import check_output_folder, existing_folder, run_command
from scripts.options import parse


@dataclass(frozen=True)
class Options:
    """Which runs, and where the page goes."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders; the first comes first in every figure."""
    out: Path | None = None
    """Folder for the page and its figures; for a single run by default RUN/report."""


def command(argv: list[str]) -> None:
    """Parse, check, build, say where it lies."""
    description = (
        "Build a self-contained HTML page of one run, or of several side by side, with its figures as PNG beside it."
    )
    options = parse(Options, argv, prog="icrl report", description=description)
    if not options.runs:
        raise UserError("icrl report needs a run folder; usage: icrl report RUN... --out DIR")
    for run in options.runs:
        existing_folder(
            run, "a run folder with an evaluation (icrl run or icrl evaluate writes one)", "evaluation.json"
        )
    if options.out is None and len(options.runs) > 1:
        raise UserError("icrl report of several runs needs --out DIR")
    runs = list(options.runs)
    out = options.out or runs[0] / "report"
    check_output_folder(out.parent, f"--out {out}")
    from icrl.report import build_report

    print(f"report: {build_report(runs, out)}")


def main(argv: list[str] | None = None) -> int:
    """Run as a program; returns the exit status."""
    return run_command(command, argv)


if __name__ == "__main__":
    sys.exit(main())
