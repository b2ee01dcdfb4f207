"""What a run folder keeps of its evaluations: RUN/evaluation.json, a list of records, and the arrays of each beside it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.rl2 import file_of, read_learned
from icrl.config import EvaluateConfig, Recipe
from icrl.interfaces import UserError
from scripts.common import existing_folder

if TYPE_CHECKING:
    from icrl.evaluation import Evaluation


def read_recipe(run: Path) -> Recipe:
    """The recipe of a run folder. UserError if there is none."""
    from icrl.checkpoint import read_json
    from icrl.recipe_json import recipe_from_json

    existing_folder(run, "a run folder (icrl run or icrl train writes one)", "recipe.json")
    file = run / "recipe.json"
    return recipe_from_json(read_json(file), f"{file}: recipe")


def records_of(run: Path) -> list[dict[str, Any]]:
    """The evaluations in RUN/evaluation.json so far."""
    file = run / "evaluation.json"
    if not file.exists():
        return []
    try:
        records = json.loads(file.read_text())
    except ValueError:
        raise UserError(f"{file} is damaged: remove it and evaluate again") from None
    if not isinstance(records, list):
        raise UserError(f"{file}: expected a list of evaluations; remove it and evaluate again")
    return records


def _identity(run: Path, seed: int, config: EvaluateConfig) -> dict[str, Any]:
    """What makes an evaluation of this run the one that it is: options, root seed and checkpoint (with "rl2" of both policies)."""
    from icrl.checkpoint import find

    best, rl2 = find(run, "best"), file_of(run)
    name = None if best is None else best.name
    if "rl2" in config.baselines and rl2.exists():
        name = f"{name}, rl2 of {read_learned(rl2).steps} steps"
    return {"options": _plain(config), "seed": seed, "checkpoint": name}


def _identities(run: Path) -> list[dict[str, Any]]:
    """Of the entries of RUN/evaluation.json, in their order; kept in run.json, which is written last.

    An option that was added to the project since has the value that it has where nobody names it.
    """
    from icrl.run_folder import read_run

    known = list(read_run(run).get("evaluations", []))[: len(records_of(run))]
    return [{**identity, "options": {**_plain(EvaluateConfig()), **identity["options"]}} for identity in known]


def _plain(config: EvaluateConfig) -> dict[str, Any]:
    """Its options as JSON has them."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def check_records(run: Path) -> None:
    """Raise UserError where RUN's records are damaged; asked before the work whose record joins them."""
    _identities(run)


def find_record(run: Path, seed: int, config: EvaluateConfig) -> dict[str, Any] | None:
    """The record of this very evaluation of the run's best checkpoint, if it was done before."""
    identity = _identity(run, seed, config)
    return next((r for r, i in zip(records_of(run), _identities(run), strict=False) if i == identity), None)


def add_record(run: Path, seed: int, config: EvaluateConfig, record: dict[str, Any], evaluation: Evaluation) -> None:
    """Put a record into RUN/evaluation.json, in place of the one of the same options, and its arrays beside it."""
    from torch.utils.tensorboard import SummaryWriter

    from icrl.evaluation_json import log_evaluation, save_artefacts
    from icrl.run_folder import update_run

    identity, known = _identity(run, seed, config), _identities(run)
    same = [i for i, other in enumerate(known) if {**other, "checkpoint": identity["checkpoint"]} == identity]
    index = same[0] if same else len(known)
    records = records_of(run)
    save_artefacts(evaluation, run / f"evaluation-{index}.npz")
    write_json(run / "evaluation.json", [*records[:index], record, *records[index + 1 :]])
    update_run(run, evaluations=[*known[:index], identity, *known[index + 1 :]])
    board = run / "tensorboard" / f"evaluation-{index}"
    shutil.rmtree(board, ignore_errors=True)  # an earlier record in this place
    with SummaryWriter(str(board)) as writer:
        log_evaluation(writer, record)


def write_json(path: Path, document: Any, indent: int | None = 1) -> None:
    """Write JSON, whole or not at all; ``indent`` None puts all on one line. UserError where it cannot be written."""
    from icrl.checkpoint import replace_file

    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(document, indent=indent) + "\n").encode())


def table(record: dict[str, Any]) -> str:
    """The main result: return of the first episodes and of the last ones, per row."""
    shown = [e for e in (1, 2, 3, 5, 10, 20, 40, 100, 200) if e < record["episodes"]] + [record["episodes"]]
    width = max(map(len, [*record["agents"], "return in episode"]))
    text = [_heading(record)]
    text.append(f"{'return in episode':<{width}}" + "".join(f"{e:>9}" for e in shown) + "     mean    [95 % interval]")
    for name, row in record["agents"].items():
        curve, mean = row["return_by_episode"]["mean"], row["mean_return"]
        cells = "".join(f"{curve[e - 1]:9.2f}" for e in shown)
        text.append(f"{name:<{width}}{cells}{mean['mean']:9.2f}    {_ends(mean)}")
    for name, row in record["agents"].items():
        if row["role"] == "baseline" and row["note"]:
            text.append(f"{name:<{width}} {row['note']}")
        if row.get("search"):
            final, less, last = (row["search"][key] for key in ("final_regret", "agent_minus_this", "steps"))
            text.append(
                f"{name:<{width}} simple regret after {last[-1]} evaluations {final['mean']:.3f} {_ends(final, 3)}, the agent's less this one {less['mean']:+.3f} {_ends(less, 3)}"
            )
        if row["bandit"]:
            regret = row["bandit"]["final_regret"]
            ratio = row["bandit"]["regret_ratio_of_agent"]
            text.append(
                f"{name:<{width}} regret {regret['mean']:.2f} {_ends(regret)}"
                + (
                    f", the agent's over this one {ratio['mean']:.3f} {_ends(ratio)}"
                    if ratio["mean"] is not None
                    else ""
                )
            )
    if distance := record["posterior_distance"]:
        text.append(
            f"total variation to the exact posterior {distance['to_posterior']:.4f}, between two orders of the same pulls "
            f"{distance['between_orders']:.4f} (means over {distance['num_states']:,} count states)"
        )
    return "\n".join([*text, f"verdict: {record['verdict']['text']}"])


def _heading(record: dict[str, Any]) -> str:
    options = record["family_options"]
    family = record["family"] + (f" ({', '.join(f'{k} {v}' for k, v in options.items())})" if options else "")
    context = f"{record['context']} context of {record['context_size']}, " if record["mode"] == "offline" else ""
    context += "appended between episodes, " if record["append"] == "episode" else ""
    seeds = len(record["seeds"])
    return (
        f"{family}, {record['split']} tasks, {context}{record['num_tasks']} tasks, {record['lanes']} lanes, "
        f"{seeds} seed{'s' if seeds > 1 else ''}, {record['action_rule']} actions"
    )


def _ends(estimate: dict[str, Any], digits: int = 2) -> str:
    """The interval over tasks, empty where there is none."""
    ends = estimate["over_tasks"]
    return f"[{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]" if ends and None not in ends else ""
