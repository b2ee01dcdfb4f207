"""What every command shares: one-line errors, exit statuses, device and threads, the user's own modules."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterable
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
        print("icrl:", str(stopped) or "stopped; run the same command again to resume", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def nearest(name: str, names: Iterable[str]) -> str:
    """``did you mean ...`` or, where nothing is near, all the names."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names)}"


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
        raise UserError(f"{path} does not exist: expected {holds}")
    if not (path / proof).exists():
        raise UserError(f"{path} is not {holds}: it has no {proof}")
    return path


def check_output_file(path: Path | None, flag: str) -> None:
    """Raise UserError if ``path``, given by ``flag``, cannot become a file; asked before work whose result goes there."""
    if path is None:
        return
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not above.is_dir():
        raise UserError(f"{flag} {path}: {path if path.is_dir() else above} is in the way: expected the name of a file")
