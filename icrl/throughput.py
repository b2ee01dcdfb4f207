"""What the machine can do and what a training uses of it: device, matrix rate, anonymous memory.

The matrix rate is the yardstick of FLOP utilisation: the best fp32 product of 1024² and 2048² matrices with the same threads in the
same process, so that the figure compares like with like on any machine.
"""

from __future__ import annotations

import time
from functools import cache

import psutil
import torch

from icrl.interfaces import UserError


def find_device(name: str | torch.device) -> torch.device:
    """The torch device called ``name``. UserError if there is no such device here."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"device {name}: torch cannot use it here, expected for example cpu or cuda") from None
    return device


def matrix_rate(device: torch.device) -> float:
    """FLOPs per second of the best fp32 matrix product, with the current number of threads. Measured once in a process."""
    return _measured_rate(str(device), torch.get_num_threads())


@cache
def _measured_rate(device: str, threads: int) -> float:
    best = 0.0
    for size in (1024, 2048):
        a = torch.ones(size, size, device=device)
        for _ in range(4):
            start = time.perf_counter()
            result = a @ a
            if result.is_cuda:
                torch.cuda.synchronize(device)
            best = max(best, 2.0 * size**3 / (time.perf_counter() - start))
    return best


def memory_bytes(device: torch.device) -> int:
    """Anonymous memory of this process now (mapped files do not count), plus the peak on an accelerator."""
    info = psutil.Process().memory_info()
    anonymous = info.rss - getattr(info, "shared", 0)
    return anonymous + (torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0)
