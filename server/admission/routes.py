"""Which routes make the engine compute: only those need a place in it, and only those have deadlines."""

from __future__ import annotations

from starlette.types import Scope

from thriftree.server.scope import info

COMPLETIONS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/systemone",
        "/cohere/v2/chat",
        "/generative_scoring",
        "/inference/v1/generate",
        "/invocations",
    }
)
POOLING = frozenset(
    {
        "/v1/embeddings",
        "/v2/embed",
        "/pooling",
        "/classify",
        "/score",
        "/v1/score",
        "/rerank",
        "/v1/rerank",
        "/v2/rerank",
    }
)
COMPUTE = COMPLETIONS | POOLING


def computes(scope: Scope) -> bool:
    """Whether this is a request for the engine's compute (`middleware.routes`, above, has named its route)."""
    return scope["type"] == "http" and scope["method"] == "POST" and info(scope).route in COMPUTE
