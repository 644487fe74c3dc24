"""What the profiles `balanced` and `max` do to a request's images. Filled from measured tables, never from hope."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Profile:
    """`vision`: as a request would say it, ``"off"`` or an object with `keep`; `why`: what was measured, for people."""

    why: str
    vision: Any = "off"


#: The profiles that may be lossy; all others leave images alone.
PROFILES: dict[str, Profile] = {
    "balanced": Profile("not measured yet"),
    "max": Profile("not measured yet"),
}
