"""Ablations of a memory: every variant on the same tasks and random numbers, beside the recipe itself."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from icrl.config import MemoryConfig
from icrl.recipes import smoke
from scripts import ablate

DEPLOYED = {"1 chunk": {"k": 1}, "a chunk of another task": {"selection": "foreign"}}
TRAINED = {"with empty memories": {"empty": 0.5}}


def remembering():
    """The smoke recipe, shorter, with a return-conditioned policy and a memory of one chunk."""
    recipe = smoke()
    memory = MemoryConfig(k=1, chunk=5, every=5, candidates=5)
    model = replace(recipe.model, window=15, episodic=True, return_to_go="rate", memory=memory)
    train = replace(recipe.train, steps=4, warmup_steps=1, validate_every=2, validation_episodes=1)
    evaluation = replace(recipe.evaluations[0], episodes=6, temperature=0.5)
    objective = replace(recipe.objective, name="dt", target_return=14.0)
    return replace(recipe, name="tiny", model=model, objective=objective, train=train, evaluations=(evaluation,))


@pytest.fixture(scope="module")
def ablated(tmp_path_factory):
    """The folder of run folders, after one call."""
    runs = tmp_path_factory.mktemp("ablate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablate, "load_recipe", lambda name: remembering())
        patch.setattr(ablate, "DEPLOYED", DEPLOYED)
        patch.setattr(ablate, "TRAINED", TRAINED)
        assert ablate.main(["tiny", "--runs", str(runs)]) == 0
        written = (runs / "tiny" / "ablations.json").read_bytes()
        seconds = json.loads((runs / "tiny" / "run.json").read_text())["seconds_trained"]
        assert ablate.main(["tiny", "--runs", str(runs), "--no-trained", "--json", str(runs / "again.json")]) == 0
        assert (runs / "tiny" / "ablations.json").read_bytes() == written
        assert json.loads((runs / "tiny" / "run.json").read_text())["seconds_trained"] == seconds  # only read
    return runs


def test_every_variant_is_a_row_beside_the_recipe(ablated):
    rows = json.loads((ablated / "tiny" / "ablations.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == ["the recipe", *DEPLOYED, *TRAINED]
    for row in rows[:2]:  # what is retrieved is the same
        assert row["mean_minus_recipe"] == {"mean": 0, "over_tasks": [0, 0]}
    for row in rows[2:]:  # another's chunks, other weights
        assert row["mean"]["mean"] != rows[0]["mean"]["mean"]
        expected = row["mean"]["mean"] - rows[0]["mean"]["mean"]
        assert row["mean_minus_recipe"]["mean"] == pytest.approx(expected)


def test_a_variant_that_is_trained_anew_has_a_run_of_its_own(ablated):
    recipe = json.loads((ablated / "tiny-with-empty-memories" / "recipe.json").read_text())
    assert recipe["model"]["memory"]["empty"] == 0.5 and recipe["model"]["memory"]["k"] == 1


def test_what_acts_at_deployment_is_the_same_when_played_again(ablated):
    first, again = (json.loads((ablated / name).read_text())["rows"] for name in ("tiny/ablations.json", "again.json"))
    assert again == first[:3]


def test_the_variants_are_options_of_a_memory():
    recipe = replace(remembering(), name="radt")
    for changes in ablate.TRAINED.values():
        other, run = ablate.retrained(recipe, "some name", changes, ablate.Path("elsewhere"))
        assert run == ablate.Path("elsewhere/radt-some-name") and other.model.memory != recipe.model.memory
    assert len({tuple(changes.items()) for changes in ablate.DEPLOYED.values()}) == len(ablate.DEPLOYED)


def test_a_table_shows_differences_with_their_sign():
    estimate = {"mean": 2.0, "over_tasks": [1.0, 3.0]}
    row = dict.fromkeys(("mean", "mean_minus_recipe", "late", "last"), estimate) | {"variant": "some"}
    assert "2.0 [1.0, 3.0]" in ablate.text([row]) and "+2.0 [+1.0, +3.0]" in ablate.text([row])


def test_keys_of_a_policy_that_is_not_there_are_missed_before_any_work(tmp_path, capsys):
    assert ablate.main(["radt", "--runs", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "radt-dt" in line and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe, said", [("quickstart", "no memory"), ("radtt", "unknown recipe"), ("radt", "--runs")])
def test_what_cannot_be_ablated_is_refused_in_a_line(recipe, said, tmp_path, capsys):
    taken = tmp_path / "file"
    taken.write_text("")
    assert ablate.main([recipe, "--runs", str(taken)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
