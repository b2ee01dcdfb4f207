"""What a training writes down: metrics.csv (step, tag, value) and TensorBoard, with a glossary of every tag.

``NullMonitor`` has the same methods and writes nothing, so the training loop asks no questions. After a resume neither record holds
a step twice: rows past the checkpoint are cut off, and TensorBoard is told to forget them (``purge_step``).
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from icrl.files import replace_file
from icrl.interfaces import Array, UserError
from icrl.throughput import matrix_rate, memory_bytes


class Meaning(NamedTuple):
    """One line of the glossary."""

    meaning: str
    unit: str
    healthy: str


GLOSSARY: dict[str, Meaning] = {
    "train/loss": Meaning("objective's loss, mean since the last log line", "nats", "falls, then flattens"),
    "train/accuracy": Meaning(
        "share of labels that are the most probable action", "fraction", "rises; the source's noise bounds it"
    ),
    "train/return_loss": Meaning(
        "ICEE: part of the loss that is of the return still to come", "nats", "falls with the loss"
    ),
    "train/effective_sample": Meaning(
        "ICEE: (sum of the actions' weights)^2 over the sum of their squares and their number",
        "fraction",
        "well above 0",
    ),
    "train/learning_rate": Meaning("AdamW's learning rate", "1", "warm-up, then a cosine"),
    "train/grad_norm": Meaning(
        "gradient norm before clipping, mean since the last log line", "1", "under 5 after warm-up, no spikes"
    ),
    "accuracy/position_*": Meaning(
        "accuracy at that token of the window, mean since the last log line",
        "fraction",
        "rises with the position: the context is used",
    ),
    "accuracy/by_position": Meaning(
        "accuracy over all tokens of the window", "fraction", "rises with the position: the context is used"
    ),
    "validation/return": Meaning(
        "mean return on validation tasks over all episodes of the roll-out; chooses the best checkpoint",
        "return",
        "rises, then flattens; a fall is overfitting to the training tasks",
    ),
    "validation/episode_*": Meaning(
        "mean return on validation tasks in that episode of the context",
        "return",
        "rises with the episode: the agent learns in context",
    ),
    "validation/curve": Meaning(
        "validation return by episode, one line per validation", "return", "rises with the episode"
    ),
    "validation/seconds": Meaning("time of one validation roll-out", "s", "small beside the training between two"),
    "retrieval/found": Meaning(
        "share of retrievals that found something",
        "fraction",
        "near 1 less the share of emptied memories and of windows at the start",
    ),
    "retrieval/same_task": Meaning(
        "share of the retrieved chunks that are of the window's own task",
        "fraction",
        "near 1, or keys do not tell tasks apart",
    ),
    "retrieval/utility": Meaning(
        "what the episodes of the retrieved chunks and the chunks themselves earned, mean",
        "return",
        "rising with what memories hold",
    ),
    "retrieval/size": Meaning(
        "chunks among which a window's retrievals choose, mean", "chunks", "as many as at deployment"
    ),
    "retrieval/seconds": Meaning(
        "time of a batch's retrievals, beside the training step", "s", "under that of the step"
    ),
    "retrieval/attention": Meaning(
        "share of the cross-attention that goes to what was retrieved, at the validation",
        "fraction",
        "rises as the memory proves useful",
    ),
    "routing/*/least_load": Meaning(
        "share of the choices that the least chosen expert of that router and block got", "fraction", "over 0.02"
    ),
    "routing/*/most_load": Meaning(
        "share of the choices that the most chosen expert of that router and block got", "fraction", "under 0.5"
    ),
    "routing/*/entropy": Meaning(
        "entropy of the shares of the choices that the experts of that router and block got",
        "nats",
        "near its most, the logarithm of the number of experts",
    ),
    "routing/balance": Meaning(
        "balance loss of the routers before its weight, mean", "1", "falls to under 0.5 and stays"
    ),
    "routing/contrast": Meaning(
        "contrastive loss of the task routers before its weight, mean", "nats", "falls: tasks are told apart"
    ),
    "routing/same_task_nearest": Meaning(
        "share of windows whose nearest in the task router's representation is of their task",
        "fraction",
        "rises well above 1 / windows of a batch",
    ),
    "speed/steps_per_second": Meaning("optimiser steps, validation not counted", "1/s", "constant"),
    "speed/tokens_per_second": Meaning("tokens trained on, padding included", "1/s", "constant"),
    "speed/flop_utilisation": Meaning(
        "model FLOPs (causal attention at half) over time and matrix rate",
        "fraction of the rate of 1024² and 2048² products",
        "over 0.4 on a CPU; falls when something else runs",
    ),
    "memory/peak": Meaning(
        "largest anonymous memory of the process seen so far, and of the accelerator", "GB", "constant after start"
    ),
    "evaluation/*/return_by_episode/*": Meaning(
        "return on held-out tasks by episode (in place of the step) in context, one line per row of the evaluation",
        "return",
        "the agent's rises with the episode and ends above the row with rewards hidden",
    ),
    "evaluation/*/cumulative_regret/*": Meaning(
        "bandits: expected regret on held-out tasks summed over the steps so far",
        "return",
        "the agent's flattens, near Thompson sampling's",
    ),
    "evaluation/*/simple_regret/*": Meaning(
        "Bayesian optimisation: what the best evaluation so far (in place of the step) lacks to the best candidate, over the function's range",
        "fraction",
        "the agent's falls as that of the Gaussian process does",
    ),
    "evaluation/*/coverage/*": Meaning(
        "different observations that a lane has seen by a step of its life (in place of the step), mean",
        "observations",
        "rises until what matters is found, then stays",
    ),
    "evaluation/*/surprise_by_episode/*": Meaning(
        "mean of -log p of the actions taken, by episode (in place of the step)", "nats", "falls as the task is learned"
    ),
    "evaluation/*/plan_length_by_episode/*": Meaning(
        "actions per plan of an agent that follows plans, by episode (in place of the step)", "actions", "well above 1"
    ),
    "config/recipe": Meaning("the recipe as JSON", "text", "what you asked for"),
}
"""Every tag (or pattern of tags) that is logged."""


def meaning_of(tag: str) -> Meaning:
    """The glossary's entry for a tag. KeyError if there is none."""
    for pattern, meaning in GLOSSARY.items():
        if fnmatchcase(tag, pattern):
            return meaning
    raise KeyError(tag)


class NullMonitor:
    """Writes nothing."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def accuracy(self, step: int, by_position: Array) -> None: ...

    def speed(self, step: int, num_steps: int, seconds: float, tokens: int, flops: float) -> None: ...

    def validation(self, step: int, returns: Array, seconds: float) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class FileMonitor:
    """Writes run/metrics.csv and run/tensorboard.

    ``step`` is the step that the training starts from: what was logged after it is removed. ``config`` is shown as text and,
    flattened, as hyperparameters. Raises UserError if metrics.csv is something else.
    """

    def __init__(self, run: Path, step: int, config: dict[str, Any], device: torch.device):
        from torch.utils.tensorboard import SummaryWriter

        self._device, self._rate, self._peak = device, matrix_rate(device), 0
        self._file = _open_metrics(run / "metrics.csv", step)
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else 0)
        self._curves: dict[str, list[tuple[int, Array]]] = {"accuracy/by_position": [], "validation/curve": []}
        self._accuracy: Array | None = None  # (T,) of the last log line
        if step == 0:
            self._board.add_text("config/recipe", "```json\n" + json.dumps(config, indent=1) + "\n```", 0)
            self._hyperparameters(config)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log some scalars of one step."""
        for tag, value in values.items():
            self._rows.writerow((step, tag, repr(float(value))))
            self._board.add_scalar(tag, value, step)

    def accuracy(self, step: int, by_position: Array) -> None:
        """Log accuracy (T,), nan where nothing is predicted, at a few positions; the picture follows at the next validation."""
        length = len(by_position)
        chosen = sorted({0, length // 8, length // 4, length // 2, length - 1})
        known = [i for i in chosen if np.isfinite(by_position[i])]
        self.scalars(step, {f"accuracy/position_{i:04d}": by_position[i] for i in known})
        self._accuracy = by_position

    def speed(self, step: int, num_steps: int, seconds: float, tokens: int, flops: float) -> None:
        """Log throughput over the last ``num_steps`` steps of ``tokens`` tokens and ``flops`` operations each, and memory."""
        self._peak = max(self._peak, memory_bytes(self._device))
        rate = num_steps / seconds
        self.scalars(
            step,
            {
                "speed/steps_per_second": rate,
                "speed/tokens_per_second": rate * tokens,
                "speed/flop_utilisation": rate * flops / self._rate,
                "memory/peak": self._peak / 1e9,
            },
        )

    def validation(self, step: int, returns: Array, seconds: float) -> None:
        """Log the mean return of each episode (E,) on validation tasks, as scalars and as a picture."""
        by_episode = {f"validation/episode_{i + 1:02d}": value for i, value in enumerate(returns)}
        self.scalars(step, {"validation/return": returns.mean(), **by_episode, "validation/seconds": seconds})
        self._picture(step, "validation/curve", returns, "episode in context")
        if self._accuracy is not None:
            self._picture(step, "accuracy/by_position", self._accuracy, "position in the window")

    def _picture(self, step: int, tag: str, values: Array, x_label: str) -> None:
        """Draw ``values`` (n,) over the curves drawn before under this tag."""
        curves = self._curves[tag]
        curves.append((step, values))
        self._board.add_image(tag, _draw(curves, tag, x_label), step, dataformats="HWC")

    def flush(self) -> None:
        """Bring everything logged so far to the disk: a checkpoint must not be newer than its metrics."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()

    def close(self) -> None:
        """Flush and close both records."""
        try:
            self.flush()
        finally:
            self._file.close()
            self._board.close()

    def _hyperparameters(self, config: dict[str, Any]) -> None:
        from torch.utils.tensorboard.summary import hparams

        plain = {k: v if isinstance(v, (bool, int, float, str)) else json.dumps(v) for k, v in _flat(config).items()}
        for summary in hparams(plain, {"validation/return": 0.0, "train/loss": 0.0}):
            self._board._get_file_writer().add_summary(summary)


Monitor = FileMonitor | NullMonitor


def read_metrics(file: Path) -> dict[str, tuple[Array, Array]]:
    """metrics.csv as {tag: (steps (n,) int64, values (n,) float64)}."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for step, tag, value in _rows_of(Path(file)):
        steps, values = found.setdefault(tag, ([], []))
        steps.append(step)
        values.append(value)
    return {tag: (np.array(s, np.int64), np.array(v, np.float64)) for tag, (s, v) in found.items()}


def _rows_of(file: Path) -> list[tuple[int, str, float]]:
    """Complete rows of metrics.csv; what a killed process left of a last line is dropped."""
    lines = file.read_text().splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    try:
        rows = list(csv.reader(lines))
        if rows and rows[0] != ["step", "tag", "value"]:
            raise ValueError("header")
        return [(int(step), tag, float(value)) for step, tag, value in rows[1:]]
    except (ValueError, csv.Error):
        raise UserError(f"{file}: is not the metrics of a run (step,tag,value): move it away") from None


def _open_metrics(file: Path, last_step: int) -> io.TextIOWrapper:
    """metrics.csv open for appending, with the rows up to ``last_step`` and no others."""
    kept = [row for row in _rows_of(file) if row[0] <= last_step] if file.exists() and last_step else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("step", "tag", "value"))
    writer.writerows((step, tag, repr(value)) for step, tag, value in kept)
    replace_file(file, text.getvalue().encode())
    return file.open("a", encoding="utf-8", newline="")


def _draw(curves: list[tuple[int, Array]], title: str, x_label: str) -> Array:
    """(H, W, 3) uint8: the last curve in colour, up to eight earlier ones in grey, darker the later."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = [curves[i] for i in np.unique(np.linspace(0, len(curves) - 1, 9).astype(int))]
    for i, (step, values) in enumerate(shown):
        last = i == len(shown) - 1
        color = "tab:blue" if last else str(0.85 - 0.5 * i / len(shown))
        axes.plot(
            np.arange(1, len(values) + 1), values, marker="." if len(values) < 30 else "", color=color, label=step
        )
    axes.set(title=title, xlabel=x_label)
    axes.locator_params(axis="x", integer=True)
    axes.legend(title="step", fontsize=7, title_fontsize=7)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train.steps": 1000, ...} from nested dictionaries."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {prefix + key: value}
    return flat
