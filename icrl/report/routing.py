"""How a policy of several families routes: its experts' loads over training, and what ``icrl probe`` found of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from icrl.config import Recipe
from icrl.report.curves import training_figure
from icrl.report.inputs import RunInput
from icrl.report.page import Block, Picture, Text
from icrl.report.probe import probe_blocks
from icrl.report.results import number
from icrl.report.style import BASELINE_COLORS, to_png

MEASURED = (
    ("least_load", "Least chosen expert", "share of the choices"),
    ("most_load", "Most chosen expert", "share of the choices"),
    ("entropy", "Entropy of the choices", "nats"),
)
"""What is logged of every router, and how its panel is called."""


def routing_blocks(runs: Sequence[RunInput]) -> list[Block]:
    """Of every run that has mixtures of experts or was probed: curves of its routers, and what the probe found."""
    blocks: list[Block] = []
    for index, run in enumerate(runs, start=1):
        if not run.recipe.model.mixture.blocks and run.probe is None:
            continue
        blocks.append(Text((f"{run.label}: " if len(runs) > 1 else "") + _model_words(run.recipe)))
        blocks += _training_blocks(run, index)
        if run.probe is not None:
            blocks += probe_blocks(run.probe, f"routing-{index}")
        elif run.recipe.family.name == "mixed":
            blocks.append(
                Text(
                    "What the policy knows of its task, whom its routers choose on held-out tasks and whether families conflict is told by "
                    "`icrl probe RUN` on this run's folder, which writes probe.json there. It was not asked yet."
                )
            )
    return blocks


def _model_words(recipe: Recipe) -> str:
    mixture = recipe.model.mixture
    if not mixture.blocks:
        return "The model is dense: it has no experts."
    parts = [
        f"{getattr(mixture, f'{part}_experts')} experts by {part}, of which {getattr(mixture, f'{part}_top')} are chosen"
        for part in ("token", "task")
        if mixture.parts in (part, "both")
    ]
    many = "s" if len(mixture.blocks) > 1 else ""
    return (
        f"Mixtures of experts in block{many} {' and '.join(map(str, mixture.blocks))}: {' and '.join(parts)}. "
        "No choice is ever dropped: experts have no capacity limit."
    )


def _training_blocks(run: RunInput, index: int) -> list[Block]:
    """Loads and entropy by training step, one line for each router."""
    panels, words = [], []
    for measure, title, unit in MEASURED:
        tags = sorted(tag for tag in run.metrics if tag.startswith("routing/") and tag.endswith(f"/{measure}"))
        if tags:
            colors = (BASELINE_COLORS[i % len(BASELINE_COLORS)] for i in range(len(tags)))
            lines = [(_place(tag), *run.metrics[tag], color) for tag, color in zip(tags, colors, strict=True)]
            panels.append((title, unit, lines))
            words += [f"{title}, {label}: from {number(v[0])} to {number(v[-1])}" for label, _, v, _ in lines]
    if not panels:
        return []
    caption = (
        "Whom the routers choose while they are trained, on training windows. Where all experts are chosen alike, the least and the most chosen one get "
        f"the same share and the entropy is the logarithm of their number{_most_entropy(run.recipe)}."
    )
    data = to_png(training_figure(panels))
    return [Picture(f"routing-{index}-training.png", data, f"Curves of the routers. {'; '.join(words)}.", caption)]


def _place(tag: str) -> str:
    """``routing/token_1/entropy`` -> ``token, block 1``."""
    part, block = tag.split("/")[1].split("_")
    return f"{part}, block {block}"


def _most_entropy(recipe: Recipe) -> str:
    mixture = recipe.model.mixture
    parts = [part for part in ("token", "task") if mixture.parts in (part, "both")]
    most = [f"{number(math.log(getattr(mixture, f'{part}_experts')))} by {part}" for part in parts]
    return f" ({', '.join(most)})" if mixture.blocks else ""
