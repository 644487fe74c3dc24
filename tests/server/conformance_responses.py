"""What clients ask both servers, second part: the Responses API, and Anthropic's Messages."""

from __future__ import annotations

import json
from typing import Any

from tests.server.conformance import MODEL, SAY, Asking, Lamp, case, plain

RESPONSE: dict[str, Any] = {"model": MODEL, "temperature": 0, "input": "Say ho.", "max_output_tokens": 16}


@case
def response(asking: Asking) -> Any:
    return plain(asking.openai.responses.create(**RESPONSE, instructions="Short."))


@case
def response_parse(asking: Asking) -> Any:
    answer = asking.openai.responses.parse(**{**RESPONSE, "max_output_tokens": 64}, text_format=Lamp)
    assert isinstance(answer.output_parsed, Lamp)
    return json.loads(answer.model_dump_json())


@case
def response_stream(asking: Asking) -> Any:
    """Events in their order, deltas of one kind joined."""
    events: list[dict[str, Any]] = []
    for event in map(plain, asking.openai.responses.create(**RESPONSE, stream=True)):
        event.pop("sequence_number")
        if events and "delta" in event and events[-1]["type"] == event["type"]:
            events[-1]["delta"] += event["delta"]
        else:
            events.append(event)
    return events


@case
def response_stream_helper(asking: Asking) -> Any:
    with asking.openai.responses.stream(**RESPONSE) as stream:
        for _ in stream:
            pass
        return plain(stream.get_final_response())


@case
def message(asking: Asking) -> Any:
    return plain(
        asking.anthropic.messages.create(model=MODEL, messages=SAY, max_tokens=16, extra_body={"temperature": 0})
    )  # type: ignore[arg-type]


@case
def message_stream(asking: Asking) -> Any:
    asked: dict[str, Any] = {"model": MODEL, "messages": SAY, "max_tokens": 16, "extra_body": {"temperature": 0}}
    with asking.anthropic.messages.stream(**asked) as stream:
        kinds = list(dict.fromkeys(event.type for event in stream))
        return [kinds, plain(stream.get_final_message())]


@case
def message_tokens(asking: Asking) -> Any:
    return plain(asking.anthropic.messages.count_tokens(model=MODEL, messages=SAY))  # type: ignore[arg-type]
