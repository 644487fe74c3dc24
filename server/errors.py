"""Errors as OpenAI's clients expect them: ``{"error": {"message", "type", "param", "code"}}``, in one place."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.types import Send


class ApiError(Exception):
    """An answer that is an error.

    `code` is for programs, `message` for people, `param` names the field, `kind` is OpenAI's `type`.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        kind: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers = dict(headers or {})
        self.kind = kind or ("invalid_request_error" if status < 500 else "server_error")

    def body(self) -> bytes:
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()

    def event(self) -> bytes:
        """The same as the last event of a stream that has begun."""
        return b"data: " + self.body() + b"\n\n"

    async def send(self, send: Send) -> None:
        """Answer with it (nothing must have been sent yet)."""
        body = self.body()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class ContractError(ApiError):
    """A `thrift` object that cannot be honoured."""

    def __init__(self, code: str, param: str, message: str) -> None:
        super().__init__(400, code, f"{param}: {message}", param)


class StartError(RuntimeError):
    """The server cannot start: one line that says why and what to do."""
