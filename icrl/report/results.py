"""Results of one group of comparable evaluations: verdict, curves against baselines and published numbers, table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from icrl.report.bars import Bar, bars_figure
from icrl.report.curves import Curve, PublishedCurve, curves_figure
from icrl.report.page import Block, Picture, Table, Text, Verdict
from icrl.report.rows import Group, Interval, Row, curve_ends, interval, paired_difference, rest_return
from icrl.report.style import GREY, to_png

EPISODES_SHOWN = (1, 2, 3, 5, 10, 40, 200, 1000)
FIRST_OF_REST = 4
NONE = "–"


def number(value: float | None, interval: Interval | None = None) -> str:
    """``43.7 [38.1, 49.9]``, with decimals that suit the size."""
    if value is None or not np.isfinite(value):
        return NONE
    ends = (value, *(interval or ()))
    digits = 2 if max(map(abs, ends)) < 10 else 1
    shown = [
        f"{round(float(x), digits) + 0.0:.{digits}f}".replace("-", "−") for x in ends
    ]  # + 0.0: no minus before zero
    return shown[0] if interval is None else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def estimate_text(estimate: Mapping[str, Any] | None) -> str:
    """An estimate of the record as text."""
    return NONE if estimate is None else number(estimate["mean"], interval(estimate))


def verdict_blocks(groups: Sequence[Group]) -> list[Block]:
    """The words of every agent's verdict where it can be had; offline there is nothing to learn along."""
    blocks: list[Block] = []
    for group in groups:
        for row in group.agents:
            verdict = row.evaluation.record["verdict"]
            if group.record["mode"] == "online":
                label = f"{row.label}, {group.short_title}:"
                blocks.append(Verdict(label, verdict["text"] + ".", verdict["learned"]))
    return blocks


def headline(group: Group) -> str:
    """The agents' first episodes in a sentence, with the optimum, chance and what was published."""
    record = group.record
    episodes = [e for e in (1, 2, 3, record["episodes"]) if e <= record["episodes"]]
    episodes = list(dict.fromkeys(episodes))
    means = [
        f"{row.run.label} returns "
        + ", ".join(f"{number(row.record['return_by_episode']['mean'][e - 1])} in episode {e}" for e in episodes)
        for row in group.agents
    ]
    text = (
        f"On {record['num_tasks']:,} {record['split']} tasks it never trained on: " if record["split"] == "test" else ""
    )
    optimum = "not known" if record["optimal_return"] is None else number(record["optimal_return"])
    text += f"{'; '.join(means)}. The optimum is {optimum}, chance {number(record['random_return'])}."
    for method, curve in (group.published.by_episode if group.published else {}).items():
        there = [f"{number(curve[e])} in episode {e}" for e in episodes if e in curve]
        if there and method == "DPT":
            text += f" Published {method}: {', '.join(there)}."
    return text


def return_blocks(group: Group, several: bool) -> list[Block]:
    """Online evaluations: the curve by episode (where there are episodes) and the table."""
    blocks: list[Block] = [Text(_played_words(group))]
    if group.record["episodes"] > 1:
        blocks.append(_return_picture(group))
    blocks.append(_return_table(group))
    if group.published is not None:
        blocks.append(Text(_published_words(group)))
    if several:
        blocks += _difference_table(group)
    return blocks


def regret_blocks(group: Group) -> list[Block]:
    """Bandits: cumulative regret by step and the table of final regrets."""
    rows = [row for row in group.rows if row.record["bandit"] is not None]
    if not rows or group.record["mode"] != "online":
        return []
    curves = []
    for row in rows:
        if (
            not row.repeated and row.role != "control" and row.name != "random"
        ):  # linear: would flatten all other curves
            bandit = row.record["bandit"]
            ends = curve_ends(bandit["cumulative_regret"])
            curves.append(Curve(row.label, np.array(bandit["steps"]), *ends, row.style))
    regret = group.published.regret if group.published else {}
    last = rows[0].record["bandit"]["steps"][-1]
    points = [PublishedCurve(f"{m} (published)", np.array([last]), np.array([v])) for m, v in regret.items()]
    figure = curves_figure(curves, points, "Cumulative regret", "step", "expected regret")
    name = f"regret-{group.name}.png"
    caption = "Expected regret: best arm's mean minus the pulled arm's, summed; lower is better. Bands are 95 % intervals over tasks. "
    caption += "Random and hidden rewards, whose regret grows linearly, are in the table only."
    header = ("row", "knows", f"regret after {last} steps", "agent's regret over this one's (paired)")
    body = [
        (r.label, _knows(r), *(estimate_text(r.record["bandit"][k]) for k in ("final_regret", "regret_ratio_of_agent")))
        for r in rows
    ]
    body += [(f"{method} (published)", "", number(value), "") for method, value in regret.items()]
    return [
        Picture(name, to_png(figure), f"Cumulative regret by step: {_ends_words(curves)}", caption),
        Table(header, tuple(body), "Regret, with 95 % intervals over tasks", _strong(rows)),
        *_exactness_table(group),
    ]


def search_blocks(group: Group) -> list[Block]:
    """Bayesian optimisation: simple regret by evaluation and the table of what is left after the last."""
    rows = [row for row in group.rows if row.record.get("search")]
    if not rows:
        return []
    curves = [
        Curve(r.label, np.array(r.record["search"]["steps"]), *curve_ends(r.record["search"]["simple_regret"]), r.style)
        for r in rows
        if not r.repeated
    ]
    last = rows[0].record["search"]["steps"][-1]
    figure = curves_figure(curves, [], "Simple regret", "evaluation", "share of the function's range")
    caption = "What the best evaluation so far lacks to the best candidate, over the function's range; lower is better. Bands are 95 % intervals over functions."
    header = (
        "row",
        "knows",
        f"simple regret after {last} evaluations",
        "agent − this (paired)",
        "decisions/s, all lanes",
    )
    body = [
        (
            r.label,
            _knows(r),
            *(_percent(r.record["search"][key]) for key in ("final_regret", "agent_minus_this")),
            f"{r.record['steps_per_second']:,.0f}",
        )
        for r in rows
    ]
    return [
        Picture(
            f"search-{group.name}.png", to_png(figure), f"Simple regret by evaluation: {_ends_words(curves)}", caption
        ),
        Table(header, tuple(body), "Simple regret, with 95 % intervals over functions", _strong(rows)),
    ]


def _percent(estimate: Mapping[str, Any]) -> str:
    """An estimate of a share, in percent."""
    ends = interval(estimate)
    shown = None if ends is None else (100 * ends[0], 100 * ends[1])
    return f"{number(100 * estimate['mean'], shown)} %"


def _exactness_table(group: Group) -> list[Block]:
    """Distance of the agents' probabilities to the exact posterior, where it was measured."""
    body = []
    for row in group.agents:
        distance = row.evaluation.record["posterior_distance"]
        if distance:
            sizes = (f"{distance['num_states']:,}", f"{distance['max_pulls']}")
            body.append((row.label, *sizes, f"{distance['to_posterior']:.4f}", f"{distance['between_orders']:.4f}"))
    header = ("row", "count states", "most pulls", "to the exact posterior", "between two orders of the same pulls")
    return [Table(header, tuple(body), "Mean total variation of action probabilities")] if body else []


def offline_blocks(groups: Sequence[Group]) -> list[Block]:
    """All offline evaluations: one figure, one table."""
    panels, body, strong = [], [], set()
    for group in groups:
        setting = f"{group.record['context_size']:,} {group.record['context']} transitions"
        shown = [row for row in group.rows if not row.repeated]
        bars = [
            Bar(row.label, row.record["mean_return"]["mean"], interval(row.record["mean_return"]), row.style.color)
            for row in shown
        ]
        published = group.published.final_return if group.published else {}
        bars += [Bar(f"{method} (published)", value, None, GREY, True) for method, value in published.items()]
        panels.append((f"{group.tasks}, {setting}", bars))
        for row in group.rows:
            if row.role == "agent":
                strong.add(len(body))
            keys = ("mean_return", "normalised_score", "regret", "agent_minus_this")
            body.append((row.label, setting, _knows(row), *_cells(row, keys)))
        body += [(f"{m} (published)", setting, "", number(v), "", "", "") for m, v in published.items()]
    header = ("row", "context", "knows", "return", "normalised score", "regret per episode", "agent − this (paired)")
    figure = bars_figure(panels, "return of one episode")
    words = "; ".join(f"{title}: " + ", ".join(f"{b.label} {b.value:.1f}" for b in bars) for title, bars in panels)
    caption = "Return of an episode on a given, fixed context. Black lines are 95 % intervals over tasks; hatched bars are published."
    return [
        Picture("offline.png", to_png(figure), f"Offline returns. {words}", caption),
        Table(header, tuple(body), "Offline evaluations, with 95 % intervals over tasks", frozenset(strong)),
    ]


def knowledge_table(groups: Sequence[Group]) -> Table:
    """What each row is told beyond its own context."""
    found = {
        row.label: (row.label, row.role, _knows(row), row.record["note"] or NONE) for g in groups for row in g.rows
    }
    return Table(("row", "role", "privileged knowledge", "note"), tuple(found.values()), "Who knows what")


def _return_picture(group: Group) -> Picture:
    """Return by episode with intervals, published points on top."""
    episodes = np.arange(1, group.record["episodes"] + 1)
    curves = [
        Curve(row.label, episodes, *curve_ends(row.record["return_by_episode"]), row.style)
        for row in group.rows
        if not row.repeated
    ]
    by_episode = group.published.by_episode if group.published else {}
    points = [
        PublishedCurve(f"{method} (published)", np.array(list(curve)), np.array(list(curve.values())))
        for method, curve in by_episode.items()
    ]
    figure = curves_figure(curves, points, "Return by episode, weights frozen", "episode in context", "return")
    caption = "Bands are 95 % intervals over tasks."
    if points:
        caption += " Black and grey markers: published numbers, joined by dots to guide the eye."
    beyond = [f"{p.label} {p.y[-1]:g} at episode {p.x[-1]}" for p in points if p.x[-1] > episodes[-1]]
    if beyond:
        caption += f" Beyond the plot: {', '.join(beyond)}."
    if any(row.repeated for row in group.rows):
        caption += " Baselines are drawn as measured beside the first run; the table has all."
    return Picture(f"return-{group.name}.png", to_png(figure), f"Return by episode. {_ends_words(curves)}", caption)


def _return_table(group: Group) -> Table:
    """One row per agent and per published method."""
    num = group.record["episodes"]
    shown = [e for e in EPISODES_SHOWN if e <= num]
    shown += [num] if num not in shown else []
    with_rest = num > FIRST_OF_REST
    header = ["row", "knows", *(f"episode\N{NO-BREAK SPACE}{e}" for e in shown)]
    header += [f"mean of {FIRST_OF_REST} to {num}"] if with_rest else []
    header += ["late − early (paired)", "normalised score", "regret per episode", "agent − this (paired)"]
    body = []
    for row in group.rows:
        mean, low, high = curve_ends(row.record["return_by_episode"])
        has_ends = row.record["return_by_episode"]["over_tasks"] or row.record["return_by_episode"]["fixed_tasks"]
        cells = [number(mean[e - 1], (low[e - 1], high[e - 1]) if has_ends else None) for e in shown]
        cells += [number(*rest_return(row, FIRST_OF_REST))] if with_rest else []
        keys = ("late_minus_early", "normalised_score", "regret", "agent_minus_this")
        body.append((row.label, _knows(row), *cells, *_cells(row, keys)))
    rest = ("",) * (len(header) - 2 - len(shown))
    if group.published is not None:
        there = {m: curve for m, curve in group.published.by_episode.items() if set(curve) & set(shown)}
        for method, curve in there.items():
            body.append((f"{method} (published)", "", *(number(curve[e]) if e in curve else "" for e in shown), *rest))
    return Table(tuple(header), tuple(body), "Returns, with 95 % intervals over tasks", _strong(group.rows))


def _difference_table(group: Group) -> list[Block]:
    """Each later run's agent against the first run's, where they played the same tasks and lanes."""
    first, *others = group.agents
    body = []
    for row in others:
        difference = paired_difference(row, first)
        if difference is not None:
            body.append((f"{row.run.label} − {first.run.label}", number(*difference)))
    caption = "Difference of mean returns, paired by task; real where the interval excludes 0"
    return [Table(("runs", "difference"), tuple(body), caption)] if body else []


def _played_words(group: Group) -> str:
    record, seeds = group.record, len(group.record["seeds"])
    return (
        f"{group.title[0].upper()}{group.title[1:]}: {record['lanes']:,} lanes over {record['num_tasks']:,} of "
        f"{record['num_split_tasks']:,} tasks, {seeds} evaluation seed{'s' if seeds > 1 else ''}, {record['action_rule']} actions; "
        f"every row meets the same tasks and random numbers."
    )


def _published_words(group: Group) -> str:
    """Where the published numbers come from, and those without an episode."""
    published = group.published
    assert published is not None
    final = "".join(f" {method}: {value:g}." for method, value in published.final_return.items())
    final = f" Published without an episode:{final}" if final else ""
    return f"Published numbers: {published.citation} ({published.how}). Protocol: {published.task}.{final}"


def _cells(row: Row, keys: Sequence[str]) -> list[str]:
    """Estimates of a row as texts; the agent is not compared with itself."""
    return [
        NONE if key == "agent_minus_this" and row.role == "agent" else estimate_text(row.record[key]) for key in keys
    ]


def _knows(row: Row) -> str:
    return row.record["privileged"] or ("its own context" if row.role == "agent" else NONE)


def _strong(rows: Sequence[Row]) -> frozenset[int]:
    return frozenset(index for index, row in enumerate(rows) if row.role == "agent")


def _ends_words(curves: Sequence[Curve]) -> str:
    """First and last value of every curve, for readers who do not see it."""
    return "; ".join(f"{c.label} from {number(c.mean[0])} to {number(c.mean[-1])}" for c in curves) + "."
