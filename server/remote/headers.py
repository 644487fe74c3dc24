"""Which headers cross the gateway. Everything that is not named here goes through as it came, both ways."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from multidict import CIMultiDict

Pairs = Iterable[tuple[bytes, bytes]]

#: Of one connection only (RFC 9110, section 7.6.1, and the old ones that it warns of).
_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade".split()
)
#: Written anew for the connection to the engine, or the client's own secrets: keys of the gateway stay here.
_NOT_FORWARDED = _HOP | frozenset((b"host", b"content-length", b"expect", b"authorization", b"x-api-key", b"api-key"))
#: The gateway's own server writes these two.
_NOT_RETURNED = _HOP | frozenset((b"date", b"server"))
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


def forwarded(headers: Pairs, key: str | None) -> CIMultiDict[str]:
    """A request's headers for the engine; `key`: the gateway's own bearer key there.

    A value that an HTTP client must not send (control characters) or that is not UTF-8 is left out.
    """
    out: CIMultiDict[str] = CIMultiDict()
    for name, value in _without(headers, _NOT_FORWARDED):
        if not _CONTROL.search(value):
            try:
                out.add(name.decode("ascii"), value.decode())
            except UnicodeDecodeError:
                continue
    if key is not None:
        out["authorization"] = f"Bearer {key}"
    return out


def returned(headers: Pairs) -> list[tuple[bytes, bytes]]:
    """An answer's headers for the client."""
    return list(_without(headers, _NOT_RETURNED))


def _without(headers: Pairs, names: frozenset[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """All but those names and those that the Connection header names; names in lower case."""
    pairs = [(name.lower(), value) for name, value in headers]
    named = {word.strip().lower() for name, value in pairs if name == b"connection" for word in value.split(b",")}
    return (pair for pair in pairs if pair[0] not in names and pair[0] not in named)
