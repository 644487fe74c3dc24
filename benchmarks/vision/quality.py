"""Right answers about held-out pictures, through vLLM's engine with our plugin: the path that a server runs."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import Any

from thriftree.benchmarks.vision.policies import LatePolicy, Policy
from thriftree.zoo.shapes_vl.items import Item, held_out

FULL = "all tokens"
_TOKENS = 8  # of an answer: the longest is one word and the end
_CHUNK = 50  # questions between two looks at the clock


@dataclass(frozen=True)
class Figure:
    """One policy at one budget on one draw of questions."""

    policy: str
    keep: float
    seed: int
    asked: dict[str, int]  # kind -> questions
    right: dict[str, int]
    tokens: float  # of a prompt, mean

    @property
    def accuracy(self) -> float:
        return sum(self.right.values()) / sum(self.asked.values())


class Stopped(Exception):
    """The time is up; what has been measured is in the checkpoint."""


class Model:
    """The engine. `ask` gives each item's answer and the length of its prompt."""

    def __init__(self, path: str, late_layer: int | None = None) -> None:
        self._path, self._late_layer = path, late_layer

    @cached_property
    def _llm(self) -> Any:
        """Started when the first question comes."""
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        from vllm import LLM

        return LLM(
            self._path,
            dtype="float32",
            enforce_eager=True,
            max_model_len=512,
            disable_log_stats=True,
            enable_prefix_caching=False,
            mm_processor_cache_gb=0,  # every policy reads every picture anew
            additional_config={"thriftree": {"vision": {"late_layer": self._late_layer}}},
            # Scores need a prompt in one step.
            enable_chunked_prefill=None if self._late_layer is None else False,
        )

    def ask(self, items: Sequence[Item], vision: dict[str, Any] | str) -> list[tuple[str, int]]:
        from vllm import SamplingParams

        late = vision["late"] if isinstance(vision, dict) and "late" in vision else None
        extra = None if late is None else {"thriftree": {"late": late}}
        outputs = self._llm.chat(
            [_conversation(item) for item in items],
            SamplingParams(temperature=0, max_tokens=_TOKENS, extra_args=extra),
            use_tqdm=False,
            mm_processor_kwargs={"thrift_vision": vision if late is None else "off"},
        )
        return [(output.outputs[0].text, len(output.prompt_token_ids)) for output in outputs]


def run(
    model: Model,
    cells: Sequence[tuple[Policy | LatePolicy, float]],
    questions: int,
    seeds: int,
    checkpoint: Path | None,
    seconds: float,
    say: Callable[[str], None],
) -> list[Figure]:
    """Every cell on every draw of questions, the unpruned model first. What the checkpoint holds is not run again.

    Raises:
        Stopped: after `seconds`, between two cells.
    """
    end, found = monotonic() + seconds, _read(checkpoint)
    done = {(figure.policy, figure.keep, figure.seed): figure for figure in found}
    wanted: list[tuple[str, float, Any]] = [(FULL, 1.0, "off")]
    wanted += [(policy.name, keep, policy.vision(keep)) for policy, keep in cells]
    figures = []
    for seed in range(seeds):
        items = held_out(questions, seed=seed)
        for name, keep, vision in wanted:
            figure = done.get((name, keep, seed))
            if figure is None or sum(figure.asked.values()) != questions:
                if monotonic() > end:
                    raise Stopped(f"{name} at {keep:g}, draw {seed}")
                figure = _measure(model, name, keep, vision, seed, items)
                _append(checkpoint, figure)
                say(f"draw {seed + 1} of {seeds}: {name} at {keep:g}: {100 * figure.accuracy:.1f} %")
            figures.append(figure)
    return figures


def _measure(model: Model, name: str, keep: float, vision: Any, seed: int, items: Sequence[Item]) -> Figure:
    answers = [answer for part in _parts(items) for answer in model.ask(part, vision)]
    right = Counter(item.kind for item, (said, _) in zip(items, answers, strict=True) if item.right(said))
    tokens = sum(length for _, length in answers) / len(items)
    return Figure(name, keep, seed, dict(Counter(item.kind for item in items)), dict(right), round(tokens, 1))


def _parts(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


def _conversation(item: Item) -> list[Any]:
    parts = [{"type": "image_pil", "image_pil": item.image}, {"type": "text", "text": item.question}]
    return [{"role": "user", "content": parts}]


@contextmanager
def _lines(checkpoint: Path | None, mode: str) -> Iterator[Any]:
    if checkpoint is None or (mode == "r" and not checkpoint.exists()):
        yield None
    else:
        with checkpoint.open(mode, encoding="utf-8") as file:
            yield file


def _read(checkpoint: Path | None) -> list[Figure]:
    with _lines(checkpoint, "r") as file:
        return [Figure(**json.loads(line)) for line in file or ()]


def _append(checkpoint: Path | None, figure: Figure) -> None:
    with _lines(checkpoint, "a") as file:
        if file is not None:
            file.write(json.dumps(asdict(figure)) + "\n")
