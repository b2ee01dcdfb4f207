"""The benchmark measures what it says, once through on a tiny recipe; how fast anything is, no test asks."""

import dataclasses
import json
import math

import pytest

from icrl import recipes
from icrl.config import MemoryConfig, MixtureConfig
from scripts import bench, bench_memory, bench_mixture, measure


def tiny():
    """A recipe of the benchmark's kind: smoke with a smaller model."""
    recipe = recipes.smoke()
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, width=16, num_layers=1))


def tiny_memory():
    """The same with a memory of its own past."""
    recipe = tiny()
    memory = MemoryConfig(k=1, chunk=5, every=5, candidates=5)
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, memory=memory))


def tiny_mixture():
    """The same with mixtures of experts."""
    recipe = tiny()
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, mixture=MixtureConfig(blocks=(0,))))


def test_every_figure_is_measured_and_written(tmp_path, monkeypatch, capsys):
    recipe = {"quickstart": tiny, "radt": tiny_memory, "t2mir-ad": tiny_mixture}
    monkeypatch.setattr(bench, "load_recipe", lambda name: recipe[name]())
    monkeypatch.setattr(bench, "STEPPING_LANES", 8)
    monkeypatch.setattr(bench, "COLLECTED", 64)
    monkeypatch.setattr(bench, "PPO_STEPS", 64)
    for name, small in {"KEYS": 2000, "LANES": 2, "EPISODES": 3, "HISTORIES": 4, "TRAINING_STEPS": 2}.items():
        monkeypatch.setattr(bench_memory, name, small)
    for name, small in {"TOKENS": 90, "LANES": 2, "STEPS": 10}.items():
        monkeypatch.setattr(bench_mixture, name, small)
    monkeypatch.setattr(bench, "FAMILIES", {"darkroom": "", "half_cheetah_vel": "", "point_robot": ""})
    monkeypatch.setattr("icrl.throughput.matrix_rate", lambda device: 1e9)
    assert bench.main(["--repeats", "2", "--device", "cpu", "--json", str(tmp_path / "bench.json")]) == 0
    written = json.loads((tmp_path / "bench.json").read_text())
    figures = [measure.Figure(**figure) for figure in written["figures"]]
    assert all(math.isfinite(f.median) for f in figures)
    nothing = "memory that it takes"  # that of a tiny index is less than what is freed meanwhile
    assert all(min(f.median, f.best) > 0 for f in figures if f.name.strip() != nothing)
    asked = [f.name.strip() if "uniform" in f.name else f.name.split(",")[0] for f in figures if f.bar is not None]
    assert asked == [
        "Dark Room stepping",
        "collection with a Bayes explorer to disk",
        "collection of uniform actions, darkroom",
        "collection of uniform actions, point_robot",
        "PPO histories of 8 tasks",
        "training",
        "cached roll-out",
        "cached roll-out over re-encoding the window",
        "  approximate (faiss-ivf) over exact",
        "  its recall",
        "roll-out with retrieval at every step",
        "  its episode 3 over its second",
        "optimiser step with a memory over without",
        "block with both mixtures over a dense one",
        "cached roll-out with mixtures over dense",
        "peak anonymous memory of the process tree",
    ]
    printed = capsys.readouterr().out
    assert all(f.name in printed for f in figures)


@pytest.mark.parametrize(
    "at_most, median, verdict", [(False, 3.0, "reached"), (False, 1.0, "missed"), (True, 1.0, "reached")]
)
def test_a_figure_is_judged_by_its_bar(at_most, median, verdict):
    line = measure.table([measure.Figure("speed", "m/s", median, median, 1, 2.0, at_most)]).splitlines()[1]
    assert line.startswith("speed ") and line.endswith(f"m/s {verdict}")


def test_a_rate_is_work_over_time(monkeypatch):
    clock = iter([0.0, 2.0, 10.0, 15.0, 20.0, 30.0])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    assert measure.rate_of(lambda: 10.0, repeats=3) == (2.0, 5.0)  # 5, 2 and 1 per second
