"""Which rows stay, and how much of a request stays cached."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from thriftree.plugins.kv_cache.select import keep_mask
from thriftree.plugins.kv_cache.window import Window

scores = st.one_of(st.sampled_from([0.0, 1.0, -1.0, math.nan, math.inf, -math.inf]), st.floats(-3, 3, width=32))


@given(st.lists(st.tuples(scores, scores), min_size=1, max_size=40), st.data())
def test_the_order_is_protection_then_score_then_age(pairs: list[tuple[float, float]], data: st.DataObject) -> None:
    count, gaps = len(pairs), data.draw(st.integers(0, 5))
    pos = torch.tensor([data.draw(st.permutations(range(gaps, gaps + count))) for _ in range(2)])
    score, length = torch.tensor(pairs).T.contiguous(), gaps + count
    sinks, recent = data.draw(st.integers(0, 12)), data.draw(st.integers(0, 12))
    keep = torch.tensor([data.draw(st.integers(0, count + 3)) for _ in range(2)])
    mask = keep_mask(score, pos, keep, length, sinks, recent)
    for head in range(2):
        order = sorted(
            range(count),
            key=lambda j, head=head: (  # type: ignore[misc]
                int(pos[head, j]) < sinks or int(pos[head, j]) >= length - recent,
                -math.inf if math.isnan(score[head, j]) else float(score[head, j]),
                int(pos[head, j]),
            ),
            reverse=True,
        )
        assert set(order[: int(keep[head])]) == set(mask[head].nonzero().flatten().tolist())
    assert keep_mask(score, pos, count // 2, length, sinks, recent).sum(dim=1).tolist() == [count // 2] * 2


def test_no_number_is_the_worst_but_protection_holds() -> None:
    score, pos = torch.tensor([[math.nan, -math.inf, 0.0, math.nan]]), torch.arange(4)[None]
    assert keep_mask(score, pos, 2, 4, 0, 0).tolist() == [[False, False, True, True]]  # a tie with -inf: the newer
    assert keep_mask(score, pos, 2, 4, 1, 0).tolist() == [[True, False, True, False]]


budgets, blocks, prompts = st.integers(1, 300), st.sampled_from([1, 16, 32, 96]), st.integers(1, 600)


@given(budgets, blocks, prompts, st.booleans(), st.integers(0, 8), st.integers(1, 9))
def test_the_window_only_moves_on_and_by_whole_blocks(
    budget: int, block: int, prompt: int, defer: bool, full: int, heads: int
) -> None:
    window = Window(budget, block, prompt, defer, min(full, heads - 1), heads)
    starts = [window.start(length) for length in range(900)]
    assert starts == sorted(starts)
    assert all(start % block == 0 for start in starts)
    assert not any(starts[: budget + 1])
    assert not (defer and any(starts[:prompt]))


@given(budgets, blocks, prompts, st.booleans(), st.integers(0, 1000))
def test_rows_that_are_kept(budget: int, block: int, prompt: int, defer: bool, length: int) -> None:
    rows = length - Window(budget, block, prompt, defer).start(length)
    if length <= budget or (defer and length < prompt):
        assert rows == length
    else:
        assert budget <= rows <= budget + block - 1


@given(budgets, blocks, prompts, st.integers(1, 8), st.integers(1, 8), st.integers(0, 1000))
def test_full_heads_leave_room_for_the_others(
    budget: int, block: int, prompt: int, full: int, others: int, more: int
) -> None:
    heads, length = full + others, prompt + more
    places = heads * (length - Window(budget, block, prompt, True, full, heads).start(length))
    rest = places - full * length  # what the full heads do not fill
    assert rest >= others * min(budget, length)
    # And not more than a block in each head beyond what the budget asks for.
    assert rest <= others * (budget + block - 1) + heads * block or length <= budget


@given(budgets, blocks, prompts, st.booleans(), st.integers(0, 8), st.integers(1, 8), st.integers(0, 700))
def test_the_next_event_is_when_the_window_next_moves(
    budget: int, block: int, prompt: int, defer: bool, full: int, heads: int, length: int
) -> None:
    window = Window(budget, block, prompt, defer, min(full, heads), heads)
    later = range(length + 1, length + 1 + prompt + budget + 2 * heads * block)
    moved = next((n for n in later if window.start(n) > window.start(length)), None)
    assert window.next_event(length) == moved


@given(budgets, blocks, prompts, st.integers(0, 4))
def test_published_blocks_have_left_the_window_before_anything_is_moved(
    budget: int, block: int, prompt: int, full: int
) -> None:
    window = Window(budget, block, prompt, True, full, 5)
    shared = window.publishable()
    assert shared % block == 0 and 0 <= shared <= prompt
    # Rows move only where the window moves, and then into blocks behind its new start.
    for before in range(prompt + 200):
        if window.start(before + 1) > window.start(before):
            assert window.start(before + 1) >= shared
    assert Window(budget, block, prompt, False, full, 5).publishable() == 0
