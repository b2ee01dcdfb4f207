"""What every command shares: one-line errors, exit statuses, device and threads, the user's own modules."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import agents
import envs
from icrl.interfaces import UserError

OURS = (agents, envs)  # imported before the working directory joins sys.path, so that no folder there shadows them


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """Where the arithmetic happens."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes the GPU if there is one."""
    threads: int | None = None
    """Threads of the matrix products; default: torch's own choice."""


def run_command(command: Callable[[list[str]], None], argv: list[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 2 the user's mistake, 130 stopped by Ctrl-C.

    Anything unexpected keeps its traceback.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a user's own recipe or family, as module:name
    try:
        command(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print("icrl: error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print("icrl:", str(stopped) or "stopped; run the same command again", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def device_of(machine: MachineOptions) -> str:
    """The torch device to use, with the number of threads set as asked for.

    Raises UserError for a GPU that is not there or a number of threads below 1.
    """
    import torch

    if machine.threads is not None:
        if machine.threads < 1:
            raise UserError(f"--threads {machine.threads}: expected at least 1")
        torch.set_num_threads(machine.threads)
    if machine.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if machine.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; leave --device out or pass --device cpu")
    return machine.device


def first_argument(argv: list[str], what: str, usage: str) -> tuple[str, list[str]]:
    """The argument that must come first, and the rest."""
    if not argv or argv[0].startswith("-"):
        raise UserError(f"{what} comes first, got {argv[0] if argv else 'nothing'}; usage: {usage}")
    return argv[0], argv[1:]


def wants_help(argv: list[str]) -> bool:
    """Help was asked for before anything else."""
    return bool(argv) and argv[0] in ("-h", "--help")


def existing_folder(path: Path, holds: str, proof: str) -> Path:
    """``path`` if it holds the file ``proof``; UserError otherwise."""
    if not path.is_dir():
        problem = "is a file" if path.exists() else "does not exist"
        raise UserError(f"{path} {problem}: expected {holds}")
    if not (path / proof).exists():
        raise UserError(f"{path} is not {holds}: it has no {proof}")
    return path


def check_output_file(path: Path | None, flag: str) -> None:
    """Raise UserError if ``path``, given by ``flag``, cannot become a file; asked before work whose result goes there."""
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"{flag} {path}: is a folder, expected the name of a file")
    check_output_folder(path.parent, f"{flag} {path}")


def check_output_folder(folder: Path, given: str) -> None:
    """Raise UserError, starting with ``given``, if ``folder`` cannot be made or nothing can be written in it.

    Leaves no trace: the nearest folder that exists is tried.
    """
    try:
        folder = folder.absolute()
        there = next(place for place in (folder, *folder.parents) if place.exists())
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise UserError(f"{given}: nothing can be written there ({error.strerror}): choose another place") from None
