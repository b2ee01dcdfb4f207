"""What a policy of several families knows, by a linear probe: the probe itself, and what is read from a policy."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_mixed import FAMILY, lanes_of

from icrl import recipes
from icrl.config import FamilyConfig, MixtureConfig, SourceConfig
from icrl.interfaces import ActionRule, UserError
from icrl.models.policy import make_policy
from icrl.recipes import smoke
from scripts import probe as probe_script
from scripts import routing_probe, run
from scripts.routing_probe import known_of, mutual_information, probe, quadrants


def tiny():
    """The smoke recipe on three families, with a mixture in its last block."""
    recipe = smoke()
    options = {"members": list(FAMILY.members), "unseen": list(FAMILY.unseen)}
    model = replace(recipe.model, window=45, mixture=MixtureConfig(blocks=(1,), token_experts=3, task_experts=4))
    return replace(
        recipe,
        name="tiny",
        family=FamilyConfig("mixed", options),
        collect=replace(recipe.collect, sources=(SourceConfig("by_member"),), steps_per_history=60),
        model=model,
        train=replace(recipe.train, steps=4, batch_size=8, warmup_steps=1, validate_every=2),
        evaluations=(replace(recipe.evaluations[0], baselines=("random", "optimal", "source")),),
    )


def test_a_probe_finds_what_is_linear_and_not_what_is_not():
    rng = np.random.default_rng(0)
    fit, features = rng.normal(size=(300, 5)), rng.normal(size=(200, 5))
    labels = [3 * (x[:, 0] + 2 * x[:, 1] > 0) + (x[:, 0] + 2 * x[:, 1] > 2) for x in (fit, features)]
    right, usual = probe(fit, labels[0], features, labels[1])
    assert right.mean() > 0.9 and usual.mean() == (labels[1] == np.bincount(labels[0]).argmax()).mean()
    noise = [rng.integers(3, size=len(x)) for x in (fit, features)]
    assert probe(fit, noise[0], features, noise[1])[0].mean() < 0.5


def test_quadrants_by_hand():
    tasks = lanes_of(FAMILY)
    for task, quadrant in zip(tasks, quadrants(FAMILY, tasks), strict=True):
        inner = FAMILY.inner_tasks(int(task["member"]), np.array([task]))
        place = inner["door"][0] if "door" in (inner.dtype.names or ()) else inner["goal"][0]
        size = FAMILY.families[task["member"]].spec.observation_space.nvec[:2]  # type: ignore[attr-defined]
        assert quadrant == 2 * (place[0] >= size[0] / 2) + (place[1] >= size[1] / 2)


def test_mutual_information_of_equal_and_of_independent_labels():
    labels = np.repeat([0, 1], 8)
    assert mutual_information(labels, labels) == pytest.approx(np.log(2))
    assert mutual_information(labels, np.tile([0, 1], 8)) == pytest.approx(0)


def test_what_is_read_is_what_a_router_would_be_asked_at_the_step_after_the_episodes():
    recipe = tiny()
    policy = make_policy(FAMILY.spec, recipe.model, 0).eval()
    tasks = lanes_of(FAMILY)
    known = known_of(policy, FAMILY, tasks, episodes=2, rule=ActionRule(), seed=0)
    router: Any = policy.get_submodule("transformer.blocks.1.mlp.task_router")
    with torch.no_grad():
        routes = router(torch.as_tensor(known.features["summary"]))
    np.testing.assert_allclose(routes.representation, known.features["router"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(routes.experts[:, 0], known.experts)
    assert set(known.choices) == {"token experts, block 1", "task experts, block 1"}
    for shares in known.choices.values():
        assert shares.sum() == pytest.approx(1)


def test_it_looks_at_the_step_behind_the_episodes(monkeypatch):
    windows, told = [], []
    record, mean = routing_probe.record_context, routing_probe.mean_of_first
    monkeypatch.setattr(routing_probe, "record_context", lambda *a, **k: windows.append(record(*a, **k)) or windows[-1])
    monkeypatch.setattr(routing_probe, "mean_of_first", lambda sums, upto: told.append(upto) or mean(sums, upto))
    policy = make_policy(FAMILY.spec, tiny().model, 0).eval()
    known_of(policy, FAMILY, lanes_of(FAMILY), episodes=2, rule=ActionRule(), seed=0)
    at = told[0][:, 0].numpy() - 1
    lanes, (window,) = np.arange(len(at)), windows
    assert (window.episode[lanes, at] == 2).all() and (window.episode[lanes, at - 1] == 1).all()


def test_the_command_probes_a_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "tiny", tiny)
    folder = tmp_path / "run"
    assert run.main(["tiny", "--out", str(folder)]) == 0
    capsys.readouterr()
    (record,) = json.loads((folder / "evaluation.json").read_text())
    row = record["agents"]["source by_member"]
    assert row["privileged"] == "which family it is in, and there the family's exact posterior over tasks"
    assert probe_script.main([str(folder), "--lanes", "30"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "summary",
        "router",
        "family",
        "goal's quadrant",
        "task experts, block 1",
        "mutual information of family",
    ):
        assert words in shown, words
    found = json.loads((folder / "probe.json").read_text())
    assert len(found["probes"]) == 4 and all(0 <= row["accuracy"]["mean"] <= 1 for row in found["probes"])
    assert probe_script.main([str(folder), "--episodes", "9"]) == 2
    assert "do not fit a window of 45" in capsys.readouterr().err


def test_a_run_on_one_family_is_refused(smoke_run, capsys):
    assert probe_script.main([str(smoke_run)]) == 2
    assert "give a run on family mixed" in capsys.readouterr().err


def test_transitions_have_no_step_to_look_at():
    model = replace(tiny().model, layout="transition", rotary=False, episode_embedding=False, mixture=MixtureConfig())
    with pytest.raises(UserError, match="policy of layout step"):
        known_of(make_policy(FAMILY.spec, model, 0), FAMILY, lanes_of(FAMILY), episodes=2, rule=ActionRule(), seed=0)
