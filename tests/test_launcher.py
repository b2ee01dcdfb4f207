"""The launcher refuses to run with somebody else's envs, agents or scripts, and says which and where."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from icrl import __main__ as launcher

ROOT = Path(__file__).resolve().parent.parent


def start(folder: Path, *argv: str, path: str = "", module: str = "icrl") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in (path, str(ROOT)) if p)}
    command = [sys.executable, "-m", module, *argv]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", launcher.PACKAGES)
@pytest.mark.parametrize("as_package", [True, False], ids=["package", "module"])
def test_a_foreign_package_in_the_way_is_named(tmp_path, name, as_package):
    foreign = tmp_path / "elsewhere" / name
    if as_package:
        foreign.mkdir(parents=True)
        (foreign / "__init__.py").write_text("raise RuntimeError('a foreign package was run')\n")
    else:
        foreign = foreign.with_suffix(".py")
        foreign.parent.mkdir()
        foreign.write_text("raise RuntimeError('a foreign module was run')\n")
    done = start(tmp_path, "--help", path=str(foreign.parent))
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"icrl: error: another package `{name}` is in the way: {foreign.resolve()}")


@pytest.mark.parametrize("name", ["envs", "agents"])
@pytest.mark.parametrize("command", [("icrl", "list", "recipes"), ("scripts.list_names", "recipes")], ids=" ".join)
def test_a_foreign_folder_in_the_working_directory_is_named(tmp_path, name, command):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    module, *argv = command
    done = start(tmp_path, *argv, module=module)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"icrl: error: another package `{name}` is in the way: {(tmp_path / name).resolve()}")


def test_from_any_other_folder_the_command_starts(tmp_path):
    done = start(tmp_path, "list", "recipes")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("quickstart")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(launcher, "PACKAGES", ("no_such_package_at_all",))
    assert "`no_such_package_at_all` is missing" in (launcher.obstacle() or "")


def test_main_returns_the_exit_status(capsys):
    assert launcher.main(["list", "recipes"]) == 0
    assert launcher.main(["trian"]) == 2
    assert "did you mean train" in capsys.readouterr().err
