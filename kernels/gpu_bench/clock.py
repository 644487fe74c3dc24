"""Two calls timed in turns on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

Call = Callable[[], object]
#: Rounds at the least and at the most, whatever they take.
LEAST, MOST = 3, 100


@dataclass(frozen=True)
class Row:
    """What is timed, the kernel, torch, and what their results have in common or how far they are apart."""

    what: str
    kernel: Call
    torch: Call
    agreement: Callable[[], str]
    #: Tiles of a vision tower (336 x 336 pixels) that make one such call necessary; 0: not about images.
    tiles: int = 0


@dataclass(frozen=True)
class Times:
    """Milliseconds, medians of the rounds: `gpu` between two events around the call, with the launches queued before
    the first of them; `wall` from an idle GPU until the result is there."""

    gpu: float
    wall: float
    rounds: int


def queued(call: Call, flush: Tensor, hide_ms: float) -> float:
    """Milliseconds on the GPU, its L2 flushed. It spins first for `hide_ms`, in which the host queues the launches."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.zero_()
    torch.cuda._sleep(int(hide_ms * 1.7e6))  # cycles, 1.7 GHz or so
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def waited(call: Call, flush: Tensor) -> float:
    """Milliseconds that a caller waits who needs the result at once."""
    flush.zero_()
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def turns(calls: Sequence[Call], seconds: float, flush: Tensor, hide_ms: float = 3.0) -> list[Times]:
    """Both measures of each call, one after the other in every round, for about so many seconds."""
    for call in calls:
        call()
        call()
    torch.cuda.synchronize()
    gpu: list[list[float]] = [[] for _ in calls]
    wall: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while len(gpu[0]) < LEAST or (len(gpu[0]) < MOST and time.perf_counter() < end):
        for which, call in enumerate(calls):
            gpu[which].append(queued(call, flush, hide_ms))
            wall[which].append(waited(call, flush))
    return [Times(median(a), median(b), len(a)) for a, b in zip(gpu, wall, strict=True)]


def apart(fast: Callable[[], Tensor], slow: Callable[[], Tensor]) -> Callable[[], str]:
    """Says the largest difference, as a share of the largest value of `slow`."""

    def say() -> str:
        a, b = fast().float(), slow().float()
        return f"{float((a - b).abs().max() / b.abs().max()):.1e} off"

    return say
