"""Runs requests on an engine, notes what it did, and asks the reference the same."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm import SamplingParams

from thriftree.plugins.engine.kv.cached import CachedRows
from thriftree.plugins.engine.kv.ragged import RaggedRows

from ..engines import Ask, Engine
from .reference import Place, Reference

TOP = 5


def head_file(path: Path, kv_heads: int = 2, layers: int = 4, dim: int = 32) -> str:
    """A head file for a tiny Llama: head 0 of layer 1, and head 1 of layer 3."""
    induction = [[0.9 if (layer, head) == (1, 0) else 0.0 for head in range(kv_heads)] for layer in range(layers)]
    echo = [[0.9 if (layer, head) == (3, 1) else 0.0 for head in range(kv_heads)] for layer in range(layers)]
    mark = {"model_type": "llama", "layers": layers, "kv_heads": kv_heads, "head_dim": dim}
    data = {"version": 1, "model": "tiny", "fingerprint": mark, "induction": induction, "echo": echo}
    path.write_text(json.dumps({**data, "tokens": 8, "repeats": 4, "seed": 0}))
    return str(path)


def asking(kv: Any, speculation: Any = "off", tokens: int = 70) -> SamplingParams:
    contract = {"kv": kv, "speculation": speculation}
    return SamplingParams(
        temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=TOP, extra_args={"thriftree": contract}
    )


def prompts(*lengths: int, seed: int = 1) -> list[list[int]]:
    chance = random.Random(seed)
    return [[chance.randrange(256) for _ in range(length)] for length in lengths]


@dataclass
class Pass:
    """What a request went through from its first row to its end, or to the moment when it had to start anew."""

    known: int = 0  # tokens of the answer that were there before
    hit: int = 0  # tokens from the prefix cache
    chunks: list[int] = field(default_factory=list)  # rows of each step, without rejected drafts
    kept: dict[int, list[list[Tensor]]] = field(default_factory=dict)  # layer -> events -> heads


class Recorder:
    """The schedule of a run: how many rows each request got in each step; and what events kept."""

    def __init__(self, running: Engine, patch: pytest.MonkeyPatch) -> None:
        self.passes: dict[str, list[Pass]] = {}
        runner, scheduler = running.runner, running.scheduler
        preempt = scheduler._preempt_request

        def begin_anew(request: Any, *args: Any, **kwargs: Any) -> None:
            preempt(request, *args, **kwargs)
            if request.request_id in self.passes:
                self.passes[request.request_id].append(Pass(request.num_output_tokens))

        patch.setattr(scheduler, "_preempt_request", begin_anew)
        stock = scheduler.update_from_output

        def update(output: Any, *args: Any) -> Any:
            before = {name: scheduler.requests[name].num_computed_tokens for name in output.num_scheduled_tokens}
            rows = output.num_scheduled_tokens
            begun = {name: before[name] - rows[name] for name in rows}
            requests = {name: scheduler.requests[name] for name in rows}
            done = stock(output, *args)
            for name, request in requests.items():
                now = self._pass(name)
                now.hit = now.hit if now.chunks else begun[name]
                now.chunks.append(request.num_computed_tokens - begun[name])
            return done

        patch.setattr(scheduler, "update_from_output", update)
        for kind in (CachedRows, RaggedRows):
            patch.setattr(kind, "compact", self._noting(kind.compact, runner))

    def _noting(self, stock: Any, runner: Any) -> Any:
        def compact(rows: Any, *args: Any) -> int:
            dropped: int = stock(rows, *args)
            if dropped:
                name = next(n for n, cache in runner._caches.items() if rows in cache.groups)
                for number, index in enumerate(rows.group.indices):
                    heads = [pos.sort().values.long() for pos in rows._pos[number]]
                    self._pass(name).kept.setdefault(index, []).append(heads)
            return dropped

        return compact

    def _pass(self, name: str) -> Pass:
        return self.passes.setdefault(name, [Pass()])[-1]

    def of(self, number: int) -> list[Pass]:
        """What request `number` went through."""
        return next(passes for name, passes in self.passes.items() if name.partition("-")[0] == f"r{number}")


def places(running: Engine) -> list[Place]:
    """What the engine says of each layer."""
    found = {}
    for group in running.runner._layers():
        for index, whole in zip(group.indices, group.retrieval, strict=True):
            found[index] = Place(group.tier, whole)
    return [found[index] for index in sorted(found)]


@dataclass(frozen=True)
class Laid:
    """A prompt as the model reads it, where that is not one row for each token id."""

    rows: Tensor  # [L, hidden]
    rotate: Callable[[Tensor, Tensor], Tensor] | None = None  # see `Reference`


def replay(
    model: Any,
    running: Engine,
    record: list[Pass],
    ask: Ask,
    answer: Any,
    evicts: bool = True,
    laid: Laid | None = None,
) -> tuple[float, int]:
    """Largest difference of a log-probability of the engine's top tokens (inf where the greedy token differs), and the
    number of rows that were kept for others that score alike."""
    embed = model.get_input_embeddings()
    given = laid or Laid(embed(torch.tensor(ask.prompt)).detach())
    found = [_replay(model, running, part, ask, answer, evicts, given) for part in record if part.chunks]
    last = record[-1]
    assert last.hit + sum(last.chunks) == len(given.rows) + len(answer.tokens[0]) - 1
    return max(worst for worst, _ in found), sum(flips for _, flips in found)


def _replay(
    model: Any, running: Engine, part: Pass, ask: Ask, answer: Any, evicts: bool, laid: Laid
) -> tuple[float, int]:
    prompt = len(laid.rows)
    plan = running.runner.compression.plan(ask.params, prompt)
    reference = Reference(model, plan, places(running), evicts, laid.rotate)
    chosen = [list(part.kept.get(index, ())) for index in range(len(reference.layers))]
    answered = model.get_input_embeddings()(torch.tensor(answer.tokens[0])).detach()
    text, worst = torch.cat((laid.rows, answered)), 0.0
    done = 0
    for rows in [part.hit, *part.chunks] if part.hit else part.chunks:
        said = reference.step(text[done : done + rows], chosen)
        for row in range(rows):
            emitted = done + row + 1 - prompt
            if emitted < part.known:
                continue
            if int(said[row].argmax()) != answer.tokens[0][emitted]:
                return float("inf"), reference.flips
            entries = answer.logprobs[0][emitted].items()
            worst = max(worst, *(abs(float(said[row, token]) - p) for token, p in entries))
        done += rows
    return worst, reference.flips
