"""Files that survive a crash: written aside, flushed to the disk, then renamed; arrays in them; and JSON read with one-line errors."""

from __future__ import annotations

import io
import json
import os
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from icrl.interfaces import Array, UserError

DAMAGED_NPZ = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    AttributeError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
)
"""What reading arrays out of a file that is no .npz, or a damaged one, may raise."""


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file, or a UserError."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}): restore the file") from None
    except (ValueError, RecursionError):
        raise UserError(f"{file}: damaged or not JSON: restore the file") from None
    if not isinstance(data, dict):
        raise UserError(f"{file}: expected a JSON object, got a {type(data).__name__}")
    return data


def replace_file(file: Path, content: bytes) -> None:
    """Atomically give ``file`` new content: a crash leaves the old or the new, both whole and on the disk."""
    aside = file.with_name(f".{file.name}.partial")
    write_file(aside, content)
    os.replace(aside, file)
    flush_folder(file.parent)


def write_arrays(file: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays by name to ``file`` (.npz, compressed, no pickle), whole or not at all. UserError where its folder is missing or the disk full."""
    if not file.parent.is_dir():
        raise UserError(f"{file}: the folder {file.parent} does not exist: make it first")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    replace_file(file, buffer.getvalue())


def read_arrays(file: Path) -> dict[str, Array]:
    """What ``write_arrays`` wrote; raises one of DAMAGED_NPZ for anything else."""
    with file.open("rb") as handle, np.load(handle, allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}


def json_bytes(data: dict[str, Any]) -> bytes:
    """What a JSON file of ours holds."""
    return (json.dumps(data, indent=1) + "\n").encode()


def write_file(file: Path, content: bytes) -> None:
    """Write and flush a new file. UserError where the disk is full."""
    try:
        with file.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        raise UserError(
            f"{file}: cannot be written ({error.strerror}): free some space and run the command again"
        ) from None


def flush_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
