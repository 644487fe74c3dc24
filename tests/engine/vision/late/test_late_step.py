"""A step in the late layers, laid out by hand and against a slow reading of the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thriftree.plugins.engine.contract_var import EXTRA_ARGS_KEY
from thriftree.plugins.engine.vision.late.fate import Fate, fate_of
from thriftree.plugins.engine.vision.late.layers import last_attention
from thriftree.plugins.engine.vision.late.step import Part, Waiting, plan
from thriftree.plugins.vision.late import Late

BLOCK = 4
TABLE = np.array([[7, 3, 9, 1, 12], [2, 8, 4, 6, 10], [5, 11, 13, 14, 15]], dtype=np.int32)


def drop(prompt: int, *visual: int) -> Fate:
    return Fate(Late(), prompt, np.array(visual))


def test_nobody_misses_a_row() -> None:
    assert plan([Part(None, 0, 9), Part(None, 5, 1)]) is None
    assert plan([Part(drop(9, 7, 8), 0, 4), Part(None, 3, 1)]) is None, "its rows are still to come"


def test_rows_leave_and_their_places_are_taken() -> None:
    fate = drop(10, 2, 3, 4, 5)
    found = plan([Part(None, 5, 1), Part(fate, 0, 10), Part(None, 0, 2)])
    assert found is not None
    assert found.rows.tolist() == [0, 1, 2, 7, 8, 9, 10, 11, 12]
    assert (found.requests.tolist(), found.counts.tolist(), found.lengths.tolist()) == ([0, 1, 2], [1, 6, 2], [6, 6, 2])
    assert found.slots(TABLE, BLOCK).tolist() == [3 * 4 + 1, 8, 9, 10, 11, 32, 33, 20, 21]
    later = plan([Part(fate, 10, 1)])
    assert later is not None and later.rows.tolist() == [0] and later.lengths.tolist() == [7]
    assert later.slots(TABLE, BLOCK).tolist() == [3 * 4 + 2]


def test_a_chunk_of_nothing_but_rows_that_leave() -> None:
    fate = drop(20, *range(4, 16))
    assert plan([Part(fate, 0, 4)]) is None
    beside = plan([Part(fate, 4, 6), Part(None, 3, 1)])
    assert beside is not None and beside.requests.tolist() == [1] and beside.rows.tolist() == [6]
    alone = plan([Part(fate, 4, 6)])
    assert alone is not None and alone.idle and alone.slots(TABLE, BLOCK).tolist() == [-1]
    assert alone.rows.tolist() == [0] and alone.lengths.tolist() == [5]


def test_scores_decide_in_the_step_that_has_all_rows() -> None:
    fate = Fate(Late(0.5, "attention"), 8, np.array([1, 2, 3, 4]))
    found = plan([Part(None, 0, 2), Part(fate, 0, 8)])
    assert found is not None and fate.gone is None and fate.stays == 2
    assert (found.counts.tolist(), found.lengths.tolist()) == ([2, 6], [2, 6])
    (one,) = found.waiting
    fate.choose(torch.tensor([0.1, 0.5, 0.2, 0.3]))
    found.settle(one)
    assert found.rows.tolist() == [0, 1, 2, 4, 6, 7, 8, 9]
    assert plan([Part(fate, 8, 1)]).lengths.tolist() == [7]
    again = plan([Part(fate, 0, 5)])  # it lost its blocks, and its prompt comes in pieces now
    assert again is not None and not again.waiting and again.rows.tolist() == [0, 2, 4]


def test_a_prompt_in_pieces_stays_whole() -> None:
    fate = Fate(Late(0.5, "attention"), 8, np.array([1, 2, 3, 4]))
    assert plan([Part(fate, 0, 7)]) is None and fate.stays == 4
    assert plan([Part(fate, 0, 8)]) is None, "what was decided holds"


def feature(modality: str, offset: int, length: int, embeds: list[bool] | None = None) -> Any:
    mask = None if embeds is None else torch.tensor(embeds)
    place = SimpleNamespace(offset=offset, length=length, is_embed=mask)
    return SimpleNamespace(modality=modality, mm_position=place, identifier=f"{modality}{offset}")


def params(late: Any, **more: Any) -> Any:
    extra = {EXTRA_ARGS_KEY: {"late": late}}
    return SimpleNamespace(extra_args=extra, prompt_logprobs=None, **more)


def test_rows_of_images_alone() -> None:
    features = [feature("image", 2, 4, [False, True, True, False]), feature("video", 8, 3), feature("image", 12, 2)]
    fate = fate_of(params({"keep": 0}), 20, features)
    assert fate is not None and fate.visual.tolist() == [3, 4, 12, 13] and not fate.last
    text = SimpleNamespace(extra_args={EXTRA_ARGS_KEY: '{"late": {"keep": 0}}'}, prompt_logprobs=None)
    said = fate_of(text, 20, features)
    assert said is not None and said.late == fate.late, "as a stock server's client says it"
    assert fate_of(params({"keep": 1}), 20, features) is None
    assert fate_of(params({"keep": 0}), 20, [feature("video", 8, 3)]) is None
    assert fate_of(SimpleNamespace(extra_args=None), 20, features) is None
    assert fate_of(None, 20, features) is None, "a pooling request"
    told = params({"keep": 0})
    told.prompt_logprobs = 0
    fate = fate_of(told, 20, features)
    assert fate is not None and (fate.stays, len(fate.gone or ())) == (4, 0)


@given(st.data())
def test_as_a_slow_reading_has_it(data: st.DataObject) -> None:
    parts, expected, first = [], [], 0
    for index in range(data.draw(st.integers(1, 3))):
        prompt = data.draw(st.integers(1, 12))
        visual = sorted(data.draw(st.sets(st.integers(0, prompt - 1), min_size=1)))
        fate = drop(prompt, *visual) if data.draw(st.booleans()) else None
        computed, scheduled = data.draw(st.integers(0, 8)), data.draw(st.integers(1, 12))
        parts.append(Part(fate, computed, scheduled))
        gone = set(visual) - {prompt - 1} if fate is not None else set()
        place = sum(position not in gone for position in range(computed))
        for row, position in enumerate(range(computed, computed + scheduled)):
            if position not in gone:
                expected.append((first + row, int(TABLE[index, place // BLOCK]) * BLOCK + place % BLOCK))
                place += 1
        first += scheduled
    found = plan(parts)
    if found is None:
        assert [row for row, _ in expected] == list(range(first))
    elif found.idle:
        assert not expected
    else:
        assert list(zip(found.rows.tolist(), found.slots(TABLE, BLOCK).tolist(), strict=True)) == expected


@pytest.mark.parametrize("kv", [1, 2, 4])
def test_the_last_tokens_attention(kv: int) -> None:
    torch.manual_seed(0)
    rows, heads, size, prompt, first = 20, 4, 8, 9, 5
    query, key = torch.randn(rows, heads * size), torch.randn(rows, kv * size)
    module = SimpleNamespace(num_heads=heads, num_kv_heads=kv, impl=SimpleNamespace(scale=0.3))
    fate = Fate(Late(0.5, "attention"), prompt, np.array([2, 3, 6]))
    found = last_attention(module, query, key, Waiting(fate, first, prompt + 2, slice(0, 0)))
    shares = torch.zeros(prompt)
    for head in range(heads):
        q = query[first + prompt - 1, head * size : (head + 1) * size]
        at = head // (heads // kv)
        shares += (key[first : first + prompt, at * size : (at + 1) * size] @ q * 0.3).softmax(0)
    torch.testing.assert_close(found, shares[[2, 3, 6]])
