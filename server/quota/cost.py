"""What a request takes from the token buckets, and what it has cost in the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from thriftree.plugins.engine.contract_var import Report
from thriftree.server.quota.prompt_text import FIELDS, prompts_in
from thriftree.server.quota.prompt_tokens import PromptCounter, TokenizerCounter, rough

_ASKS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_UNSTATED = 256  # completion tokens taken for a request that names no bound
_SHARE = 4  # a wish takes at most a quarter of the limit
_GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")


@dataclass(frozen=True, slots=True)
class Cost:
    prompt: int = 0
    completion: int = 0
    prompts: int = 1
    counted: bool = True  # else `prompt` is an upper bound of it

    @property
    def tokens(self) -> int:
        return self.prompt + self.completion


async def cost_of(route: str, body: Any, counter: PromptCounter | None, limit: int) -> Cost:
    """The tokens to take under a limit of so many a minute. A body that is no object costs nothing: vLLM refuses it."""
    if not isinstance(body, dict):
        return Cost()
    prompt = await (counter or rough)(route, body)
    return Cost(prompt, _wish(route, body, limit, prompt), prompts_in(body))


def bound_of(route: str, body: Any, counter: PromptCounter | None, limit: int) -> Cost | None:
    """What `cost_of` cannot exceed, for a fraction of its work; None: nothing is proven.

    Only for what is settled by the engine's own count of the prompt: it must not be what a request is charged.
    """
    if not isinstance(counter, TokenizerCounter) or not isinstance(body, dict) or route not in _GENERATING:
        return None
    if prompts_in(body) != 1 or (prompt := counter.bound(route, body)) is None:
        return None
    return Cost(prompt, _wish(route, body, limit, prompt), counted=False)


def _wish(route: str, body: dict[str, Any], limit: int, prompt: int) -> int:
    """Completion tokens to take."""
    asked = _asked(body) if route in _GENERATING else 0
    return min(asked, limit // _SHARE, max(0, limit - prompt))


def field_of(body: Any) -> str | None:
    """The body's field that the prompt is in."""
    return next((name for name in FIELDS if name in body), None) if isinstance(body, dict) else None


def spent(cost: Cost, report: Report, answered: bool) -> int:
    """Tokens to settle for: the engine's own counts, also of a request that was cut off.

    Where the engine counted nothing, an answer (an embedding, say) costs what was counted before it, and an error
    nothing.
    """
    if not report.prompt_tokens and not report.completion_tokens:
        return cost.prompt if answered else 0
    # The report knows the prompt of the last choice; of several prompts our own count is the better one.
    prompt = report.prompt_tokens if cost.prompts == 1 else max(cost.prompt, report.prompt_tokens)
    return prompt + report.completion_tokens


def _asked(body: dict[str, Any]) -> int:
    """Completion tokens over all choices; values that vLLM will refuse count as absent."""
    bound = _UNSTATED
    for name in _ASKS:
        if name in body and (value := _whole(body[name])) is not None:
            bound = value
            break
    return bound * (_whole(body.get("n")) or 1) * prompts_in(body)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
