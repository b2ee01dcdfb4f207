"""One table of all explorers: what each earns in some episodes of a room it has never seen, what it cost, and what it was told.

Every row is an agent of a finished run. Rows of one room play the same held-out tasks, each with random numbers of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scripts.cells import Cell, mean

EPISODES = (1, 2, 3, 5, 10, 40)


@dataclass(frozen=True)
class Explorer:
    """An agent of one evaluation of a recipe."""

    what: str
    recipe: str
    privileged: str
    evaluation: int = 0
    row: str = "agent"


_DRAWS, _LABELS, _NOISY = "the prior, at deployment", "optimal actions as labels", "an optimal policy under noise"
_WANDERING = f"{_NOISY}, behind episodes that wander"
_BAYES = "a Bayes explorer, which knows the prior"
ROOMS: Mapping[str, tuple[Explorer, ...]] = {
    "10×10 Dark Room": (
        Explorer("distilled Bayes explorer", "quickstart", _BAYES, 1),
        Explorer("history-conditioned DPT", "darkroom-plans", _LABELS),
        Explorer("DPT", "darkroom-dpt", f"{_LABELS}; posterior and optimal sources", 2),
        Explorer("ICEE", "explore-darkroom-icee", _WANDERING),
        Explorer("AD", "explore-darkroom-ad", _NOISY),
        Explorer("exact: nearest plausible goal", "quickstart", _DRAWS, 1, "nearest_plausible"),
        Explorer("exact: a sample held until refuted", "darkroom-plans", _DRAWS, 0, "sample_and_hold"),
        Explorer("exact: a sample per step (what DPT learns)", "darkroom-plans", _DRAWS, 0, "posterior_sampling"),
    ),
    "10×10 Key-Door": (
        Explorer("distilled Bayes explorer", "keydoor", _BAYES),
        Explorer("history-conditioned DPT", "keydoor-plans", _LABELS),
        Explorer("DPT", "explore-keydoor-dpt", f"{_LABELS}; posterior sources"),
        Explorer("ICEE", "explore-keydoor-icee", _WANDERING),
        Explorer("AD", "explore-keydoor-ad", _NOISY),
        Explorer("exact: nearest plausible key or door", "keydoor", _DRAWS, 0, "nearest_plausible"),
        Explorer("exact: a sample held until refuted", "keydoor", _DRAWS, 0, "sample_and_hold"),
    ),
}


def explorer_texts(cells: Mapping[str, Cell]) -> list[str]:
    """A table in Markdown for each room of which there is a trained explorer."""
    texts = []
    for room, explorers in ROOMS.items():
        there = [one for one in explorers if one.recipe in cells]
        if not there:
            continue
        recipes = dict.fromkeys(one.recipe for one in explorers)
        head = f"Explorers in the {room}, held-out tasks, 40 episodes (`icrl reproduce {' '.join(recipes)}`):"
        columns = ("explorer", *(f"episode {number}" for number in EPISODES), "minutes to train", "told")
        rows = [_row(one, cells[one.recipe]) for one in there]
        lines = [" | ".join(line) for line in (columns, ["---"] * len(columns), *rows)]
        texts.append(f"{head}\n\n" + "\n".join(f"| {line} |" for line in lines))
    return texts


def _row(one: Explorer, cell: Cell) -> tuple[str, ...]:
    record = cell["evaluations"][one.evaluation]["record"]
    curve: Mapping[str, Any] = record["agents"][one.row]["return_by_episode"]
    returns = [mean({key: curve[key][number - 1] for key in ("mean", "over_tasks")}) for number in EPISODES]
    minutes = f"{cell['seconds_trained'] / 60:.0f}" if one.row == "agent" else "–"
    return (one.what, *returns, minutes, one.privileged)
