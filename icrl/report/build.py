"""One page for a run or a comparison: reads the run folders, makes the sections, writes the folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from icrl.report.exploration import exploration_blocks
from icrl.report.grid import grid_blocks
from icrl.report.inputs import RunInput, read_runs
from icrl.report.memory import memory_blocks
from icrl.report.page import Block, Section, Text, check_output, render, write
from icrl.report.results import (
    headline,
    knowledge_table,
    offline_blocks,
    regret_blocks,
    return_blocks,
    search_blocks,
    verdict_blocks,
)
from icrl.report.routing import routing_blocks
from icrl.report.rows import Group, group_evaluations
from icrl.report.run_sections import cost_blocks, run_blocks, training_blocks

HOW_TO_READ = (
    "Weights are frozen in every evaluation: all learning happens in the context, which starts empty online and is given offline.",
    "Intervals are 95 % bootstrap intervals over tasks (over repeated runs of the same task where only one task was played). "
    "Differences are paired by task, seed and lane; one is real where its interval excludes 0.",
    "Normalised score = (mean return − random) / (optimal − random), means over tasks before dividing: 0 is chance, 1 the optimum. "
    "Regret per episode = expected optimal return − return. Early episodes are the first tenth, late ones the last quarter.",
    "The verdict is “learned in context” only if late − early episodes and agent − rewards hidden both exceed 0.",
)


def build_report(runs: Sequence[Path], out: Path, *, published: bool = True) -> Path:
    """Write the report of finished runs into the folder ``out`` and return the path of its index.html.

    The page needs no other file and no network; the figures lie beside it as PNG and GIF. ``published`` draws published numbers of the
    protocol that was played. An earlier report in ``out`` is replaced. Raises UserError for a run that is missing or unfinished and
    for an ``out`` that holds anything else.
    """
    out = Path(out)
    check_output(out)
    inputs = read_runs([Path(run) for run in runs])
    groups = group_evaluations(inputs)
    if not published:
        groups = [dataclasses.replace(group, published=None) for group in groups]
    sections = _sections(inputs, groups)
    online = [group for group in groups if group.record["mode"] == "online"]
    lead: list[Block] = [Text(headline(group)) for group in online[:1]]
    html = render(_title(inputs), _subtitle(inputs), [*lead, *verdict_blocks(groups)], sections)
    return write(out, html, sections)


def _sections(runs: Sequence[RunInput], groups: Sequence[Group]) -> list[Section]:
    online = [group for group in groups if group.record["mode"] == "online"]
    offline = [group for group in groups if group.record["mode"] == "offline"]
    several = len(runs) > 1
    sections = [Section("run", "What was run", [*run_blocks(runs), knowledge_table(groups)])]
    for number, group in enumerate(online, start=1):
        suffix = f", {group.short_title}" if len(online) > 1 else ""
        sections.append(Section(f"returns-{number}", f"Returns{suffix}", return_blocks(group, several)))
        sections.append(Section(f"regret-{number}", f"Regret{suffix}", regret_blocks(group)))
        sections.append(Section(f"search-{number}", f"Search{suffix}", search_blocks(group)))
        sections.append(Section(f"exploration-{number}", f"How it explored{suffix}", exploration_blocks(group)))
    if offline:
        sections.append(Section("offline", "Given contexts (offline)", offline_blocks(offline)))
    if online:
        longest = max(online, key=lambda group: group.record["episodes"])
        pictures = [b for i, row in enumerate(longest.agents, start=1) for b in grid_blocks(row, f"{i}-{longest.name}")]
        sections.append(Section("lane", "Watch it learn", pictures))
        remembered = [
            b for i, row in enumerate(longest.agents, start=1) for b in memory_blocks(row, f"{i}-{longest.name}")
        ]
        sections.append(Section("memory", "What it remembered", remembered))
    sections.append(Section("routing", "How it routes", routing_blocks(runs)))
    sections.append(Section("training", "Training", training_blocks(runs)))
    sections.append(Section("costs", "Costs", cost_blocks(runs)))
    sections.append(Section("reading", "How to read this page", [Text(text) for text in HOW_TO_READ]))
    return [section for section in sections if section.blocks]


def _title(runs: Sequence[RunInput]) -> str:
    return f"Run {runs[0].label}" if len(runs) == 1 else f"Comparison of {' and '.join(run.label for run in runs)}"


def _subtitle(runs: Sequence[RunInput]) -> str:
    return "; ".join(dict.fromkeys(run.recipe.description for run in runs))
