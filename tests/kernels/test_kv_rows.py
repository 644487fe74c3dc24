"""Reading and moving cached rows, in every layout, against the rows that were put there. The rest of a cache is NaN."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thriftree.kernels import kv_rows
from thriftree.kernels.kv_rows import cpu, grid, problem, reference

# layout, dtype, dim, block
LAYOUTS = [
    ("vec", torch.float32, 64, 16),
    ("vec", torch.float32, 80, 32),
    ("vec16", torch.bfloat16, 128, 32),
    ("vec", torch.float16, 80, 16),
    ("vec", torch.float32, 20, 24),
    ("neon", torch.float32, 64, 128),
    ("amx", torch.bfloat16, 64, 32),
    ("amx", torch.bfloat16, 128, 96),
    ("rows", torch.bfloat16, 80, 16),
    ("rows", torch.float32, 64, 32),
]
LENGTHS = [(63,), (100, 1, 33), (1000, 512, 0, 7, 64, 999, 16, 17)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_c_kernel_is_built() -> None:
    assert kv_rows.backend() == "c"


@pytest.mark.parametrize(("isa", "dtype", "dim", "block"), LAYOUTS)
@pytest.mark.parametrize("lens", LENGTHS)
@pytest.mark.parametrize("kv_heads", [1, 3])
def test_read(lens: tuple[int, ...], isa: str, dtype: torch.dtype, dim: int, block: int, kv_heads: int) -> None:
    p = problem.make(lens, dim=dim, block=block, dtype=dtype, isa=isa, kv_heads=kv_heads)
    halves = ((p.key_caches[0], p.keys[0], True), (p.value_caches[0], p.values[0], False))
    for head, count in enumerate(lens):
        for rows in {count, count // 2, min(count, 1), 0}:
            for cache, put, keys in halves:
                for read in (kv_rows.read, reference.read):
                    got = read(cache, p.table[head : head + 1], rows, keys=keys, isa=isa)
                    assert got.dtype == dtype and got.is_contiguous() and torch.equal(got[0], put[head, :rows])
    shortest = min(lens)
    for cache, put, keys in halves:
        got = kv_rows.read(cache, p.table, shortest, keys=keys, isa=isa)
        assert torch.equal(got, put[:, :shortest])


@pytest.mark.parametrize("threads", [2, 3])
def test_read_on_threads(threads: int) -> None:
    p = problem.make((1000, 1000, 1000), block=16)
    torch.set_num_threads(threads)
    assert torch.equal(kv_rows.read(p.key_caches[0], p.table, 1000, keys=True), p.keys[0])
    assert torch.equal(kv_rows.read(p.value_caches[0], p.table, 1000, keys=False), p.values[0])


def test_read_does_not_leave_the_cache() -> None:
    p = problem.make((64,), block=32)
    cache = p.key_caches[0]
    for bad in (-1, cache.shape[0]):
        with pytest.raises(ValueError, match="out of the cache"):
            kv_rows.read(cache, torch.tensor([[0, bad]]), 33, keys=True)
        assert kv_rows.read(cache, torch.tensor([[0, bad]]), 32, keys=True).shape == (1, 32, 64)
    with pytest.raises(ValueError, match="too few blocks"):
        kv_rows.read(cache, p.table[:, :1], 33, keys=True)


def moved(p: problem.Problem, sources: torch.Tensor, destinations: torch.Tensor, offsets: torch.Tensor) -> None:
    """Move by the kernel and by the reference: equal to the last bit, everywhere in the caches."""
    before = p.bits()
    reference.move(p.key_caches, p.value_caches, sources, destinations, offsets, isa=p.isa)
    expected = p.bits()
    for cache, old in zip((*p.key_caches, *p.value_caches), before, strict=True):
        cache.view(old.dtype).copy_(old)
    kv_rows.move(p.key_caches, p.value_caches, sources, destinations, offsets, p.isa)
    assert all(torch.equal(a, b) for a, b in zip(p.bits(), expected, strict=True))


@pytest.mark.parametrize(("isa", "dtype", "dim", "block"), LAYOUTS)
@pytest.mark.parametrize("kv_heads", [1, 3])
@pytest.mark.parametrize("counts", [(1,), (0, 63, 0, 100), (200, 0, 31)])
def test_move(counts: tuple[int, ...], kv_heads: int, isa: str, dtype: torch.dtype, dim: int, block: int) -> None:
    lens = (100, 163, 300)
    p = problem.make(lens, layers=len(counts), dim=dim, block=block, dtype=dtype, isa=isa, kv_heads=kv_heads)
    moved(p, *p.moves(counts, torch.Generator().manual_seed(1)))


def test_a_moved_row_is_found_where_it_went() -> None:
    p = problem.make((100, 100), layers=2, block=16)
    here, there = torch.tensor([[3, 50], [4, 51]]), torch.tensor([[90, 20], [80, 21]])
    sources, destinations = (kv_rows.cells(p.table, rows, 16).flatten() for rows in (here, there))
    kv_rows.move(p.key_caches, p.value_caches, sources, destinations, torch.tensor([0, 0, 4]))
    for layer, caches in enumerate((p.key_caches, p.value_caches)):
        rows = (p.keys, p.values)[layer]
        first, second = (kv_rows.read(cache, p.table, 100, keys=layer == 0) for cache in caches)
        expected = rows[1].clone()
        for head in range(2):
            expected[head, there[head]] = rows[1][head, here[head]]
        assert torch.equal(first, rows[0]) and torch.equal(second, expected)


@pytest.mark.parametrize("threads", [2, 3])
def test_move_on_threads(threads: int) -> None:
    p = problem.make((500, 500), layers=5, block=32, dtype=torch.bfloat16)
    torch.set_num_threads(threads)
    moved(p, *p.moves((7, 0, 400, 93, 1), torch.Generator().manual_seed(2)))


def test_nothing_to_move_and_cells_to_leave_out() -> None:
    p = problem.make((64,), layers=3)
    before = p.bits()
    mover = kv_rows.Mover(p.key_caches, p.value_caches)
    none = torch.zeros(0, dtype=torch.int64)
    mover(none, none, torch.zeros(4, dtype=torch.int64))
    mover(torch.tensor([-1, 5]), torch.tensor([5, -1]), torch.tensor([0, 1, 1, 2]))
    assert all(torch.equal(a, b) for a, b in zip(p.bits(), before, strict=True))
    sources, destinations, offsets = p.moves((20, 20, 20), torch.Generator())
    sources[::3] = -1
    moved(p, sources, destinations, offsets)


def test_a_bad_move_moves_nothing() -> None:
    p = problem.make((64,), layers=2)
    before, mover = p.bits(), kv_rows.Mover(p.key_caches, p.value_caches)
    limit = p.key_caches[0].shape[0] * 32
    with pytest.raises(ValueError, match="out of the cache"):
        mover(torch.tensor([0, 1]), torch.tensor([2, limit]), torch.tensor([0, 1, 2]))
    for offsets in ([0, 2, 1], [1, 1, 2], [0, 3, 2], [0, 1]):
        with pytest.raises(ValueError, match="offsets"):
            mover(torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor(offsets))
    with pytest.raises(ValueError, match="one destination per source"):
        mover(torch.tensor([0, 1]), torch.tensor([2]), torch.tensor([0, 1, 2]))
    assert all(torch.equal(a, b) for a, b in zip(p.bits(), before, strict=True))


def test_layers_must_be_alike() -> None:
    p, other = problem.make((64,), layers=2), problem.make((64,), block=16)
    with pytest.raises(ValueError, match="one shape"):
        kv_rows.Mover([p.key_caches[0], other.key_caches[0]], p.value_caches)
    with pytest.raises(ValueError, match="the same layers"):
        kv_rows.Mover(p.key_caches[:1], p.value_caches)


@given(st.data())
def test_any_move(data: st.DataObject) -> None:
    isa, dtype, dim, block = data.draw(st.sampled_from(LAYOUTS))
    lens = data.draw(st.lists(st.integers(1, 90), min_size=1, max_size=4))
    counts = data.draw(st.lists(st.integers(0, sum(lens) // 2), min_size=1, max_size=4))
    kv_heads = data.draw(st.integers(1, 3))
    p = problem.make(lens, layers=len(counts), dim=dim, block=block, dtype=dtype, isa=isa, kv_heads=kv_heads)
    moved(p, *p.moves(counts, torch.Generator().manual_seed(len(counts))))


def test_head_blocks_are_the_same_cells() -> None:
    cache = torch.arange(4 * 3 * 2 * 16 * 8).view(4, 3, 2 * 16, 8)
    keys, values = cache.chunk(2, dim=2)
    table = torch.tensor([[2 * 3 + 1, 0], [3 * 3 + 2, 4]])
    for half, is_keys in ((keys, True), (values, False)):
        seen = grid.head_blocks(half)
        assert seen.shape == (12, 1, 16, 8) and seen.data_ptr() == half.data_ptr()
        assert torch.equal(
            reference.read(seen, table, 20, keys=is_keys, isa="vec"),
            reference.read(half, table, 20, keys=is_keys, isa="vec"),
        )
    with pytest.raises(ValueError, match="do not follow"):
        grid.head_blocks(cache.transpose(1, 2)[:, :, :16])


def test_without_a_compiler_torch_takes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRIFTREE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    cpu.library.cache_clear()
    try:
        assert kv_rows.backend() == "torch"
        p = problem.make((63,))
        assert torch.equal(kv_rows.read(p.key_caches[0], p.table, 63, keys=True), p.keys[0])
        moved(p, *p.moves((20,), torch.Generator()))
    finally:
        cpu.library.cache_clear()
