"""A job over numbered parts in spawned processes that end when they are told to, and when their parent is killed.

Spawned rather than forked: a worker starts clean, whatever threads the parent runs.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for_sentinels
from typing import Any

from icrl.interfaces import UserError

Job = Callable[[int, Callable[[int], None]], None]
"""Called with a part's number and ``report(n)``, to be called often with the units of work done since."""
_POLL_SECONDS = 0.2


class StoppedError(Exception):
    """Raised inside a job, by its ``report``, when the work is to end early."""


def map_in_processes(job: Job, parts: list[int], workers: int, advance: Callable[[int], Any]) -> None:
    """Run ``job`` for every part in at most ``workers`` processes (in this one, if one is enough).

    ``advance(n)`` is called here with the units done. The first error ends all workers, their unfinished parts undone, and is
    raised here; KeyboardInterrupt does the same. Raises UserError where a worker was killed.
    """
    workers = min(workers, len(parts))
    if workers <= 1:
        for part in parts:
            job(part, advance)
        return
    context = multiprocessing.get_context("spawn")
    stop, counter = context.Event(), context.Value("q", 0)
    seen = 0
    with ProcessPoolExecutor(workers, context, _start_worker, (job, stop, counter)) as pool:
        try:
            with _ctrl_c_held_back():  # it comes at the end of this, when there are workers to stop
                futures: set[Future[None]] = {pool.submit(_run_part, part) for part in parts}
            pending = futures
            while pending:
                done, pending = wait(pending, _POLL_SECONDS, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                total = counter.value
                advance(total - seen)
                seen = total
        except BrokenProcessPool:
            raise UserError(
                "a worker process died: out of memory, or the calling script lacks `if __name__ == '__main__':`; finished "
                "shards are kept: run the same again with fewer workers, smaller shards or that line"
            ) from None
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """A process started in here never hears Ctrl-C, not even while it imports; its parent does, afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_job: Job | None = None
_stop: Any = None
_counter: Any = None


def _start_worker(job: Job, stop: Any, counter: Any) -> None:
    """Keep what is common to all parts; die with the parent."""
    global _job, _stop, _counter
    _job, _stop, _counter = job, stop, counter
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_sentinels([parent.sentinel])
        os._exit(1)


def _run_part(part: int) -> None:
    assert _job is not None
    _job(part, _report)


def _report(units: int) -> None:
    if _stop.is_set():
        raise StoppedError
    with _counter.get_lock():
        _counter.value += units
