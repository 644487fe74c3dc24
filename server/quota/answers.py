"""What a limited client reads: OpenAI's rate-limit headers, and the errors of one who is over a limit."""

from __future__ import annotations

from collections.abc import Sequence

from thriftree.server.errors import ApiError
from thriftree.server.principal import Principal
from thriftree.server.quota.gcra import SECOND
from thriftree.server.quota.limiter import Bucket, Kind, Plan, Refusal, Slots

_MILLI = 1_000_000
_NAMES = tuple(
    (kind == b"tokens", tuple(b"x-ratelimit-%s-%s" % (what, kind) for what in (b"limit", b"remaining", b"reset")))
    for kind in (b"requests", b"tokens")
)


def duration(nanoseconds: int) -> str:
    """As OpenAI writes a reset: ``0s``, ``120ms``, ``1.5s``, ``6m0s``, ``1h2m3s``. Rounded up to milliseconds."""
    milliseconds = -(-max(0, nanoseconds) // _MILLI)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    whole, part = divmod(rest, 1000)
    seconds = f"{whole}.{part:03}".rstrip("0") if part else str(whole)
    lead = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{lead}{seconds}s"


def headers(plan: Plan, levels: Sequence[int]) -> list[tuple[bytes, bytes]]:
    """``x-ratelimit-*`` of the tightest bucket of each kind: of key and tenant, the one with fewer units left."""
    found: list[tuple[bytes, bytes]] = []
    for tokens, (limit, remaining, reset) in _NAMES:
        least, tightest, its_level = -1, None, 0
        for bucket, level in zip(plan.buckets, levels, strict=True):
            if bucket.tokens is tokens:
                left = bucket.rate.remaining(level)
                if tightest is None or left < least:
                    least, tightest, its_level = left, bucket, level
        if tightest is not None:
            found.append((limit, b"%d" % tightest.rate.per_minute))
            found.append((remaining, b"%d" % least))
            found.append((reset, duration(its_level).encode()))
    return found


def text(pairs: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers as `ApiError` takes them."""
    return {name.decode(): value.decode() for name, value in pairs}


def refused(refusal: Refusal, plan: Plan, principal: Principal, tokens: int) -> ApiError:
    """429 that says which limit, and when to come back."""
    over, wait = refusal.over, refusal.wait
    if isinstance(over, Slots):
        wait = wait or SECOND  # nobody knows when one of them ends
        what = f"{over.limit} requests at once: as many are running"
    else:
        what = f"{over.rate.per_minute} {over.kind} a minute{_state(over, plan, refusal, tokens)}"
    return ApiError(
        429,
        "rate_limit_exceeded",
        f"rate limit reached for {_name(over.holder, principal)}: {what}; try again in {duration(wait)}",
        headers={
            **text(headers(plan, refusal.levels)),
            "retry-after": str(-(-wait // SECOND)),
            "retry-after-ms": str(-(-wait // _MILLI)),
        },
        kind="tokens" if isinstance(over, Bucket) and over.tokens else "requests",
    )


def too_large(bucket: Bucket, principal: Principal, prompt: int, param: str | None) -> ApiError:
    """A prompt that no waiting can make fit: 400, so that no client comes back with it."""
    return ApiError(
        400,
        "prompt_exceeds_quota",
        f"the prompt of about {prompt} tokens can never fit the limit of {_name(bucket.holder, principal)}, "
        f"{bucket.rate.per_minute} tokens a minute; make it shorter",
        param,
    )


def closed(kind: Kind, principal: Principal) -> ApiError:
    """A limit of 0."""
    unit = "requests at once" if kind == "concurrent" else f"{kind} a minute"
    return ApiError(403, "quota_is_zero", f"the quota of {_name('key', principal)} or of its tenant is 0 {unit}")


def reason(refusal: Refusal) -> str:
    """The label of `thriftree_rejected_total`."""
    return "quota_concurrent" if isinstance(refusal.over, Slots) else f"quota_{refusal.over.kind}"


def _name(holder: str, principal: Principal) -> str:
    if holder == "tenant" or principal.key_id is None:
        return f"tenant {principal.tenant}"
    return f"key {principal.key_id} of tenant {principal.tenant}"


def _state(over: Bucket, plan: Plan, refusal: Refusal, tokens: int) -> str:
    left = over.rate.remaining(refusal.levels[plan.buckets.index(over)])
    return f", {left} left, {tokens} needed" if over.tokens else ""
