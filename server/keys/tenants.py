"""A tenant: what its keys share."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from thriftree.server.principal import Quota

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@dataclass(frozen=True, slots=True)
class Tenant:
    """`weight`: its share in fair queueing against the others'; `quota`: over all of its keys."""

    weight: float = 1.0
    quota: Quota = field(default_factory=Quota)


def check_name(name: Any) -> str:
    """A name of a tenant or a key: it ends up in metrics, logs and file names. Raises ValueError."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError("a name is 1 to 64 of A-Z a-z 0-9 . _ @ -, and begins with a letter or a digit")
    return name
