import json
import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import FAMILY, OPTIONS, RECIPE

from envs import make_family
from icrl import checkpoint, files
from icrl.checkpoint import CheckpointState, Progress
from icrl.config import Recipe
from icrl.interfaces import UserError
from icrl.models.policy import make_policy
from icrl.optimisation import make_optimizer
from icrl.recipe_json import differing_fields, recipe_from_json, recipe_to_json
from icrl.recipes import RECIPES


def trained(run: Path, step: int, best_step: int | None = None, recipe: Recipe = RECIPE, marker: float = 0.0):
    """Save a checkpoint of a policy that has made one optimiser step."""
    policy = make_policy(FAMILY.spec, recipe.model, recipe.seed)
    optimizer = make_optimizer(policy, recipe.train)
    for parameter in policy.parameters():
        parameter.grad = torch.full_like(parameter, 1 + marker)
    optimizer.step()
    progress = Progress(step, best_step or 0, None if best_step is None else 1.0, 2.5)
    checkpoint.save(run, policy, optimizer, CheckpointState(progress, recipe, FAMILY.spec, "hash"))
    return policy, optimizer


def file_of(run: Path, name: str, which: checkpoint.Which = "latest") -> Path:
    folder = checkpoint.find(run, which)
    assert folder is not None
    return folder / name


def refused(run: Path, message: str, **options) -> None:
    with pytest.raises(UserError, match=message) as error:
        checkpoint.load_policy(run, "latest", **options)
    assert "\n" not in str(error.value)


def test_what_is_saved_comes_back(tmp_path):
    policy, optimizer = trained(tmp_path, 7)
    loaded, recipe, spec = checkpoint.load_policy(tmp_path, "latest")
    assert recipe == RECIPE and spec.horizon == FAMILY.spec.horizon and not loaded.training
    for name, tensor in policy.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    again = make_optimizer(loaded, RECIPE.train)
    folder = checkpoint.find(tmp_path, "latest")
    assert folder is not None
    checkpoint.load_optimizer(loaded, again, folder)
    for p, q in zip(policy.parameters(), loaded.parameters(), strict=True):
        assert all(torch.equal(optimizer.state[p][key], again.state[q][key]) for key in optimizer.state[p])
    assert checkpoint.load_state(folder).progress == Progress(7, 0, None, 2.5)


def test_latest_and_best_are_kept_and_nothing_else(tmp_path):
    for step, best in ((2, 2), (4, 2), (6, 2)):
        trained(tmp_path, step, best)
    root = tmp_path / "checkpoints"
    assert sorted(p.name for p in root.iterdir()) == ["index.json", "step-00000002", "step-00000006"]
    assert sorted(p.name for p in (root / "step-00000002").iterdir()) == ["model.safetensors", "state.json"]
    assert (root / "step-00000006" / "optimizer.safetensors").exists()


@pytest.mark.parametrize("function", ["rename", "replace", "fsync"])
@pytest.mark.parametrize("call", [0, 1, 2, 3, 4])
def test_a_crash_while_saving_leaves_the_old_or_the_new(tmp_path, monkeypatch, function, call):
    trained(tmp_path, 2, 2, marker=0.5)
    original, calls = getattr(os, function), []

    def crashing(*arguments):
        calls.append(arguments)
        if len(calls) == call + 1:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(os, function, crashing)
    try:
        trained(tmp_path, 4, 4)
        crashed = False
    except KeyboardInterrupt:
        crashed = True
    monkeypatch.undo()
    assert crashed == (call < len(calls))
    for which in ("latest", "best"):
        folder = checkpoint.find(tmp_path, which)
        assert folder is not None and checkpoint.load_state(folder).progress.step in (2, 4)
        checkpoint.load_policy(tmp_path, which)
    trained(tmp_path, 6, 4 if (tmp_path / "checkpoints/step-00000004/state.json").exists() and not crashed else 2)
    leftovers = [p.name for p in (tmp_path / "checkpoints").iterdir() if ".partial" in p.name and p.is_dir()]
    assert leftovers == []


class Malicious:
    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return (Path.touch, (self.proof,))


def test_pickles_and_archives_are_refused_and_never_executed(tmp_path):
    trained(tmp_path / "run", 1)
    proof, target = tmp_path / "executed", file_of(tmp_path / "run", "model.safetensors")
    target.write_bytes(pickle.dumps({"head": Malicious(proof)}))
    refused(tmp_path / "run", "holds a pickle or an archive")
    torch.save({"head": Malicious(proof)}, target)
    refused(tmp_path / "run", "holds a pickle or an archive")
    target.write_bytes(pickle.dumps(Malicious(proof), protocol=0))  # plain text, no magic number
    refused(tmp_path / "run", "truncated or not safetensors")
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("a", "b")
    refused(tmp_path / "run", "holds a pickle or an archive")
    for name in ("state.json", "../index.json"):
        trained(tmp_path / "other", 1)
        file_of(tmp_path / "other", name).write_bytes(pickle.dumps(Malicious(proof)))
        refused(tmp_path / "other", "damaged or not JSON")
        (tmp_path / "other/checkpoints/index.json").unlink()
    assert not proof.exists()


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path):
    for start in (b"\x80", b"PK"):
        sizes = (safetensors.torch.save({"x": torch.ones(2)}, {"note": "a" * n}) for n in range(0, 40_000, 8))
        content = next(content for content in sizes if content.startswith(start))
        (tmp_path / "file").write_bytes(content)
        assert torch.equal(checkpoint.read_tensors(tmp_path / "file")["x"], torch.ones(2))


def test_damaged_files_are_refused_in_one_line(tmp_path):
    trained(tmp_path, 1)
    model, state = file_of(tmp_path, "model.safetensors"), file_of(tmp_path, "state.json")
    weights, text = model.read_bytes(), state.read_text()
    model.write_bytes(weights[: len(weights) // 2])
    refused(tmp_path, "model.safetensors: truncated or not safetensors")
    model.unlink()
    refused(tmp_path, "model.safetensors: cannot be read")
    model.write_bytes(weights)
    for broken, message in (
        (text[: len(text) // 2], "damaged or not JSON"),
        ("[" * 100_000, "damaged or not JSON"),
        ("[]", "expected a JSON object"),
        (text.replace('"format_version": 1', '"format_version": 2'), "format version 2, this icrl reads up to 1"),
        (text.replace('"format_version": 1', '"format_version": "1"'), "format version '1'"),
        (text.replace('"dataset_hash"', '"hash"'), "damaged or not a checkpoint"),
        (text.replace('"num_layers"', '"layers"'), "recipe.model.layers: unknown option"),
    ):
        state.write_text(broken)
        refused(tmp_path, message)
    (tmp_path / "checkpoints/index.json").write_text('{"latest": "../../elsewhere"}')
    refused(tmp_path, "expected the name of a checkpoint folder")
    refused(tmp_path / "nowhere", "no latest checkpoint there: train it first")


def test_weights_of_another_model_are_refused(tmp_path):
    trained(tmp_path / "a", 1)
    trained(tmp_path / "b", 1, recipe=replace(RECIPE, model=replace(RECIPE.model, width=32)))
    trained(tmp_path / "c", 1, recipe=replace(RECIPE, model=replace(RECIPE.model, num_layers=2)))
    target = file_of(tmp_path / "a", "model.safetensors")
    target.write_bytes(file_of(tmp_path / "b", "model.safetensors").read_bytes())
    refused(tmp_path / "a", r"is \(.*32.*\) torch.float32, the model wants \(.*16.*\)")
    target.write_bytes(file_of(tmp_path / "c", "model.safetensors").read_bytes())
    refused(tmp_path / "a", "unexpected tensor 'transformer")
    tensors = checkpoint.read_tensors(target)
    tensors = {name: tensor for name, tensor in tensors.items() if ".1." not in name}
    first = sorted(tensors)[0]
    target.write_bytes(safetensors.torch.save({k: v for k, v in tensors.items() if k != first}))
    refused(tmp_path / "a", f"has no tensor {first!r}")


def test_a_family_that_does_not_fit_is_refused(tmp_path):
    trained(tmp_path, 1)
    spec = FAMILY.spec
    checkpoint.load_policy(tmp_path, "latest", family_spec=replace(spec, horizon=3))
    refused(tmp_path, "observation_space .* has", family_spec=make_family("darkroom", **{**OPTIONS, "width": 6}).spec)
    refused(tmp_path, "action_space", family_spec=replace(spec, action_space=gym.spaces.Discrete(9)))
    refused(tmp_path, "knows episodes of up to 8 steps, .* has 9", family_spec=replace(spec, horizon=9))


def test_a_full_disk_is_one_line_and_keeps_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "file"
    files.replace_file(target, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left on device.*free some space"):
        files.replace_file(target, b"new")
    assert target.read_bytes() == b"old"


# recipes as JSON


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name):
    recipe = RECIPES[name]()
    assert recipe_from_json(json.loads(json.dumps(recipe_to_json(recipe)))) == recipe


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**40), st.floats(allow_nan=False, allow_infinity=False), st.lists(st.integers()), st.text())
def test_values_survive_json(seed, rate, seeds, name):
    recipe = replace(
        RECIPE,
        name=name,
        seed=seed,
        train=replace(RECIPE.train, learning_rate=rate),
        evaluations=(replace(RECIPES["smoke"]().evaluations[0], seeds=tuple(seeds)),) * 2,
    )
    assert recipe_from_json(json.loads(json.dumps(recipe_to_json(recipe)))) == recipe


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("train", "step"), 3, r"recipe.train.step: unknown option; TrainConfig has steps, "),
        (("train", "steps"), "3", r"recipe.train.steps: expected int, got '3' \(str\)"),
        (("train", "steps"), True, r"recipe.train.steps: expected int, got True"),
        (("train", "bf16"), 1, r"recipe.train.bf16: expected bool, got 1"),
        (("model", "layout"), "word", r"recipe.model.layout: expected one of step, transition, got 'word'"),
        (("evaluations",), {"split": "test"}, r"recipe.evaluations: expected a list"),
        (("evaluations",), [{"seeds": [0, "a"]}], r"recipe.evaluations\[0\].seeds\[1\]: expected int"),
        (("family",), 3, r"recipe.family: expected an object with the fields of FamilyConfig, got 3"),
        (("family", "options"), [], r"recipe.family.options: expected dict"),
    ],
)
def test_recipes_with_mistakes_are_refused_by_name(path, value, message):
    data = recipe_to_json(RECIPE)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(UserError, match=message):
        recipe_from_json(data)


def test_a_recipe_needs_its_name():
    data = recipe_to_json(RECIPE)
    del data["name"]
    with pytest.raises(UserError, match=r"recipe.name: missing"):
        recipe_from_json(data)


def test_whole_numbers_are_read_as_floats_where_floats_are_wanted():
    data = recipe_to_json(RECIPE)
    data["train"]["learning_rate"] = 1
    assert isinstance(recipe_from_json(data).train.learning_rate, float)


def test_differences_are_named():
    a = {"x": 1, "y": {"z": [1, 2], "w": 0}}
    assert differing_fields(a, a) == []
    assert differing_fields(a, {"x": 1, "y": {"z": [1], "w": 0}, "v": 5}) == [("y.z", [1, 2], [1]), ("v", None, 5)]
