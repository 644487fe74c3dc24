"""Requests that keep their whole cache under a cap (`--kv-max-tokens`, a key's): they must be short enough for it."""

from __future__ import annotations

from typing import Any

from thriftree.plugins.kv_cache.request import Terms
from thriftree.server.errors import ContractError
from thriftree.server.permits import ROUTES, Route, integer
from thriftree.server.quota.prompt_tokens import PromptCounter, rough
from thriftree.server.scope import RequestInfo


async def members(request: RequestInfo, terms: Terms, counter: PromptCounter | None) -> dict[str, int]:
    """What the body needs for its prompt and its answer to stay within the cap together.

    Raises:
        ContractError: they cannot, or the body asks for more.
    """
    assert request.body is not None and terms.max_tokens is not None
    body, route = await request.body.parsed(), ROUTES[request.route]
    if not isinstance(body, dict):
        return {}  # vLLM words the complaint
    prompt = max([await (counter or rough)(request.route, one) for one in _apart(body)])
    room = terms.max_tokens - prompt
    asked = _asked(body, route)
    if room < 1 or (asked or 0) > room:
        answer = f" and an answer of {asked}" if asked else ""
        how = terms.reason or "let it drop some"
        why = f"a prompt of {prompt} tokens{answer}, all kept, is above {terms.cap}"
        raise ContractError("thrift_forbidden", "thrift.kv", f"{why}: {how}")
    return {} if asked is not None else {route.limits[0]: room}


def _apart(body: dict[str, Any]) -> list[dict[str, Any]]:
    """A body for each of its prompts: each has a cache of its own."""
    prompt = body.get("prompt")
    if not isinstance(prompt, list) or not prompt or isinstance(prompt[0], int):
        return [body]
    return [{**body, "prompt": one} for one in prompt]


def _asked(body: dict[str, Any], route: Route) -> int | None:
    """The longest answer that the body allows; None where only the engine's limits hold."""
    named = [value for name in route.limits if (value := integer(body, name)) is not None]
    return max(named) if named else route.default
