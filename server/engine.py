"""vLLM's engine in this process and vLLM's OpenAI app on it. The engine's own core runs in a child process."""

from __future__ import annotations

import argparse
import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from thriftree.plugins.kv_cache.request import Terms
from thriftree.plugins.vision.request import Terms as VisionTerms
from thriftree.server.fail_fast import fail_fast
from thriftree.server.part_types import refuse_null_types

_STOP_SECONDS = 3.0  # for the core to put its processes and shared memory away; then it is killed


@dataclass(frozen=True)
class Loaded:
    """An engine that runs, and the app that serves it."""

    client: Any
    app: Any
    tasks: tuple[str, ...]

    @property
    def max_running(self) -> int:
        """Requests that it runs at once; what is more would only wait inside."""
        config = self.client.vllm_config
        return int(config.scheduler_config.max_num_seqs * config.parallel_config.data_parallel_size)

    @property
    def dead(self) -> bool:
        return bool(self.client.errored and not self.client.is_running)


def configure(
    args: argparse.Namespace,
    speculation: dict[str, Any] | None,
    kv: dict[str, Any] | None,
    vision: dict[str, Any] | None,
) -> bool:
    """Put our options on vLLM's flags; whether trees are on. Raises ValueError naming what cannot be."""
    from thriftree.plugins.engine import launch

    return launch.configure(args, speculation, kv, vision)


def kv_terms(client: Any, profile: str) -> Terms:
    """What requests may do with their caches on an engine that runs; `profile`: of requests that name none."""
    from thriftree.plugins.engine import launch

    return launch.kv_terms(client.vllm_config, profile)


def vision_terms(client: Any, profile: str) -> VisionTerms:
    """The same with their images."""
    from thriftree.plugins.engine import launch

    return launch.vision_terms(client.vllm_config, profile)


def create(args: argparse.Namespace) -> Any:
    """The engine client; blocks until the model is loaded, so it runs in a thread."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import propagate_flash_late_interaction
    from vllm.usage.usage_lib import UsageContext

    from thriftree.plugins.engine.async_llm import ThriftAsyncLLM

    engine_args = AsyncEngineArgs.from_cli_args(args)
    propagate_flash_late_interaction(args, engine_args)
    usage = UsageContext.OPENAI_API_SERVER
    return ThriftAsyncLLM.from_vllm_config(
        vllm_config=engine_args.create_engine_config(usage_context=usage),
        usage_context=usage,
        enable_log_requests=engine_args.enable_log_requests,
        aggregate_engine_logging=engine_args.aggregate_engine_logging,
        disable_log_stats=engine_args.disable_log_stats,
    )


async def load(args: argparse.Namespace, server: Any, private_media: bool = False) -> Loaded:
    """Load the model without blocking the loop (health is answered meanwhile), then build vLLM's app."""
    from starlette.middleware.cors import CORSMiddleware
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app

    from thriftree.plugins.engine import media

    _bound_complaints()
    media.install(private_media)
    client = await asyncio.to_thread(create, args)
    await client.reset_mm_cache()
    tasks = await client.get_supported_tasks()
    app = build_app(args, tasks, client.model_config)
    app.user_middleware = [layer for layer in app.user_middleware if layer.cls is not CORSMiddleware]  # see `edge`
    app.middleware_stack = None  # one of vLLM's helpers has built it already
    await init_app_state(client, app.state, args, tasks)
    app.state.server = server  # vLLM's handlers ask it to stop when the engine has died
    return Loaded(client, app, tuple(tasks))


def _bound_complaints() -> None:
    """Before the routes are made: vLLM's request models stop at the first bad item of a list, and at a null type."""
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.exceptions import VLLMValidationError

    refuse_null_types(ChatCompletionRequest, lambda why, field: VLLMValidationError(why, parameter=field))
    for model in (AnthropicMessagesRequest, ChatCompletionRequest, CompletionRequest, ResponsesRequest):
        fail_fast(model)


@asynccontextmanager
async def running(loaded: Loaded) -> AsyncIterator[None]:
    """The app's own start-up and shut-down around its use; the engine is stopped at the end."""
    try:
        async with loaded.app.router.lifespan_context(loaded.app):
            yield
    finally:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, functools.partial(loaded.client.shutdown, timeout=_STOP_SECONDS))
