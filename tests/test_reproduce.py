"""`icrl reproduce`: cells of finished runs, the table that compares methods over training seeds, the place in the README."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from envs.mixed import Mixed
from icrl.interfaces import UserError
from icrl.recipes import load_recipe
from scripts.cells import _scores, read_ablations, read_cells, scores, write_cell
from scripts.comparisons import Comparison, Method, comparison_text
from scripts.reproduce import write_readme
from scripts.results_table import results_text

TWO = Comparison("two rooms", (Method("radt", "ours", "82"), Method("radt-ad", "theirs")))


def cell(*by_task: float, seconds: float = 60.0, data: str = "the data", optimum: float = 100.0) -> dict:
    """A run whose late episodes earned these numbers, one per task, all of them one less, and the last one more."""
    late = np.array([by_task])
    columns = {"all": (late - 1).tolist(), "late": late.tolist(), "last": (late + 1).tolist()}
    recipe = {"name": "radt", "seed": 0, "model": {"width": 32}}
    evaluations = [{"scores": {"agent": columns}, "record": {"optimal_return": optimum}}]
    return {
        "name": "a cell",
        "recipe": recipe,
        "dataset_hash": data,
        "seconds": seconds,
        "evaluations": evaluations,
    }


def cells_of(text: str) -> list[list[str]]:
    """The rows of a table without its head, as cells."""
    return [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines()[4:]]


def test_a_finished_run_becomes_a_cell_with_scores_by_task(smoke_run, tmp_path):
    write_cell(tmp_path, "smoke", smoke_run)
    (found,) = read_cells(tmp_path).values()
    (evaluation,) = found["evaluations"]
    record, kept = evaluation["record"], evaluation["scores"]["agent"]
    curve = record["agents"]["agent"]["return_by_episode"]["mean"]
    assert {which: np.shape(values) for which, values in kept.items()} == dict.fromkeys(
        ("all", "first", "late", "last"), (1, record["num_tasks"])
    )
    assert scores(found, "all").mean() == pytest.approx(np.mean(curve), rel=1e-3)
    assert scores(found, "late").mean() == scores(found, "last").mean() == pytest.approx(curve[-1], rel=1e-3)
    assert found["seconds"] > found["seconds_trained"] > 0 and found["dataset_hash"]


def test_scores_are_means_of_all_the_first_ten_the_late_and_the_last_episodes():
    returns = np.stack([np.arange(12.0), np.arange(12.0) + 100])[None]  # (one seed, a lane of each task, episodes)
    found = _scores(returns, np.array([0, 1]), 2)
    expected = {"all": 5.5, "first": 4.5, "late": 10, "last": 11}
    assert found == {which: [[value, 100 + value]] for which, value in expected.items()}


def test_cells_are_read_in_the_order_of_recipes_and_seeds(tmp_path):
    for name in ("radt@1", "radt", "quickstart", "something-else"):
        (tmp_path / f"{name}.json").write_text("{}")
    assert list(read_cells(tmp_path)) == ["quickstart", "radt", "radt@1"]


def test_another_seed_is_another_recipe():
    first, second = load_recipe("smoke"), load_recipe("smoke@3")
    assert (first.seed, second.seed, second.name) == (0, 3, "smoke@3")
    assert first.model == second.model and first.collect == second.collect


@pytest.mark.parametrize("name", ["smoke@", "smoke@x", "smoke@-1", "smoke@1.5"])
def test_a_seed_that_is_no_number_is_refused(name):
    with pytest.raises(UserError, match=r"expected NAME@SEED.*smoke@1"):
        load_recipe(name)


def test_methods_are_compared_by_seed_and_task():
    cells = {
        "radt": cell(80, 90),
        "radt@1": cell(84, 94, seconds=180),
        "radt@2": cell(0, 0),
        "radt-ad@1": cell(83, 73),
        "radt-ad": cell(79, 69),
    }
    ours, theirs = cells_of(comparison_text(TWO, cells))
    assert ours[0] == "ours" and ours[1].startswith("57.0 [") and ours[2].startswith("58.0 [")
    assert ours[4:7] == ["–", "82", "3"] and ours[8] == "`icrl reproduce radt radt@1 radt@2`"
    assert (
        theirs[2] == "76.0 [71.0, 81.0] [50.6, 101.4]"
    )  # tasks 71 and 81; seeds 74 and 78: 2 times t of one degree of freedom
    assert theirs[4] == "11.0 [1.0, 21.0] [11.0, 11.0]"  # 1 and 21 in both seeds that both methods have
    assert theirs[5:8] == ["–", "2", "1"]


def test_a_table_shows_the_episodes_that_it_compares():
    cells = {"radt": cell(80, 90), "radt-ad": cell(70, 75)}
    for one in cells.values():
        columns = one["evaluations"][0]["scores"]["agent"]
        columns["first"] = [[score / 2 for score in columns["late"][0]]]
    text = comparison_text(replace(TWO, compared="first"), cells)
    head = [part.strip() for part in text.splitlines()[2].strip("|").split("|")]
    ours, theirs = cells_of(text)
    assert head[1:6] == [
        "first ten trials",
        "all trials",
        "late trials",
        "last trial",
        "the first method less this, first ten trials, paired",
    ]
    assert ours[1].startswith("42.5 [") and theirs[1].startswith("36.2 [") and theirs[5].startswith("6.2 [")


def test_training_seeds_of_one_method_are_of_one_recipe():
    cells = {"radt": cell(80, 90), "radt@1": cell(84, 94)}
    cells["radt@1"]["recipe"] = {"name": "radt@1", "seed": 1, "model": {"width": 32, "newer": 1}}
    assert comparison_text(TWO, cells)
    cells["radt@1"]["recipe"]["model"]["width"] = 64
    with pytest.raises(UserError, match=r"different recipes \(model.width is 32 and 64\)"):
        comparison_text(TWO, cells)


def test_runs_on_different_data_are_not_compared():
    with pytest.raises(UserError, match="are of different data"):
        comparison_text(TWO, {"radt": cell(80, 90), "radt-ad": cell(80, 90, data="other data")})
    shown = comparison_text(
        replace(TWO, own_data=True), {"radt": cell(80, 90), "radt-ad": cell(70, 75, data="other data")}
    )
    assert len(cells_of(shown)) == 2


def test_normalised_scores_are_of_means_within_each_family():
    members, unseen = ("darkroom width=4 height=4 horizon=9 num_validation=2", "minigrid_empty size=6"), ()
    family = Mixed(members=members, unseen=unseen)
    tasks = family.split().test
    low, high = family.random_return(tasks), family.optimal_return(tasks)
    expected = []
    for member, share in ((0, 0.25), (1, 0.75)):
        mine = tasks["member"] == member
        expected.append((mine.sum(), share))
        low[mine], high[mine] = low[mine].mean(), high[mine].mean()
    share = np.where(tasks["member"] == 0, 0.25, 0.75)
    made = cell(*(low + share * (high - low)))
    made["recipe"] = {"family": {"name": "mixed", "options": {"members": list(members), "unseen": list(unseen)}}}
    (row,) = cells_of(comparison_text(replace(TWO, normalised=True), {"radt": made}))
    weighted = sum(count * share for count, share in expected) / len(tasks)
    assert row[2].startswith(f"{weighted:.3f} [")


def test_one_seed_has_no_interval_over_seeds_and_no_runs_no_table():
    (only,) = cells_of(comparison_text(TWO, {"radt": cell(80, 90)}))
    assert only[2] == "85.0 [80.0, 90.0]"
    (small,) = cells_of(comparison_text(TWO, {"radt": cell(1, 2, optimum=2)}))
    assert small[2] == "1.50 [1.00, 2.00]"
    assert comparison_text(TWO, {"radt-ad": cell(80, 90)}) == ""


def test_ablations_are_a_table_of_their_own(tmp_path):
    estimate = {"mean": 2.0, "over_tasks": [1.0, 3.0]}
    row = {"variant": "1 chunk", **dict.fromkeys(("mean", "mean_minus_recipe", "late", "last"), estimate)}
    (tmp_path / "ablations-radt.json").write_text(json.dumps({"recipe": "radt", "rows": [row]}))
    text = results_text({}, read_ablations(tmp_path))
    assert "`icrl ablate radt`" in text and f"| 1 chunk |{' 2.0 [1.0, 3.0] |' * 4}" in text
    assert read_cells(tmp_path) == {}


def test_a_readme_without_a_place_for_results_is_left_alone(tmp_path):
    readme = Path(tmp_path / "README.md")
    readme.write_text("nothing here")
    with pytest.raises(UserError, match="no place for results"):
        write_readme(readme, "tables")
    assert readme.read_text() == "nothing here"
