"""Each method against its formula, written as plain loops."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from kv_toy import CHANNELS, GROUP, HEADS, ROPE, Toy, positions_only
from torch import Tensor

from thriftree.plugins.kv_cache import registry
from thriftree.plugins.kv_cache.expected_attention import expected_logits, mean_rotation
from thriftree.plugins.kv_cache.rows import Rope, Rows
from thriftree.plugins.kv_cache.select import keep_mask


def grown(method: str, tokens: int, keep: int = 20, **options: Any) -> tuple[Toy, Tensor]:
    """A toy cache in shuffled order, and its scores."""
    toy = Toy(registry.configure(method, options), tokens)
    toy.grow(tokens)
    toy.shuffle(5)
    return toy, toy.method.score(toy.rows(keep))


def attention(toy: Toy, head: int, group: int, at: int, positions: list[int]) -> dict[int, float]:
    """What the query of position `at` pays to each of these positions."""
    query = toy.queries[head, group, at].tolist()
    logits = {
        p: sum(q * k for q, k in zip(query, toy.keys[head, p].tolist(), strict=True)) * CHANNELS**-0.5
        for p in positions
        if p <= at
    }
    whole = sum(math.exp(x) for x in logits.values())
    return {p: math.exp(x) / whole for p, x in logits.items()}


def check(toy: Toy, score: Tensor, expected: list[dict[int, float]]) -> None:
    """`expected` per head: position -> score."""
    for head in range(HEADS):
        wanted = torch.tensor([expected[head][p] for p in toy.pos[head].tolist()], dtype=score.dtype)
        torch.testing.assert_close(score[head], wanted, rtol=1e-4, atol=1e-5)


def test_knorm() -> None:
    toy, score = grown("knorm", 30)
    norms = [{p: -math.hypot(*toy.keys[h, p].tolist()) for p in range(30)} for h in range(HEADS)]
    for head, expected in enumerate(norms):
        for row, position in enumerate(toy.pos[head].tolist()):
            assert abs(float(score[head, row]) / expected[position] - 1) <= 2**-12


@pytest.mark.parametrize("seed", range(20))
def test_knorm_of_equal_tokens_does_not_hang_on_the_last_bits(seed: int) -> None:
    """Equal tokens have equal norms in a first layer, up to rounding, and that differs with the sizes of chunks."""
    chance = torch.Generator().manual_seed(seed)
    method, words = registry.configure("knorm"), torch.randn(9, 64, generator=chance)
    said = torch.randint(9, (HEADS, 300), generator=chance)
    pos = torch.arange(300).expand(HEADS, 300)
    kept = []
    for _ in range(8):
        noise = 1 + 3e-7 * torch.randn(HEADS, 300, 64, generator=chance)
        keys = words[said] * noise
        rows = Rows(pos=pos, length=300, prompt=300, keep=100, read_keys=lambda keys=keys: keys)
        kept.append(keep_mask(method.score(rows), pos, 100, 300, 4, 16))
    assert all(torch.equal(one, kept[0]) for one in kept)
    worst = (words[said].norm(dim=-1) * kept[0]).max(dim=1, keepdim=True).values
    tied = (words[said].norm(dim=-1) == worst) & (pos >= 4) & (pos < 284)
    for head in range(HEADS):
        stays = [bool(kept[0][head, p]) for p in range(300) if tied[head, p]]
        assert stays == sorted(stays), "of equal rows the newer ones stay"


def test_keydiff() -> None:
    toy, score = grown("keydiff", 30)
    expected = []
    for head in range(HEADS):
        keys = [[x / math.hypot(*key) for x in key] for key in toy.keys[head, :30].tolist()]
        anchor = [mean(channel) for channel in zip(*keys, strict=True)]
        dots = [sum(a * b for a, b in zip(key, anchor, strict=True)) for key in keys]
        expected.append({p: -dots[p] / math.hypot(*anchor) for p in range(30)})
    check(toy, score, expected)


@pytest.mark.parametrize("method", ["h2o", "observed", "razor_observed"])
def test_sums_and_means_of_attention(method: str) -> None:
    toy, score = grown(method, 20, keep=10)
    expected = []
    for head in range(HEADS):
        sums = dict.fromkeys(range(20), 0.0)
        for group in range(GROUP):
            for at in range(20):
                for p, x in attention(toy, head, group, at, list(range(20))).items():
                    sums[p] += x
        if method == "h2o":
            expected.append({p: math.inf if p >= 15 else x for p, x in sums.items()})
        else:
            expected.append({p: x / (20 - p) for p, x in sums.items()})
    check(toy, score, expected)


@pytest.mark.parametrize("kernel", [1, 4, 5])
@pytest.mark.parametrize("queries", [3, 32])
def test_snapkv(kernel: int, queries: int) -> None:
    tokens = 40
    toy, score = grown("snapkv", tokens, queries=queries, kernel=kernel)
    first = tokens - queries
    expected = []
    for head in range(HEADS):
        seen = dict.fromkeys(range(-kernel, tokens + kernel), 0.0)
        for group in range(GROUP):
            for at in range(first, tokens):
                for p, x in attention(toy, head, group, at, list(range(tokens))).items():
                    seen[p] += x / queries / GROUP if p < first else 0.0
        around = range(-(kernel // 2), kernel - kernel // 2)
        expected.append(
            {p: math.inf if p >= first else sum(seen[p + d] for d in around) / kernel for p in range(tokens)}
        )
    check(toy, score, expected)


def test_snapkv_smooths_over_the_rows_that_are_left() -> None:
    toy = Toy(registry.configure("snapkv", {"queries": 1, "kernel": 3}), 40)
    toy.grow(40)
    toy.pos = torch.tensor([[0, 20, 39, 7]]).expand(HEADS, -1)
    score = toy.method.score(toy.rows(3))
    for head in range(HEADS):
        seen = [attention(toy, head, g, 39, [0, 7, 20, 39]) for g in range(GROUP)]
        by = {p: mean(s[p] for s in seen) for p in (0, 7, 20)}
        wanted = [by[0] + by[7], by[7] + by[20], by[0] + by[7] + by[20]]
        torch.testing.assert_close(score[head, [0, 1, 3]], torch.tensor(wanted) / 3)


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("tokens", [19, 20, 23, 9])
def test_lagkv(tokens: int, across: bool) -> None:
    lag = 5
    toy, score = grown("lagkv", tokens, lag=lag, across=across)

    def spread(x: Tensor, start: int) -> list[float]:
        after = x[start + lag : start + 2 * lag].tolist()
        low, high = ([f(channel) for channel in zip(*after, strict=True)] for f in (min, max))
        scaled = [
            [(v - lo) / (hi - lo) for v, lo, hi in zip(row, low, high, strict=True)] for row in x[start : start + lag]
        ]
        deviations = [math.exp(stdev(map(float, row))) for row in scaled]
        return [d / sum(deviations) for d in deviations]

    expected = []
    for head in range(HEADS):
        found = dict.fromkeys(range(tokens), math.inf)
        for start in range(0, (tokens // lag - 1) * lag, lag):
            both = zip(spread(toy.keys[head], start), spread(toy.values[head], start), strict=True)
            scores = [(k + v) / 2 for k, v in both]
            for i, x in enumerate(scores):
                found[start + i] = x if across else sum(y < x for y in scores) / lag
        expected.append(found)
    check(toy, score, expected)


def test_pyramid_budgets_fall_linearly_around_the_mean() -> None:
    pyramid = registry.configure("pyramid_kv")
    for tiers in (1, 2, 3, 4, 30):
        shares = [pyramid.share(tier, tiers) for tier in range(tiers)]
        assert mean(shares) == pytest.approx(1)
        steps = [a - b for a, b in pairwise(shares)]
        assert all(step == pytest.approx(steps[0]) and step > 0 for step in steps)
        if tiers > 1:
            assert shares[-1] == pytest.approx(1 / 20)
    assert {registry.configure("pyramid_kv", {"beta": 1.0}).share(t, 4) for t in range(4)} == {1.0}
    assert {registry.configure("snapkv").share(t, 4) for t in range(4)} == {1.0}
    toy, score = grown("pyramid_kv", 40)
    assert score.equal(registry.configure("snapkv").score(toy.rows(20)))


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_mean_rotation(interleaved: bool) -> None:
    rope, x = Rope(ROPE.frequencies, interleaved), torch.randn(4, CHANNELS)
    places = torch.arange(50, 90)
    wanted = torch.stack([rope.rotate(x, p.expand(4)) for p in places]).mean(dim=0)
    torch.testing.assert_close(x @ mean_rotation(rope, places, CHANNELS), wanted, rtol=1e-4, atol=1e-5)


def test_expected_attention_is_the_mean_over_gaussian_queries() -> None:
    toy, score = grown("expected_attention", 40, eps=0.01, future=16)
    toy.queries *= 0.5  # so that a sample of this size is enough
    rows = toy.rows(20)
    made = torch.Generator().manual_seed(1)
    turn = torch.stack([ROPE.rotate(torch.eye(CHANNELS), torch.full((CHANNELS,), p)) for p in range(40, 56)]).mean(0)
    found = expected_logits(rows, 16)
    for head in range(HEADS):
        probability = torch.zeros(40)
        for group in range(GROUP):
            plain = ROPE.rotate(toy.queries[head, group, 8:40], -torch.arange(8, 40))
            centred = plain - plain.mean(dim=0)
            covariance = centred.T @ centred / 32
            law = torch.linalg.cholesky(covariance)
            drawn = plain.mean(dim=0) + torch.randn(200_000, CHANNELS, generator=made) @ law.T
            weights = (drawn @ turn @ rows.keys[head].T * CHANNELS**-0.5).exp().mean(dim=0)
            torch.testing.assert_close(found[head, group].exp(), weights, rtol=0.03, atol=0.0)
            probability += weights / weights.sum() / GROUP
        wanted = (probability + 0.01) * rows.values[head].norm(dim=-1)
        torch.testing.assert_close(toy.method.score(rows)[head], wanted, rtol=0.03, atol=0.0)
    assert not score.equal(toy.method.score(rows))  # the queries matter


def test_rows_that_hold_everything_by_age() -> None:
    pos = torch.tensor([[5, 0, 3, 9], [1, 9, 2, 4]])
    for method in ("streaming_llm", "razor_attention"):
        assert registry.configure(method).score(positions_only(pos, 2, 10)).argsort().equal(pos.argsort())
    retrieval = {name for name in registry.names() if registry.describe(name).retrieval}
    assert retrieval == {"razor_attention", "razor_keydiff", "razor_observed"}


def test_stride_is_evenly_spaced_at_every_budget() -> None:
    pos = torch.arange(1000)[None]
    for keep in (10, 77, 125, 250, 333, 500, 900):
        toy = positions_only(pos, keep, 1000)
        best = registry.configure("stride").score(toy)[0].topk(keep).indices.sort().values
        assert len(best.diff().unique()) <= 3
        longest = torch.cat((torch.tensor([-1]), best, torch.tensor([1000]))).diff().max()
        assert longest <= 3 * 1000 / keep  # nothing is left out at length, nor at the ends


def test_random_is_uniform_and_other_everywhere() -> None:
    method, pos = registry.configure("random"), torch.arange(4000).expand(2, -1)
    score = method.score(positions_only(pos, 1, 1))
    assert score.min() > 0 and score.max() < 1
    assert torch.histc(score, 10).sub(800).abs().max() < 120  # 4.5 standard deviations
    others = [positions_only(pos, 1, 1, seed=1), positions_only(pos, 1, 1, layer=1, layers=2)]
    for x, y in [(score[0], score[1]), *((score[0], method.score(rows)[0]) for rows in others)]:
        assert abs(torch.corrcoef(torch.stack((x, y)))[0, 1]) < 0.06
    alone = method.score(replace(positions_only(pos[1:], 1, 1), first_head=1))
    assert alone[0].equal(score[1])  # heads of different lengths come one by one
