"""Trees over compressed caches: the same tokens as without drafts, and what plain torch says of both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from vllm import SamplingParams

from thriftree.zoo import tiny

from ..engines import Ask, Engine, engine
from . import reference
from .replay import Recorder, asking, head_file, replay

pytestmark = pytest.mark.engine
NOISE = 1e-3
RULES: list[dict[str, Any]] = [
    {"method": "streaming_llm"},
    {"method": "snapkv"},
    {"method": "observed"},
    {"method": "keyformer", "defer": False},
    {"method": "expected_attention"},
    {"method": "razor_observed"},
    {"method": "keydiff", "per_head": True},
    {"method": "recycled_attention", "similarity": 0.3},
    {"method": "actqkv_like", "stride": 24},
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    heads = head_file(tmp_path_factory.mktemp("heads") / "tiny.heads.json")
    flags = {
        "block_size": 32,
        "max_num_batched_tokens": 160,
        "additional_config": {"thriftree": {"kv": {"heads": heads}}},
    }
    with engine(str(tiny.ensure("llama-gqa")), {"max_nodes": 16, "adaptive": False}, **flags) as here:
        yield here


def repeating(length: int, seed: int) -> list[int]:
    """A prompt in which drafters find something."""
    words = [[(seed * 37 + 11 * w + i * i) % 256 for i in range(5)] for w in range(3)]
    return [token for i in range(length // 5) for token in words[(i * i + seed) % 3]]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values())))
def test_drafts_change_nothing(running: Engine, rule: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = reference.load(str(tiny.ensure("llama-gqa")))
    # Without `defer` a choice depends on where chunks end, and so on who else is there: one request then.
    lengths = (400, 300, 210) if rule.get("defer", True) else (400,)
    texts = [repeating(length, number) for number, length in enumerate(lengths, running._serial)]
    kv = {**rule, "budget": 128}
    plain = running.run([Ask(text, asking(kv, tokens=120), arrives=3 * i) for i, text in enumerate(texts)])
    accepted = running.runner.proposer._accepted
    recorder, first = Recorder(running, monkeypatch), running._serial
    wish = {"method": "suffix", "max_nodes": 16}
    asks = [Ask(text, asking(kv, wish, tokens=120), arrives=3 * i) for i, text in enumerate(texts)]
    ours = running.run(asks)
    gained = running.runner.proposer._accepted - accepted
    assert gained > 20 or rule["method"] == "actqkv_like", "no draft was accepted: equality would mean nothing"
    assert [one.tokens for one in ours] == [one.tokens for one in plain]
    for i, (ask, answer) in enumerate(zip(asks, ours, strict=True)):
        worst, flips = replay(model, running, recorder.of(first + i), ask, answer)
        assert worst < NOISE
        assert flips <= 8


def test_beside_others(running: Engine) -> None:
    """Compressed and whole caches in one batch, with drafts and without: each as if it were alone."""
    kinds = [("off", "off"), ({"method": "snapkv", "budget": 128}, "auto"), ("off", "auto")]
    kinds += [
        ({"method": "razor_observed", "budget": 160}, "auto"),
        ({"method": "random", "keep": 0.5, "defer": True}, "off"),
    ]
    kinds += [({"method": "keydiff", "budget": 128, "per_head": True}, "off")]
    asks = [Ask(repeating(330 + 10 * i, i), asking(kv, wish)) for i, (kv, wish) in enumerate(kinds)]
    alone = [running.run([ask])[0] for ask in asks]
    running.engine.reset_prefix_cache()
    together = running.run([Ask(ask.prompt, ask.params, arrives=5 * i) for i, ask in enumerate(asks)])
    assert [one.tokens for one in together] == [one.tokens for one in alone]


def test_a_budget_that_is_not_reached_changes_nothing(running: Engine) -> None:
    text = repeating(200, 5)
    whole = running.run([Ask(text, asking("off"))])
    for budget in (270, 1000):
        assert running.run([Ask(text, asking({"method": "snapkv", "budget": budget}))]) == whole
    share = SamplingParams(temperature=0, max_tokens=70, ignore_eos=True, logprobs=5)
    share.extra_args = {"thriftree": {"kv": {"method": "snapkv", "keep": 1.0}, "speculation": "off"}}
    assert running.run([Ask(text, share)])[0].tokens[0][:32] == whole[0].tokens[0][:32]
