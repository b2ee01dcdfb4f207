"""README and ARCHITECTURE.md are true: their commands run, their files exist, their tables are the generated ones."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_icrl

from icrl.interfaces import UserError
from scripts import reproduce

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
    cells = reproduce.read_cells(ROOT / "results")
    assert cells, "no cells under results/"
    assert f"{reproduce.MARKS[0]}\n{reproduce.results_text(cells)}\n{reproduce.MARKS[1]}" in README


def test_a_finished_run_becomes_a_cell_with_scores_by_task(smoke_run, tmp_path):
    reproduce.write_cell(tmp_path, "smoke", smoke_run)
    (cell,) = reproduce.read_cells(tmp_path).values()
    (evaluation,) = cell["evaluations"]
    scores = evaluation["return_by_seed_and_task"]["agent"]
    assert len(scores) == 1 and len(scores[0]) == evaluation["record"]["num_tasks"]
    assert sum(scores[0]) / len(scores[0]) == pytest.approx(
        evaluation["record"]["agents"]["agent"]["mean_return"]["mean"], rel=1e-3
    )
    assert cell["seconds"] > cell["seconds_trained"] > 0 and cell["dataset_hash"]


def test_a_readme_without_a_place_for_results_is_left_alone(tmp_path):
    readme = Path(tmp_path / "README.md")
    readme.write_text("nothing here")
    with pytest.raises(UserError, match="no place for results"):
        reproduce.write_readme(readme, "tables")
    assert readme.read_text() == "nothing here"
