"""``icrl inspect DATA``: what is in a data folder, as a table and a picture: do the sources improve, explore, vary? Or what a saved memory holds."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from envs import make_family
from icrl.data import inspect
from icrl.data.store import HistoryStore
from icrl.interfaces import Family, UserError
from scripts.common import check_output_file, run_command
from scripts.options import parse

if TYPE_CHECKING:
    from icrl.memory.files import SavedMemory


@dataclass(frozen=True)
class Options:
    """What to look at."""

    data: tyro.conf.Positional[Path]
    """Data folder (of icrl collect, or RUN/data), or a memory (of icrl evaluate --save-memory)."""
    figure: Path | None = None
    """Also draw it, to this file (.png, .pdf or .svg)."""
    histories: int = 1000
    """Read this many histories, spread evenly over all."""
    verify: Annotated[bool, tyro.conf.FlagConversionOff] = True
    """Check the hash of every file first."""


def lines(summary: dict[str, Any]) -> list[str]:
    """``icrl.data.inspect.summary`` as text."""
    tasks = ", ".join(f"{n} {'training' if name == 'train' else name}" for name, n in summary["tasks"].items())
    text = [
        f"family {summary['family']}, horizon {summary['horizon']}, dataset {summary['dataset_hash'][:12]}",
        f"{summary['histories']:,} histories, {summary['transitions']:,} transitions; tasks: {tasks}",
    ]
    for source in summary["sources"]:
        text += ["", *_source_lines(source)]
    return text


def _source_lines(source: dict[str, Any]) -> list[str]:
    scattered = ", scattered transitions" if source["scattered"] else ""
    length = source["history_length"]["mean"]
    text = [
        f"{source['name']}{scattered}: {source['histories']:,} histories read, {length:,.0f} steps each (mean); "
        "by decile of the history (episodes count where they start)",
        "  decile            " + "".join(f"{d + 1:>8}" for d in range(inspect.DECILES)),
        "  return per episode" + "".join(_cell(value, 2) for value in source["return_by_decile"]),
        "  reward per step   " + "".join(_cell(value, 3) for value in source["reward_by_decile"]),
    ]
    if source["action_frequencies"] is not None:
        text.append("  action frequencies" + "".join(_cell(share, 3) for share in source["action_frequencies"]))
    if source["end_score"] is not None:
        text.append(
            f"  end of the history {source['end_score']:8.2f} of the way from uniform actions ({source['random_return']:.3g}) to the optimum "
            f"({source['optimal_return']:.3g}); {source['reached']:.0%} of the histories reach {inspect.REACHED}"
        )
    if coverage := source["coverage"]:
        seen = round(coverage["share_of_states"] * coverage["states"])
        text.append(
            f"  coverage           {seen} of {coverage['states']} observations seen; "
            f"{coverage['distinct_per_history']:.1f} in a history (mean)"
        )
    return text


def _cell(value: float | None, digits: int) -> str:
    return f"{'–':>8}" if value is None else f"{value:8.{digits}f}"


def family_of(store: HistoryStore) -> Family | None:
    """The family that left the data, None where it is not at hand."""
    described = store.manifest["family"]
    try:
        return make_family(described["name"], **described["options"])
    except UserError:
        return None


def warn(store: HistoryStore, summary: dict[str, Any]) -> None:
    """Lines on stderr about sources that have not learned and environments that failed."""
    for line in [*inspect.learning_warnings(summary), *inspect.failure_lines(store)]:
        print(f"icrl: warning: {line}", file=sys.stderr)


def draw(store: HistoryStore, num_histories: int, path: Path) -> None:
    """The picture of ``icrl.data.inspect.figure`` as a file. UserError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        inspect.figure(store, num_histories).savefig(path)
    except (OSError, ValueError) as error:
        raise UserError(f"--figure {path}: cannot be written ({error}): give another place or .png") from None


SHOWN_LANES = 10


def memory_lines(memory: SavedMemory) -> list[str]:
    """A saved memory as text: what it was made for, and what its lanes hold."""
    about, chunk = memory.about, memory.about["chunk"]
    utility = memory.utility()
    text = [
        f"memory of {about['family']}, {memory.num_lanes} lanes, {len(memory.lane):,} chunks of {chunk} steps before and {chunk} behind a cut",
        f"keys of width {about['key width']}: {about['encoder']}",
        "  lane   chunks   until step   utility of its chunks: mean      best   task",
    ]
    for lane in range(min(SHOWN_LANES, memory.num_lanes)):
        mine = memory.lane == lane
        task = memory.tasks[lane] if len(memory.tasks) else "not known"
        if not mine.any():
            text.append(f"{lane:6d} {0:8d}   nothing remembered   {task}")
            continue
        text.append(
            f"{lane:6d} {mine.sum():8,d} {memory.end[mine].max():12,d} {utility[mine].mean():28.3f} {utility[mine].max():9.3f}   {task}"
        )
    if memory.num_lanes > SHOWN_LANES:
        text.append(f"  ... and {memory.num_lanes - SHOWN_LANES} more")
    return text


def command(argv: list[str]) -> None:
    """Parse, read, print, draw."""
    description = (
        "Look into a data folder: returns by decile of the history, coverage, action frequencies, a picture. Or into a saved memory: its lanes and "
        "their chunks."
    )
    options = parse(Options, argv, prog="icrl inspect", description=description)
    if options.histories < 1:
        raise UserError(f"--histories {options.histories}: expected at least 1")
    check_output_file(options.figure, "--figure")
    if options.data.is_file():
        if options.figure is not None:
            raise UserError(
                f"--figure {options.figure}: pictures are of data folders, {options.data} is a file: leave it out"
            )
        from icrl.memory.files import read_memory

        print("\n".join(memory_lines(read_memory(options.data))))
        return
    if (options.data / "data").is_dir() and not (options.data / "manifest.json").exists():
        raise UserError(f"{options.data} is a run folder, expected a data folder: icrl inspect {options.data / 'data'}")
    store = HistoryStore.open(options.data, verify=options.verify)
    summary = inspect.summary(store, options.histories, family_of(store))
    print("\n".join(lines(summary)))
    warn(store, summary)
    if options.figure is not None:
        draw(store, options.histories, options.figure)
        print(f"\nfigure: {options.figure}")


def main(argv: list[str] | None = None) -> int:
    """Run as a program; returns the exit status."""
    return run_command(command, argv)


if __name__ == "__main__":
    sys.exit(main())
