"""What a policy of several families knows, by a linear probe; whether its families' gradients conflict; and what the report says of both."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_mixed import DOORS, FAMILY, ROOM, lanes_of
from test_moe import router_of, routes_of

from envs.mixed import Mixed
from icrl import recipes
from icrl.checkpoint import load_policy
from icrl.config import FamilyConfig, MixtureConfig, SourceConfig
from icrl.data.sampling import WindowSampler
from icrl.data.store import HistoryStore
from icrl.interfaces import ActionRule, Array, UserError
from icrl.models.moe import Decision
from icrl.models.policy import Policy, make_policy
from icrl.objectives import make_objective
from icrl.objectives.routing import routing_loss
from icrl.recipes import smoke
from icrl.report import build_report
from icrl.run_folder import update_run
from icrl.training import make_sampler
from scripts import probe as probe_script
from scripts import routing_probe, run
from scripts.gradient_conflict import cosines, gradient, gradient_conflict, summary, windows_by_member
from scripts.routing_probe import (
    choices_found,
    embedding,
    family_names,
    known_of,
    mutual_information,
    probe,
    quadrants,
)


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
    labels = np.repeat([0, 1], 800)
    assert mutual_information(labels, labels) == pytest.approx(np.log(2), abs=1e-3)
    assert mutual_information(labels, np.tile([0, 1], 800)) == 0
    rng = np.random.default_rng(0)
    by_chance = [mutual_information(np.arange(600) % 60, rng.integers(8, size=600)) for _ in range(20)]
    assert np.mean(by_chance) < 0.1  # of 60 labels; uncorrected it would be 0.4


def test_what_is_read_is_what_a_router_would_be_asked_at_the_step_after_the_episodes():
    model = tiny().model
    model = replace(model, mixture=replace(model.mixture, blocks=(0, 1)))
    policy = make_policy(FAMILY.spec, model, 0).eval()
    tasks = lanes_of(FAMILY)
    known = known_of(policy, FAMILY, tasks, episodes=2, rule=ActionRule(), seed=0)
    for block in (0, 1):
        router: Any = policy.get_submodule(f"transformer.blocks.{block}.mlp.task_router")
        with torch.no_grad():
            routes = router(torch.as_tensor(known.features[f"summary, block {block}"]))
        read = known.features[f"router, block {block}"]
        np.testing.assert_allclose(routes.representation, read, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(routes.experts[:, 0], known.experts[f"router, block {block}"])
    assert len(known.features) == 4 and len(known.experts) == 2
    assert set(known.choices) == {f"{kind} experts, block {block}" for kind in ("token", "task") for block in (0, 1)}
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


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory) -> Path:
    """A finished run of the tiny recipe, made by the command. Copy it before changing anything in it."""
    folder = tmp_path_factory.mktemp("tiny") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.RECIPES, "tiny", tiny)
        assert run.main(["tiny", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def probed_run(tiny_run, tmp_path_factory) -> Path:
    """A copy of it that was probed."""
    folder = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("probed") / "run"))
    assert probe_script.main([str(folder), "--lanes", "30", "--windows", "8"]) == 0
    return folder


def learned_from(tiny_run: Path) -> tuple[Policy, WindowSampler, Array]:
    """The run's policy, the windows that it was trained on, and the family of every training task."""
    store = HistoryStore.open(tiny_run / "data")
    return load_policy(tiny_run)[0], make_sampler(tiny(), store, FAMILY), store.split.train["member"]


def test_the_command_probes_a_run(tiny_run, tmp_path, capsys):
    (record,) = json.loads((tiny_run / "evaluation.json").read_text())
    row = record["agents"]["source by_member"]
    assert row["privileged"] == "which family it is in, and there the family's exact posterior over tasks"
    out = tmp_path / "probe.json"
    assert probe_script.main([str(tiny_run), "--lanes", "30", "--windows", "8", "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    for words in (
        "summary",
        "router",
        "family",
        "goal's quadrant",
        "task experts, block 1",
        "of at most 1.386 nats; idle",
        "no choice is ever dropped",
        "mutual information of family and the first choice of the router, block 1: ",
        "mean between families",
    ):
        assert words in shown, words
    found = json.loads(out.read_text())
    assert len(found["probes"]) == 6 and all(0 <= row["accuracy"]["mean"] <= 1 for row in found["probes"])
    assert found["embedding"]["families"] == found["conflict"]["families"] == ["darkroom", "keydoor"]
    assert found["embedding"]["features"] == "router, block 1" and len(found["embedding"]["points"]) == 30
    assert probe_script.main([str(tiny_run), "--episodes", "9"]) == 2
    assert "do not fit a window of 45" in capsys.readouterr().err


def test_gradients_are_compared_on_the_policys_own_histories_or_not_at_all(tiny_run, tmp_path, capsys):
    bare = Path(shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("data")))
    asked = [str(bare), "--lanes", "12", "--episodes", "1", "--windows", "2"]
    assert probe_script.main(asked) == 0
    assert "gradients of families: not compared, the training histories are not in the run" in capsys.readouterr().out
    assert json.loads((bare / "probe.json").read_text())["conflict"] is None
    assert "the histories that the policy was trained on were not in the run" in page_of([bare], tmp_path / "report")
    assert probe_script.main([*asked, "--data", str(tmp_path / "nowhere")]) == 2
    assert "nowhere is no dataset" in capsys.readouterr().err
    assert probe_script.main([*asked, "--data", str(tiny_run / "data")]) == 0
    assert json.loads((bare / "probe.json").read_text())["conflict"]["windows"] == 2
    update_run(bare, dataset_hash="another")
    assert probe_script.main([*asked, "--data", str(tiny_run / "data")]) == 2
    assert "is not the dataset that" in capsys.readouterr().err


def test_entropy_and_idle_experts_by_hand():
    found = choices_found({"even": np.full(4, 0.25), "uneven": np.array([0.5, 0.46, 0.02, 0.0199, 0.0001])})
    assert found["entropy"]["even"] == pytest.approx(np.log(4)) and found["idle"] == {"even": 0, "uneven": 2}
    decision = Decision(
        "transformer.blocks.2.mlp.token_router",
        router_of(num=4),
        torch.zeros(1, 4, 6),
        routes_of([[[0, 1], [0, 2], [0, 1], [0, 2]]], 4),
    )
    _, metrics = routing_loss(MixtureConfig(), [decision], None, torch.zeros(1))
    assert float(metrics["routing/token_2/entropy"]) == pytest.approx(1.5 * np.log(2))  # shares 1/2, 1/4, 1/4, 0


def test_the_embedding_is_the_plane_of_most_variance():
    rng, member = np.random.default_rng(0), np.arange(500) % 2
    features = np.stack([0.1 * rng.normal(size=500), 8.0 * member, rng.normal(size=500)], 1)  # (L, D)
    found = embedding(features, member, np.where(member == 0, -1, 3))
    points = np.array(found["points"])
    assert points.shape == (300, 4) and set(map(tuple, points[:, 2:])) == {(0, -1), (1, 3)}
    assert found["explained"][0] == pytest.approx(16 / 17, abs=0.01) and sum(found["explained"]) > 0.999
    right = points[:, 0] > 0
    assert (right == (points[:, 2] == points[right, 2][0])).all() and points[right, 0].mean() == pytest.approx(
        4, abs=0.1
    )
    assert embedding(features[:1], member[:1], member[:1])["points"] == [[0, 0, 0, 0]]


def test_families_that_are_called_the_same_are_numbered():
    assert family_names(FAMILY) == ["darkroom", "keydoor"]
    assert family_names(Mixed(members=(ROOM, DOORS, f"{ROOM} goal_split=1"))) == ["darkroom 1", "keydoor", "darkroom 2"]


def test_the_goal_counts_where_a_door_is_no_place():
    """A task of minigrid_doors has a door that is a row, and a goal behind the wall."""
    family = Mixed(members=("minigrid_doors",), unseen=())
    found = quadrants(family, family.split().test)
    assert set(found.tolist()) == {2, 3}  # far columns, any row


def test_windows_of_a_family_are_its_own_and_those_of_the_halves_differ(tiny_run):
    _, sampler, member = learned_from(tiny_run)
    halves = [windows_by_member(sampler, member, [0, 1], 20, 8, half) for half in range(2)]
    for half in halves:
        for m, pieces in half.items():
            assert sum(len(piece.reward) for piece in pieces) == 20
            assert all(
                (member[piece.task] == m).all() and piece.observation.shape[:2] == piece.reward.shape
                for piece in pieces
            )
    drawn = [{(int(h), int(s)) for p in half[0] for h, s in zip(p.history, p.start, strict=True)} for half in halves]
    assert drawn[0] != drawn[1]


def test_a_step_down_one_familys_gradient_lowers_the_others_loss_as_the_cosine_says(tiny_run):
    _, sampler, _ = learned_from(tiny_run)
    dense = replace(tiny().model, mixture=MixtureConfig())  # a loss without jumps, where tokens change their experts
    policy = make_policy(FAMILY.spec, dense, 0).eval()
    objective, rng = make_objective(tiny().objective), np.random.default_rng(0)
    (one,), (other,) = ([sampler.batch(step, 8)] for step in range(2))
    first, second = (gradient(policy, objective, [window], rng) for window in (one, other))
    trained = [weights for weights in policy.transformer.parameters() if weights.requires_grad]
    before = [weights.detach().clone() for weights in trained]

    @torch.no_grad()
    def loss_at(length: float) -> float:
        moved = (length * first / first.norm()).split([weights.numel() for weights in trained])
        for weights, start, step in zip(trained, before, moved, strict=True):
            weights.copy_(start + step.view_as(weights))
        return float(objective.loss(policy, other, rng=rng, train=False).loss)

    slope = (loss_at(0.003) - loss_at(-0.003)) / 0.006
    assert slope == pytest.approx(float(second.norm()) * cosines(first[None], second[None]).item(), rel=0.02)


def test_gradients_on_the_same_windows_agree_and_those_of_opposite_losses_oppose(tiny_run):
    class Opposite:
        def loss(self, *args, **options):
            output = objective.loss(*args, **options)
            return output._replace(loss=-output.loss)

    policy, sampler, _ = learned_from(tiny_run)
    objective, rng, pieces = make_objective(tiny().objective), np.random.default_rng(0), [sampler.batch(0, 8)]
    ahead, back = gradient(policy, objective, pieces, rng), gradient(policy, Opposite(), pieces * 2, rng)
    found = cosines(torch.stack([ahead, back]), torch.stack([ahead, back]))
    np.testing.assert_allclose(found, [[1, -1], [-1, 1]], atol=1e-5)
    assert summary(found) == pytest.approx({"within": 1, "between": -1, "negative": 1})
    assert summary(found[:1, :1]) == {"within": pytest.approx(1), "between": None, "negative": None}


def test_comparing_gradients_leaves_the_policy_as_it_is(tiny_run):
    policy, sampler, _ = learned_from(tiny_run)
    policy.train()
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    found = gradient_conflict(policy, tiny(), sampler.store, FAMILY, ["rooms", "doors"], 12)
    assert found["families"] == ["rooms", "doors"] and np.shape(found["cosines"]) == (2, 2) and found["windows"] == 12
    assert found["between"] == pytest.approx((found["cosines"][0][1] + found["cosines"][1][0]) / 2, abs=1e-4)
    assert policy.training and all(weights.grad is None for weights in policy.parameters())
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def page_of(runs: list[Path], out: Path) -> str:
    """The HTML text of a report, whose pictures all have words."""
    page = build_report(runs, out).read_text(encoding="utf-8")
    assert all(len(alt) > 20 for alt in re.findall(r'<img [^>]*alt="([^"]*)"', page))
    return page


def test_the_report_says_how_a_run_routes(probed_run, tiny_run, tmp_path):
    page = page_of([probed_run], tmp_path / "one")
    for words in (
        'id="routing"',
        "3 experts by token, of which 2 are chosen and 4 experts by task",
        "family, from the router, block 1",
        "entropy of its choices",
        "family and the first choice of the router, block 1",
        "Cosines between the gradients",
    ):
        assert words in page, words
    assert "icrl probe RUN" not in page
    pictures = {path.name for path in (tmp_path / "one").glob("routing-*.png")}
    assert pictures == {f"routing-1-{name}.png" for name in ("training", "shares", "embedding", "conflict")}
    other = Path(shutil.copytree(tiny_run, tmp_path / "other", ignore=shutil.ignore_patterns("data")))
    both = page_of([other, probed_run], tmp_path / "both")
    assert "run: Mixtures of experts" in both and "other: Mixtures of experts" in both and "`icrl probe RUN`" in both
    numbered = {path.name for path in (tmp_path / "both").glob("routing-*.png")}
    assert numbered == {"routing-1-training.png", *(name.replace("-1-", "-2-") for name in pictures)}


def test_a_run_without_mixtures_has_nothing_to_say(smoke_run, tmp_path):
    assert "How it routes" not in page_of([smoke_run], tmp_path / "report")


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda found: "{", "is not JSON"),
        (lambda found: [found], "holds a list, expected a dict"),
        (lambda found: {"accuracy": 1}, "format version None, expected 2"),
        (lambda found: {k: v for k, v in found.items() if k != "embedding"}, "lacks embedding"),
        (
            lambda found: {**found, "conflict": {**found["conflict"], "cosines": [[1.0]]}},
            r"cosines should be .*\(2, 2\)",
        ),
        (lambda found: {**found, "embedding": {**found["embedding"], "families": ["darkroom"]}}, "is of no family"),
        (lambda found: {**found, "load": {"token": [None, 1.0]}}, "load of token should be finite numbers"),
        (lambda found: {**found, "probes": 3}, "is damaged"),
    ],
)
def test_a_damaged_probe_is_one_line(probed_run, tmp_path, change, words):
    broken = Path(shutil.copytree(probed_run, tmp_path / "run", ignore=shutil.ignore_patterns("data")))
    found = change(json.loads((broken / "probe.json").read_text()))
    (broken / "probe.json").write_text(found if isinstance(found, str) else json.dumps(found))
    with pytest.raises(UserError, match=rf"probe\.json.*{words}.*`icrl probe ") as error:
        build_report([broken], tmp_path / "report")
    assert "\n" not in str(error.value)


def test_a_run_on_one_family_is_refused(smoke_run, capsys):
    assert probe_script.main([str(smoke_run)]) == 2
    assert "give a run on family mixed" in capsys.readouterr().err


def test_transitions_have_no_step_to_look_at():
    model = replace(tiny().model, layout="transition", rotary=False, episode_embedding=False, mixture=MixtureConfig())
    with pytest.raises(UserError, match="policy of layout step"):
        known_of(make_policy(FAMILY.spec, model, 0), FAMILY, lanes_of(FAMILY), episodes=2, rule=ActionRule(), seed=0)
