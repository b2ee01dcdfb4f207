"""The README's tables of results, from the cells alone: one line per evaluation that is shown, and what the runs cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from icrl.published import section
from scripts.cells import Cell, mean
from scripts.comparisons import COMPARISONS, compared_runs, comparison_text
from scripts.explorers import explorer_texts

DARKROOM, BANDIT, AD = (
    section(name) for name in ("darkroom_10x10_dpt_protocol", "bandit_5_arm_dpt_protocol", "darkroom_9x9_ad_protocol")
)
KEYDOOR = section("keydoor_radt_protocol")["final_return"]["10x10"]


@dataclass(frozen=True)
class Line:
    """One line of the results table."""

    recipe: str
    evaluation: int
    what: str
    measured: Callable[[Mapping[str, Any]], str]  # of the evaluation's record
    exact: Callable[[Mapping[str, Any]], str]  # the same of an agent with exact inference, on the same tasks
    published: str


def episodes(row: str, *numbers: int) -> Callable[[Mapping[str, Any]], str]:
    """Returns of the row in some episodes."""

    def show(record: Mapping[str, Any]) -> str:
        curve = record["agents"][row]["return_by_episode"]
        return " / ".join(
            mean({"mean": curve["mean"][e - 1], "over_tasks": curve["over_tasks"][e - 1]}) for e in numbers
        )

    return show


def late(row: str) -> Callable[[Mapping[str, Any]], str]:
    """Mean return of the late episodes, the last quarter."""
    return lambda record: mean(record["agents"][row]["late_return"])


def less(row: str) -> Callable[[Mapping[str, Any]], str]:
    """Mean return of the agent, and its difference to the row's, paired."""

    def show(record: Mapping[str, Any]) -> str:
        agents = record["agents"]
        return f"{mean(agents['agent']['mean_return'])}, difference {mean(agents[row]['agent_minus_this'], 2)}"

    return show


def regret(row: str) -> Callable[[Mapping[str, Any]], str]:
    """Cumulative regret of the row."""
    return lambda record: mean(record["agents"][row]["bandit"]["final_regret"], 2)


def regret_and_ratio(record: Mapping[str, Any]) -> str:
    """The agent's regret, and over Thompson sampling's on the same tasks and draws."""
    ratio = record["agents"]["thompson"]["bandit"]["regret_ratio_of_agent"]
    return f"{regret('agent')(record)}, ratio {mean(ratio, 3)}"


def simple_regret(row: str) -> Callable[[Mapping[str, Any]], str]:
    """What the best evaluation of a search leaves to be found, a share of the function's range."""
    return lambda record: mean(record["agents"][row]["search"]["final_regret"], 3)


def simple_regret_and_difference(record: Mapping[str, Any]) -> str:
    """The agent's, and less that of the Gaussian process, paired."""
    less_gp, less_random = (mean(record["agents"][row]["search"]["agent_minus_this"], 3) for row in ("gp_ei", "random"))
    return f"{simple_regret('agent')(record)}; less the Gaussian process's {less_gp}, less that of random ones {less_random}"


def distance(record: Mapping[str, Any]) -> str:
    """Total variation to the exact posterior, and between two orders of the same pulls."""
    found = record["posterior_distance"]
    return f"{found['to_posterior']:.4f}; between two orders {found['between_orders']:.4f}"


def _numbers(values: Sequence[float]) -> str:
    return " / ".join(map(str, values))


def _bandit_line(evaluation: int, key: str) -> Line:
    numbers = BANDIT["regret_500"][key]
    published = f"{numbers['DPT']} ({numbers['DPT'] / numbers['Thompson']:.2f} × Thompson)"
    what = f"5-armed bandit, {key}, DPT (privileged data: optimal labels; exact Thompson among the sources): regret after 500 pulls"
    return Line("bandit-dpt", evaluation, what, regret_and_ratio, regret("thompson"), published)


_ONLINE, _OFFLINE = DARKROOM["online_return_by_episode"]["DPT"], DARKROOM["offline_return"]
LINES = (
    Line(
        "quickstart",
        0,
        "10×10 Dark Room, held-out goals, distilled Bayes explorer (privileged data): return of episode 1 / 2 / 3",
        episodes("agent", 1, 2, 3),
        episodes("nearest_plausible", 1, 2, 3),
        f"DPT {_numbers([_ONLINE[e] for e in '123'])}",
    ),
    Line(
        "quickstart",
        1,
        "the same: episodes 31 to 40",
        late("agent"),
        late("nearest_plausible"),
        f"DPT {_ONLINE['40']} at 40",
    ),
    Line(
        "quickstart",
        2,
        "the same, all 100 goals: episode 1",
        episodes("agent", 1),
        episodes("nearest_plausible", 1),
        "",
    ),
    Line(
        "darkroom-dpt",
        0,
        "10×10 Dark Room, DPT (privileged data: optimal labels; posterior and optimal sources): offline, 100 random transitions",
        episodes("agent", 1),
        episodes("posterior_sampling", 1),
        f"DPT {_OFFLINE['random_context']['DPT']}",
    ),
    Line(
        "darkroom-dpt",
        1,
        "the same: offline, 100 expert transitions",
        episodes("agent", 1),
        episodes("posterior_sampling", 1),
        f"DPT {_OFFLINE['expert_context']['DPT']}",
    ),
    Line(
        "darkroom-dpt",
        2,
        "the same: online, a sample per step: episode 1 / 2 / 40",
        episodes("agent", 1, 2, 40),
        episodes("posterior_sampling", 1, 2, 40),
        f"DPT {_numbers([_ONLINE[e] for e in ('1', '2', '40')])}",
    ),
    Line(
        "darkroom-dpt",
        3,
        "the same, but transitions join the context between episodes, as published: episode 1 / 2 / 40",
        episodes("agent", 1, 2, 40),
        lambda record: "–",
        f"DPT {_numbers([_ONLINE[e] for e in ('1', '2', '40')])}",
    ),
    Line(
        "darkroom-plans",
        0,
        "10×10 Dark Room, history-conditioned DPT (privileged data: optimal actions as labels, no posterior): episode 1 / 2 / 3 / 10",
        episodes("agent", 1, 2, 3, 10),
        lambda record: f"a sample held until refuted {episodes('sample_and_hold', 1, 2, 3, 10)(record)}",
        f"DPT {_numbers([_ONLINE[e] for e in '123'])}",
    ),
    Line(
        "darkroom-plans",
        1,
        "the same weights, a new plan with every action, which is DPT: episode 1 / 2 / 3 / 10",
        episodes("agent", 1, 2, 3, 10),
        lambda record: "see the rows of `darkroom-dpt`",
        "",
    ),
    Line(
        "darkroom-ad",
        0,
        "9×9 Dark Room, 20 steps, distilled Q-learning: episode 1 / 50 / 200",
        episodes("agent", 1, 50, 200),
        lambda record: f"its source from scratch {episodes('source q_learning', 200)(record)}",
        f"AD {AD['online_return_by_episode']['AD']['200']} at 200",
    ),
    Line(
        "keydoor",
        0,
        "10×10 Key-Door, RA-DT's held-out tasks, distilled Bayes explorer (privileged data): episode 1 / 2 / 3",
        episodes("agent", 1, 2, 3),
        episodes("nearest_plausible", 1, 2, 3),
        "",
    ),
    Line(
        "keydoor",
        0,
        "the same: episodes 31 to 40",
        late("agent"),
        late("nearest_plausible"),
        f"RA-DT {KEYDOOR['RA-DT']} at 40",
    ),
    Line(
        "radt-keydoor",
        0,
        "10×10 Key-Door, RA-DT: a context of 50 steps and a memory, from a Bayes explorer's histories (privileged data): episode 1 / 10 / 40",
        episodes("agent", 1, 10, 40),
        lambda record: f"its source {episodes('source nearest_plausible', 1, 10, 40)(record)}",
        f"RA-DT {KEYDOOR['RA-DT']} at 40",
    ),
    *(
        Line(
            f"minigrid-{room}",
            0,
            f"MiniGrid, {what}, distilled Bayes explorer (privileged data): episode 1 / 2 / 5",
            episodes("agent", 1, 2, 5),
            episodes("nearest_plausible", 1, 2, 5),
            "",
        )
        for room, what in (("empty", "unseen goal in an empty room"), ("doors", "which of several doors"))
    ),
    Line(
        "minigrid-doors",
        0,
        "the same tasks, RL²: episode 1 / 2 / 5",
        lambda record: f"{episodes('rl2', 1, 2, 5)(record)}; {record['agents']['rl2']['note']}",
        lambda record: "–",
        "",
    ),
    Line(
        "point-robot",
        0,
        "Point-Robot, DPT (privileged data: optimal labels; exact posterior sampling among the sources): episode 1 / 2 / 10",
        episodes("agent", 1, 2, 10),
        lambda record: f"{episodes('sample_and_hold', 1, 2, 10)(record)}; the optimum {record['optimal_return']:.1f}",
        "",
    ),
    Line(
        "tabular",
        0,
        "random tabular MDPs, DPT, greedy (privileged data: optimal labels; PSRL among the sources): episode 1 / 2 / 10; mean of 1 to 10, and less PSRL's",
        lambda record: f"{episodes('agent', 1, 2, 10)(record)}; {less('source sample_and_hold')(record)}",
        lambda record: f"PSRL {episodes('source sample_and_hold', 1, 2, 10)(record)}",
        "",
    ),
    Line(
        "cheetah-vel",
        0,
        "HalfCheetah-Vel, DPT (privileged data: an oracle's actions as labels, its skill in a source): episode 1 / 2 / 5",
        episodes("agent", 1, 2, 5),
        lambda record: (
            f"none; the oracle {episodes('optimal', 1)(record)}, its source {episodes('source misled', 1)(record)}"
        ),
        "",
    ),
    *(_bandit_line(index, key) for index, key in enumerate(["sd 0.3", "sd 0.0", "sd 0.5", "Bernoulli (unseen noise)"])),
    Line(
        "bernoulli-dpt",
        0,
        "2-armed Bernoulli bandit, DPT (privileged data: optimal labels): total variation to the exact posterior",
        distance,
        lambda record: "0",
        "",
    ),
    Line(
        "icee-bo",
        0,
        "25 test functions, 1,024 candidates, ICEE on Gaussian-process draws (privileged data: one of ten evaluations is at the optimum): simple regret after 30 evaluations, a share of the function's range",
        simple_regret_and_difference,
        lambda record: (
            f"none; Gaussian process and expected improvement, fitted anew at each step, {simple_regret('gp_ei')(record)}; random {simple_regret('random')(record)}"
        ),
        "",
    ),
)


def results_text(cells: Mapping[str, Cell], ablations: Sequence[Mapping[str, Any]] = ()) -> str:
    """The tables in Markdown: the results, all explorers, the comparisons over training seeds, ablations, and what the other runs cost."""
    rows = [
        f"| {line.what} | {line.measured(record)} | {line.exact(record)} | {line.published or '–'} | `icrl run {line.recipe}` |"
        for line in LINES
        if line.recipe in cells
        for record in [cells[line.recipe]["evaluations"][line.evaluation]["record"]]
    ]
    costs = [
        f"| `icrl run {name}` | {cell['seconds_trained'] / 60:.1f} | {cell['seconds'] / 60:.1f} | {_machine(cell)} |"
        for name, cell in cells.items()
        if name not in compared_runs()
    ]
    comparisons = [text for comparison in COMPARISONS if (text := comparison_text(comparison, cells))]
    head = "| what | this project | exact inference, same tasks | published | command |\n|---|---|---|---|---|"
    cost_head = "| command | training, minutes | in all, minutes | machine |\n|---|---|---|---|"
    return "\n\n".join(
        [
            "\n".join([head, *rows]),
            *explorer_texts(cells),
            *comparisons,
            *map(_ablation_text, ablations),
            "\n".join([cost_head, *costs]),
        ]
    )


def _ablation_text(table: Mapping[str, Any]) -> str:
    """What each part of a recipe's memory is worth."""
    head = "| variant | all trials | less the recipe, paired | late trials | last trial |\n|---|---|---|---|---|"
    rows = [
        f"| {row['variant']} | {mean(row['mean'])} | {mean(row['mean_minus_recipe'])} | {mean(row['late'])} | {mean(row['last'])} |"
        for row in table["rows"]
    ]
    return "\n".join(
        [
            f"What each part of the memory of `{table['recipe']}` is worth (`icrl ablate {table['recipe']}`):\n",
            head,
            *rows,
        ]
    )


def _machine(cell: Mapping[str, Any]) -> str:
    return f"{cell['machine']['cpu']}, {cell['threads']} threads, {cell['device']}"
