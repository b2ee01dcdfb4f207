"""The project's bars, measured for real: recipes, speed, memory. Hours on two cores, so only behind `make check-slow`.

Recipes run into runs/ beside the code and are resumed there; a finished one is only read. Times are those of its cell.
"""

import json
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, run_icrl

from icrl.data.inspect import summary
from icrl.data.store import HistoryStore
from icrl.metrics import Bootstrap
from scripts.cells import make_cell, scores
from scripts.inspect_data import family_of

pytestmark = pytest.mark.slow


def finished(recipe: str) -> tuple[list[dict[str, Any]], float]:
    """The evaluations of a recipe's run, and the minutes that it took in all."""
    run = ROOT / "runs" / recipe
    done = run_icrl("run", recipe, "--out", run, threads=None)
    assert done.returncode == 0, done.stderr[-2000:]
    minutes = json.loads((run / "run.json").read_text())["seconds"] / 60
    return json.loads((run / "evaluation.json").read_text()), minutes


def curve(record: dict[str, Any], row: str = "agent") -> list[float]:
    return record["agents"][row]["return_by_episode"]["mean"]


def lower_end(one: str, other: str, which: str) -> float:
    """Lower end of the paired interval, over tasks, of the difference between the scores of two finished runs."""
    cells = [make_cell(ROOT / "runs" / recipe) for recipe in (one, other)]
    difference = scores(cells[0], which) - scores(cells[1], which)
    ends = Bootstrap(np.arange(len(difference)), 1, 0)(difference[None]).estimate().over_tasks
    assert ends is not None
    return ends.ravel()[0]


def test_quickstart():
    (short, long, everywhere), minutes = finished("quickstart")
    assert short["lanes"] >= 500 and long["lanes"] >= 60 and everywhere["num_tasks"] == 100
    first, second, third = curve(short)
    assert first >= 40 and second >= 86 and third >= 88
    assert sum(curve(long)[3:]) / 37 >= 88
    assert short["verdict"]["learned"] and minutes <= 5
    controls = {"random", "optimal", "blind_sweep", "sweep_then_return", "nearest_plausible", "agent, rewards hidden"}
    assert controls <= set(short["agents"])


def test_darkroom_dpt():
    (random, expert, online, _), minutes = finished("darkroom-dpt")
    assert random["lanes"] >= 2000 and random["context_size"] == 100
    assert curve(random)[0] >= curve(random, "posterior_sampling")[0] - 3
    assert curve(expert)[0] >= 87
    assert curve(online)[39] >= 78 and minutes <= 25


def test_darkroom_ad():
    (online,), minutes = finished("darkroom-ad")
    assert curve(online)[0] <= 3 and curve(online)[199] >= 13
    assert online["verdict"]["learned"] and minutes <= 30


def test_bandit_dpt():
    (known, *others), minutes = finished("bandit-dpt")
    ratio = known["agents"]["thompson"]["bandit"]["regret_ratio_of_agent"]
    assert known["num_tasks"] >= 2000 and ratio["over_tasks"][1] <= 1.15
    assert [record["family_options"].get("noise") for record in others] == [0.0, 0.5, None] and minutes <= 20


def test_bernoulli_dpt():
    (record,), _ = finished("bernoulli-dpt")
    distance = record["posterior_distance"]
    assert distance["max_pulls"] == 20 and distance["to_posterior"] < 0.02


def normalised(record: dict[str, Any], episode: int) -> float:
    """The agent's return in an episode (counted from 1), 0 being that of uniform actions and 1 the optimum."""
    low, high = record["random_return"], record["optimal_return"]
    return (curve(record)[episode - 1] - low) / (high - low)


def test_keydoor():
    (record,), minutes = finished("keydoor")
    assert record["num_tasks"] == 20 and record["verdict"]["learned"]
    assert sum(curve(record)[3:40]) / 37 >= 80 and minutes <= 20


def test_tabular():
    (record,), minutes = finished("tabular")
    psrl = record["agents"]["source sample_and_hold"]["agent_minus_this"]
    assert record["verdict"]["learned"] and psrl["over_tasks"][1] >= 0 and minutes <= 20


@pytest.mark.parametrize("recipe", ["minigrid-empty", "minigrid-doors"])
def test_minigrid(recipe):
    (record,), minutes = finished(recipe)
    assert record["verdict"]["learned"] and normalised(record, 5) >= 0.8 and minutes <= 20


def test_point_robot():
    (record,), minutes = finished("point-robot")
    assert record["verdict"]["learned"] and normalised(record, 2) >= 0.95 and minutes <= 20


def test_cheetah_vel():
    (record,), minutes = finished("cheetah-vel")
    assert {"optimal", "source misled"} <= set(record["agents"]) and len(curve(record)) == 5 and minutes <= 20
    assert record["agents"]["agent, rewards hidden"]["agent_minus_this"]["over_tasks"][0] > 0


def test_radt():
    """Three training seeds against methods without a memory on the same data, all of them paired by task and seed."""
    runs = {
        method: [finished(f"{method}{seed}") for seed in ("", "@1", "@2")]
        for method in ("radt", "radt-ad", "radt-dpt", "radt-dt")
    }
    last = {method: np.mean([curve(record)[39] for (record,), _ in seeds]) for method, seeds in runs.items()}
    assert last["radt"] >= 82 and all(last["radt"] > last[other] for other in ("radt-ad", "radt-dpt", "radt-dt"))


def test_radt_in_keydoor():
    (record,), _ = finished("radt-keydoor")
    assert curve(record)[39] >= 82 and record["verdict"]["learned"]


def test_darkroom_plans():
    """Posterior sampling by whole plans, from optimal actions alone."""
    (held, _), _ = finished("darkroom-plans")
    first, second, third = curve(held)[:3]
    assert first >= 35 and second >= 70 and third >= 82 and sum(curve(held)[4:40]) / 36 >= 87
    assert json.loads((ROOT / "runs" / "darkroom-plans" / "run.json").read_text())["seconds_trained"] <= 30 * 60


@pytest.mark.parametrize(
    ("plans", "dpt"), [("keydoor-plans", "explore-keydoor-dpt"), ("minigrid-doors-plans", "explore-minigrid-dpt")]
)
def test_whole_plans_beat_a_sample_per_step(plans, dpt):
    for recipe in (plans, dpt):
        finished(recipe)
    assert lower_end(plans, dpt, "first") > 0


def test_routing_finds_the_task(tmp_path):
    """What the first block's task router makes of two episodes tells the family, and within one where the goal is; no expert is idle."""
    finished("t2mir-ad")
    done = run_icrl("probe", ROOT / "runs" / "t2mir-ad", "--json", tmp_path / "probe.json", threads=None)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "probe.json").read_text())
    told = {row["label"]: row for row in found["probes"] if row["features"] == "router, block 0"}
    assert told["family"]["accuracy"]["mean"] >= 0.95
    assert told["goal's quadrant"]["above_chance"]["over_tasks"][0] > 0
    assert not any(found["idle"].values())


@pytest.mark.parametrize("recipe", ["icee-darkroom", "icee-darkroom-once"])
def test_icee_is_near_the_optimum_by_episode_20(recipe):
    (record,), _ = finished(recipe)
    assert curve(record)[19] >= 0.9 * record["optimal_return"]


def test_icee_in_keydoor():
    (record,), _ = finished("icee-keydoor")
    assert curve(record)[19] >= 1.8


def test_icee_is_not_misled_by_a_source_that_prefers_one_direction():
    for recipe in ("icee-darkroom-biased", "icee-darkroom-uncorrected", "icee-darkroom-sorted"):
        finished(recipe)
    assert lower_end("icee-darkroom-biased", "icee-darkroom-uncorrected", "all") > 0
    assert lower_end("icee-darkroom-biased", "icee-darkroom-sorted", "all") > 0


def test_icee_searches_within_5_percent_of_a_gaussian_process_and_20_times_faster():
    """Simple regret is a share of each function's range."""
    (record,), _ = finished("icee-bo")
    agents = record["agents"]
    assert record["num_tasks"] >= 12 and record["lanes"] >= 20 * record["num_tasks"] and record["episodes"] == 30
    assert agents["gp_ei"]["search"]["agent_minus_this"]["over_tasks"][1] <= 0.05
    assert agents["random"]["search"]["agent_minus_this"]["over_tasks"][1] < 0
    assert agents["agent"]["steps_per_second"] >= 20 * agents["gp_ei"]["steps_per_second"]


@pytest.mark.parametrize("room", ["large-darkroom", "large-keydoor"])
def test_a_memory_helps_in_a_large_room(room):
    (_, minutes), _ = (finished(f"{room}-{kind}") for kind in ("memory", "window"))
    assert lower_end(f"{room}-memory", f"{room}-window", "all") > 0 and minutes <= 20


def test_bench(tmp_path):
    """Every figure of `icrl bench` reaches its bar (run it on an otherwise idle machine)."""
    done = run_icrl("bench", "--json", tmp_path / "bench.json", threads=None)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "bench.json").read_text())["figures"]
    barred = [figure for figure in figures if figure["bar"] is not None]
    missed = [f for f in barred if (f["median"] > f["bar"] if f["at_most"] else f["median"] < f["bar"])]
    assert len(barred) >= 6 and missed == []


@pytest.mark.parametrize("family", ["darkroom", "keydoor"])
def test_ppo_learns(family):
    """Stable-Baselines3's PPO on 20 tasks of a 10x10 room: nearly all of its histories end near the optimum."""
    data = ROOT / "runs" / f"ppo-{family}"
    options = ["--collect.sources.0.name", "sb3", "--collect.num-histories", "20", "--collect.workers", "2"]
    steps = ["--collect.steps-per-history", "60000"]
    recipe = {"darkroom": "quickstart", "keydoor": "keydoor"}[family]
    done = run_icrl("collect", recipe, "--out", data, *options, *steps, threads=None)
    assert done.returncode == 0, done.stderr[-2000:]
    store = HistoryStore.open(data)
    (source,) = summary(store, 20, family_of(store))["sources"]
    assert source["histories"] == 20 and source["reached"] >= 0.9
