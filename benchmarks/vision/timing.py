"""`thriftree bench vision --only time`: where a request with an image spends its time until the first token."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from thriftree.benchmarks import machine
from thriftree.benchmarks.vision import report
from thriftree.benchmarks.vision.policies import policies
from thriftree.zoo import tiny, tiny_vision

_PAGE = 150
_SIDE = 336  # pixels: 24 x 24 patches
WHOLE = "all tokens"
PARTS = ("encoder", "selection", "prefill", "first token")
#: The note's set-up, in which the language model dominates: random weights, since time does not depend on them.
SHAPE = tiny_vision.Family(
    "Llava",
    "CLIP of 12 layers of 384, 24 x 24 rows an image; Llama of 16 layers of 512",
    {
        "model_type": "clip_vision_model", "image_size": _SIDE, "patch_size": 14, "hidden_size": 384,
        "intermediate_size": 1536, "num_attention_heads": 6, "num_hidden_layers": 12,
    },
    text={
        "model_type": "llama", "rms_norm_eps": 1e-5, "hidden_size": 512, "intermediate_size": 1536,
        "num_hidden_layers": 16, "num_attention_heads": 8, "num_key_value_heads": 8,
    },
    config={**tiny_vision.FAMILIES["llava"].config, "image_seq_length": 576},
    pixels=("CLIPImageProcessor", {"size": {"shortest_edge": _SIDE}, "crop_size": {"height": _SIDE, "width": _SIDE}}),
    processor=tiny_vision.FAMILIES["llava"].processor,
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One request. Seconds."""

    row: str
    round: int
    prompt: int  # tokens
    parts: dict[str, float]


class Clock:
    """Adds up the time of wrapped calls by name."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)

    def wrap(self, owner: Any, method: str, name: str) -> None:
        stock: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return stock(*args, **kwargs)
            finally:
                self.spent[name] += time.perf_counter() - began

        setattr(owner, method, timed)


@contextmanager
def engine(path: str) -> Iterator[tuple[Any, Clock]]:
    """vLLM in this process, and a clock on its parts."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM

    llm = LLM(
        path,
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        max_num_batched_tokens=1024,
        enable_prefix_caching=False,
        mm_processor_cache_gb=0,
        additional_config={"thriftree": {"vision": {}}},
    )
    model = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.model
    clock = Clock()
    clock.wrap(model, "embed_multimodal", "encoder")
    clock.wrap(model._selector, "_pruned", "selection")
    clock.wrap(model.get_language_model().model, "forward", "prefill")
    yield llm, clock


def measure(path: str, rows: Sequence[str], keep: float, rounds: int) -> list[Sample]:
    """Every row on a picture of its own in each round; who begins moves on by one."""
    from vllm import SamplingParams

    wishes: dict[str, Any] = {policy.name: policy.vision(keep) for policy in policies(tuple(rows))}
    names, draw = [WHOLE, *wishes], np.random.default_rng(0)
    params, samples = SamplingParams(temperature=0, max_tokens=1), []
    with engine(path) as (llm, clock):
        for number in range(-1, rounds):  # the first for memory and caches
            for name in (*names[number % len(names) :], *names[: number % len(names)]):
                picture = Image.fromarray(draw.integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8))
                clock.spent.clear()
                began = time.perf_counter()
                output = llm.generate(
                    {
                        "prompt": "<image>What is it?",
                        "multi_modal_data": {"image": picture},
                        "mm_processor_kwargs": {"thrift_vision": wishes.get(name, "off")},
                    },
                    params,
                    use_tqdm=False,
                )[0]
                parts = {"first token": time.perf_counter() - began, **clock.spent}
                parts["selection"] = parts.get("selection", 0.0)
                parts["encoder"] -= parts["selection"]
                if number >= 0:
                    samples.append(Sample(name, number, len(output.prompt_token_ids), parts))
    return samples


def lines(samples: Sequence[Sample]) -> tuple[list[str], list[list[str]]]:
    """Medians in ms, and their ratio to the unpruned request's."""
    grouped: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        grouped[sample.row].append(sample)
    whole = {part: median(one.parts[part] for one in grouped[WHOLE]) for part in PARTS}
    made = []
    for row, those in grouped.items():
        spent = {part: median(one.parts[part] for one in those) for part in PARTS}
        shown = [f"{1000 * spent[part]:.1f}" for part in PARTS]
        ratios = [f"{spent[part] / whole[part]:.2f}" for part in ("prefill", "first token")]
        made.append([row, str(those[0].prompt), *shown, *ratios, f"{100 * spent['selection'] / whole['encoder']:.1f}"])
    heads = ["row", "prompt", *(f"{part} ms" for part in PARTS), "prefill x", "first token x", "selection % of encoder"]
    return heads, made


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="thriftree bench vision --only time", description=__doc__)
    add = made.add_argument
    add("--policies", nargs="+", default=["divprune", "hiprune", "visionzip", "random"], metavar="NAME")
    add("--keep", type=float, default=1 / 9, help="share of an image's tokens (default: a ninth, 64 of 576)")
    add("--rounds", type=int, default=9, help="turns of every row (default: 9)")
    add("--json", type=Path, metavar="FILE", help="everything")
    add("--markdown", type=Path, metavar="FILE", help="the table as a page")
    return made


def main(argv: list[str]) -> int:
    console = Console(width=None if sys.stdout.isatty() else _PAGE)
    try:
        args = parser().parse_args(argv)
        policies(tuple(args.policies))
        if not 0 < args.keep <= 1 or args.rounds < 1:
            raise ValueError("--keep must be above 0 and at most 1, --rounds at least 1")
    except SystemExit as leaving:  # argparse has said it
        return int(leaving.code or 0)
    except ValueError as error:
        print(f"thriftree bench vision: {error}", file=sys.stderr)
        return 2
    path = tiny.built("bench-llava", "1", lambda out: tiny_vision.build(SHAPE, out))
    found = machine.conditions(["vision", "--only", "time", *argv])
    samples = measure(str(path), args.policies, args.keep, args.rounds)
    machine.finish(found)
    heads, made = lines(samples)
    report.show(console, f"time to the first token, {100 * args.keep:.3g} % of an image's tokens", heads, made)
    said = [
        f"`{found['command']}`",
        machine.line(found),
        f"{SHAPE.summary}; random weights, float32, eager, one request at a time, every picture new; medians of "
        f"{args.rounds} rounds in turns. selection: reading the tower's attention is in the encoder's time",
        *(f"WARNING: {text}" for text in machine.warnings(found)),
    ]
    for text in said:
        console.print(text, soft_wrap=True, highlight=False, style="yellow" if text.startswith("WARNING") else "dim")
    if args.json is not None:
        result = {"conditions": found, "lines": said, "samples": [vars(sample) for sample in samples]}
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.markdown is not None:
        args.markdown.write_text("\n".join([report.markdown(heads, made), *(f"{text}\n" for text in said)]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
