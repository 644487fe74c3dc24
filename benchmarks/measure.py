"""Passes over prompts: every contender answers the same group before anybody sees the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Protocol

from thriftree.benchmarks.contenders import Contender
from thriftree.benchmarks.prompts import Prompt
from thriftree.benchmarks.worker import Answer, Ask, Turn

_WARM_UP = "Count from one to twenty in words, then say which of these numbers are prime and why."


class Engines(Protocol):
    def generate(self, key: str, asks: Sequence[Ask], in_flight: int) -> Turn: ...


@dataclass(frozen=True, slots=True)
class Request:
    """One answer, without its text."""

    tokens: int
    steps: int
    first: float  # seconds to the first token
    decode: float  # seconds from the first token to the last
    longest: float  # longest gap between two outputs
    same: bool  # as `off` answered


@dataclass(frozen=True, slots=True)
class Sample:
    """One contender's turn on one group of prompts."""

    dtype: str
    phase: str  # cold, warm, replayed
    batch: int
    group: int
    category: str  # "mixed" for batches
    method: str
    wall: float
    steps: int
    cpu: float
    foreign: float
    requests: list[Request] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(request.tokens for request in self.requests)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Pass:
    """What one walk over groups of prompts is."""

    dtype: str
    phase: str
    batch: int
    tenant: str  # passes of one tenant share drafter state
    groups: Sequence[Sequence[Prompt]]
    tokens: int
    first_group: int = 0


def warm_up(engines: Engines, contenders: Sequence[Contender], prompt: Sequence[int], batch: int, tokens: int) -> None:
    """Compiled kernels, allocated memory and measured step costs; drafter state stays with a tenant of its own."""
    for one in contenders:
        ask = Ask(tuple(prompt), tokens, f"warm-up/{one.name}/{batch}", one.extra("warm-up"), ignore_eos=True)
        engines.generate(one.engine.key, [ask] * batch, batch)


def warm_up_prompt() -> Prompt:
    return Prompt("warm-up", _WARM_UP)


def run(
    engines: Engines, contenders: Sequence[Contender], work: Pass, seen: Callable[[Sample], None] = lambda _: None
) -> Iterator[Sample]:
    """All samples of a pass, group by group. Who begins moves on by one with each group."""
    for number, group in enumerate(work.groups, work.first_group):
        turns: dict[str, Turn] = {}
        start = number % len(contenders)
        for one in (*contenders[start:], *contenders[:start]):
            salt = f"{work.tenant}/{work.phase}/{work.batch}/{one.name}"
            extra = one.extra(f"{work.tenant}/{one.name}")
            asks = [Ask(prompt.ids, work.tokens, salt, extra) for prompt in group]
            turns[one.name] = engines.generate(one.engine.key, asks, work.batch)
        categories = {prompt.category for prompt in group}
        category = categories.pop() if len(categories) == 1 and work.batch == 1 else "mixed"
        for name, turn in turns.items():
            sample = _sample(work, number, category, name, turn, turns["off"])
            seen(sample)
            yield sample


def _sample(work: Pass, group: int, category: str, name: str, turn: Turn, off: Turn) -> Sample:
    requests = [
        _request(answer, answer.tokens == plain.tokens) for answer, plain in zip(turn.answers, off.answers, strict=True)
    ]
    return Sample(
        dtype=work.dtype,
        phase=work.phase,
        batch=work.batch,
        group=group,
        category=category,
        method=name,
        wall=turn.wall,
        steps=turn.steps,
        cpu=turn.cpu,
        foreign=round(turn.foreign, 2),
        requests=requests,
    )


def _request(answer: Answer, same: bool) -> Request:
    times = answer.arrivals
    gaps = [later - earlier for earlier, later in pairwise(times)]
    decode = times[-1] - times[0] if times else 0.0
    return Request(len(answer.tokens), len(times), times[0] if times else 0.0, decode, max(gaps, default=0.0), same)
