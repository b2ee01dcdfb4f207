"""A policy with a memory through the commands: evaluated, saved, started from, inspected, shown; and what does not fit, in one line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from tiny_training import FAMILY, LAYOUTS, RECIPE, make_store

from icrl.evaluation_json import load_artefacts
from icrl.memory.files import read_memory
from icrl.report import build_report
from icrl.training import train
from scripts import data, evaluate, inspect_data


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with a memory, trained for a second."""
    folder = tmp_path_factory.mktemp("remembers")
    run = folder / "run"
    train(LAYOUTS["ra-dt"], make_store(folder / "data"), FAMILY, run, progress=False)
    return run


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def complaint(capsys, *argv) -> str:
    assert evaluate.main([str(word) for word in argv]) != 0
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    return line


def played(run, *argv):
    assert evaluate.main([str(run), "--episodes", "6", "--lanes", "6", "--baselines", "random", *map(str, argv)]) == 0


def test_what_is_remembered_is_saved_and_started_from(run, tmp_path, capsys):
    file = tmp_path / "memory.npz"
    played(run, "--save-memory", file)
    saved = read_memory(file)
    chunks = 6 * FAMILY.spec.horizon // 4 - 1
    assert saved.num_lanes == 6 and np.bincount(saved.lane).tolist() == [chunks] * 6
    assert saved.tasks.dtype == FAMILY.split().test.dtype
    unhidden = ["--memory", file, "--no-hide-rewards"]
    played(run, *unhidden, "--save-memory", tmp_path / "more.npz")
    assert len(read_memory(tmp_path / "more.npz").lane) > len(saved.lane)
    records = json.loads((run / "evaluation.json").read_text())
    assert len(records) == 2  # an evaluation of its own
    played(run, *unhidden, "--split", "test", "--retrieval", "k", "2", "selection", "diverse", "utility", "0.5")
    assert len(json.loads((run / "evaluation.json").read_text())) == 3


def test_saved_memories_are_merged_and_played_from(run, tmp_path, capsys):
    files = [tmp_path / "one.npz", tmp_path / "two.npz"]
    for temperature, file in zip((0.5, 1), files, strict=True):
        played(run, "--temperature", temperature, "--save-memory", file)
    merged = tmp_path / "merged.npz"
    capsys.readouterr()
    assert data.main(["merge", *map(str, files), "--out", str(merged)]) == 0
    chunks = sum(len(read_memory(file).lane) for file in files)
    assert f"{chunks} chunks of 12 lanes in {merged}" in capsys.readouterr().out
    played(run, "--memory", merged, "--no-hide-rewards")
    assert data.main(["merge", str(files[0]), "--out", str(tmp_path / "alone.npz")]) == 2
    assert "two memories or more" in capsys.readouterr().err


def test_a_report_shows_what_was_retrieved_and_its_attention(run, tmp_path):
    played(run)
    agents = load_artefacts(run / "evaluation-0.npz").agents
    arrays = agents["agent"]
    assert "retrieval_step" not in agents["random"] and "retrieval_step" not in agents["agent, rewards hidden"]
    attention, cut = arrays["retrieval_attention"], arrays["retrieval_cut"]
    np.testing.assert_allclose(attention.sum(1), 1, rtol=1e-4)
    assert (attention[:, 1:][~arrays["retrieval_valid"]] == 0).all() and (attention[:, 0] < 1).all()
    begun = FAMILY.spec.horizon * (arrays["retrieval_episode"] - 1)
    assert (cut[:, 0] + 4 <= begun).all()  # only chunks that had ended before the episode
    page = build_report([run], tmp_path / "report").read_text()
    assert "What it remembered" in page and "attention on them" in page
    assert len(list((tmp_path / "report").glob("memory-1-*.png"))) == 1


def test_what_does_not_fit_a_memory_is_one_line(run, tmp_path, capsys):
    short = ["--episodes", 2, "--lanes", 4, "--baselines", "random"]
    assert "no control without them" in complaint(capsys, run, *short, "--memory", run / "recipe.json")
    assert "which is for policies that read whole lives" in complaint(capsys, run, *short, "--mode", "offline")
    short.append("--no-hide-rewards")
    assert "there is no such file" in complaint(capsys, run, *short, "--memory", tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK")
    assert "is not a saved memory" in complaint(capsys, run, *short, "--memory", tmp_path / "bad.npz")
    assert "no option of model.memory" in complaint(capsys, run, *short, "--retrieval", "depth", "3")
    assert "could not convert" in complaint(capsys, run, *short, "--retrieval", "utility", "much")
    for fixed, value in (("chunk", "5"), ("repeats", "false")):
        said = complaint(capsys, run, *short, "--retrieval", fixed, value)
        assert f"--retrieval {fixed}: trained weights are for one model.memory.{fixed}" in said
    assert "more than model.memory.candidates" in complaint(capsys, run, *short, "--retrieval", "k", "99")
    plain = tmp_path / "plain"
    train(RECIPE, make_store(tmp_path / "data"), FAMILY, plain, progress=False, monitored=False)
    assert "has no memory" in complaint(capsys, plain, *short, "--save-memory", tmp_path / "m.npz")
    assert "policies with a memory" in complaint(capsys, plain, *short, "--retrieval", "k", "2")
    assert not (run / "evaluation.json").exists()


def test_inspect_shows_a_memory(run, tmp_path, capsys):
    file = tmp_path / "memory.npz"
    played(run, "--save-memory", file)
    capsys.readouterr()
    assert inspect_data.main([str(file)]) == 0
    shown = capsys.readouterr().out
    for words in ("6 lanes", "chunks of 4 steps", "projection", "utility", "lane"):
        assert words in shown, words
