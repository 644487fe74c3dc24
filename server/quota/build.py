"""The store of quotas that the settings ask for, and the prompt counter of a loaded engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thriftree.server.errors import StartError
from thriftree.server.metrics import Metrics
from thriftree.server.quota.limiter import Limiter
from thriftree.server.quota.memory import MemoryLimiter
from thriftree.server.quota.prompt_tokens import PromptCounter, TokenizerCounter
from thriftree.server.quota.snapshot import SnapshotLimiter
from thriftree.server.sections import Quotas


def limiter(settings: Quotas, metrics: Metrics, database: Path | None = None) -> Limiter:
    """Redis where it is set; else this process, with a snapshot file if one is set or keys have a database.

    Raises:
        StartError: the settings name something that is not there.
    """
    errors = metrics.quota_store_errors
    if settings.redis is not None:
        return _redis(settings, metrics.bound(errors, "redis").inc)
    beside = database.with_name(f"{database.stem}-quotas.sqlite") if database is not None else None
    path = settings.snapshot or beside
    return MemoryLimiter() if path is None else SnapshotLimiter(path, metrics.bound(errors, "snapshot").inc)


def _redis(settings: Quotas, failed: Any) -> Limiter:
    try:
        from thriftree.server.quota.redis import RedisLimiter
    except ModuleNotFoundError:
        raise StartError("quotas.redis is set, but its client is missing: pip install 'thriftree[redis]'") from None
    try:
        return RedisLimiter(
            settings.redis or "",
            prefix=settings.redis_prefix,
            timeout=settings.redis_timeout,
            down=settings.redis_down,
            failed=failed,
        )
    except ValueError as error:
        raise StartError(f"quotas.redis: {error}") from None


def prompt_counter(app_state: Any) -> PromptCounter | None:
    """On the tokenizer of vLLM's app (`app.state` after its start); None: the engine has no tokenizer."""
    renderer = app_state.online_renderer
    tokenizer = renderer.renderer.tokenizer
    return None if tokenizer is None else TokenizerCounter(tokenizer, renderer.chat_template)
