"""Many requests with images at once: how long the engine takes for all of them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from thriftree.benchmarks.vision.shapes import Shape

#: New tokens of a request: prefill alone, and a short answer.
TOKENS = (1, 32)
_ROUNDS = 2


@dataclass(frozen=True)
class Rate:
    """A batch. Seconds."""

    row: str
    tokens: int  # new ones of each request
    requests: int
    front: float  # to process all pictures, one after the other, before the engine begins
    engine: float  # to answer all


def rates(llm: Any, shape: Shape, wishes: dict[str, Any], requests: int) -> list[Rate]:
    """Every row in turns, pictures new each time; a first batch of each is for memory and caches."""
    draw, found = np.random.default_rng(1), []
    for number in range(-1, _ROUNDS):
        for tokens in TOKENS if number >= 0 else TOKENS[1:]:
            for row, vision in wishes.items():
                rate = Rate(row, tokens, requests, *_batch(llm, shape, draw, vision, requests, tokens))
                if number >= 0:
                    found.append(rate)
    return found


def _batch(
    llm: Any, shape: Shape, draw: np.random.Generator, vision: Any, requests: int, tokens: int
) -> tuple[float, float]:
    from vllm import SamplingParams

    engine = llm.llm_engine
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    asked = [shape.request(draw, vision) for _ in range(requests)]
    began = time.perf_counter()
    for number, request in enumerate(asked):
        engine.add_request(f"{began}-{number}", request, params)
    ready = time.perf_counter()
    while engine.has_unfinished_requests():
        engine.step()
    return ready - began, time.perf_counter() - ready


def table(found: Sequence[Rate]) -> tuple[list[str], list[list[str]]]:
    """Medians, and how many times the requests of the first row."""
    grouped: dict[tuple[int, str], list[Rate]] = defaultdict(list)
    for rate in found:
        grouped[rate.tokens, rate.row].append(rate)
    first: dict[int, float] = {}
    made = []
    for (tokens, row), those in grouped.items():
        engine, front = median(one.engine for one in those), median(one.front for one in those)
        per_second = those[0].requests / engine
        ratio = per_second / first.setdefault(tokens, per_second)
        made.append([row, str(tokens), f"{engine:.2f}", f"{per_second:.1f}", f"{ratio:.2f}", f"{front:.2f}"])
    return ["row", "new tokens", "engine s", "requests/s", "x", "pictures s"], made
