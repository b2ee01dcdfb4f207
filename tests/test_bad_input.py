"""Damaged, foreign and interrupted things, met through the command line: one clear line, a non-zero exit, nothing run or lost.

Unknown names and contradictory options are in tests/test_cli.py (MISTAKES), other packages in the way in tests/test_launcher.py.
"""

import errno
import json
import pickle
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import start_icrl
from test_store import DAMAGE

from icrl import files
from icrl.data import writer
from icrl.data.store import HistoryStore
from scripts import cli


@pytest.fixture
def run(smoke_run, tmp_path) -> Path:
    """A finished run of one's own, to damage."""
    return Path(shutil.copytree(smoke_run, tmp_path / "run"))


def complaint(capsys, *argv) -> str:
    """The error line of a command that exits with 2; before it there may be progress bars, but no traceback."""
    assert cli.main([str(word) for word in argv]) == 2
    err = capsys.readouterr().err
    last = err.splitlines()[-1]
    assert last.startswith("icrl: error: ") and err.count("icrl: error: ") == 1
    assert "Traceback" not in err
    return last


@pytest.mark.parametrize("damage", DAMAGE)
def test_no_command_takes_a_damaged_dataset(damage, run, tmp_path, capsys):
    break_it, message = DAMAGE[damage]
    break_it(run / "data")
    for argv in (["inspect", run / "data"], ["train", "smoke", "--data", run / "data", "--out", tmp_path / "new"]):
        assert re.search(message, complaint(capsys, *argv))
    assert not (tmp_path / "new").exists()


def weights_of(run: Path) -> Path:
    """The weights that an evaluation reads."""
    index = json.loads((run / "checkpoints" / "index.json").read_text())
    return run / "checkpoints" / index["best"] / "model.safetensors"


def test_weights_of_another_shape(run, capsys):
    file = weights_of(run)
    tensors = safetensors.torch.load_file(file)
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    file.write_bytes(safetensors.torch.save({**tensors, name: torch.zeros(3, 3)}))
    line = complaint(capsys, "evaluate", run)
    assert f"{name} is (3, 3)" in line and "belongs to another model" in line


def test_a_family_that_the_checkpoint_was_not_made_for(run, capsys):
    before = (run / "evaluation.json").read_bytes()
    assert "observation_space" in complaint(capsys, "evaluate", run, "--family.options.width", 6)
    assert "observation_space" in complaint(capsys, "evaluate", run, "--family.name", "bernoulli_bandit")
    assert "episodes of up to 15 steps" in complaint(capsys, "evaluate", run, "--family.options.horizon", 16)
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["family"]["options"]["width"] = 6
    (run / "recipe.json").write_text(json.dumps(recipe))
    line = complaint(capsys, "evaluate", run)
    assert "the checkpoint in" in line and "use the family that it was made for" in line
    assert (run / "evaluation.json").read_bytes() == before


def test_data_of_another_family(run, tmp_path, capsys):
    argv = ["train", "smoke", "--data", run / "data", "--out", tmp_path / "new", "--family.options.height", "4"]
    assert "was collected with family option height = 5, the recipe has 4" in complaint(capsys, *argv)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["evaluation.json", "run.json"])
def test_records_that_are_damaged_are_met_before_the_roll_outs(name, run, monkeypatch, capsys):
    (run / name).write_text("{")
    monkeypatch.setattr("scripts.evaluate.evaluate_policy", lambda *_: pytest.fail("rolled out"))
    assert str(run / name) in complaint(capsys, "evaluate", run)
    assert str(run / name) in complaint(capsys, "run", "smoke", "--out", run)


def test_a_wrong_recipe_names_its_file(run, tmp_path, capsys):
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["model"]["widht"] = 3
    (run / "recipe.json").write_text(json.dumps(recipe))
    for argv in (["evaluate", run], ["run", "smoke", "--out", run]):
        assert f"{run / 'recipe.json'}: recipe.model.widht: unknown option" in complaint(capsys, *argv)


def test_what_is_one_level_off(run, capsys):
    assert "recipe.json is a file: expected a run folder" in complaint(capsys, "evaluate", run / "recipe.json")
    line = complaint(capsys, "inspect", run)
    assert f"{run} is a run folder, expected a data folder: icrl inspect {run / 'data'}" in line


def test_an_unfinished_training_is_evaluated_with_a_warning(run, tmp_path, capsys):
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["train"]["steps"] = 1000
    (run / "recipe.json").write_text(json.dumps(recipe))
    argv = ["evaluate", run, "--lanes", 5, "--episodes", 1, "--json", tmp_path / "record.json"]
    assert cli.main([str(word) for word in argv]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    step = int(weights_of(run).parent.name.removeprefix("step-"))
    assert line.startswith(f"icrl: warning: {run}: the training is unfinished (100 of 1000 steps)")
    assert line.endswith(f"of step {step}")


class Malicious:
    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return (Path.touch, (self.proof,))


def test_a_checkpoint_that_is_a_pickle_is_never_executed(run, tmp_path, capsys):
    proof = tmp_path / "executed"
    weights_of(run).write_bytes(pickle.dumps(Malicious(proof)))
    for argv in (["evaluate", run], ["run", "smoke", "--out", run, "--evaluations.0.lanes", 30]):
        assert "holds a pickle or an archive, which could run code: not opened" in complaint(capsys, *argv)
    assert not proof.exists()


def test_a_disk_that_fills_up_during_a_shard(smoke_run, tmp_path, monkeypatch, capsys):
    real, data = writer._write_npy, tmp_path / "data"

    def full(file, array):
        if (data / "shards" / "shard-00000").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, array)

    monkeypatch.setattr(writer, "_write_npy", full)
    line = complaint(capsys, "collect", "smoke", "--out", data)
    assert "is full; finished shards are kept: free some space" in line
    assert [path.name for path in (data / "shards").iterdir()] == ["shard-00000"]
    monkeypatch.undo()
    assert cli.main(["collect", "smoke", "--out", str(data)]) == 0
    assert HistoryStore.open(data).dataset_hash == HistoryStore.open(smoke_run / "data").dataset_hash


def test_a_disk_that_fills_up_during_a_checkpoint(smoke_run, tmp_path, monkeypatch, capsys):
    real = files.os.fsync

    def full(descriptor):
        if list((tmp_path / "new" / "checkpoints").glob(".step-*.partial/model.safetensors")):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    argv = ["train", "smoke", "--data", smoke_run / "data", "--out", tmp_path / "new", "--train.steps", 10]
    line = complaint(capsys, *argv)
    assert "No space left on device" in line and "run the command again" in line


def test_ctrl_c_in_a_collection_keeps_shards_and_says_how_to_resume(tmp_path):
    data = tmp_path / "data"
    with start_icrl("collect", "smoke", "--out", data, "--collect.num-histories", "200000") as process:
        deadline = time.monotonic() + 60
        while not list(data.glob("shards/shard-*")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130 and "Traceback" not in err
    assert re.fullmatch(
        rf"icrl: stopped with \d+ of 6250 shards in {re.escape(str(data))}; run the same command again to resume",
        err.splitlines()[-1],
    )


def test_output_that_is_somebody_elses_is_left_alone(smoke_run, tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    out = tmp_path / "thesis"
    for argv in (
        ["run", "smoke", "--out", out],
        ["collect", "smoke", "--out", out],
        ["train", "smoke", "--data", smoke_run / "data", "--out", out],
        ["report", smoke_run, "--out", out],
        ["run", "smoke", "--out", out / "thesis.tex"],
        ["evaluate", smoke_run, "--json", out],
        ["evaluate", smoke_run, "--json", out / "thesis.tex" / "record.json"],
        ["bench", "--json", out],
        *(
            [*argv, place]
            for argv in (
                ["run", "smoke", "--out"],
                ["collect", "smoke", "--out"],
                ["train", "smoke", "--data", smoke_run / "data", "--out"],
                ["report", smoke_run, "--out"],
                ["inspect", smoke_run / "data", "--figure"],
            )
            for place in (out / "thesis.tex" / "x", Path("/proc/x") / out.relative_to("/"))
        ),
    ):
        assert str(out) in complaint(capsys, *argv)
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("thesis.tex", "years of work")]


def test_a_run_that_is_refused_does_not_take_its_folder(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.tex").write_text("years of work")
    assert "something else than a dataset" in complaint(capsys, "run", "smoke", "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
