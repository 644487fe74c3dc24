"""What clients ask both servers: one function per case, its answer as JSON. Texts of streams are joined, for how many
tokens a chunk carries is no part of the protocol."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import anthropic
import httpx
import openai
import pydantic

MODEL = "tiny"
SAY = [{"role": "user", "content": "Say ho."}]
TOOL = {
    "type": "function",
    "function": {
        "name": "light",
        "description": "Switch a light.",
        "parameters": {
            "type": "object",
            "properties": {"on": {"type": "boolean"}, "colour": {"enum": ["red", "blue"]}},
            "required": ["on", "colour"],
            "additionalProperties": False,
        },
    },
}
ASKED: dict[str, Any] = {"model": MODEL, "temperature": 0, "seed": 7}
CHAT: dict[str, Any] = {**ASKED, "messages": SAY, "max_tokens": 16}
TEXT: dict[str, Any] = {**ASKED, "prompt": "one two one two", "max_tokens": 16}
FORCED = {"type": "function", "function": {"name": "light"}}
USAGE = {"include_usage": True}


class Lamp(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    on: bool


class Asking:
    """The clients of one server."""

    def __init__(self, url: str) -> None:
        made: dict[str, Any] = {"api_key": "none", "max_retries": 0, "timeout": 60}
        self.openai = openai.OpenAI(base_url=f"{url}/v1", **made)
        self.later = lambda: openai.AsyncOpenAI(base_url=f"{url}/v1", **made)
        self.anthropic = anthropic.Anthropic(base_url=url, **made)
        self.http = httpx.Client(base_url=url, timeout=60)


CASES: dict[str, Callable[[Asking], Any]] = {}


def case(function: Callable[[Asking], Any]) -> Callable[[Asking], Any]:
    CASES[function.__name__] = function
    return function


def plain(answer: Any) -> Any:
    return answer.model_dump(mode="json", exclude_unset=True)


def joined(chunks: Any) -> dict[str, Any]:
    """A stream of chat or completion chunks: texts by choice, what else was said, and which fields there were."""
    texts: dict[int, str] = {}
    ends: dict[int, Any] = {}
    fields: set[str] = set()
    usage = None
    for chunk in map(plain, chunks):
        fields |= set(chunk)
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            fields |= {f"choice.{name}" for name in choice} | {f"delta.{name}" for name in choice.get("delta", {})}
            said = choice["delta"].get("content") if "delta" in choice else choice["text"]
            for call in choice.get("delta", {}).get("tool_calls") or ():
                said = (said or "") + (call["function"].get("name") or "") + (call["function"].get("arguments") or "")
            texts[choice["index"]] = texts.get(choice["index"], "") + (said or "")
            ends[choice["index"]] = choice["finish_reason"] or ends.get(choice["index"])
    return {"texts": texts, "ends": ends, "fields": sorted(fields), "usage": usage}


@case
def models(asking: Asking) -> Any:
    return plain(asking.openai.models.list())


@case
def one_model(asking: Asking) -> Any:
    return asking.http.get("/version").json()


@case
def chat(asking: Asking) -> Any:
    return plain(asking.openai.chat.completions.create(**CHAT))


@case
def chat_as_bytes(asking: Asking) -> Any:
    """Names in their order, and the headers that matter."""
    answer = asking.http.post("/v1/chat/completions", json=CHAT)
    return [list(answer.json()), answer.status_code, answer.headers["content-type"], answer.json()]


@case
def chat_raw_response(asking: Asking) -> Any:
    raw = asking.openai.chat.completions.with_raw_response.create(**CHAT)
    return [raw.status_code, raw.headers["content-type"], plain(raw.parse())]


@case
def chat_streaming_response(asking: Asking) -> Any:
    with asking.openai.chat.completions.with_streaming_response.create(**CHAT) as answer:
        return json.loads(answer.read())


@case
def chat_stream(asking: Asking) -> Any:
    return joined(asking.openai.chat.completions.create(**CHAT, stream=True, stream_options=USAGE))


@case
def chat_stream_without_usage(asking: Asking) -> Any:
    return joined(asking.openai.chat.completions.create(**CHAT, stream=True))


@case
def chat_stream_helper(asking: Asking) -> Any:
    more = {"structured_outputs": {"choice": ["yes", "no"]}}  # the helper wants an answer that ends by itself
    with asking.openai.chat.completions.stream(**CHAT, stream_options=USAGE, extra_body=more) as stream:
        for _ in stream:
            pass
        return plain(stream.get_final_completion())


@case
def chat_logprobs(asking: Asking) -> Any:
    return plain(asking.openai.chat.completions.create(**CHAT, logprobs=True, top_logprobs=3))


@case
def chat_several(asking: Asking) -> Any:
    return plain(asking.openai.chat.completions.create(**{**CHAT, "n": 3, "temperature": 0.9}))


@case
def chat_several_streamed(asking: Asking) -> Any:
    return joined(asking.openai.chat.completions.create(**{**CHAT, "n": 2, "temperature": 0.9}, stream=True))


@case
def chat_stops(asking: Asking) -> Any:
    return plain(asking.openai.chat.completions.create(**{**CHAT, "max_tokens": 64}, stop=["a", "e"]))


@case
def chat_parameters(asking: Asking) -> Any:
    more = {"top_k": 5, "repetition_penalty": 1.2, "min_p": 0.01, "ignore_eos": True, "return_token_ids": True}
    return plain(
        asking.openai.chat.completions.create(
            **{**CHAT, "temperature": 0.7},
            top_p=0.9,
            presence_penalty=0.5,
            frequency_penalty=0.5,
            logit_bias={"65": 5},
            user="somebody",
            extra_body=more,
        )
    )


@case
def chat_parts(asking: Asking) -> Any:
    said = [{"role": "system", "content": "Short."}, {"role": "user", "content": [{"type": "text", "text": "ho"}]}]
    return plain(asking.openai.chat.completions.create(**{**CHAT, "messages": said}))


@case
def chat_json_schema(asking: Asking) -> Any:
    shape = {"type": "json_schema", "json_schema": {"name": "lamp", "schema": TOOL["function"]["parameters"]}}  # type: ignore[index]
    return plain(asking.openai.chat.completions.create(**{**CHAT, "max_tokens": 64}, response_format=shape))


@case
def chat_parse(asking: Asking) -> Any:
    answer = asking.openai.chat.completions.parse(**{**CHAT, "max_tokens": 64}, response_format=Lamp)
    assert isinstance(answer.choices[0].message.parsed, Lamp)
    return json.loads(answer.model_dump_json())


@case
def chat_regex(asking: Asking) -> Any:
    more = {"structured_outputs": {"regex": "(yes|no), (yes|no)"}}
    return plain(asking.openai.chat.completions.create(**CHAT, extra_body=more))


@case
def chat_forced_tool(asking: Asking) -> Any:
    asked = {**CHAT, "max_tokens": 64, "tools": [TOOL], "tool_choice": FORCED}
    answer = plain(asking.openai.chat.completions.create(**asked))
    called = answer["choices"][0]["message"]["tool_calls"][0]["function"]
    assert called["name"] == "light"
    return answer


@case
def chat_required_tool(asking: Asking) -> Any:
    return plain(
        asking.openai.chat.completions.create(**{**CHAT, "max_tokens": 96, "tools": [TOOL], "tool_choice": "required"})
    )


@case
def chat_auto_tool(asking: Asking) -> Any:
    return plain(asking.openai.chat.completions.create(**CHAT, tools=[TOOL], tool_choice="auto"))


@case
def chat_forced_tool_streamed(asking: Asking) -> Any:
    asked = {**CHAT, "max_tokens": 64, "tools": [TOOL], "tool_choice": FORCED}
    return joined(asking.openai.chat.completions.create(**asked, stream=True, stream_options=USAGE))


@case
def chat_later(asking: Asking) -> Any:
    """The asynchronous client: an answer and two streams at once."""

    async def run() -> Any:
        async with asking.later() as client:
            create = client.chat.completions.create

            async def stream(words: str) -> Any:
                asked = {**CHAT, "messages": [{"role": "user", "content": words}]}
                return joined([chunk async for chunk in await create(**asked, stream=True, stream_options=USAGE)])

            one, *others = await asyncio.gather(create(**CHAT), stream("Say hi."), stream("Say hello."))
            return [plain(one), *others]

    return asyncio.run(run())


@case
def completion(asking: Asking) -> Any:
    return plain(asking.openai.completions.create(**TEXT, logprobs=2))


@case
def completion_of_many(asking: Asking) -> Any:
    return plain(asking.openai.completions.create(**{**TEXT, "prompt": ["a b a b", "c d c d"]}, echo=True))


@case
def completion_stream(asking: Asking) -> Any:
    return joined(asking.openai.completions.create(**TEXT, stream=True, stream_options=USAGE))


@case
def completion_of_zero_tokens(asking: Asking) -> Any:
    more = {"prompt_logprobs": 1, "add_special_tokens": False}
    return plain(asking.openai.completions.create(**{**TEXT, "max_tokens": 1}, extra_body=more))
