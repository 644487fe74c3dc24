"""vLLM's real engine under the measurements of capacity and cost: what its processes count while they serve."""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from thriftree.benchmarks.contenders import EngineSpec
from thriftree.benchmarks.worker import Ask, Engine

BLOCK = 32
#: The linear layers of few rows are stock everywhere, so that nothing but the cache differs.
_SPECULATION = {"linear": "stock"}


@dataclass
class Spent:
    """Seconds and calls of the parts of compression since the last look, and what the caches hold besides rows."""

    seconds: dict[str, float]
    calls: dict[str, int]
    side_share: float  # bytes kept beside a request's rows over the bytes of its blocks, the largest seen


def flags(heads: str | None, max_tokens: int | None = None, **more: Any) -> dict[str, Any]:
    """Engine flags; `heads`: of `KVOptions`, None for plain vLLM."""
    made: dict[str, Any] = {"block_size": BLOCK, **more}
    if heads is not None:
        from thriftree.plugins.engine import launch

        args = argparse.Namespace(speculative_config=None, additional_config=None)
        launch.configure(args, None, {"heads": heads, "max_tokens": max_tokens})
        made["additional_config"] = args.additional_config
        made["additional_config"]["thriftree"]["speculation"] = _SPECULATION
    return made


def asking(kv: dict[str, Any] | None) -> dict[str, Any] | None:
    """A request's `extra_args`; None: a request that says nothing."""
    return None if kv is None else {"thriftree": {"kv": kv, "speculation": "off"}}


class Timed(Engine):
    """As it is served, in processes of its own, with clocks in its worker."""

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        self._clocks = spec.flags.get("additional_config") is not None
        if self._clocks:
            self.engine.collective_rpc(_put_clocks)

    def _environment(self) -> None:
        os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # a function goes to the worker, from us alone
        super()._environment()

    def spent(self) -> Spent | None:
        """Since the last call; None: plain vLLM."""
        found: Spent | None = self.engine.collective_rpc(_read_clocks)[0] if self._clocks else None
        return found

    def groups(self) -> int:
        """KV cache groups."""
        number: int = self.engine.collective_rpc(_groups)[0]
        return number


@dataclass
class Clocks:
    """Lives in the worker's process."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: Counter[str] = field(default_factory=Counter)
    side_share: float = 0.0

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - began
                self.calls[name] += 1

        return run


_CLOCKS = Clocks()


def _put_clocks(worker: Any) -> None:
    from thriftree.plugins.engine.kv.ragged_step import RaggedStep
    from thriftree.plugins.engine.kv.request_cache import DroppingCache

    runner = worker.model_runner
    for name in ("_step_rows", "_after_step"):
        setattr(runner, name, _CLOCKS.timed(name.strip("_"), getattr(runner, name)))
    DroppingCache._observe = _CLOCKS.timed("observe", DroppingCache._observe)  # type: ignore[method-assign]
    RaggedStep.run = _CLOCKS.timed("ragged_attention", RaggedStep.run)  # type: ignore[method-assign]
    DroppingCache.see = _CLOCKS.timed("weigh", DroppingCache.see)  # type: ignore[method-assign]
    stock = DroppingCache.compact
    at_prompt, while_decoding = _CLOCKS.timed("prompt_event", stock), _CLOCKS.timed("event", stock)

    def compact(self: DroppingCache, length: int, blocks: Any) -> None:
        due = any(rows.window.start(length) > rows.start for rows in self.groups)
        event = while_decoding if length > self.plan.prompt else at_prompt
        (event if due else stock)(self, length, blocks)
        if due:
            _CLOCKS.side_share = max(_CLOCKS.side_share, side_bytes(self) / cache_bytes(self, length))

    DroppingCache.compact = compact  # type: ignore[method-assign]


def _read_clocks(_: Any) -> Spent:
    spent = Spent(dict(_CLOCKS.seconds), dict(_CLOCKS.calls), _CLOCKS.side_share)
    _CLOCKS.seconds.clear()
    _CLOCKS.calls.clear()
    _CLOCKS.side_share = 0.0
    return spent


def _groups(worker: Any) -> int:
    return len(worker.model_runner.kv_cache_config.kv_cache_groups)


def side_bytes(cache: Any) -> int:
    """Bytes of all tensors that a request's compression holds (positions, sums, head tables, newest queries)."""
    import torch

    seen: dict[int, int] = {}

    def walk(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, list | tuple):
            for member in value:
                walk(member)

    for rows in (*cache.groups, cache.ring):
        for value in vars(rows).values() if rows is not None else ():
            walk(value)
    return sum(seen.values())


def cache_bytes(cache: Any, length: int) -> int:
    """Bytes of the blocks that a request of `length` tokens holds."""
    total = 0
    for rows in cache.groups:
        group, block = rows.group, rows.group.tier.block
        blocks = -(-length // block) - rows.start // block
        for keys, values in zip(group.keys, group.values, strict=True):
            total += blocks * (keys[0].nbytes + values[0].nbytes)
    return total


@dataclass
class Filled:
    """What happened while all requests of a list were served from one pool."""

    running: list[int] = field(default_factory=list)  # by step
    context: list[int] = field(default_factory=list)  # tokens that the running requests have read or written
    preemptions: int = 0
    wall: float = 0.0
    tokens: int = 0
    leaked: int = 0  # blocks that did not come back

    @property
    def steps(self) -> int:
        return len(self.running)


class Pooled(Engine):
    """In one process with its scheduler, which is looked at between steps. The pool is given in bytes."""

    def _environment(self) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        super()._environment()
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would win over --kv-cache-memory-bytes

    @property
    def _scheduler(self) -> Any:
        return self.engine.engine_core.engine_core.scheduler

    def pool(self) -> dict[str, Any]:
        """What the engine says of its cache."""
        from vllm.v1.core.kv_cache_utils import get_max_concurrency_for_kv_cache_config

        config = self._scheduler.kv_cache_config
        return {
            "bytes": max(tensor.size for tensor in config.kv_cache_tensors),  # groups share one allocation
            "blocks": config.num_blocks,
            "groups": len(config.kv_cache_groups),
            "max_concurrency": get_max_concurrency_for_kv_cache_config(self.engine.vllm_config, config),
        }

    def fill(self, asks: Sequence[Ask]) -> Filled:
        """All at once; the scheduler takes as many as it has room for."""
        self._wake()
        scheduler, found = self._scheduler, Filled()
        pool = scheduler.kv_cache_manager.block_pool
        free = pool.get_num_free_blocks()
        names = [self._submit(ask) for ask in asks]
        requests = [r for r in scheduler.requests.values() if r.request_id.partition("-")[0] in names]
        assert len(requests) == len(asks)
        began = time.perf_counter()
        while self.engine.has_unfinished_requests():
            outputs = self.engine.step()
            found.tokens += sum(len(output.outputs[0].token_ids) for output in outputs)
            found.running.append(len(scheduler.running))
            found.context.append(sum(request.num_computed_tokens for request in scheduler.running))
        found.wall = time.perf_counter() - began
        found.preemptions = sum(request.num_preemptions for request in requests)
        found.leaked = free - pool.get_num_free_blocks()
        return found
