"""Engines on a CUDA GPU for the tests of pruned images: float32 without TF32, so that rounding hides no mistake."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")  # vLLM's Triton attention multiplies in TF32 otherwise

import pytest
import torch

from tests.engine.engines import Answer, Ask, engine
from tests.engine.vision import scenarios
from tests.engine.vision.conftest import LATER, Answers, mixed, stock_models
from tests.engine.vision.pruned import Picks, expected, pruning, wish
from tests.engine.vision.reference import Reference
from tests.engine.vision.scenarios import Scene, gap
from thriftree.kernels import vision_scores, vision_select
from thriftree.plugins.engine.vision import model
from thriftree.plugins.engine.vision.wish import WISH
from thriftree.zoo import tiny_vision

__all__ = [
    "EXACT", "GRAPHS", "LATER", "SMALL", "WHOLE", "Played", "Reference", "engine", "last_row_alone", "mixed", "play",
    "pruning", "scenarios", "stock_models", "tiny_vision", "wish",
]  # fmt: skip

#: Chunks that cut images.
CHUNK = 48
SMALL: dict[str, Any] = {
    "kv_cache_memory_bytes": 1 << 28,
    "gpu_memory_utilization": 0.1,
    "max_num_batched_tokens": CHUNK,
    "max_num_seqs": 8,
}
EXACT: dict[str, Any] = {**SMALL, "attention_backend": "TRITON_ATTN"}
#: CUDA graphs of decoding steps, without the compiler.
GRAPHS: dict[str, Any] = {
    "enforce_eager": False,
    "compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [1, 2, 4, 8]},
}
WHOLE = ("middle", "two", "no_image", "last")


@dataclass
class Played:
    """What the engines of a family answered."""

    family: str
    reference: Reference
    stock: Answers = field(default_factory=list)
    plain: list[Answers] = field(default_factory=list)  # ours: nothing said, a share of 1
    mixed: Answers = field(default_factory=list)
    later: Answers = field(default_factory=list)
    broken: Answers = field(default_factory=list)  # `mixed` with positions that nobody corrects
    picks: Picks = field(default_factory=Picks)
    runner: str = ""  # its module
    calls: Counter[str] = field(default_factory=Counter)  # of our Triton kernels

    def gaps(self, answers: Sequence[Answer | None], asks: Sequence[Ask]) -> list[float]:
        """Largest difference of a log-probability to transformers' on the same rows, for each request."""
        replies = [expected(self.reference, self.picks, one) for one in asks]
        found = [gap(answer, reply) for answer, reply in zip(answers, replies, strict=True)]
        print(self.family, "gaps to transformers:", " ".join(f"{one:.1e}" for one in found))
        return found

    def asks(self, *batch: Any) -> list[Ask]:
        return mixed(self.reference.processor.tokenizer, self.family, *batch)


def play(family: str) -> Played:
    """Eager engines, float32."""
    torch.backends.cudnn.allow_tf32 = False
    path = str(tiny_vision.ensure(family))
    played = Played(family, Reference(path))
    tokenizer = played.reference.processor.tokenizer
    plain = [wish(tokenizer, family, scene, None) for scene in WHOLE]
    whole = [wish(tokenizer, family, scene, {"method": "divprune", "keep": 1.0}) for scene in WHOLE]
    with stock_models(), engine(path, **scenarios.flags(**EXACT)) as running:
        assert "thriftree" not in type(running.runner.model).__module__
        played.stock = running.run(plain)
    with counted() as played.calls, pruning(path, **EXACT) as (running, played.picks):
        played.runner = type(running.runner).__module__
        played.plain = [running.run(plain), running.run(whole)]
        played.mixed = running.run(played.asks())
        played.later = running.run(played.asks(LATER))
        if played.reference.mrope:
            running.llm.reset_prefix_cache()
            with pytest.MonkeyPatch.context() as patch:
                strip = model.strip
                patch.setattr(model, "strip", lambda *given: (strip(*given)[0], None))
                played.broken = running.run(played.asks())
    return played


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Calls of the Triton kernels that choose rows and read attention."""
    from thriftree.kernels.vision_scores import triton as scores
    from thriftree.kernels.vision_select import triton as select

    assert vision_select.backend("cuda") == vision_scores.backend("cuda") == "triton"
    calls: Counter[str] = Counter()

    def counting(owner: Any, name: str) -> Any:
        stock = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return stock(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((select, "max_min"), (scores, "column_sums")):
            patch.setattr(owner, name, counting(owner, name))
        yield calls


def last_row_alone(tokenizer: Any, family: str) -> Ask:
    """A prompt whose last chunk is one row of an image: its step looks like one of decoding."""
    asked = wish(tokenizer, family, Scene("Say in one word what is in this picture: *", ((700, 500),)), None)
    image = tokenizer.convert_tokens_to_ids("<image>" if family.startswith("llava") else "<|image_pad|>")
    before = list(asked.prompt).index(image)
    keep = next(count for count in range(CHUNK, 2 * CHUNK) if (before + count) % CHUNK == 1)
    vision = {"method": "random", "keep_tokens": keep}
    return replace(asked, prompt=asked.prompt[: before + 1], mm_kwargs={WISH: vision})
