"""An API key: ``tt-<id>-<256 random bits, url-safe>``. Only its sha256 is ever stored."""

from __future__ import annotations

import hashlib
import re
import secrets

#: Longer ones are no keys of anybody: nothing is computed for them.
MAX_BYTES = 512
_FORM = re.compile(rb"tt-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")
_LISTED = re.compile(r"sha256:([0-9a-f]{64})")


def mint() -> tuple[str, str]:
    """A new key, and the id in it (48 bits, which is no secret)."""
    identity = secrets.token_hex(6)
    return f"tt-{identity}-{secrets.token_urlsafe(32)}", identity


def id_of(token: bytes) -> str | None:
    """The id in a key of our form; None for any other text."""
    found = _FORM.fullmatch(token)
    return found.group(1).decode() if found else None


def digest(token: bytes) -> bytes:
    """32 bytes."""
    return hashlib.sha256(token).digest()


def listed(text: str) -> bytes:
    """The digest that a line of a keys file means: ``sha256:<64 hex>``, or the key itself.

    Raises:
        ValueError: neither.
    """
    found = _LISTED.fullmatch(text)
    if found:
        return bytes.fromhex(found.group(1))
    if text.startswith("sha256:"):
        raise ValueError("sha256: must be followed by 64 lower-case hex digits")
    token = text.encode()
    if not text.isascii() or not text.isprintable() or " " in text or not 0 < len(token) <= MAX_BYTES:
        raise ValueError(f"a key is 1 to {MAX_BYTES} visible ASCII characters without spaces")
    return digest(token)
