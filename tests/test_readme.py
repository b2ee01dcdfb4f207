"""README and ARCHITECTURE.md are true: their commands run, their files exist, their tables are the generated ones."""

import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT, run_icrl

from scripts.cells import read_ablations, read_cells
from scripts.reproduce import MARKS
from scripts.results_table import results_text

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)( slow)?\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def blocks(language: str, slow: bool = False) -> list[str]:
    return [text for name, mark, text in BLOCKS if name == language and bool(mark) is slow]


def test_every_command_of_the_tour_runs(tmp_path):
    commands = [shlex.split(line, comments=True) for text in blocks("sh") for line in text.splitlines()]
    assert len(commands) >= 10
    for program, *arguments in commands:
        assert program == "icrl"
        done = run_icrl(*arguments, cwd=tmp_path)
        assert done.returncode == 0, (arguments, done.stderr[-2000:])
    script = "\n".join(blocks("python"))
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "context.npz").exists()


@pytest.mark.parametrize("command", [line for text in blocks("sh", slow=True) for line in text.splitlines()])
def test_make_knows_the_slow_commands(command):
    program, target = command.split()
    assert program == "make"
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md"])
def test_named_files_exist(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    named = {name for name in re.findall(r"`((?:icrl|envs|agents|scripts|tests|results)/[\w./]*)`", text)}
    linked = set(re.findall(r"\]\(([\w./-]+)\)", text))
    assert {name for name in named | linked if not (ROOT / name).exists()} == set()


def test_the_results_are_the_generated_ones():
    cells = read_cells(ROOT / "results")
    assert cells, "no cells under results/"
    assert f"{MARKS[0]}\n{results_text(cells, read_ablations(ROOT / 'results'))}\n{MARKS[1]}" in README
