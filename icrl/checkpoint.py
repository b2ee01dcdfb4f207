"""Checkpoints: safetensors and JSON in one folder per step, committed by replacing one small index file.

    checkpoints/index.json            {"latest": "step-00000500", "best": "step-00000250"}
    checkpoints/step-00000500/        model.safetensors, optimizer.safetensors, state.json
    checkpoints/step-00000250/        model.safetensors, state.json

A folder is written aside, flushed to the disk and renamed; the index is replaced after that, in one atomic operation,
and folders that it does not name are removed. So a crash at any moment leaves the old pair or the new one. No random state is
kept, because every random number of a training is a function of the seed and the step. Nothing here can execute code.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from icrl.config import Recipe
from icrl.data.schema import space_to_json, spec_from_json, spec_to_json
from icrl.files import flush_folder, json_bytes, read_json, replace_file, write_file
from icrl.interfaces import FamilySpec, UserError
from icrl.recipe_json import dataclass_from_json, recipe_from_json, recipe_to_json
from icrl.throughput import find_device

FORMAT_VERSION = 1
Which = Literal["latest", "best"]


@dataclass(frozen=True)
class Progress:
    """How far a training has come; with the weights and the optimizer's moments this is its whole state."""

    step: int = 0
    """Optimiser steps done."""
    best_step: int = 0
    """Step of the best checkpoint; 0 before the first validation."""
    best_score: float | None = None
    """Mean validation return of the best checkpoint."""
    seconds: float = 0.0
    """Time spent on those steps, over all resumes."""


@dataclass(frozen=True)
class CheckpointState:
    """What state.json says beside the weights."""

    progress: Progress
    recipe: Recipe
    spec: FamilySpec
    dataset_hash: str


def save(run: Path, policy: nn.Module, optimizer: torch.optim.Optimizer, state: CheckpointState) -> Path:
    """Write the latest checkpoint, the best one too where ``state.progress`` says so, and return its folder."""
    root = run / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)
    _remove_unnamed(root)
    progress = state.progress
    folder = root / f"step-{progress.step:08d}"
    if not folder.exists():
        aside = root / f".{folder.name}.partial"
        aside.mkdir()
        write_file(aside / "model.safetensors", _tensor_bytes(policy.state_dict()))
        write_file(aside / "optimizer.safetensors", _tensor_bytes(dict(_moments(policy, optimizer))))
        write_file(aside / "state.json", json_bytes(_state_to_json(state)))
        flush_folder(aside)
        os.rename(aside, folder)
    index = {"latest": folder.name}
    if progress.best_score is not None:
        index["best"] = f"step-{progress.best_step:08d}"
    replace_file(root / "index.json", json_bytes(index))
    _remove_unnamed(root)
    return folder


def find(run: Path, which: Which) -> Path | None:
    """Folder of the latest or best checkpoint of a run, None where it has none yet."""
    index_file = Path(run) / "checkpoints" / "index.json"
    if not index_file.exists():
        return None
    index = read_json(index_file)
    if which not in index:
        return None
    name = index[which]
    if not (isinstance(name, str) and re.fullmatch(r"step-\d{8,}", name)):
        raise UserError(
            f"{index_file}: {which} is {name!r}, expected the name of a checkpoint folder: the file is damaged"
        )
    return index_file.parent / name


def load_state(folder: Path) -> CheckpointState:
    """Read and check state.json of one checkpoint folder."""
    file = folder / "state.json"
    data = read_json(file)
    version = data.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION or version < 1:
        raise UserError(
            f"{file}: format version {version!r}, this icrl reads up to {FORMAT_VERSION}: use the icrl that wrote it"
        )
    try:
        return CheckpointState(
            progress=dataclass_from_json(Progress, data["progress"], f"{file}: progress"),
            recipe=recipe_from_json(data["recipe"], f"{file}: recipe"),
            spec=spec_from_json(data["spec"]),
            dataset_hash=str(data["dataset_hash"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: damaged or not a checkpoint ({error!r}): restore it or train again") from None


def load_policy(
    run: Path, which: Which = "best", device: str | torch.device = "cpu", family_spec: FamilySpec | None = None
) -> tuple[Any, Recipe, FamilySpec]:
    """The trained policy in evaluation mode, its recipe, and the spec that it was trained for.

    ``family_spec``, where given, must have the same spaces and no longer episodes. UserError, one line, for anything
    missing, damaged, of another shape or from a newer version.
    """
    from icrl.models.policy import Policy

    folder = find(run, which)
    if folder is None:
        raise UserError(
            f"{run}: no {which} checkpoint there: train it first (icrl train RECIPE --data DATA --out {run})"
        )
    state = load_state(folder)
    spec = state.spec
    if family_spec is not None:
        check_spec(spec, family_spec, f"the checkpoint in {run}")
        spec = replace(spec, action_points=family_spec.action_points)  # weights know points by where they are
    with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten: their draws must not leak out
        policy = Policy(spec, state.recipe.model)
    load_weights(policy, folder)
    return policy.to(find_device(device)).eval(), state.recipe, spec


def load_weights(policy: nn.Module, folder: Path) -> None:
    """Copy the checkpoint's weights into ``policy``, in place."""
    _copy_tensors(read_tensors(folder / "model.safetensors"), policy.state_dict(), folder / "model.safetensors")


def load_optimizer(policy: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Give ``optimizer`` (AdamW on ``policy``'s parameters) the checkpoint's moments and step counts."""
    file = folder / "optimizer.safetensors"
    saved = read_tensors(file)
    for name, parameter in _optimized(policy, optimizer):
        if f"{name}:step" not in saved:  # it never had a gradient, so AdamW never gave it moments
            continue
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }
    _copy_tensors(saved, dict(_moments(policy, optimizer)), file)


def check_spec(trained: FamilySpec, given: FamilySpec, what: str) -> None:
    """UserError unless ``given`` has the spaces of ``trained`` and episodes that are no longer."""
    for name in ("observation_space", "action_space"):
        old, new = getattr(trained, name), getattr(given, name)
        if space_to_json(old) != space_to_json(new):  # their dtypes may differ
            raise UserError(
                f"{what} has {name} {old}, but family {given.name} has {new}: use the family that it was made for"
            )
    if given.horizon > trained.horizon:
        raise UserError(
            f"{what} knows episodes of up to {trained.horizon} steps, but family {given.name} has {given.horizon}: "
            "use a shorter horizon"
        )


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; anything else is refused, and a pickle or an archive never opened."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}): restore the file or train again") from None
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, KeyError, ValueError) as error:
        if (
            content[:1] == b"\x80" or content[:2] == b"PK"
        ):  # only now: a header's length may start with these bytes, too
            raise UserError(f"{file}: holds a pickle or an archive, which could run code: not opened") from None
        raise UserError(f"{file}: truncated or not safetensors ({error}): restore the file or train again") from None


def _state_to_json(state: CheckpointState) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "progress": asdict(state.progress),
        "recipe": recipe_to_json(state.recipe),
        "spec": spec_to_json(state.spec),
        "dataset_hash": state.dataset_hash,
    }


def _optimized(policy: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that the optimizer owns, by name, in the model's order."""
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return ((name, p) for name, p in policy.named_parameters() if id(p) in owned)


def _moments(policy: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """AdamW's state as flat names: ``<parameter>:exp_avg`` and so on. Parameters without a gradient have none."""
    for name, parameter in _optimized(policy, optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            yield f"{name}:{key}", value


def _copy_tensors(source: dict[str, Tensor], target: dict[str, Tensor], file: Path) -> None:
    """Copy by name, in place; any difference in names, shapes or types is a UserError."""
    unexpected = sorted(source.keys() - target.keys())
    missing = sorted(target.keys() - source.keys())
    if unexpected or missing:
        what = f"has no tensor {missing[0]!r}" if missing else f"has an unexpected tensor {unexpected[0]!r}"
        raise UserError(f"{file}: {what}: it belongs to another model; use the run's own checkpoint")
    for name, tensor in target.items():
        if source[name].shape != tensor.shape or source[name].dtype != tensor.dtype:
            raise UserError(
                f"{file}: {name} is {tuple(source[name].shape)} {source[name].dtype}, the model wants "
                f"{tuple(tensor.shape)} {tensor.dtype}: it belongs to another model; use the run's own checkpoint"
            )
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])


def _tensor_bytes(tensors: dict[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()})


def _remove_unnamed(root: Path) -> None:
    """Delete what an interrupted save left, folders that the index no longer names, and moments that no resume needs."""
    latest, best = find(root.parent, "latest"), find(root.parent, "best")
    for folder in [*root.glob("step-*"), *root.glob(".step-*.partial")]:
        if folder not in (latest, best):
            shutil.rmtree(folder)
    if best is not None and best != latest:
        (best / "optimizer.safetensors").unlink(missing_ok=True)
