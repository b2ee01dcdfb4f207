"""The table of all explorers: each row shows the agent and the evaluation that it names, and only recipes that exist are named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from envs import make_family
from icrl.recipes import RECIPES, load_recipe
from scripts import explorers
from scripts.explorers import EPISODES, ROOMS, Explorer, explorer_texts


def curve(start):
    """Returns of 40 episodes from ``start`` on, each with an interval of its own."""
    means = [start + e for e in range(1, 41)]
    return {"return_by_episode": {"mean": means, "over_tasks": [[m - 0.5, m + 0.5] for m in means]}}


def cell(*starts):
    """A finished run, in whose evaluations the agent earns from these on and an exact agent 100 more."""
    evaluations = [{"record": {"agents": {"agent": curve(s), "exact": curve(s + 100)}}} for s in starts]
    return {"seconds_trained": 120, "evaluations": evaluations}


def test_rows_show_their_agent_in_their_evaluation_and_what_it_cost(monkeypatch):
    rows = (
        Explorer("trained", "one", "labels", 1),
        Explorer("exact", "one", "the prior", 0, "exact"),
        Explorer("not yet run", "two", "nothing"),
    )
    monkeypatch.setattr(explorers, "ROOMS", {"room": rows, "other room": (replace(rows[2], recipe="three"),)})
    (text,) = explorer_texts({"one": cell(0, 1000)})
    head, _, names, _, trained, exact = text.splitlines()
    assert "room" in head and "`icrl reproduce one two`" in head
    assert names == "| explorer | " + " | ".join(f"episode {e}" for e in EPISODES) + " | minutes to train | told |"
    assert (
        trained.startswith("| trained | 1001.0 [1000.5, 1001.5] | 1002.0 ") and "| 1040.0 [1039.5, 1040.5] |" in trained
    )
    assert trained.endswith("| 2 | labels |")
    assert exact.startswith("| exact | 101.0 [100.5, 101.5] ") and exact.endswith("| – | the prior |")


@pytest.mark.parametrize(
    "one", [one for room in ROOMS.values() for one in room], ids=lambda one: f"{one.recipe} {one.row}"
)
def test_every_row_is_an_agent_of_a_recipe_that_plays_long_enough(one):
    evaluation = load_recipe(one.recipe).evaluations[one.evaluation]
    assert one.recipe in RECIPES and evaluation.episodes >= max(EPISODES) and evaluation.split == "test"
    assert one.row == "agent" or one.row in evaluation.baselines


def test_rows_of_a_room_play_the_same_tasks():
    for room in ROOMS.values():
        families = [load_recipe(one.recipe).family for one in room]
        tasks = [make_family(family.name, **family.options).split().test for family in families]
        assert all((other == tasks[0]).all() for other in tasks)
