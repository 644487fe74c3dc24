"""Everything a request can ask for beside compression: with trees and without, the same answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from vllm import SamplingParams

from thriftree.zoo import tiny

from ..engines import Ask, Engine, assert_same, engine
from ..scenarios import SCENARIOS
from .replay import prompts

pytestmark = pytest.mark.engine
#: Compressed once the prompt is complete: their answers do not depend on who else is there.
RULES: list[dict[str, Any]] = [
    {"method": "snapkv", "budget": 72},
    {"method": "keydiff", "budget": 48, "sinks": 0, "recent": 8, "per_head": True},
    {"method": "observed", "budget": 56, "recent": 16},
    {"method": "streaming_llm", "keep": 0.5, "recent": 8, "defer": True},
]
ASKED = (
    "logprobs",
    "prompt_logprobs",
    "seeded_with_logprobs",
    "greedy_and_seeded_mixed",
    "penalties",
    "bad_words",
    "min_tokens",
    "ends_of_sequence",
    "stop_strings",
    "stop_token_ids",
    "one_and_two_tokens",
    "to_the_context_limit",
    "each_its_method",
    "choices",
    "min_p_and_logit_bias",
    "json_grammar",
    "regex_grammar",
    "grammar_beside_free_text",
)


@dataclass
class Counted:
    running: Engine
    counts: list[dict[str, Any]] = field(default_factory=list)  # of outputs that carried some

    @property
    def freed(self) -> int:
        """Requests that gave up blocks, more or less."""
        return sum(count["blocks"] > 0 for count in self.counts)


@pytest.fixture(scope="module")
def counted() -> Iterator[Counted]:
    flags = {"block_size": 32, "max_num_batched_tokens": 192, "additional_config": {"thriftree": {"kv": {}}}}
    with engine(str(tiny.ensure("llama-bytes")), {"max_nodes": 12, "adaptive": False}, **flags) as here:
        made, tell = Counted(here), here.scheduler._tell

        def noting(output: Any, request: Any) -> None:
            tell(output, request)
            if output.kv_transfer_params:
                made.counts.append(output.kv_transfer_params["thriftree"])

        here.scheduler._tell = noting
        yield made


def with_kv(ask: Ask, number: int, **changes: Any) -> Ask:
    params = ask.params.clone()
    contract = dict((params.extra_args or {}).get("thriftree", {}))
    params.extra_args = {"thriftree": {**contract, "kv": RULES[number % len(RULES)], **changes}}
    filler = prompts(120, seed=number)[0] if len(ask.prompt) < 400 else []  # these prompts are for whole caches
    return Ask([*filler, *ask.prompt], params, ask.arrives)


@pytest.mark.parametrize("name", ASKED)
def test_trees_change_nothing(counted: Counted, name: str) -> None:
    running = counted.running
    asks = SCENARIOS[name](running.llm.get_tokenizer())
    counted.counts.clear()
    plain = running.run([with_kv(ask, i, speculation="off") for i, ask in enumerate(asks)])
    assert counted.freed > 0, "nothing was dropped: equality would be about whole caches"
    running.engine.reset_prefix_cache()
    ours = running.run([with_kv(ask, i) for i, ask in enumerate(asks)])
    assert_same(plain, ours)


def test_choices_are_requests_of_their_own(counted: Counted) -> None:
    """Each of n choices compresses its own cache; the prompt that they share is only read."""
    (text,) = prompts(300, seed=4)
    for number, rule in enumerate(RULES):
        shared = {"temperature": 0.9, "max_tokens": 60, "ignore_eos": True, "extra_args": {"thriftree": {"kv": rule}}}
        (together,) = counted.running.run([Ask(text, SamplingParams(n=3, seed=number, **shared))])
        alone = counted.running.run([Ask(text, SamplingParams(seed=number + i, **shared)) for i in range(3)])
        assert together is not None
        assert together.tokens == [one.tokens[0] for one in alone if one is not None]
        assert len({tuple(tokens) for tokens in together.tokens}) == 3
