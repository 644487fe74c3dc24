"""One engine with late layers for each family; the tests look at what it answered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from thriftree.plugins.engine.contract_var import EXTRA_ARGS_KEY
from thriftree.plugins.engine.vision.late import fate
from thriftree.plugins.vision.late import checked
from thriftree.zoo import tiny_vision

from ...engines import Answer, Ask, Engine, engine
from .. import scenarios
from ..conftest import WHOLE, stock_models
from ..pruned import Picks, laid_out, watched, wish
from ..reference import Reference, Reply
from ..scenarios import flags, params
from .oracle import Oracle

TOKENS = 40
#: Steps in which no prompt is cut.
ROOM: dict[str, Any] = {"max_num_batched_tokens": 4096}
QUARTER = {"method": "random", "keep": 0.25}
DROP, FIFTH = {"keep": 0}, {"keep": 0.2}
Batch = Sequence[tuple[str, Any, Any, int]]
#: Scene, what becomes of its images, what of their tokens in the late layers, and the step at which it comes.
MIXED: Batch = (
    ("middle", None, DROP, 0),
    ("two", QUARTER, DROP, 0),
    ("no_image", None, DROP, 0),
    ("two_touch", None, FIFTH, 0),
    ("middle", None, None, 1),
    ("last", None, {"keep": 0.3, "method": "attention"}, 1),
    ("same_twice", {"method": "divprune", "keep": 0.5}, FIFTH, 2),
    ("only", None, DROP, 2),
    ("wide", None, {"keep": 0.5, "method": "stride"}, 3),
    ("odd", None, {"keep": 1.0}, 3),
    ("system", {"method": "stride", "keep_tokens": 3}, DROP, 4),
)
#: Whatever the chunks are, these need no scores.
WITHOUT_SCORES: Batch = tuple(
    one for one in MIXED if checked(one[2] or "off") is None or "drop" in str(checked(one[2]))
)


def late_ask(tokenizer: Any, family: str, scene: Any, vision: Any, late: Any, arrives: int = 0) -> Ask:
    plain = wish(tokenizer, family, scene, vision, TOKENS, arrives)
    extra = {} if late is None else {"extra_args": {EXTRA_ARGS_KEY: {"late": late}}}
    return replace(plain, params=params(TOKENS, **extra))


def asks_of(tokenizer: Any, family: str, batch: Batch = MIXED) -> list[Ask]:
    return [late_ask(tokenizer, family, *one) for one in batch]


@contextmanager
def late_engine(path: str, oracle: Oracle, **more: Any) -> Iterator[tuple[Engine, Picks]]:
    """An engine whose late layers are the oracle's, which hears what was chosen by scores."""
    options = {"thriftree": {"vision": {"late_layer": oracle.first}}}
    given = flags(enable_prefix_caching=False, additional_config=options, max_num_seqs=16, **more)
    stock = fate.Fate.choose

    def choose(self: fate.Fate, scores: Any = None) -> None:
        stock(self, scores)
        assert self.gone is not None
        if scores is not None:
            oracle.told.append((self.visual.tolist(), np.setdiff1d(self.visual, self.gone.positions).tolist()))

    with pytest.MonkeyPatch.context() as patch, watched() as picks, engine(path, **given) as running:
        patch.setattr(fate.Fate, "choose", choose)
        yield running, picks


def late_said(asked: Ask) -> Any:
    """What a request says of late layers; None: all tokens go on."""
    return checked((asked.params.extra_args or {}).get(EXTRA_ARGS_KEY, {}).get("late", "off"))


def replies(oracle: Oracle, picks: Picks, asks: Sequence[Ask], told: Sequence[Any] = ()) -> list[Reply]:
    """What requests must answer. `told`: fates; where one says that all tokens stay, they do."""
    whole = [one.visual.tolist() for one in told if one.stays == len(one.visual)]
    found = []
    for one in asks:
        prompt = laid_out(oracle.reference, picks, one)
        stays = prompt.is_image.nonzero().flatten().tolist() in whole
        found.append(oracle.generate(prompt, None if stays else late_said(one), TOKENS))
    return found


def watch(running: Engine) -> list[fate.Fate]:
    """Fates that the scheduler tells clients of, each once."""
    told: list[fate.Fate] = []
    stock = running.scheduler._counts

    def counts(one: fate.Fate) -> Any:
        if not any(one is other for other in told):
            told.append(one)
        return stock(one)

    running.scheduler._counts = counts
    return told


@dataclass
class Played:
    """What a family's engine answered, and must answer."""

    family: str
    layer: int
    oracle: Oracle
    stock: list[Answer | None] = field(default_factory=list)
    plain: list[Answer | None] = field(default_factory=list)  # nothing said
    whole: list[Answer | None] = field(default_factory=list)  # a share of 1
    asks: list[Ask] = field(default_factory=list)
    mixed: list[Answer | None] = field(default_factory=list)
    expected: list[Reply] = field(default_factory=list)
    told: list[fate.Fate] = field(default_factory=list)
    left: tuple[int, int] = (0, 0)  # fates that somebody still knows at the end, and requests told of


def play(family: str) -> Played:
    path = str(tiny_vision.ensure(family))
    reference = Reference(path)
    tokenizer = reference.processor.tokenizer
    played = Played(family, 2, Oracle(reference, 2), asks=asks_of(tokenizer, family))
    plain = asks_of(tokenizer, family, [(scene, None, None, 0) for scene in WHOLE])
    whole = asks_of(tokenizer, family, [(scene, None, {"keep": 1.0}, 0) for scene in WHOLE])
    with stock_models(), engine(path, **flags(enable_prefix_caching=False, **ROOM)) as running:
        played.stock = running.run(plain)
    with late_engine(path, played.oracle, **ROOM) as (running, picks):
        played.plain, played.whole = running.run(plain), running.run(whole)
        played.told = watch(running)
        played.mixed = running.run(played.asks)
        running.settle()
        book = running.scheduler
        fates = [one for one in (*running.runner._fates.values(), *book._fates.values()) if one is not None]
        played.left = len(fates), len(book._told)
    played.expected = replies(played.oracle, picks, played.asks)
    return played


SLOW = ("qwen2-vl", "llava-next", "llava-onevision")
PARAMS = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in scenarios.FAMILIES]


@pytest.fixture(scope="module", params=PARAMS)
def late(request: pytest.FixtureRequest) -> Played:
    return play(request.param)
