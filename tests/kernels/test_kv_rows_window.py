"""Column sums, logits and decode attention over cached rows, against float64; what must not be read is NaN."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from thriftree.kernels import kv_rows
from thriftree.kernels.kv_rows import cpu, cpu_sums, problem, reference

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}
# queries, rows, heads, group, dim, future
WINDOWS = [
    (1, 63, 1, 1, 64, 0),
    (32, 100, 3, 3, 80, 0),
    (100, 63, 8, 4, 64, 0),
    (9, 1000, 3, 1, 128, 500),
    (64, 65, 2, 9, 20, 70),
    (7, 64, 3, 2, 64, 121),
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def close(sums: torch.Tensor, truth: torch.Tensor) -> bool:
    """Inputs are exact in every dtype, sums float32: relative to the largest."""
    return sums.dtype == torch.float32 and bool(((sums - truth).abs() <= 2e-6 * (1 + truth.max())).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("queries", "rows", "heads", "group", "dim", "future"), WINDOWS)
def test_column_sums(
    queries: int, rows: int, heads: int, group: int, dim: int, future: int, dtype: torch.dtype
) -> None:
    p = problem.window(queries, rows, heads=heads, group=group, dim=dim, dtype=dtype, future=future)
    truth = p.truth()
    for sums in (kv_rows.column_sums(*p.step), reference.column_sums(*p.step), reference.column_sums(*p.step, most=50)):
        assert close(sums, truth)
        assert bool((sums[p.pos > p.q_pos.max()] == 0).all())
    mean = kv_rows.column_sums(*p.step, mean=True)
    assert close(mean * queries * group, truth)


@pytest.mark.parametrize("threads", [2, 3, 16])
@pytest.mark.parametrize("heads", [1, 3])
def test_column_sums_on_threads(threads: int, heads: int) -> None:
    p = problem.window(100, 300, heads=heads)
    truth = p.truth()
    torch.set_num_threads(threads)
    assert close(kv_rows.column_sums(*p.step), truth)


def test_column_sums_do_not_depend_on_timing() -> None:
    p = problem.window(300, 200, heads=1)
    torch.set_num_threads(2)
    sums = [kv_rows.column_sums(*p.step) for _ in range(30)]
    assert all(torch.equal(one, sums[0]) for one in sums)


def test_column_sums_take_any_stride_and_integer() -> None:
    p = problem.window(20, 100)
    packed = torch.full((3, 100, 2 * 64), problem.NAN)
    packed[:, :, :64] = p.k
    sums = kv_rows.column_sums(p.q, packed[:, :, :64], p.pos.int(), p.q_pos.int(), p.scale)
    assert close(sums, p.truth())
    across = p.k.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(kv_rows.column_sums(p.q, across, p.pos, p.q_pos, p.scale), sums)


def test_queries_that_see_nothing_add_nothing() -> None:
    p = problem.window(40, 20, future=10)
    seeing = int((p.q_pos >= p.pos.amin(1, keepdim=True)).sum())
    assert 0 < seeing < 3 * 40
    sums = kv_rows.column_sums(*p.step)
    assert close(sums, p.truth()) and abs(float(sums.sum()) - 3 * seeing) < 1e-3
    p.pos += 1000
    assert not kv_rows.column_sums(*p.step).any() and not reference.column_sums(*p.step).any()


def test_no_rows_and_no_queries() -> None:
    p = problem.window(4, 10)
    assert kv_rows.column_sums(p.q, p.k[:, :0], p.pos[:, :0], p.q_pos, p.scale).shape == (3, 0)
    assert not kv_rows.column_sums(p.q[:, :, :0], p.k, p.pos, p.q_pos[:0], p.scale, mean=True).any()
    for sums in (reference.column_sums(p.q, p.k[:, :0], p.pos[:, :0], p.q_pos, p.scale),):
        assert sums.shape == (3, 0)
    with pytest.raises(ValueError, match="do not fit"):
        kv_rows.column_sums(p.q, p.k, p.pos, p.q_pos[1:], p.scale)
    with pytest.raises(ValueError, match="do not fit"):
        kv_rows.column_sums(p.q, p.k.half(), p.pos, p.q_pos, p.scale)


def test_logits_in_blocks() -> None:
    p = problem.window(30, 50, future=10)
    blocks = list(kv_rows.logits(*p.step, most=4 * 450))
    assert [(part.start, part.stop) for part, _ in blocks] == [(i, min(i + 4, 30)) for i in range(0, 30, 4)]
    whole = torch.cat([block for _, block in blocks], dim=2)
    seen = (p.pos[:, None] <= p.q_pos[:, None])[:, None].expand(3, 3, 30, 50)
    keys = p.k.nan_to_num(0.0)
    expected = torch.einsum("hgwd,hmd->hgwm", p.q.double(), keys.double()) * p.scale
    assert bool((whole[~seen] == -torch.inf).all())
    assert float((whole.double() - expected)[seen].abs().max()) <= 1e-5
    assert all(block.shape[2] == 1 for _, block in kv_rows.logits(*p.step, most=1))


# layout, dtype, dim, block, KV heads of the cache
CACHES = [
    ("vec", torch.float32, 64, 16, 1),
    ("vec16", torch.bfloat16, 128, 32, 3),
    ("amx", torch.bfloat16, 64, 32, 1),
    ("rows", torch.float16, 80, 16, 8),
]
RAGGED = [[[63]], [[100, 0, 33], [1, 1000, 16]], [[0, 0, 0, 0, 0, 0, 0, 0]], [[5, 64, 17, 3, 2, 1, 40, 31]] * 2]


@pytest.mark.parametrize(("isa", "dtype", "dim", "block", "kv_heads"), CACHES)
@pytest.mark.parametrize("lens", RAGGED)
@pytest.mark.parametrize("biased", [False, True])
def test_decode_attention(
    lens: list[list[int]], biased: bool, isa: str, dtype: torch.dtype, dim: int, block: int, kv_heads: int
) -> None:
    p = problem.decode(lens, dim=dim, block=block, dtype=dtype, isa=isa, kv_heads=kv_heads, biased=biased)
    out = kv_rows.decode_attention(*p.step, bias=p.bias, isa=isa)
    assert out.dtype == dtype
    assert float((out.double() - p.truth()).abs().max()) <= TOLERANCE[dtype]
    exact = reference.decode_attention(*p.step, bias=p.bias, isa=isa, accumulate=torch.float64)
    assert float((exact.double() - p.truth()).abs().max()) <= TOLERANCE[dtype]


def test_a_row_that_counts_twice() -> None:
    """A bias of ln 2 is as good as the row twice."""
    p = problem.decode([[40]], block=16)
    bias = torch.zeros(p.rows.key_caches[0].shape[:3].numel())
    cell = int(kv_rows.cells(p.table[0], torch.tensor([[7]]), 16))
    bias[cell] = torch.tensor(2.0).log()
    twice = problem.decode([[41]], block=16)
    for caches, rows, keys in (
        (twice.rows.key_caches, p.rows.keys, True),
        (twice.rows.value_caches, p.rows.values, False),
    ):
        at = kv_rows.cells(twice.table[0], torch.arange(41)[None], 16)[0]
        problem.put(caches[0], at, torch.cat((rows[0][0], rows[0][0, 7:8])), keys, "vec")
    expected = kv_rows.decode_attention(p.q, *twice.step[1:])
    assert torch.allclose(kv_rows.decode_attention(*p.step, bias=bias), expected, atol=2e-6)


def test_widths_of_other_machines(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from thriftree.kernels import build

    monkeypatch.setenv("THRIFTREE_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", ("-O1", "-fPIC", "-std=gnu11", "-w"))
    cpu.library.cache_clear()
    try:
        assert kv_rows.backend() == "c"
        p = problem.window(32, 100, dim=80, dtype=torch.bfloat16)
        assert close(cpu_sums.column_sums(*p.step), p.truth())
        rows = problem.make((100,), isa="amx", dtype=torch.bfloat16)
        assert torch.equal(kv_rows.read(rows.key_caches[0], rows.table, 100, keys=True, isa="amx"), rows.keys[0])
    finally:
        cpu.library.cache_clear()
