"""What the benchmark's figures are, and how rates and memory are measured."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    name: str
    unit: str
    median: float
    best: float
    repeats: int
    bar: float | None = None  # what the project asks of it, on two cores
    at_most: bool = False  # the bar is an upper one


def rate_of(work: Callable[[], float], repeats: int, warmups: int = 1) -> tuple[float, float]:
    """Median and best of work per second; ``work`` returns how much it did."""
    for _ in range(warmups):
        work()
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        done = work()
        rates.append(done / (time.perf_counter() - start))
    return statistics.median(rates), max(rates)


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Watches the anonymous memory (bytes) of this process and its children; the list holds the peak afterwards."""
    peak, stop = [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            peak[0] = max(peak[0], anonymous_memory())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        stop.set()
        watcher.join()


def anonymous_memory() -> float:
    """Bytes of the process tree now; mapped files do not count."""
    total = 0.0
    process = psutil.Process()
    for one in [process, *process.children(recursive=True)]:
        try:
            info = one.memory_info()
        except psutil.Error:
            continue  # it ended meanwhile
        total += info.rss - getattr(info, "shared", 0)
    return total


def table(figures: list[Figure]) -> str:
    """The figures with their bars, as text."""
    width = max(len(figure.name) for figure in figures)
    text = [f"{'':<{width}}  {'median':>12} {'best':>12}  {'bar':>12}"]
    for f in figures:
        bar, verdict = "", ""
        if f.bar is not None:
            bar = f"{'≤' if f.at_most else '≥'} {_number(f.bar)}"
            verdict = "reached" if (f.median <= f.bar if f.at_most else f.median >= f.bar) else "missed"
        text.append(
            f"{f.name:<{width}}  {_number(f.median):>12} {_number(f.best):>12}  {bar:>12}  {f.unit} {verdict}".rstrip()
        )
    return "\n".join(text)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
