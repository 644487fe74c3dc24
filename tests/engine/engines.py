"""Real vLLM engines on the CPU, in this process, one at a time: plain vLLM and ours with the same flags."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))

import pytest
from vllm import LLM, SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind

from thriftree.plugins.engine import linear
from thriftree.plugins.engine.register import PROPOSER


@dataclass(frozen=True)
class Ask:
    """One request: token ids, its parameters, and the step at which it arrives."""

    prompt: Sequence[int]
    params: SamplingParams
    arrives: int = 0
    abort_after: int | None = None  # steps after which the client leaves
    lora: Any = None
    images: Sequence[Any] = ()  # PIL images, one for each image token of the prompt
    mm_kwargs: dict[str, Any] | None = None  # `mm_processor_kwargs`

    @property
    def inputs(self) -> dict[str, Any]:
        """The prompt as vLLM takes it."""
        inputs: dict[str, Any] = {"prompt_token_ids": list(self.prompt)}
        if self.images:
            inputs["multi_modal_data"] = {"image": list(self.images)}
        if self.mm_kwargs is not None:
            inputs["mm_processor_kwargs"] = self.mm_kwargs
        return inputs


@dataclass
class Answer:
    tokens: list[list[int]]
    texts: list[str]
    finish: list[str | None]
    logprobs: list[list[dict[int, float]] | None] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0


class Stuck(Exception):
    """Requests wait, and steps schedule nothing: somebody holds blocks or places that nobody gives back."""


class Engine:
    """Drives the step loop by hand, so that arrivals and aborts fall on chosen steps."""

    def __init__(self, llm: LLM, patience: float = 60.0) -> None:
        """`patience`: seconds without a scheduled token (a grammar that compiles, say) until a run gives up."""
        self.llm = llm
        self.engine = llm.llm_engine
        self.steps = 0
        self.patience = patience
        self._serial = 0
        self._failure: BaseException | None = None
        self._moved = (-1, time.monotonic())

    @property
    def own_linear_layers(self) -> int:
        """Layers of the model that compute few rows with our product."""
        used = (getattr(module, "cpu_linear", None) for module in self.runner.model.modules())
        return sum(getattr(product, "__module__", "") == linear.__name__ for product in used)

    @property
    def core(self) -> Any:
        return self.engine.engine_core.engine_core

    @property
    def scheduler(self) -> Any:
        return self.core.scheduler

    @property
    def runner(self) -> Any:
        return self.core.model_executor.driver_worker.worker.model_runner

    def run(self, asks: Sequence[Ask], each_step: Callable[[], None] | None = None) -> list[Answer | None]:
        """All answers in order; None for aborted requests.

        Raises:
            Stuck: nothing moves any more.
            RuntimeError: an earlier run failed in this engine, whose requests are still in it.
            Exception: whatever a step raises.
        """
        if self._failure is not None:
            raise RuntimeError("the engine failed in an earlier run") from self._failure
        try:
            return self._run(asks, each_step)
        except VLLMValidationError:  # of a request that was not taken: the engine is as it was
            raise
        except BaseException as error:
            self._failure = error
            raise

    def _run(self, asks: Sequence[Ask], each_step: Callable[[], None] | None) -> list[Answer | None]:
        names = [f"r{self._serial + i}" for i in range(len(asks))]
        self._serial += len(asks)
        answers: dict[str, Answer] = {}
        step = 0
        waiting = dict(zip(names, asks, strict=True))
        self._moved = (-1, time.monotonic())
        gone = {name: ask.arrives + ask.abort_after for name, ask in waiting.items() if ask.abort_after is not None}
        while waiting or self.engine.has_unfinished_requests():
            for name in [n for n, ask in waiting.items() if ask.arrives <= step]:
                ask = waiting.pop(name)
                params = ask.params.clone()
                params.output_kind = RequestOutputKind.FINAL_ONLY  # with n > 1: all choices at once
                self.engine.add_request(name, ask.inputs, params, lora_request=ask.lora)
            for name in [n for n, at in gone.items() if at <= step]:
                del gone[name]
                self.engine.abort_request([name])
            for output in self.engine.step():
                if output.finished:
                    answers[output.request_id] = _answer(output)
            step += 1
            self.steps += 1
            self._check_moves(len(answers) + len(waiting))
            if each_step is not None:
                each_step()
        return [answers.get(name) for name in names]

    def _check_moves(self, told: int) -> None:
        """`told`: a number that changes as answers come and requests arrive."""
        requests = self.scheduler.requests.values()
        state = hash((told, *((one.request_id, one.num_computed_tokens, one.num_tokens) for one in requests)))
        if state != self._moved[0]:
            self._moved = (state, time.monotonic())
        elif self.engine.has_unfinished_requests() and time.monotonic() - self._moved[1] > self.patience:
            free = self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
            counts = f"{len(self.scheduler.running)} running, {len(self.scheduler.waiting)} waiting, {free} free blocks"
            raise Stuck(f"no token in {self.patience:g} s: {counts}")

    def settle(self) -> None:
        """One more step, so that the runner hears of the requests that finished last."""
        self.run([Ask([5, 6, 7], SamplingParams(max_tokens=1, temperature=0))])
        self.run([Ask([5, 6, 7], SamplingParams(max_tokens=1, temperature=0))])


def _answer(output: Any) -> Answer:
    outs = sorted(output.outputs, key=lambda one: one.index)
    return Answer(
        tokens=[list(one.token_ids) for one in outs],
        texts=[one.text for one in outs],
        finish=[one.finish_reason for one in outs],
        logprobs=[
            None
            if one.logprobs is None
            else [{token: entry.logprob for token, entry in step.items()} for step in one.logprobs]
            for one in outs
        ],
        prompt_tokens=len(output.prompt_token_ids),
        cached_tokens=output.num_cached_tokens or 0,
    )


@contextmanager
def engine(model: str, trees: dict[str, Any] | None = None, **flags: Any) -> Iterator[Engine]:
    """A running engine. `trees`: speculation settings of ours, None for plain vLLM."""
    settings: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 1024,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 1024,
        **flags,
    }
    if trees is not None:
        settings["speculative_config"] = {
            "method": "custom_class",
            "model": PROPOSER,
            "num_speculative_tokens": trees.get("max_nodes", 8),
        }
        given = settings.get("additional_config", {}).get("thriftree", {})
        settings["additional_config"] = {"thriftree": {**given, "speculation": trees}}
    with pytest.MonkeyPatch.context() as patch:
        # Which linear layers are ours is for a clock to say, and here all are: what is equal must be equal with them.
        patch.setattr(linear, "measure", lambda group: linear.ROWS[-1])
        llm = LLM(str(model), **settings)
    try:
        yield Engine(llm)
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


def assert_same(plain: Sequence[Answer | None], ours: Sequence[Answer | None], tolerance: float = 2e-3) -> None:
    """Tokens, texts and finish reasons equal, log-probabilities within `tolerance`."""
    assert len(plain) == len(ours)
    for number, (a, b) in enumerate(zip(plain, ours, strict=True)):
        assert (a is None) == (b is None), f"request {number}"
        if a is None or b is None:
            continue
        assert b.tokens == a.tokens, f"request {number}"
        assert b.texts == a.texts, f"request {number}"
        assert b.finish == a.finish, f"request {number}"
        for first, second in zip(a.logprobs, b.logprobs, strict=True):
            assert (first is None) == (second is None)
            for x, y in zip(first or (), second or (), strict=True):
                shared = x.keys() & y.keys()
                assert len(shared) >= len(x) - 1, "a near-tie at the cut may swap one candidate, no more"
                assert all(abs(x[t] - y[t]) < tolerance for t in shared), f"request {number}"
