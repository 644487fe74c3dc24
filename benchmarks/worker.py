"""The child process of one engine: loads it, answers calls over a pipe, times each request.

The engine is built as `vllm serve` builds it (same defaults, its core and its worker in processes of their own), with
the step loop driven here instead of by a web server.
"""

from __future__ import annotations

import os
import pkgutil
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from thriftree.benchmarks import machine
from thriftree.benchmarks.contenders import EngineSpec

_QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_CPU_KVCACHE_SPACE": "1"}

_WAKE = (1, 2, 3, 4, 5, 6)  # any tokens


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `salt` keeps prefix-cache hits within one contender."""

    ids: tuple[int, ...]
    tokens: int
    salt: str
    extra: dict[str, Any] | None = None
    ignore_eos: bool = False


@dataclass(slots=True)
class Answer:
    """`arrivals`: seconds from submission to each output; `sizes`: tokens in each. One output is one step."""

    tokens: list[int] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Turn:
    """One call of `generate`."""

    answers: list[Answer]
    wall: float  # seconds from the first submission to the last token
    steps: int  # engine steps that emitted something
    cpu: float  # CPU seconds of all processes of the engine
    foreign: float = 0.0  # cores that everything else on the machine used meanwhile


def serve(spec: EngineSpec, pipe: Connection, log: Path) -> None:
    """The child's main: answers ("ok", value) or ("error", text) to each (name, arguments)."""
    os.setpgid(0, 0)  # the engine's processes are stopped between turns, and end with ours, as one group
    with log.open("w") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    try:
        engine = pkgutil.resolve_name(spec.engine)(spec)
        pipe.send(("ok", engine.facts()))
        while True:
            name, arguments = pipe.recv()
            if name == "close":
                break
            pipe.send(("ok", getattr(engine, name)(*arguments)))
        engine.close()
        pipe.send(("ok", None))
    except EOFError:
        return
    except BaseException as error:
        traceback.print_exc()
        pipe.send(("error", f"{type(error).__name__}: {error}"))


class Engine:
    """What a child runs, unless its spec names another class."""

    def __init__(self, spec: EngineSpec) -> None:
        self._environment()
        from vllm.engine.arg_utils import EngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.llm_engine import LLMEngine

        args = EngineArgs(
            model=spec.model,
            dtype=spec.dtype,
            enforce_eager=spec.eager,
            max_model_len=spec.max_model_len,
            disable_log_stats=True,
            **spec.flags,
        )
        self.engine = LLMEngine.from_engine_args(args, usage_context=UsageContext.OPENAI_API_SERVER)
        self.trees = str(spec.key).startswith("trees")
        self._serial = 0

    def _environment(self) -> None:
        """Before vLLM is imported."""
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        from thriftree.server import vllm_args

        vllm_args.environment()  # what `thriftree serve` sets

    def generate(self, asks: Sequence[Ask], in_flight: int) -> Turn:
        """Greedy answers to all of them, at most `in_flight` at a time: the next enters when one has finished.

        A short request that is not timed comes first: an engine that was at rest is slow for some steps.
        """
        self._wake()
        answers = [Answer() for _ in asks]
        live: dict[str, tuple[Answer, float]] = {}
        coming = list(zip(asks, answers, strict=True))[::-1]
        busy, cpu, steps = machine.busy(), self._cpu(), 0
        began = time.perf_counter()
        while coming or live:
            while coming and len(live) < in_flight:
                ask, answer = coming.pop()
                live[self._submit(ask)] = answer, time.perf_counter()
            outputs = self.engine.step()
            now = time.perf_counter()
            steps += bool(outputs)
            for output in outputs:
                answer, submitted = live[output.request_id]
                fresh = output.outputs[0].token_ids
                if fresh:
                    answer.tokens += fresh
                    answer.arrivals.append(now - submitted)
                    answer.sizes.append(len(fresh))
                if output.finished:
                    del live[output.request_id]
        wall = time.perf_counter() - began
        used = self._cpu() - cpu
        return Turn(answers, wall, steps, used, max(machine.busy() - busy - used, 0.0) / wall)

    def _wake(self) -> None:
        extra = {"thriftree": {"speculation": "off", "tenant": "wake"}} if self.trees else None
        self._submit(Ask(_WAKE, len(_WAKE), "wake", extra, ignore_eos=True))
        while self.engine.has_unfinished_requests():
            self.engine.step()

    def _submit(self, ask: Ask) -> str:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._serial += 1
        params = SamplingParams(
            temperature=0,
            max_tokens=ask.tokens,
            ignore_eos=ask.ignore_eos,
            extra_args=ask.extra,
            output_kind=RequestOutputKind.DELTA,  # as a streamed answer: every step has its output
        )
        prompt = {"prompt_token_ids": list(ask.ids), "cache_salt": ask.salt}
        name = f"b{self._serial}"
        self.engine.add_request(name, prompt, params)
        return name

    def facts(self) -> dict[str, Any]:
        """What the table says about this engine."""
        config = self.engine.vllm_config
        me, *others = self._processes()
        return {
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "compilation": getattr(config.compilation_config.mode, "name", str(config.compilation_config.mode)),
            "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
            "threads": _threads(config),
            "processes": 1 + len(others),
            "rss_mib": sum(p.memory_info().rss for p in (me, *others)) >> 20,
        }

    def stats(self) -> dict[str, Any] | None:
        """Drafters' memory and measured step costs."""
        return self.engine.collective_rpc("thrift_stats")[0] if self.trees else None

    def close(self) -> None:
        self.engine.engine_core.shutdown()

    def _processes(self) -> list[Any]:
        import psutil  # type: ignore[import-untyped]

        me = psutil.Process()
        return [me, *me.children(recursive=True)]

    def _cpu(self) -> float:
        import psutil

        total = 0.0
        for process in self._processes():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total


def _threads(config: Any) -> int:
    """Compute threads of the engine's worker, as vLLM binds them (it keeps a core for its scheduler)."""
    from vllm.utils.ompmultiprocessing import OMPProcessManager

    manager = OMPProcessManager(config)
    return os.cpu_count() or 1 if manager.skip_setup else len(manager.cpu_lists[0])
