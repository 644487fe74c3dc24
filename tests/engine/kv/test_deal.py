"""Head blocks dealt out anew: every head has exactly the rows that stay, wherever they lie."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from thriftree.plugins.engine.kv.deal import Deal

sizes = st.integers(1, 4)


@given(sizes, sizes, st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**31))
def test_the_rows_that_stay_are_there_and_no_block_is_two_heads(
    layers: int, heads: int, most: int, block: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, most + 1, (layers, heads), generator=draw)
    nb = int(counts.max())
    owned = torch.arange(nb) < counts[..., None]
    table = torch.stack([torch.randperm(heads * nb + 3, generator=draw)[: heads * nb] for _ in range(layers)])
    table = table.view(layers, heads, nb).where(owned, -1)
    stays = owned & (torch.rand(owned.shape, generator=draw) < 0.7)
    shares = torch.stack([_shares(int(stays[i].sum()), counts[i], draw) for i in range(layers)])
    mask = torch.zeros(layers, heads, nb * block, dtype=torch.bool)
    for i in range(layers):
        for h in range(heads):
            some = torch.randperm(int(counts[i, h]) * block, generator=draw)[: int(shares[i, h]) * block]
            mask[i, h, some] = True
    names = torch.arange(mask.numel()).view(mask.shape)  # what is known of each row
    cells = torch.full((layers, (heads * nb + 3) * block), -1)  # what the cache holds
    at = (table[..., None] * block + torch.arange(block)).flatten(2)
    for i in range(layers):
        there = owned[i].repeat_interleave(block, 1)
        cells[i, at[i][there]] = names[i][there]

    deal = Deal.of(table, stays, shares, mask, block)
    for sources, targets, ends in deal.moves(table):
        for i in range(layers):
            part = slice(int(ends[i]), int(ends[i + 1]))
            assert not set(sources[part].tolist()) & set(targets[part].tolist()), "a call must not read what it writes"
            cells[i, targets[part]] = cells[i, sources[part]]
    said = deal.arranged(names)
    for i in range(layers):
        mine = [deal.dealt[i, h, : int(shares[i, h])].tolist() for h in range(heads)]
        assert sorted(block for blocks in mine for block in blocks) == sorted(table[i][stays[i]].tolist())
        for h in range(heads):
            rows = [cells[i, b * block + r].item() for b in mine[h] for r in range(block)]
            assert sorted(rows) == names[i, h][mask[i, h]].tolist()
            assert rows == said[i, h, : len(rows)].tolist()


def _shares(total: int, most: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """`total` blocks among heads that can fill `most` each."""
    shares = torch.zeros_like(most)
    for _ in range(total):
        able = (shares < most).nonzero().flatten()
        shares[able[int(torch.randint(len(able), (1,), generator=draw))]] += 1
    return shares
