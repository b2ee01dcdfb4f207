"""What an evaluation says of a search: simple regret, and how it explored, in the record, on the screen and on the page."""

from __future__ import annotations

import numpy as np
import pytest
from search_run import FAMILY, run_search

from icrl.evaluation_json import evaluation_to_json
from icrl.report.results import _percent
from scripts.records import table


@pytest.fixture(scope="module")
def record():
    return evaluation_to_json(run_search())


def test_simple_regret_is_the_mean_over_functions_and_differences_are_paired(record):
    tasks = FAMILY.split().test
    regret = FAMILY.simple_regret(tasks, np.tile(np.arange(6), (len(tasks), 1)))  # type: ignore[attr-defined]
    agent, random = (record["agents"][name]["search"] for name in ("agent", "random"))
    assert agent["steps"] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(agent["simple_regret"]["mean"], regret.mean(0), rtol=1e-5)
    assert agent["final_regret"]["mean"] == pytest.approx(regret[:, -1].mean(), rel=1e-5)
    assert agent["agent_minus_this"]["mean"] == 0
    difference = agent["final_regret"]["mean"] - random["final_regret"]["mean"]
    assert random["agent_minus_this"]["mean"] == pytest.approx(difference, rel=1e-5)
    low, high = random["agent_minus_this"]["over_tasks"]
    assert low < difference < high


def test_exploration_is_told_where_it_is_known(record):
    agent, random = (record["agents"][name]["exploration"] for name in ("agent", "random"))
    assert agent["surprise_by_episode"] == [0.5] * 6 and agent["plan_length_by_episode"] == [1, None, 1, None, 1, None]
    assert random["surprise_by_episode"] == pytest.approx([np.log(1024)] * 6, rel=1e-5)
    assert random["plan_length_by_episode"] == [None] * 6
    assert agent["coverage_steps"] == agent["coverage"] == []  # there is but one observation


def test_the_screen_shows_regrets_to_three_digits(record):
    random = record["agents"]["random"]["search"]
    line = next(line for line in table(record).splitlines() if line.startswith("random") and "simple regret" in line)
    assert f"after 6 evaluations {random['final_regret']['mean']:.3f} [" in line
    assert f"the agent's less this one {random['agent_minus_this']['mean']:+.3f} [" in line


def test_the_page_shows_them_in_percent():
    estimate = {"mean": 0.01234, "over_tasks": [0.001, 0.02], "fixed_tasks": None}
    assert _percent(estimate) == "1.23 [0.10, 2.00] %"
