"""What a request may not have, with the field that says it."""

from __future__ import annotations


class Refused(ValueError):
    """``"kv.budget: why"``; `code` is the contract's: `thrift_invalid`, `thrift_unsupported` or `thrift_forbidden`."""

    def __init__(self, code: str, name: str, why: str) -> None:
        super().__init__(f"{name}: {why}")
        self.code, self.field, self.why = code, name, why
