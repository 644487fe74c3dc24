"""Quotas of keys and tenants: a request takes its share before anything waits or runs, and is settled when it ends.

It takes one request, and as tokens its prompt plus the completion tokens that it asks for, these up to a quarter of the
limit (they are a wish, mostly). What it did not generate comes back; what it generated beyond is owed. A principal
without limits costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thriftree.server.errors import ApiError
from thriftree.server.metrics import Metrics
from thriftree.server.quota import answers
from thriftree.server.quota.cost import Cost, bound_of, cost_of, field_of, spent
from thriftree.server.quota.limiter import Limiter, Plan, Refusal, StoreUnavailable, at_ease, plan_of
from thriftree.server.quota.prompt_tokens import PromptCounter
from thriftree.server.scope import RequestInfo, info

_FREE = ("/v1/responses/{id}/cancel",)
_NO_TOKENS = ("/v1/messages/count_tokens", "/tokenize", "/detokenize")  # they ask the tokenizer, not the engine


class TenantQuota:
    """`counter` gives the prompt counter of the engine, once there is one."""

    def __init__(
        self, app: ASGIApp, limiter: Limiter, metrics: Metrics, counter: Callable[[], PromptCounter | None]
    ) -> None:
        self.app, self.limiter, self.metrics, self.counter = app, limiter, metrics, counter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        request = info(scope)
        who = request.principal
        plan = plan_of(who.tenant, who.key_id, who.quota, who.tenant_quota)
        if plan is None or request.route in _FREE:
            return await self.app(scope, receive, send)
        cost = await self._cost(request, plan)
        try:
            grant = await self.limiter.admit(plan, cost.tokens)
        except StoreUnavailable:
            self._reject("quota_unavailable")
            why = "quotas cannot be checked at the moment; try again soon"
            raise ApiError(503, "quota_unavailable", why, headers={"retry-after": "1"}) from None
        if isinstance(grant, Refusal):
            self._reject(answers.reason(grant))
            raise answers.refused(grant, plan, who, cost.tokens)
        limits = answers.headers(plan, grant.levels)
        answer = _Answer(send, limits)
        try:
            await self.app(scope, receive, answer)
        except ApiError as error:
            answer.status = answer.status or error.status
            error.headers = {**answers.text(limits), **error.headers}
            raise
        except Exception:
            answer.status = answer.status or 500
            raise
        finally:
            # Overload and failures are the server's: such a request does not count.
            counts = answer.status != 429 and answer.status < 500
            self.limiter.finish(grant, spent(cost, request.report, answered=200 <= answer.status < 300), counts)

    async def _cost(self, request: RequestInfo, plan: Plan) -> Cost:
        """
        Raises:
            ApiError: no waiting can make the request fit.
        """
        who = request.principal
        if plan.closed is not None:
            self._reject(f"quota_{plan.closed}")
            raise answers.closed(plan.closed, who)
        limits = [bucket for bucket in plan.buckets if bucket.tokens]
        if not limits or request.route in _NO_TOKENS or request.body is None:
            return Cost()
        lowest = min(limits, key=lambda bucket: bucket.rate.per_minute)
        body, counter, limit = await request.body.parsed(), self.counter(), lowest.rate.per_minute
        bound = bound_of(request.route, body, counter, limit)
        if bound is not None and at_ease(plan, self.limiter.levels(plan), bound.tokens):
            return bound  # settled by what the engine counts; its place among others is by the body's length
        cost = await cost_of(request.route, body, counter, limit)
        request.prompt_tokens = cost.prompt
        if not lowest.rate.fits(cost.prompt):
            self._reject("quota_tokens")
            raise answers.too_large(lowest, who, cost.prompt, field_of(body))
        return cost

    def _reject(self, reason: str) -> None:
        self.metrics.bound(self.metrics.rejected, reason).inc()


class _Answer:
    """The `send` of one request: adds the headers, sees the status."""

    __slots__ = ("_headers", "_send", "status")

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._send, self._headers = send, headers
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *self._headers]}
        await self._send(message)
