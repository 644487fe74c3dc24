"""Requests that cannot be answered, for both servers: ``name: (method, path, body)``; bytes go as they are."""

from __future__ import annotations

from typing import Any

CHAT_PATH, TEXT_PATH = "/v1/chat/completions", "/v1/completions"
SAY = [{"role": "user", "content": "Say ho."}]


def chat(**more: Any) -> tuple[str, str, Any]:
    return "POST", CHAT_PATH, {"model": "tiny", "messages": SAY, "max_tokens": 4, **more}


def text(**more: Any) -> tuple[str, str, Any]:
    return "POST", TEXT_PATH, {"model": "tiny", "prompt": "a", "max_tokens": 4, **more}


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return b'{"model":"tiny","max_tokens":4,"prompt":"a","x":' + opening * depth + b"1" + closing * depth + b"}"


def image(url: str) -> tuple[str, str, Any]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return chat(messages=[{"role": "user", "content": [{"type": "text", "text": "what?"}, part]}])


BAD: dict[str, tuple[str, str, Any]] = {
    "no json": ("POST", CHAT_PATH, b"{no json"),
    "nothing": ("POST", CHAT_PATH, b""),
    "a number": ("POST", CHAT_PATH, b"3"),
    "a list": ("POST", CHAT_PATH, b"[]"),
    "null": ("POST", CHAT_PATH, b"null"),
    "empty object": ("POST", CHAT_PATH, {}),
    "no messages": ("POST", CHAT_PATH, {"model": "tiny"}),
    "messages of a wrong type": chat(messages=3),
    "empty messages": chat(messages=[]),
    "unknown role": chat(messages=[{"role": "nobody", "content": "x"}]),
    "content of a wrong type": chat(messages=[{"role": "user", "content": 3}]),
    "content null": chat(messages=[{"role": "user", "content": None}]),
    "unknown model": chat(model="other"),
    "model of a wrong type": chat(model=3),
    "max_tokens negative": chat(max_tokens=-1),
    "max_tokens zero": chat(max_tokens=0),
    "max_tokens text": chat(max_tokens="many"),
    "max_tokens huge": chat(max_tokens=10**30),
    "max_tokens beyond 4300 digits": (
        "POST",
        TEXT_PATH,
        b'{"model":"tiny","prompt":"a","max_tokens":' + b"9" * 5000 + b"}",
    ),
    "max_tokens beyond the model": chat(max_tokens=5000),
    "max_tokens float": chat(max_tokens=1.5),
    "min_tokens over max_tokens": chat(min_tokens=10),
    "temperature negative": chat(temperature=-1),
    "temperature huge": chat(temperature=1e308),
    "temperature nan": ("POST", TEXT_PATH, b'{"model":"tiny","prompt":"a","max_tokens":4,"temperature":NaN}'),
    "temperature infinity": ("POST", TEXT_PATH, b'{"model":"tiny","prompt":"a","max_tokens":4,"temperature":Infinity}'),
    "temperature text": chat(temperature="hot"),
    "top_p zero": chat(top_p=0),
    "top_p two": chat(top_p=2),
    "top_p nan": ("POST", TEXT_PATH, b'{"model":"tiny","prompt":"a","max_tokens":4,"top_p":NaN}'),
    "top_k huge": chat(top_k=2**70),
    "min_p nan": ("POST", TEXT_PATH, b'{"model":"tiny","prompt":"a","max_tokens":4,"min_p":NaN}'),
    "presence_penalty nan": ("POST", TEXT_PATH, b'{"model":"tiny","prompt":"a","max_tokens":4,"presence_penalty":NaN}'),
    "repetition_penalty nan": (
        "POST",
        TEXT_PATH,
        b'{"model":"tiny","prompt":"a","max_tokens":4,"repetition_penalty":NaN}',
    ),
    "repetition_penalty infinity": (
        "POST",
        TEXT_PATH,
        b'{"model":"tiny","prompt":"a","max_tokens":4,"repetition_penalty":Infinity}',
    ),
    "frequency_penalty huge": chat(frequency_penalty=1e300),
    "n zero": text(n=0),
    "n huge": text(n=10**6, temperature=1),
    "n beyond 64 bit": text(n=2**70, temperature=1),
    "logprobs huge": text(logprobs=10**9),
    "logprobs negative": text(logprobs=-5),
    "prompt_logprobs huge": text(prompt_logprobs=10**9),
    "top_logprobs huge": chat(logprobs=True, top_logprobs=10**9),
    "top_logprobs alone": chat(top_logprobs=2),
    "seed beyond 64 bit": text(seed=2**70),
    "seed negative": text(seed=-(2**63)),
    "priority huge": text(priority=2**70),
    "truncate_prompt_tokens huge": text(truncate_prompt_tokens=2**70),
    "stop of a wrong type": text(stop={"a": 1}),
    "stop empty": text(stop=[""]),
    "stop many": text(stop=["a"] * 2000),
    "stop_token_ids huge": text(stop_token_ids=[2**70]),
    "logit_bias word": chat(logit_bias={"x": 1}),
    "logit_bias beyond the vocabulary": chat(logit_bias={"99999999": 1}),
    "logit_bias huge": chat(logit_bias={str(2**70): 1}),
    "bad_words empty": text(bad_words=[""]),
    "allowed_token_ids empty": text(allowed_token_ids=[]),
    "allowed_token_ids unknown": text(allowed_token_ids=[99999999]),
    "best_of": text(best_of=3),
    "suffix": text(suffix="x"),
    "beam": text(use_beam_search=True, n=10**6),
    "prompt of a wrong type": text(prompt={"a": 1}),
    "prompt empty": text(prompt=""),
    "prompt no list": text(prompt=[]),
    "prompt too long": text(prompt="a" * 5000),
    "prompt of many tokens": text(prompt=[65] * 100_000),
    "prompt token unknown": text(prompt=[10**6]),
    "prompt token negative": text(prompt=[-1]),
    "prompt token beyond 64 bit": text(prompt=[2**70]),
    "prompt mixed": text(prompt=["a", 3]),
    "prompt_embeds": text(prompt_embeds="AAAA"),
    "echo and stream": text(echo=True, stream=True, n=0),
    "stream_options alone": chat(stream_options={"include_usage": True}),
    "stream of a wrong type": chat(stream="perhaps"),
    "unknown response_format": chat(response_format={"type": "poem"}),
    "no schema": chat(response_format={"type": "json_schema"}),
    "bad schema": chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no"}}}),
    "schema without a base": chat(
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#/nowhere"}}}
    ),
    "schema without an end": chat(
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}
    ),
    "bad regex": chat(structured_outputs={"regex": "((("}),
    "bad grammar": chat(structured_outputs={"grammar": "root ::= nowhere"}),
    "empty choice": chat(structured_outputs={"choice": []}),
    "two outputs": chat(structured_outputs={"regex": "a", "choice": ["a"]}),
    "tools of a wrong type": chat(tools=3),
    "tools empty": chat(tools=[]),
    "tool_choice without tools": chat(tool_choice="required"),
    "tool_choice unknown": chat(
        tools=[{"type": "function", "function": {"name": "a", "parameters": {}}}],
        tool_choice={"type": "function", "function": {"name": "b"}},
    ),
    "tool with a bad schema": chat(
        tools=[{"type": "function", "function": {"name": "a", "parameters": {"type": "no"}}}],
        tool_choice={"type": "function", "function": {"name": "a"}},
    ),
    "tool message alone": chat(messages=[{"role": "tool", "content": "x"}]),
    "tool calls of a wrong type": chat(messages=[{"role": "assistant", "content": "x", "tool_calls": [{"a": 1}]}]),
    "tool call arguments": chat(
        messages=[
            {
                "role": "assistant",
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "a", "arguments": "{no"}}],
            }
        ]
    ),
    "image from the net": image("http://127.0.0.1:9/cat.png"),
    "image in place": image("data:image/png;base64,AAAA"),
    "image in a file": image("file:///etc/passwd"),
    "sound": chat(
        messages=[{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}]}]
    ),
    "part of no type": chat(messages=[{"role": "user", "content": [{"text": "x"}]}]),
    "chat_template of a client": chat(chat_template="{{ 1 }}"),
    "chat_template_kwargs of a wrong type": chat(chat_template_kwargs=3),
    "mm_processor_kwargs": chat(mm_processor_kwargs={"a": 1}),
    "nested arrays": ("POST", TEXT_PATH, nested(100_000)),
    "nested objects": ("POST", TEXT_PATH, nested(100_000, b'{"a":', b"}")),
    "nested and open": ("POST", TEXT_PATH, b"[" * 100_000),
    "invalid utf-8": ("POST", TEXT_PATH, b'{"model":"tiny","prompt":"\xff\xfe","max_tokens":4}'),
    "lone surrogate": ("POST", TEXT_PATH, b'{"model":"tiny","prompt":"\\ud800","max_tokens":4}'),
    "lone surrogate in a chat": (
        "POST",
        CHAT_PATH,
        b'{"model":"tiny","messages":[{"role":"user","content":"a\\udfff"}],"max_tokens":4}',
    ),
    "lone surrogate in a model": ("POST", TEXT_PATH, b'{"model":"\\ud800","prompt":"a","max_tokens":4}'),
    "lone surrogate in a stop": ("POST", TEXT_PATH, b'{"model":"tiny","prompt":"a","max_tokens":4,"stop":["\\ud800"]}'),
    "lone surrogate in a schema": (
        "POST",
        TEXT_PATH,
        b'{"model":"tiny","prompt":"a","max_tokens":4,"structured_outputs":{"choice":["\\ud800"]}}',
    ),
    "lone surrogate in a user": ("POST", TEXT_PATH, b'{"model":"tiny","prompt":"a","max_tokens":4,"user":"\\ud800"}'),
    "nul in a prompt": ("POST", TEXT_PATH, b'{"model":"tiny","prompt":"a\\u0000b","max_tokens":4}'),
    "nul in a key": ("POST", TEXT_PATH, b'{"model":"tiny","prompt":"a","max_tokens":4,"a\\u0000b":1}'),
    "the same key twice": ("POST", TEXT_PATH, b'{"model":"other","model":"tiny","prompt":"a","max_tokens":4}'),
    "request_id of a wrong type": text(request_id=3),
    "request_id long": text(request_id="x" * 10_000),
    "cache_salt empty": text(cache_salt=""),
    "kv_transfer_params": text(kv_transfer_params={"do_remote_decode": True}),
    "vllm_xargs": text(vllm_xargs={"thriftree": "sometimes"}),
    "response of no input": ("POST", "/v1/responses", {"model": "tiny"}),
    "response of a wrong type": ("POST", "/v1/responses", {"model": "tiny", "input": 3}),
    "response after another": (
        "POST",
        "/v1/responses",
        {"model": "tiny", "input": "x", "previous_response_id": "resp_none", "max_output_tokens": 4},
    ),
    "response of many": ("POST", "/v1/responses", {"model": "tiny", "input": [{"type": "no"}] * 100}),
    "response max_output_tokens huge": (
        "POST",
        "/v1/responses",
        {"model": "tiny", "input": "x", "max_output_tokens": 2**70},
    ),
    "response temperature nan": (
        "POST",
        "/v1/responses",
        b'{"model":"tiny","input":"x","temperature":NaN,"max_output_tokens":4}',
    ),
    "response in the background": (
        "POST",
        "/v1/responses",
        {"model": "tiny", "input": "x", "background": True, "max_output_tokens": 4},
    ),
    "response unknown": ("GET", "/v1/responses/resp_none", None),
    "response of no such name": ("GET", "/v1/responses/none", None),
    "response cancel": ("POST", "/v1/responses/resp_none/cancel", None),
    "response starting_after huge": ("GET", f"/v1/responses/resp_none?starting_after={2**70}", None),
    "message of nothing": ("POST", "/v1/messages", {}),
    "message without a limit": ("POST", "/v1/messages", {"model": "tiny", "messages": SAY}),
    "message huge": ("POST", "/v1/messages", {"model": "tiny", "messages": SAY, "max_tokens": 2**70}),
    "message of another model": ("POST", "/v1/messages", {"model": "other", "messages": SAY, "max_tokens": 4}),
    "message with an image": (
        "POST",
        "/v1/messages",
        {
            "model": "tiny",
            "max_tokens": 4,
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image", "source": {"type": "url", "url": "http://127.0.0.1:9/a"}}],
                }
            ],
        },
    ),
    "count of nothing": ("POST", "/v1/messages/count_tokens", {}),
    "embeddings": ("POST", "/v1/embeddings", {"model": "tiny", "input": "x"}),
    "unknown route": ("GET", "/nope", None),
    "wrong method": ("GET", CHAT_PATH, None),
    "delete": ("DELETE", "/v1/models", None),
}
