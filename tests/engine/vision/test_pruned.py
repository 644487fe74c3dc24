"""Pruned requests answer what transformers answers on the same rows; unpruned ones are stock vLLM's to the last bit."""

from __future__ import annotations

import pytest

from thriftree.plugins.engine.vision.wish import WISH

from .conftest import CHUNKED, LATER, MIXED, Played, mixed
from .pruned import expected
from .scenarios import TOLERANCE, assert_bitwise, assert_equal, gap

pytestmark = pytest.mark.engine


def test_unpruned_is_stock_vllm(played: Played) -> None:
    assert_bitwise(played.stock[0], played.plain[0])


def test_a_share_of_1_is_stock_vllm_and_shares_its_blocks(played: Played) -> None:
    assert_bitwise(played.stock[1], played.plain[1])
    cached, ours = ([one.cached_tokens for one in wave if one] for wave in (played.stock[1], played.plain[1]))
    assert ours == cached and cached[0] >= 32


def test_pruned_equals_transformers_on_the_same_rows(played: Played) -> None:
    asks = mixed(played.tokenizer, played.family)
    assert_equal(played.mixed, [expected(played.reference, played.picks, one) for one in asks], CHUNKED)


def test_what_comes_later_finds_its_own(played: Played) -> None:
    """A hit behind the image; the same picture under other settings and another question never takes its rows."""
    asks = mixed(played.tokenizer, played.family, LATER)
    assert_equal(played.later, [expected(played.reference, played.picks, one) for one in asks], CHUNKED)
    hit, other, _ = played.later
    assert hit is not None and other is not None
    image = next(i for i, token in enumerate(asks[0].prompt) if token == played.reference.image_token)
    assert hit.cached_tokens >= 32 and other.cached_tokens <= image


def test_prompts_are_as_long_as_what_stays(played: Played) -> None:
    for (_, vision, _), asked, answer in zip(MIXED, mixed(played.tokenizer, played.family), played.mixed, strict=True):
        assert answer is not None
        rows = [len(played.reference.see(image).features) for image in asked.images]
        share = 1.0 if vision is None else vision.get("keep")
        kept = [vision["keep_tokens"] if share is None else max(1, int(share * n + 0.5)) for n in rows]
        assert answer.prompt_tokens == len(asked.prompt) - len(rows) + sum(kept)


def test_positions_that_nobody_corrects_are_seen(played: Played) -> None:
    if not played.reference.mrope:
        assert played.broken == []
        return
    asks = mixed(played.tokenizer, played.family)
    pruned = [i for i, one in enumerate(asks) if one.mm_kwargs and one.mm_kwargs[WISH].get("keep") != 1.0]
    gaps = [gap(played.broken[i], expected(played.reference, played.picks, asks[i])) for i in pruned]
    several = [one for i, one in zip(pruned, gaps, strict=True) if "keep_tokens" not in MIXED[i][1]]
    assert min(several) > 100 * TOLERANCE, several


def test_no_method_failed(played: Played) -> None:
    assert {type(plan.method).__name__ for plan, _, _ in played.picks.made} >= {"HiPrune", "Recoverable", "VisionZip"}
    assert played.picks.failed == []


def test_front_end_and_engine_see_one_tower(played: Played) -> None:
    seen, real = played.towers
    assert seen is not None and seen == real
