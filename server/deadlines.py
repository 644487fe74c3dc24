"""When a request must be over: settings, what its client asks for, and which deadline is next. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from thriftree.server.errors import ApiError
from thriftree.server.scope import header
from thriftree.server.sections import Deadlines

HEADER = "x-thriftree-timeout"
_NAME = HEADER.encode()
_SECONDS = re.compile(rb"\d{1,9}(\.\d{1,9})?")
_WHAT = {
    "queue": "waited for the engine",
    "first_token": "gave no first token",
    "between_tokens": "gave no further token",
    "total": "was not finished",
}


def total_seconds(limits: Deadlines, headers: Iterable[tuple[bytes, bytes]]) -> float:
    """From arrival to the last byte; the client's header only shortens it. `inf`: no limit.

    Raises:
        ApiError: 400, the header holds no positive number of seconds.
    """
    total = limits.total or inf
    asked = header(headers, _NAME)
    if asked is None:
        return total
    if not _SECONDS.fullmatch(asked) or not float(asked):
        raise ApiError(400, "invalid_timeout", f"{HEADER}: must be a number of seconds above 0, like 2.5", HEADER)
    return min(total, float(asked))


def missed(deadline: str, seconds: float) -> ApiError:
    """The 408 for a deadline (``queue``, ``first_token``, ``between_tokens``, ``total``) of so many seconds."""
    why = f"the request {_WHAT[deadline]} within {seconds:g} s"
    return ApiError(408, f"deadline_{deadline}", why, kind="timeout_error")


@dataclass(slots=True)
class Course:
    """One request's deadlines. Times by one monotonic clock, durations in seconds, `inf` for none."""

    arrived: float
    total: float
    first_token: float
    between_tokens: float
    last: float | None = None  # time of the latest chunk of its stream
    whole: bool = False  # it answers in one piece: only `total` counts

    @classmethod
    def of(cls, limits: Deadlines, total: float, arrived: float) -> Course:
        return cls(arrived, total, limits.first_token or inf, limits.between_tokens or inf)

    def next(self) -> tuple[float, str]:
        """When the next deadline is, and which it is."""
        end = self.arrived + self.total
        if self.whole:
            return end, "total"
        if self.last is None:
            other, name = self.arrived + self.first_token, "first_token"
        else:
            other, name = self.last + self.between_tokens, "between_tokens"
        return (end, "total") if end <= other else (other, name)

    def missed(self, deadline: str) -> ApiError:
        """The error for one of these deadlines."""
        return missed(deadline, getattr(self, deadline))
