"""Durations as OpenAI writes them; costs of requests."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.quota.stack import hundred
from thriftree.plugins.engine.contract_var import Report
from thriftree.server.quota.answers import duration
from thriftree.server.quota.cost import Cost, cost_of, spent
from thriftree.server.quota.gcra import SECOND

_FORM = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)|(\d+)ms")


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (-5, "0s"),
        (0, "0s"),
        (1, "1ms"),
        (120_000_000, "120ms"),
        (SECOND, "1s"),
        (1_500_000_000, "1.5s"),
        (8_640_000_000, "8.64s"),
        (360 * SECOND, "6m0s"),
        (3723 * SECOND, "1h2m3s"),
    ],
)
def test_durations(nanoseconds: int, text: str) -> None:
    assert duration(nanoseconds) == text


@given(st.integers(0, 10**15))
def test_a_duration_is_never_too_short(nanoseconds: int) -> None:
    match = _FORM.fullmatch(duration(nanoseconds))
    assert match is not None
    hours, minutes, seconds, milliseconds = match.groups()
    read = int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(seconds or 0) + int(milliseconds or 0) / 1000
    assert -1e-6 <= read - nanoseconds / 1e9 < 0.0011


@pytest.mark.parametrize(
    ("body", "completion"),
    [
        ({"max_tokens": 10}, 10),
        ({"max_tokens": 10, "n": 3}, 30),
        ({"max_completion_tokens": 20, "max_tokens": 10}, 20),
        ({"max_output_tokens": 7}, 7),
        ({"prompt": ["a", "b"], "max_tokens": 10}, 20),
        ({}, 256),
        ({"max_tokens": True}, 256),
        ({"max_tokens": -4}, 256),
        ({"max_tokens": 1e9}, 256),
        ({"max_tokens": 10**30}, 2500),
    ],
)
async def test_completion_tokens_taken(body: dict[str, Any], completion: int) -> None:
    cost = await cost_of("/v1/completions", body, hundred, 10_000)
    assert (cost.prompt, cost.completion) == (100, completion)


async def test_no_completion_where_nothing_is_generated() -> None:
    assert (await cost_of("/v1/embeddings", {"input": ["a", "b"]}, hundred, 10_000)).tokens == 100


@pytest.mark.parametrize(
    ("cost", "report", "answered", "tokens"),
    [
        (Cost(100, 50), Report(prompt_tokens=90, completion_tokens=10), True, 100),
        (Cost(100, 50), Report(prompt_tokens=90, completion_tokens=3), False, 93),  # cut off
        (Cost(100, 50), Report(), True, 100),  # nobody counted
        (Cost(100, 50), Report(), False, 0),  # it never got there
        (Cost(100, 50, prompts=2), Report(prompt_tokens=60, completion_tokens=3), True, 103),
    ],
)
def test_settlement(cost: Cost, report: Report, answered: bool, tokens: int) -> None:
    assert spent(cost, report, answered) == tokens
