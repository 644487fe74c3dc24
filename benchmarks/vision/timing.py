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
import torch
from rich.console import Console

from thriftree.benchmarks import machine
from thriftree.benchmarks.vision import report, shapes
from thriftree.benchmarks.vision.policies import policies
from thriftree.benchmarks.vision.throughput import Rate, rates, table

_PAGE = 150
WHOLE = "all tokens"
PARTS = ("encoder", "selection", "prefill", "first token")
_GPU = torch.cuda.is_available()


@dataclass(frozen=True)
class Sample:
    """One request. Seconds."""

    row: str
    round: int
    prompt: int  # tokens
    parts: dict[str, float]


class Clock:
    """Adds up the time of wrapped calls by name, while it is on: looking makes a GPU's queue run empty."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.on = True

    def wrap(self, owner: Any, method: str, name: str) -> None:
        stock: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if not self.on:
                return stock(*args, **kwargs)
            _wait()
            began = time.perf_counter()
            try:
                return stock(*args, **kwargs)
            finally:
                _wait()
                self.spent[name] += time.perf_counter() - began

        setattr(owner, method, timed)


def _wait() -> None:
    if _GPU:
        torch.cuda.synchronize()


@contextmanager
def engine(name: str, compiled: bool = False, late_layer: int | None = None) -> Iterator[tuple[Any, Clock]]:
    """vLLM in this process with the shape `name`, and a clock on its parts; at `late_layer` visual tokens may leave."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM

    shape = shapes.SHAPES[name]
    flags: dict[str, Any] = {"dtype": "float32", "max_num_batched_tokens": 1024, "max_num_seqs": 16}
    if _GPU:
        flags = {"dtype": "bfloat16", "max_num_batched_tokens": 8192, "max_num_seqs": 64, **shape.memory}
    if compiled:
        flags["compilation_config"] = {"cudagraph_capture_sizes": [1, 2, 4, 8, *range(16, 513, 16)]}
    llm = LLM(
        str(shapes.ensure(name)),
        load_format="auto" if shape.weights else "dummy",
        enforce_eager=not compiled,
        max_model_len=2048 if _GPU else 1024,
        limit_mm_per_prompt={"image": 1, "video": 0},
        enable_prefix_caching=False,
        mm_processor_cache_gb=0,
        additional_config={"thriftree": {"vision": {"late_layer": late_layer}}},
        **flags,
    )
    model = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.model
    clock = Clock()
    clock.wrap(model, "embed_multimodal", "encoder")
    clock.wrap(model._selector, "_pruned", "selection")
    clock.wrap(model, "forward", "prefill")
    yield llm, clock


def cells(names: Sequence[str], keeps: Sequence[float], late_layer: int | None = None) -> dict[str, Any]:
    """row -> what a request says: all tokens, the first policy at every share, the others at the first share.

    With a late layer also: whole images whose tokens leave there, all or but the first share, and the first policy's.
    """
    found: dict[str, Any] = {WHOLE: "off"}
    for nth, policy in enumerate(policies(tuple(names))):
        for keep in keeps if nth == 0 else keeps[:1]:
            found[policy.name if len(keeps) == 1 else f"{policy.name} {100 * keep:.3g} %"] = policy.vision(keep)
    if late_layer is not None:
        whole, first = {"method": "random", "keep": 1.0}, next(iter(list(found.items())[1:]))
        found[f"leave at {late_layer}"] = {**whole, "late": {"keep": 0.0}}
        found[f"leave at {late_layer}, attention"] = {**whole, "late": {"keep": keeps[0]}}
        found[f"{first[0]}, leave at {late_layer}"] = {**first[1], "late": {"keep": 0.0}}
    return found


def measure(llm: Any, clock: Clock, shape: shapes.Shape, wishes: dict[str, Any], rounds: int) -> list[Sample]:
    """Every row on a picture of its own in each round; who begins moves on by one."""
    names, draw = list(wishes), np.random.default_rng(0)
    samples = []
    for number in range(-2 if _GPU else -1, rounds):  # the first for memory and caches
        for name in (*names[number % len(names) :], *names[: number % len(names)]):
            parts: dict[str, float] = {}
            for clock.on in (False, True) if _GPU else (True,):
                clock.spent.clear()
                began = time.perf_counter()
                length = _first_token(llm, shape, draw, wishes[name])
                parts = {"first token": time.perf_counter() - began, **parts, **clock.spent}
            parts["selection"] = parts.get("selection", 0.0)
            parts["encoder"] -= parts["selection"]
            if number >= 0:
                samples.append(Sample(name, number, length, parts))
    clock.on = False
    return samples


def _first_token(llm: Any, shape: shapes.Shape, draw: np.random.Generator, vision: Any) -> int:
    from vllm import SamplingParams

    extra = None
    if isinstance(vision, dict) and "late" in vision:
        extra = {"thriftree": {"late": vision["late"]}}
        vision = {name: value for name, value in vision.items() if name != "late"}
    params = SamplingParams(temperature=0, max_tokens=1, extra_args=extra)
    output = llm.generate(shape.request(draw, vision), params, use_tqdm=False)[0]
    return len(output.prompt_token_ids)


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
    add("--shape", choices=shapes.SHAPES, default="small", help="the model (default: small; the others want a GPU)")
    add("--policies", nargs="+", default=["divprune", "hiprune", "visionzip", "random"], metavar="NAME")
    shares = "of an image's tokens; the first for all policies, the others for the first (default: a ninth, 64 of 576)"
    add("--keep", type=float, nargs="+", default=[1 / 9], metavar="SHARE", help=shares)
    add("--late-layer", type=int, metavar="L", help="rows too whose visual tokens leave at layer L")
    add("--rounds", type=int, default=9, help="turns of every row (default: 9)")
    add("--requests", type=int, default=0, help="at once, to measure throughput too (default: 0, not measured)")
    add("--compiled", action="store_true", help="vLLM's compiler and CUDA graphs (default: eager)")
    add("--json", type=Path, metavar="FILE", help="everything")
    add("--markdown", type=Path, metavar="FILE", help="the tables as a page")
    return made


def main(argv: list[str]) -> int:
    console = Console(width=None if sys.stdout.isatty() else _PAGE)
    try:
        args = parser().parse_args(argv)
        wishes = cells(args.policies, args.keep, args.late_layer)
        if not all(0 < keep <= 1 for keep in args.keep) or args.rounds < 1 or args.requests < 0:
            raise ValueError("--keep must be above 0 and at most 1, --rounds at least 1, --requests not negative")
    except SystemExit as leaving:  # argparse has said it
        return int(leaving.code or 0)
    except ValueError as error:
        print(f"thriftree bench vision: {error}", file=sys.stderr)
        return 2
    found = machine.conditions(["vision", "--only", "time", *argv])
    shape, served = shapes.SHAPES[args.shape], list[Rate]()
    with engine(args.shape, args.compiled, args.late_layer) as (llm, clock):
        samples = measure(llm, clock, shape, wishes, args.rounds)
        if args.requests:
            two = dict(list(wishes.items())[:2])
            served = rates(llm, shape, two, args.requests)
    machine.finish(found)
    _report(args, found, samples, served, console)
    return 0


def _report(
    args: argparse.Namespace, found: dict[str, Any], samples: list[Sample], served: list[Rate], console: Console
) -> None:
    shape = shapes.SHAPES[args.shape]
    share = f", {100 * args.keep[0]:.3g} % of an image's tokens" if len(args.keep) == 1 else ""
    tables = [(f"time to the first token{share}", *lines(samples))]
    if served:
        tables.append((f"{args.requests} requests at once", *table(served)))
    for title, heads, made in tables:
        report.show(console, title, heads, made)
    how = f"{'bfloat16' if _GPU else 'float32'}, {'compiled, CUDA graphs' if args.compiled else 'eager'}"
    looked = "; parts on requests of their own, since looking makes the GPU wait" if _GPU else ""
    said = [
        f"`{found['command']}`",
        f"{torch.cuda.get_device_name()}; {machine.line(found)}" if _GPU else machine.line(found),
        f"{shape.family.summary}; random weights, {how}, one request at a time, every picture new; medians of "
        f"{args.rounds} rounds in turns. selection: reading the tower's attention is in the encoder's time{looked}",
        *(f"WARNING: {text}" for text in machine.warnings(found)),
    ]
    for text in said:
        console.print(text, soft_wrap=True, highlight=False, style="yellow" if text.startswith("WARNING") else "dim")
    if args.json is not None:
        result = {
            "conditions": found, "lines": said, "samples": [vars(sample) for sample in samples],
            "rates": [vars(rate) for rate in served],
        }  # fmt: skip
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.markdown is not None:
        pages = [f"{report.markdown(heads, made)}" for _, heads, made in tables]
        args.markdown.write_text("\n".join([*pages, *(f"{text}\n" for text in said)]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
