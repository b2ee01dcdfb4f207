"""One smoke run, made by the command itself, shared by every test that needs a finished run folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def start_icrl(
    *argv: str | Path, cwd: Path = ROOT, module: str = "icrl", threads: int | None = 1
) -> subprocess.Popen[str]:
    """Start a module of the project as a program, on one thread (None: on all)."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "80"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-m", module, *map(str, argv)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=pipe, stderr=pipe, text=True)


def run_icrl(
    *argv: str | Path, cwd: Path = ROOT, module: str = "icrl", threads: int | None = 1
) -> subprocess.CompletedProcess[str]:
    """The same, waited for."""
    with start_icrl(*argv, cwd=cwd, module=module, threads=threads) as process:
        out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The run folder of `icrl run smoke`, and what the command printed. Treat the folder as read-only."""
    out = tmp_path_factory.mktemp("smoke") / "run"
    done = run_icrl("run", "smoke", "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done


@pytest.fixture(scope="session")
def smoke_run(smoke) -> Path:
    """A finished run folder. Copy it before changing anything in it."""
    return smoke[0]
