"""LaCache: the paper's ladder by its own cursor, its geometry, and what repeated passes leave."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kv_toy import positions_only

from thriftree.plugins.kv_cache.lacache import LaCache
from thriftree.plugins.kv_cache.select import keep_mask


def kept(method: LaCache, tokens: int, keep: int, layer: int, layers: int) -> list[int]:
    pos = torch.arange(tokens)[None]
    mask = keep_mask(method.score(positions_only(pos, keep, tokens, layer, layers)), pos, keep, tokens, 0, 0)
    return pos[mask].tolist()


def ladders(period: int, stays: int, layer: int, rows: list[int], count: int) -> list[int]:
    """The paper's compaction of the first ``count * period`` rows."""
    phase = layer % (period - stays + 1)
    rungs = [rows[phase + period * j + k] for j in range(count) for k in range(stays)]
    return rungs + rows[period * count :]


@pytest.mark.parametrize(
    ("layers", "span", "overlap", "period", "stays", "layers_per_token"),
    [
        (32, 16, 0, 2, 1, [16, 16]),
        (32, 8, 4, 7, 2, [6, 12, 11, 10, 10, 10, 5]),
        (24, 9, 7, 9, 5, None),
        (30, 0, 0, 2, 1, [15, 15]),
        (2, 0, 0, 2, 1, [1, 1]),
    ],
)
def test_the_geometry(
    layers: int, span: int, overlap: int, period: int, stays: int, layers_per_token: list[int] | None
) -> None:
    method = LaCache(span=span, overlap=overlap)
    assert method.ladder(layers) == (period, stays)
    count = 12
    rows = [kept(method, count * period, count * stays, layer, layers) for layer in range(layers)]
    per_token = [sum(place in row for row in rows) for place in range(period)]
    assert min(per_token) > 0  # every token stays somewhere
    if layers_per_token is None:
        assert (per_token[0], max(per_token), per_token[-1]) == (5, 24, 4)
    else:
        assert per_token == layers_per_token
    assert Fraction(sum(per_token), layers * period) == Fraction(stays, period)  # the recall of a one-layer fact


@given(st.sampled_from([(0, 0), (8, 4), (9, 7), (3, 0)]), st.integers(0, 29), st.integers(1, 300), st.data())
def test_one_pass_is_the_papers(config: tuple[int, int], layer: int, tokens: int, data: st.DataObject) -> None:
    method = LaCache(*config)
    period, stays = method.ladder(30)
    count = data.draw(st.integers(0, tokens // period))
    keep = tokens - count * (period - stays)
    wanted = ladders(period, stays, layer, list(range(tokens)), count)
    assert kept(method, tokens, keep, layer, 30) == wanted


@given(st.integers(0, 29), st.integers(1, 40))
def test_a_second_pass_is_the_ladder_over_what_the_first_left(layer: int, quarter: int) -> None:
    first = ladders(2, 1, layer, list(range(4 * quarter)), 2 * quarter)
    for count in range(quarter + 1):
        assert kept(LaCache(), 4 * quarter, 2 * quarter - count, layer, 30) == ladders(2, 1, layer, first, count)


def stream(keep: int, prompt: int, tokens: int, layer: int) -> list[int]:
    """The paper's cursor, the prompt at once and then one token at a time, period 2, with a new pass where the cursor
    meets the newest row."""
    rows = list(range(prompt - 1))
    cursor = 0
    for token in range(prompt - 1, tokens):
        rows.append(token)
        while len(rows) > keep:
            if cursor + 2 > len(rows):
                cursor = 0
            rows = rows[:cursor] + ladders(2, 1, layer, rows[cursor:], 1)
            cursor += 1
    return rows


@pytest.mark.parametrize("keep", [64, 100])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("prompts", [0, 1.5, 2.5, 5])
def test_a_long_stream_thins_old_text_as_the_cursor_does(keep: int, layer: int, prompts: float) -> None:
    prompt = int(prompts * keep) or 1
    for tokens in (prompt + keep // 2, prompt + 2 * keep, prompt + 5 * keep + 17):
        pos = torch.arange(tokens)[None]
        rows = positions_only(pos, keep, prompt, layer=layer, layers=30)
        mine = pos[keep_mask(LaCache().score(rows), pos, keep, tokens, 0, 0)].tolist()
        wanted = stream(keep, prompt, tokens, layer)
        ages = [tokens - keep // 4, tokens - keep // 2, tokens - keep, tokens - 2 * keep, tokens - 3 * keep]
        for since in ages:
            assert sum(p >= since for p in mine) == pytest.approx(sum(p >= since for p in wanted), abs=0.06 * keep)


@pytest.mark.parametrize(
    ("span", "overlap", "layers", "name"),
    [(8, 8, 30, "overlap"), (0, 15, 30, "overlap"), (30, 0, 30, "span"), (31, 0, 30, "span"), (29, 28, 30, "span"),
     (0, 0, 1, "span")],
)  # fmt: skip
def test_what_drops_nothing_is_refused(span: int, overlap: int, layers: int, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: "):
        LaCache(span, overlap).ladder(layers)
    with pytest.raises(ValueError, match=rf"^{name}: "):
        LaCache(span, overlap).score(positions_only(torch.arange(9)[None], 4, 9, 0, layers))
