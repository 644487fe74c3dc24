"""What the tap makes of calls of attention modules, without an engine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from thriftree.kernels import vision_scores
from thriftree.plugins.engine.vision.tap import AttnTap, Sight, sights
from thriftree.plugins.vision.image import Tap, Tower

HEADS, DIM = 4, 8


class Attention(nn.Module):
    """Has what the tap looks at."""

    def __init__(self, kv_heads: int = HEADS) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_size, self.scale = HEADS, kv_heads, DIM, 0.5

    def forward(self, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Any = None) -> Tensor:
        return query


RECEIVED, KEYS, LATE = Tap(0, "received"), Tap(0, "keys"), Tap(1, "global", 1.1)
PIXELS = {"pixel_values": torch.zeros(3, 3, 2, 2)}


def layers(count: int = 2, kv_heads: int = HEADS) -> list[nn.Module]:
    return [Attention(kv_heads) for _ in range(count)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def encode(modules: Sequence[nn.Module], batch: int = 3, rows: int = 10) -> tuple[Tensor, Tensor]:
    """As CLIP calls them: ``[B, S, H * D]``."""
    q, k = random(batch, rows, HEADS * DIM), random(batch, rows, HEADS * DIM, seed=1)
    for module in modules:
        module(q, k, k)
    return q.unflatten(-1, (HEADS, DIM)), k.unflatten(-1, (HEADS, DIM))


def test_images_of_a_batch() -> None:
    assert sights(PIXELS) == [Sight()] * 3
    assert sights({"pixel_values": torch.zeros(2, 5, 3, 2, 2)}) == [Sight(5, tiled=True)] * 2
    assert sights({"pixel_values": [torch.zeros(n, 3, 2, 2) for n in (1, 4)]}) == [Sight(n, tiled=True) for n in (1, 4)]
    grids = torch.tensor([[1, 4, 6], [2, 2, 2]])
    assert sights({"image_grid_thw": grids}) == [Sight(1, 24, (1, 4, 6)), Sight(2, 4, (2, 2, 2))]
    assert sights({"image_embeds": torch.zeros(1, 4, 8)}) == []


def test_each_image_gets_what_was_wanted_for_it() -> None:
    modules = layers()
    tap = AttnTap(modules, Tower(2, cls=True))
    with tap.armed([[RECEIVED], [], [RECEIVED, KEYS, LATE]], PIXELS) as found:
        q, k = encode(modules)
    assert [set(one) for one in found] == [{RECEIVED}, set(), {RECEIVED, KEYS, LATE}]
    for index, one in enumerate(found):
        for reading, values in one.items():
            alone = vision_scores.read(
                reading.reading, q[index], k[index], [0, 10], 0.5, cls=True, threshold=reading.threshold
            )
            assert torch.allclose(values, alone, atol=1e-6)
            assert len(values) == 9


def test_nothing_stays_behind() -> None:
    modules = layers()
    tap = AttnTap(modules, Tower(2))
    with tap.armed([[], [], []], PIXELS) as found:
        assert not any(module._forward_pre_hooks for module in modules)
        encode(modules)
    assert found == [{}, {}, {}]
    with pytest.raises(KeyError), tap.armed([[LATE], [], []], PIXELS):
        assert modules[1]._forward_pre_hooks and not modules[0]._forward_pre_hooks
        raise KeyError("the tower fails")
    assert not any(module._forward_pre_hooks for module in modules)


def test_tiles_stay_apart_and_calls_may_be_several() -> None:
    modules = layers(1)
    inputs = {"pixel_values": [torch.zeros(n, 3, 2, 2) for n in (2, 3)]}
    with AttnTap(modules, Tower(1)).armed([[RECEIVED], [RECEIVED, KEYS]], inputs) as found:
        q, k = encode(modules, batch=4)
        modules[0](q[:1].flatten(2), k[:1].flatten(2), k[:1].flatten(2))
    assert [one[RECEIVED].shape for one in found] == [(2, 10), (3, 10)] and found[1][KEYS].shape == (3, 10, DIM)
    assert torch.allclose(found[1][RECEIVED][2], found[0][RECEIVED][0])
    assert torch.allclose(found[1][KEYS][:2], k[2:4].mean(2))


def test_patches_become_rows_and_leave_their_windows() -> None:
    modules, orders = layers(1), {6: torch.tensor([2, 0, 1]), 2: torch.tensor([1, 0])}
    tap = AttnTap(modules, Tower(1), merge=4, windows=lambda frames, height, width: orders[width])
    q, k = random(1, 20, HEADS, DIM), random(1, 20, HEADS, DIM, seed=1)
    grids = torch.tensor([[1, 2, 6], [1, 4, 2]])
    with tap.armed([[RECEIVED], [RECEIVED]], {"image_grid_thw": grids}) as found:
        modules[0](query=q, key=k, value=k, cu_seqlens=None)
    for one, start, end, order in ((found[0], 0, 12, orders[6]), (found[1], 12, 20, orders[2])):
        alone = vision_scores.read("received", q[0, start:end], k[0, start:end], [0, end - start], 0.5)
        means = alone.unflatten(0, (-1, 4)).mean(1)
        assert torch.allclose(one[RECEIVED][order], means)


def test_key_heads_that_are_shared() -> None:
    modules = layers(1, kv_heads=2)
    q, k = random(1, 6, HEADS, DIM), random(1, 6, 2, DIM, seed=1)
    with AttnTap(modules, Tower(1)).armed([[RECEIVED]], {"pixel_values": torch.zeros(1, 3, 2, 2)}) as found:
        modules[0](q, k, k)
    alone = vision_scores.read("received", q[0], k[0].repeat_interleave(2, 1), [0, 6], 0.5)
    assert torch.allclose(found[0][RECEIVED], alone)


def test_sums_go_round_the_ranks() -> None:
    modules = layers(1)
    tap = AttnTap(modules, Tower(1), ranks=2, reduce=lambda values: 2 * values)
    with tap.armed([[RECEIVED]] * 3, PIXELS) as found:
        encode(modules)
    assert float(found[0][RECEIVED].sum()) == pytest.approx(1.0)


def test_layers_that_cannot_be_read() -> None:
    for tower, layer in ((Tower(2), 2), (Tower(2), -1), (Tower(2, whole=(1,)), 0)):
        with (
            pytest.raises(ValueError, match="cannot be read"),
            AttnTap(layers(), tower).armed([[Tap(layer, "cls")]] * 3, PIXELS),
        ):
            pass
    with pytest.raises(ValueError, match="3 come"), AttnTap(layers(), Tower(2)).armed([[RECEIVED]], PIXELS):
        pass


def test_images_that_come_encoded_have_no_readings() -> None:
    with AttnTap(layers(), Tower(2)).armed([[RECEIVED]], {"image_embeds": torch.zeros(1, 4, 8)}) as found:
        pass
    assert found == [{}]
    grids = {"image_embeds": torch.zeros(6, 8), "image_grid_thw": torch.tensor([[1, 4, 6]])}
    with AttnTap(layers(), Tower(2)).armed([[RECEIVED]], grids) as found:
        pass
    assert found == [{}]


def test_what_cannot_be_read_costs_the_batch_nothing(caplog: pytest.LogCaptureFixture) -> None:
    modules = layers()
    grids = {"image_grid_thw": torch.tensor([[1, 4, 6]])}
    with caplog.at_level(logging.ERROR), AttnTap(modules, Tower(2)).armed([[RECEIVED, LATE]], grids) as found:
        out = modules[0](random(1, 23, HEADS, DIM), random(1, 23, HEADS, DIM), random(1, 23, HEADS, DIM))
        modules[1](random(1, 24, HEADS, DIM), random(1, 24, HEADS, DIM), random(1, 24, HEADS, DIM))
    assert out.shape[1] == 23 and set(found[0]) == {LATE}
    assert "could not be read" in caplog.text
