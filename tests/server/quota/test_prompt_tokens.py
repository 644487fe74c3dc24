"""Prompts are counted as the engine will count them, and nothing a client sends can make the counting fail."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thriftree.server.quota.prompt_text import FIELDS, prompt_of, prompts_in
from thriftree.server.quota.prompt_tokens import TokenizerCounter, rough
from thriftree.zoo import tiny

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10_000}}
NAMES = st.sampled_from(["role", "type", "content", "text", "image_url", "tool_calls", "function", "arguments"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token per byte, and marks around messages."""
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def count(tokenizer: Any) -> TokenizerCounter:
    return TokenizerCounter(tokenizer)


def message(text: Any, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": text}


CHATS = [
    [message("Hello")],
    [message("Be brief.", "system"), message("Hello"), message("Hi!", "assistant"), message("Tell me more.")],
    [message("ünïcödé 🙂 " * 40)],
    [message("long " * 3000)],
    [message("")] * 300,
]


@pytest.mark.parametrize("messages", CHATS)
async def test_chats_are_exact(tokenizer: Any, count: TokenizerCounter, messages: list[dict[str, Any]]) -> None:
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert await count(CHAT, {"messages": messages}) == len(expected)
    parts = [message([{"type": "text", "text": m["content"]}], m["role"]) for m in messages]
    assert await count(CHAT, {"messages": parts}) == len(expected)


async def test_other_shapes_of_the_same_chat(tokenizer: Any, count: TokenizerCounter) -> None:
    chat = [message("Be brief.", "system"), message("Hello")]
    expected = len(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))
    assert await count(RESPONSES, {"instructions": "Be brief.", "input": "Hello"}) == expected
    assert await count("/v1/messages", {"system": "Be brief.", "messages": chat[1:]}) == expected
    last = tokenizer.apply_chat_template(chat, continue_final_message=True, return_dict=False)
    assert await count(CHAT, {"messages": chat, "continue_final_message": True}) == len(last)


@pytest.mark.parametrize(
    ("prompt", "tokens", "prompts"),
    [
        ("Hello", 5, 1),
        (["Hello", "you"], 8, 2),
        ([1, 2, 3], 3, 1),
        ([[1, 2, 3], [4]], 4, 2),
        ("x" * 10_000, 10_000, 1),
        ("", 0, 1),
    ],
)
async def test_prompts_are_exact(count: TokenizerCounter, prompt: Any, tokens: int, prompts: int) -> None:
    assert await count(TEXT, {"prompt": prompt}) == tokens
    assert await count("/v1/embeddings", {"input": prompt}) == tokens
    assert prompts_in({"prompt": prompt}) == prompts_in({"input": prompt}) == prompts


async def test_rerank_and_score(count: TokenizerCounter) -> None:
    assert await count("/v1/rerank", {"query": "ab", "documents": ["cde", "f"], "model": "not counted"}) == 6


async def test_images_are_estimated_and_their_bytes_are_not_text(count: TokenizerCounter) -> None:
    text = [message([{"type": "text", "text": "What is it?"}])]
    image = [message([{"type": "text", "text": "What is it?"}, IMAGE])]
    assert await count(CHAT, {"messages": image}) == await count(CHAT, {"messages": text}) + 256


async def test_a_template_that_refuses_leaves_an_estimate(tokenizer: Any) -> None:
    count = TokenizerCounter(tokenizer, "{{ raise_exception('no') }}")
    assert await count(CHAT, {"messages": [message("Hello"), message("you")]}) == 8 + 2 * 5


async def test_a_strangers_template_is_not_run(count: TokenizerCounter) -> None:
    body = {"messages": [message("Hello")]}
    plain = await count(CHAT, body)
    for more in ({"chat_template": "x" * 99}, {"chat_template_kwargs": {"chat_template": "x" * 99, "tokenize": True}}):
        assert await count(CHAT, {**body, **more}) == plain


async def test_large_prompts_leave_the_event_loop_free(count: TokenizerCounter) -> None:
    longest, last = 0.0, (begun := time.perf_counter())
    work = asyncio.ensure_future(count(TEXT, {"prompt": "some words " * 100_000}))
    while not work.done():
        await asyncio.sleep(0)
        longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
    assert work.result() == 1_100_000 and longest < max(0.2, (last - begun) / 2)


async def test_what_no_engine_takes_is_estimated(count: TokenizerCounter) -> None:
    assert await count(TEXT, {"prompt": "x" * 8_000_000}) == 2_000_000


@pytest.mark.parametrize("text", ["\ud800" * 9, "a\x00b", "\U0010ffff" * 9, "<|im_start|>" * 9])
async def test_odd_characters(count: TokenizerCounter, text: str) -> None:
    for route, body in ((TEXT, {"prompt": text}), (CHAT, {"messages": [message(text)]})):
        assert 1 <= await count(route, body) <= 100


async def test_many_values_are_all_counted(count: TokenizerCounter) -> None:
    body = {"input": ["ab"] * 50_000}
    assert prompt_of(body, 100).cut and not prompt_of(body).cut
    assert await count("/v1/embeddings", body) == 100_000
    assert await rough("/v1/embeddings", body) == 25_000


@settings(max_examples=400)
@given(st.dictionaries(st.sampled_from([*FIELDS, "chat_template_kwargs", "n"]), JSON, max_size=4))
async def test_nothing_fails(body: dict[str, Any]) -> None:
    count = TokenizerCounter(_shared())
    for route in (CHAT, TEXT, RESPONSES, "/v1/embeddings"):
        assert await count(route, body) >= 0 and await rough(route, body) >= 0


async def test_depth_does_not_matter(count: TokenizerCounter) -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    for route, body in ((TEXT, {"prompt": deep}), (CHAT, {"messages": deep}), (CHAT, {"messages": [message(deep)]})):
        assert await count(route, body) >= 1
    tools = json.loads('{"a":' * 800 + "1" + "}" * 800)
    assert await count(CHAT, {"messages": [message("Hello")], "tools": [tools]}) > 5


_made: list[Any] = []


def _shared() -> Any:
    if not _made:
        _made.append(tiny.tokenizer())
    return _made[0]
