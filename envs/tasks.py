"""What families share that draw their tasks: bounds of options, three independent lists of tasks."""

from __future__ import annotations

from typing import Any

from icrl.interfaces import Split, UserError
from icrl.seeding import generator

LISTS = {"num_train_tasks": 1, "num_validation_tasks": 0, "num_test_tasks": 1, "task_seed": 0}
"""Options of ``independent_split``, and the least that each can be."""


def check_least(who: str, options: Any, **least: int) -> None:
    """Raise UserError, naming ``who`` and the option, where one of ``options`` is smaller than the least that it can be."""
    for key, bound in least.items():
        if getattr(options, key) < bound:
            raise UserError(f"{who}'s {key} is {getattr(options, key)}: expected at least {bound}")


def independent_split(family: Any) -> Split:
    """Training, validation and test tasks of a family with ``LISTS`` among its options, each list from a stream of its own.

    Tasks out of a continuum are in one list only. A list does not depend on how long the others are.
    """
    sizes = {"train": family.num_train_tasks, "validation": family.num_validation_tasks, "test": family.num_test_tasks}
    return Split(
        *(family.sample_tasks(generator(family.task_seed, family.name, part), size) for part, size in sizes.items())
    )
