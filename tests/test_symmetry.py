"""Augmentation: a mirrored history is one that the mirrored task could have left, and training draws all mirrors equally often."""

from typing import Any

import numpy as np
import pytest
from toy import without_flushing

from agents.collect import collect
from envs.darkroom import DarkRoom
from envs.keydoor import KeyDoor
from icrl.config import CollectConfig, FamilyConfig, Recipe, SourceConfig
from icrl.data.sampling import WindowSampler
from icrl.data.store import HistoryStore
from icrl.data.symmetry import mirrored, symmetries_of
from icrl.interfaces import UserError

_fast = pytest.fixture(scope="module", autouse=True)(without_flushing)
OPTIONS: dict[str, Any] = {
    "width": 4,
    "height": 4,
    "horizon": 12,
    "task_split": 0,
    "num_tasks": 40,
    "num_validation": 2,
}


@pytest.mark.parametrize("shape, count", [((5, 5), 8), ((4, 6), 4)])
def test_mirrors_of_a_room_keep_its_walls(shape, count):
    room = KeyDoor(height=shape[0], width=shape[1])
    images, tables = room.images(), room.tables
    assert len({tuple(room.cell_of(image.observation(tables.coordinates))) for image in images}) == len(images) == count
    for image in images:
        seen = room.cell_of(image.observation(tables.coordinates))  # (S,) where each cell is in the mirror
        for action in range(5):
            np.testing.assert_array_equal(
                tables.next_cell[seen, image.actions[action]], seen[tables.next_cell[:, action]]
            )


def test_no_training_task_becomes_a_held_out_one():
    for family in (KeyDoor(), KeyDoor(**OPTIONS)):
        split, images = family.split(), family.symmetries()
        held_out = {(tuple(task["key"]), tuple(task["door"])) for task in np.concatenate(split[1:])}
        seen = [
            {(tuple(image.observation(task["key"])), tuple(image.observation(task["door"]))) for task in split.train}
            for image in family.images()
        ]
        assert sum(not pairs & held_out for pairs in seen) == len(images) and 1 < len(images) < 8


def test_families_without_symmetries_are_refused():
    with pytest.raises(UserError, match="darkroom has none"):
        symmetries_of(DarkRoom())


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    recipe = Recipe(
        name="mirrors",
        description="",
        family=FamilyConfig("keydoor", OPTIONS),
        collect=CollectConfig(
            (SourceConfig("optimal", {"epsilon": 0.3}),), num_histories=16, steps_per_history=30, workers=1
        ),
    )
    return HistoryStore.open(collect(recipe, tmp_path_factory.mktemp("mirrors") / "data").path)


def test_a_mirrored_window_is_a_life_in_the_mirrored_room(store):
    room = KeyDoor(**OPTIONS)
    sampler = WindowSampler(store, 36, start_fraction=1.0)
    plain = sampler.batch(0, 64)
    window = mirrored(plain, room.images(), np.random.default_rng(0))
    steps = window.valid
    np.testing.assert_array_equal(steps, plain.valid)
    here, there = (room.cell_of(a) for a in (window.observation, window.next_observation))
    np.testing.assert_array_equal(room.tables.next_cell[here, window.action][steps], there[steps])
    np.testing.assert_array_equal(window.reward, plain.reward)
    assert not window.observation[~steps].any() and not window.action[~steps].any() and (~steps).any()
    agreed = plain.action == plain.target_action
    np.testing.assert_array_equal((window.action == window.target_action)[steps], agreed[steps])
    starts = room.cell_of(window.observation[:, 0])
    assert set(starts) == {0, 3, 12, 15} and min(np.bincount(starts)[[0, 3, 12, 15]]) >= 5


def test_training_windows_are_mirrored_only_when_asked(store):
    plain = WindowSampler(store, 24, seed=3).batch(5, 8)
    again = WindowSampler(store, 24, seed=3, symmetries=KeyDoor(**OPTIONS).images()).batch(5, 8)
    np.testing.assert_array_equal(plain.history, again.history)
    assert (plain.observation != again.observation).any()
    only = [KeyDoor(**OPTIONS).images()[0]]
    np.testing.assert_array_equal(
        WindowSampler(store, 24, seed=3, symmetries=only).batch(5, 8).observation, plain.observation
    )
