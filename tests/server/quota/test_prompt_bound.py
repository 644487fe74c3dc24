"""Counting is left out only where that gives nobody more: the bound holds, and what is taken by it is settled."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.server.asgi import call
from tests.server.quota.stack import CHAT, Engine, Stack
from tests.server.quota.test_prompt_tokens import JSON
from thriftree.server.principal import Quota
from thriftree.server.quota.limiter import Grant, at_ease, plan_of
from thriftree.server.quota.memory import MemoryLimiter
from thriftree.server.quota.prompt_bound import bytes_bound
from thriftree.server.quota.prompt_text import FIELDS
from thriftree.server.quota.prompt_tokens import TokenizerCounter

TEMPLATE = "{% for m in messages %}<|a|>{{ m.role }}: {{ m.content }}<|b|>{% endfor %}{{ tools }}"


def trained() -> PreTrainedTokenizerFast:
    """Byte-level BPE with merges, added tokens, and special tokens around a text."""
    made = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(" ", "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(False)])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|a|>", "<|b|>"],
        show_progress=False,
    )
    made.train_from_iterator(["some words and others, some more words and the others again ünïcödé"] * 4, trainer)
    made.post_processor = processors.TemplateProcessing("<|a|> $A <|b|>", special_tokens=[("<|a|>", 0), ("<|b|>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=TEMPLATE)


TOKENIZER = trained()
COUNTER = TokenizerCounter(TOKENIZER)
SPEC = json.loads(TOKENIZER.backend_tokenizer.to_str())
TEXTS = st.text(max_size=60) | st.text(st.sampled_from("sometherwd <|ab>0\x00é🙂\u0958"), max_size=60)
CHATS = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "tool"]), "content": TEXTS}), max_size=4)


def other(**parts: Any) -> dict[str, Any]:
    return {**copy.deepcopy(SPEC), **parts}


def test_which_tokenizers_have_one() -> None:
    assert bytes_bound(SPEC)
    plain = {"type": "ByteLevel", "add_prefix_space": False}
    assert bytes_bound(other(pre_tokenizer=plain)) and bytes_bound(other(post_processor=None))
    for parts in (
        {"normalizer": {"type": "NFC"}},  # U+0958 is three bytes before and six after
        {"normalizer": {"type": "Prepend", "prepend": "_"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": []}},
        {"pre_tokenizer": {"type": "Metaspace"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
        {"pre_tokenizer": {"type": "ByteLevel"}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [plain, plain]}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Metaspace"}, plain]}},
        {"post_processor": {"type": "OfTomorrow"}},
        {"model": {"type": "WordPiece"}},
        {"model": {"type": "Unigram"}},
        {"model": {}},
    ):
        assert not bytes_bound(other(**parts)), parts


def test_an_unknown_tokenizer_has_none() -> None:
    class Words:
        def encode(self, text: str, add_special_tokens: bool) -> list[str]:
            return text.split()

    assert TokenizerCounter(Words()).bound("/v1/completions", {"prompt": "a b"}) is None


@pytest.mark.parametrize(
    "text", ["", "a", "0123456789" * 3, "\x00" * 9, "🙂" * 9, "<|a|>" * 9, " \n" * 9, "\u0958" * 5]
)
async def test_texts(text: str) -> None:
    bound = COUNTER.bound("/v1/completions", {"prompt": text})
    assert bound == len(text.encode()) + 2
    assert bound >= await COUNTER("/v1/completions", {"prompt": text})


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), JSON | TEXTS | CHATS, max_size=4), st.booleans())
async def test_it_holds_for_any_body(body: dict[str, Any], chat: bool) -> None:
    route = CHAT if chat else "/v1/completions"
    bound = COUNTER.bound(route, body)
    assert bound is None or bound >= await COUNTER(route, body)


def test_what_is_not_proven_or_takes_long_has_none() -> None:
    image = {"type": "image_url", "image_url": {"url": "x"}}
    for content in ("\ud800", "x" * 60_000, [image]):
        assert COUNTER.bound(CHAT, {"messages": [{"role": "user", "content": content}]}) is None
    assert COUNTER.bound(CHAT, {"messages": [{"role": "user", "content": "x"}] * 2000}) is None
    assert COUNTER.bound(CHAT, {"messages": 3}) is None


class Counting(TokenizerCounter):
    """Says how often it counted."""

    times = 0

    async def __call__(self, route: str, body: dict[str, Any]) -> int:
        self.times += 1
        return await super().__call__(route, body)


async def test_far_from_the_limit_nothing_is_counted_and_the_engines_count_is_charged() -> None:
    counter = Counting(TOKENIZER)
    text = "some words and others " * 20
    stack = Stack(Engine(counted=(150, 10)), Quota(tokens_per_minute=4000), counter=counter)
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 50}
    bound = counter.bound(CHAT, body)
    assert bound is not None and 450 < bound < 500
    answer = await call(stack.app, "POST", CHAT, body)
    assert (answer.status, answer.headers["x-ratelimit-remaining-tokens"]) == (200, str(4000 - bound - 50))
    assert [await remaining(stack), counter.times] == [4000 - 160, 0]
    while counter.times == 0:
        assert (await call(stack.app, "POST", CHAT, body)).status == 200
    assert 1500 < await remaining(stack) < 2500  # half of it, where counting begins
    while (answer := await call(stack.app, "POST", CHAT, body)).status == 200:
        pass
    exact = await TokenizerCounter(TOKENIZER)(CHAT, body)
    assert await remaining(stack) < exact + 50 < bound  # it was let in as long as its own tokens fitted
    assert answer.status == 429


async def test_what_the_engine_does_not_count_is_counted() -> None:
    counter = Counting(TOKENIZER)
    stack = Stack(Engine(), Quota(tokens_per_minute=100_000), counter=counter)
    for path, body in (("/v1/embeddings", {"input": "a b"}), ("/v1/completions", {"prompt": ["a", "b"]})):
        assert (await call(stack.app, "POST", path, body)).status == 200
    assert counter.times == 2


async def remaining(stack: Stack) -> int:
    plan = plan_of("acme", "k1", stack.principal.quota, stack.principal.tenant_quota)
    assert plan is not None
    levels = levels_of(stack, plan)
    return plan.buckets[0].rate.remaining(levels[0])


def levels_of(stack: Stack, plan: Any) -> list[int]:
    levels = stack.limiter.levels(plan)
    assert levels is not None
    return levels


STEP = st.tuples(st.integers(0, 40), st.integers(1, 4), st.integers(0, 30), st.integers(0, 30), st.integers(0, 9))


@settings(max_examples=500, deadline=None)
@given(st.lists(STEP, max_size=40))
async def test_nobody_gains(steps: list[tuple[int, int, int, int, int]]) -> None:
    """Beside a store that takes exact counts: whatever is let in by a bound, that store lets in too.

    And at no moment does the bounded bucket hold more than the exact one.
    """
    plan = plan_of("acme", "k1", Quota(tokens_per_minute=100), Quota(tokens_per_minute=160))
    assert plan is not None
    now = [10**15]
    ours, exact = MemoryLimiter(lambda: now[0]), MemoryLimiter(lambda: now[0])
    running: list[tuple[Grant, Grant, int]] = []
    for prompt, factor, wish, made, seconds in steps:
        bound = prompt * factor + wish
        held = ours.levels(plan)
        tokens = bound if at_ease(plan, held, bound) else prompt + wish
        got = await ours.admit(plan, tokens)
        if isinstance(got, Grant):
            reference = await exact.admit(plan, prompt + wish)
            assert isinstance(reference, Grant)
            running.append((got, reference, prompt + min(made, wish)))
        now[0] += seconds * 10**9
        if running and made % 2:
            mine, other, spent = running.pop(made % len(running))
            ours.finish(mine, spent)
            exact.finish(other, spent)
        pairs = zip(ours.levels(plan), exact.levels(plan), strict=True)
        assert all(max(0, a) >= max(0, b) for a, b in pairs)
