"""What the profiles `balanced` and `max` do to a request's cache. Filled from measured tables, never from hope."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Profile:
    """`kv`: as a request would say it, ``"off"`` or an object; `why`: what was measured, for people."""

    why: str
    kv: Any = "off"


#: The profiles that may be lossy; all others leave the cache alone.
PROFILES: dict[str, Profile] = {
    "balanced": Profile("no setting that was measured (at half of the cache and below) keeps 99 % of the full score"),
    "max": Profile("no setting that was measured (at half of the cache and below) keeps 95 % of the full score"),
}
