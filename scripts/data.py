"""``icrl data``: histories as a Minari dataset, and back, without loss; saved memories, merged."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from icrl.data.minari import export_minari, import_minari
from icrl.interfaces import UserError
from icrl.memory.files import merge_memories
from icrl.registry import nearest
from scripts.common import check_output_folder, existing_folder, run_command, wants_help
from scripts.options import parse

USAGE = """\
usage: icrl data {export,import,merge} ...        (icrl data export --help tells more)

  export DATA --name NAME [--out FOLDER]    a data folder as a Minari dataset, e.g. --name darkroom/q-learning-v0
  import NAME --out DATA [--root FOLDER]    what was exported, as a data folder again
  merge MEMORY... --out FILE                memories that icrl evaluate --save-memory wrote, as one

Minari datasets lie in $MINARI_DATASETS_PATH or ~/.minari/datasets. An episode's metadata say which history and task it belongs to."""


@dataclass(frozen=True)
class ExportOptions:
    """What to export, and where to."""

    data: tyro.conf.Positional[Path]
    """Data folder (of icrl collect, or RUN/data)."""
    name: str | None = None
    """Name of the Minari dataset, with a version, e.g. darkroom/q-learning-v0 (required)."""
    out: Path | None = None
    """Folder for Minari datasets; default: Minari's own, $MINARI_DATASETS_PATH or ~/.minari/datasets."""


@dataclass(frozen=True)
class ImportOptions:
    """What to import, and where to."""

    name: tyro.conf.Positional[str]
    """Name of a Minari dataset that icrl data export wrote."""
    out: Path | None = None
    """Data folder to write (required)."""
    root: Path | None = None
    """Folder of Minari datasets; default: Minari's own, $MINARI_DATASETS_PATH or ~/.minari/datasets."""


@dataclass(frozen=True)
class MergeOptions:
    """What to merge, and where to."""

    memories: tyro.conf.Positional[tuple[Path, ...]]
    """Saved memories of the same encoder and family."""
    out: Path | None = None
    """File to write (required)."""


def export_command(argv: list[str]) -> None:
    """Parse, check, export, say where it lies."""
    description = (
        "Write a data folder as a Minari dataset: one episode each, in order, nothing lost, nothing overwritten."
    )
    options = parse(ExportOptions, argv, prog="icrl data export", description=description)
    if options.name is None:
        raise UserError("icrl data export needs --name NAME, e.g. --name darkroom/q-learning-v0")
    existing_folder(options.data, "a data folder (icrl collect writes one)", "manifest.json")
    if options.out is not None:
        check_output_folder(options.out, f"--out {options.out}")
    folder = export_minari(options.data, options.name, options.out)
    print(f"{options.name} in {folder}")
    place = "" if options.out is None else f", with MINARI_DATASETS_PATH={options.out}"
    print(f'read it: minari.load_dataset("{options.name}"){place}')


def import_command(argv: list[str]) -> None:
    """Parse, check, import, say what came back."""
    description = "Write a Minari dataset that icrl data export made as a data folder again; a killed import resumes."
    options = parse(ImportOptions, argv, prog="icrl data import", description=description)
    if options.out is None:
        raise UserError("icrl data import needs --out DATA")
    check_output_folder(options.out, f"--out {options.out}")
    store, identical = import_minari(options.name, options.out, options.root)
    print(f"{store.num_histories:,} histories, {store.num_transitions:,} transitions in {options.out}")
    same = "byte for byte what was exported" if identical else "not what was exported: its steps were changed since"
    print(f"dataset {store.dataset_hash[:12]}, {same}")


def merge_command(argv: list[str]) -> None:
    """Parse, check, merge, say what it holds."""
    description = "One saved memory of several: of a task that more than one of them played it holds what all of them lived through."
    options = parse(MergeOptions, argv, prog="icrl data merge", description=description)
    if options.out is None or len(options.memories) < 2:
        raise UserError("icrl data merge needs two memories or more and --out FILE")
    merged = merge_memories(options.memories, options.out)
    print(f"{len(merged.lane):,} chunks of {merged.num_lanes:,} lanes in {options.out}")


def command(argv: list[str]) -> None:
    """Hand the arguments to one of the three."""
    kinds = {"export": export_command, "import": import_command, "merge": merge_command}
    if wants_help(argv) or not argv:
        print(USAGE)
        return
    if argv[0] not in kinds:
        raise UserError(f"icrl data {argv[0]}: {nearest(argv[0], kinds)}")
    kinds[argv[0]](argv[1:])


def main(argv: list[str] | None = None) -> int:
    """Run as a program; returns the exit status."""
    return run_command(command, argv)


if __name__ == "__main__":
    sys.exit(main())
