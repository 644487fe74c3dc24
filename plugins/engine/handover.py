"""What cannot be written down for the engine is the client's mistake: an integer beyond 64 bit, half a surrogate pair.

vLLM would answer 500, and keep the request's state in this process for ever: its clean-up runs for requests that the
engine has.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine import EngineCoreRequest

from thriftree.plugins.engine.contract_var import CURRENT

_UNWRITABLE = (OverflowError, UnicodeError, RecursionError)

HandOver = Callable[[EngineCoreRequest], Awaitable[None]]


def careful(hand_over: HandOver, forget: Callable[[str], Awaitable[None]]) -> HandOver:
    """`hand_over` that, where a request cannot be encoded, forgets it and raises VLLMValidationError with the field.

    Where it can, nothing of what was done for it before has to be undone.
    """

    async def handed_over(request: EngineCoreRequest) -> None:
        try:
            await hand_over(request)
        except _UNWRITABLE as error:
            await forget(request.request_id)
            why = str(error) or type(error).__name__
            raise VLLMValidationError(f"a value cannot be used: {why}", parameter=_field(request)) from error
        if (contract := CURRENT.get()) is not None:
            contract.unsent.clear()

    return handed_over


def _field(request: EngineCoreRequest) -> str | None:
    """The sampling parameter that cannot be encoded."""
    params = request.sampling_params
    for name in getattr(params, "__struct_fields__", ()):
        try:
            msgspec.msgpack.encode(getattr(params, name), enc_hook=lambda value: None)
        except _UNWRITABLE:
            return str(name)
    return None
