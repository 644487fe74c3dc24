"""Keyformer: H2O without noise; noise that repeats itself; the temperature's schedule."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_toy import HEADS, Toy, positions_only

from thriftree.plugins.kv_cache.h2o import H2O
from thriftree.plugins.kv_cache.keyformer import Keyformer

MASK = 2**32 - 1


def mixed(state: int, counter: int) -> int:
    """The hash, in integers without a sign."""
    x = (state ^ (counter * 0x9E3779B9)) & MASK
    x = ((x ^ x >> 16) * 0x7FEB352D) & MASK
    x = ((x ^ x >> 15) * 0x846CA68B) & MASK
    return x ^ x >> 16


@settings(max_examples=20)
@given(st.integers(1, 60), st.integers(1, 40), st.floats(0, 1), st.integers(0, 99))
def test_without_noise_and_at_temperature_one_it_is_h2o(chunk: int, keep: int, share: float, seed: int) -> None:
    plain = Toy(H2O(recent_share=share), 80, seed)
    other = Toy(Keyformer(recent_share=share, noise=0.0, tau_end=1.0), 80, seed)
    while plain.length < 160:
        for toy in (plain, other):
            toy.grow(min(chunk, 160 - toy.length))
            toy.compress(keep)
        assert plain.pos.equal(other.pos)
        assert plain.sums.equal(other.sums)


def test_noise_and_temperature_by_the_formula() -> None:
    method = Keyformer(noise=0.7, tau_start=1.0, tau_end=3.0, steps=4)
    pos = torch.tensor([[3, 0, 7], [8, 1, 2]])
    rows = replace(positions_only(pos, 2, prompt=6, layer=3, layers=5, seed=-11), length=10)
    at = torch.tensor([4, 5, 6, 8, 9, 10, 50])
    logits = torch.randn(2, 2, len(at), 3).masked_fill(pos[:, None, None] > at[:, None], -torch.inf)
    found = method.weigh(logits, rows, at)
    for head in range(2):
        for group in range(2):
            for row, (query, tau) in enumerate(zip(at.tolist(), [1.0, 1.0, 1.5, 2.5, 3.0, 3.0, 3.0], strict=True)):
                terms = []
                for key in range(3):
                    where = (3, 2 * head + group, query, int(pos[head, key]))
                    state = -11 & MASK
                    for counter in where:
                        state = mixed(state, counter)
                    gumbel = -math.log(-math.log(((state & 0x7FFFFF) + 0.5) / 2**23))
                    terms.append(math.exp((float(logits[head, group, row, key]) + 0.7 * gumbel) / tau))
                wanted = torch.tensor(terms) / sum(terms)
                torch.testing.assert_close(found[head, group, row], wanted, rtol=1e-4, atol=1e-6)


def test_the_noise_is_gumbel() -> None:
    rows, at = positions_only(torch.arange(500).expand(HEADS, -1), 1, 500), torch.arange(500)
    noise = Keyformer()._gumbel((HEADS, 2), rows, at)
    assert noise.isfinite().all()
    alone = Keyformer()._gumbel((1, 2), replace(rows, pos=rows.pos[1:], first_head=1), at)
    assert alone[0].equal(noise[1])  # heads of different lengths come one by one
    assert noise.mean() == pytest.approx(0.5772, abs=0.01)
    assert noise.var() == pytest.approx(math.pi**2 / 6, abs=0.02)
    for left, right in [(noise[0, 0], noise[0, 1]), (noise[0], noise[1]), (noise[:, :, 1:], noise[:, :, :-1]),
                        (noise[..., 1:], noise[..., :-1])]:  # fmt: skip
        pair = torch.stack((left.flatten(), right.flatten()))
        assert abs(torch.corrcoef(pair)[0, 1]) < 0.01


@pytest.mark.parametrize("seed", [0, 7])
def test_chunks_and_places_do_not_change_the_noise(seed: int) -> None:
    whole, parts = (Toy(Keyformer(), 60, seed) for _ in range(2))
    whole.grow(60)
    for chunk in (17, 1, 42):
        parts.grow(chunk)
        parts.shuffle(chunk)
    known = torch.empty_like(parts.sums).scatter_(1, parts.pos, parts.sums)
    torch.testing.assert_close(whole.sums, known, rtol=1e-4, atol=1e-5)
