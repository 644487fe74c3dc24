"""Visual tokens leave at a layer, and answers are those of transformers' layers on the rows that are left."""

from __future__ import annotations

import pytest

from ..scenarios import assert_bitwise, assert_equal
from .conftest import Played, late_said

pytestmark = pytest.mark.engine


def test_nothing_asked_is_stock_vllm(late: Played) -> None:
    assert_bitwise(late.stock, late.plain)


def test_a_share_of_1_is_stock_vllm(late: Played) -> None:
    assert_bitwise(late.stock, late.whole)


def test_answers_are_those_of_the_rows_that_are_left(late: Played) -> None:
    assert_equal(late.mixed, late.expected)


def test_who_asked_is_told(late: Played) -> None:
    """Rows that entered the language model, and rows that went on."""
    assert len(late.told) == sum(1 for one in late.asks if one.images and late_said(one) is not None)
    assert all(one.stays is not None and 0 <= one.stays < len(one.visual) for one in late.told)
    dropped = [one.stays for one in late.told if one.late.method == "drop"]
    ends = late.family == "llava" or late.family.startswith("llava-")  # Qwen's prompts have a mark behind an image
    assert sorted(dropped) == [0, 0, 0, int(ends)], "a prompt that ends with an image keeps that row"


def test_nobody_is_remembered(late: Played) -> None:
    assert late.left == (0, 0)
