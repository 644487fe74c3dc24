"""Memory over thousands of requests: drafters learn, clients leave, and the processes stay as large as they were."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.server.live import LiveServer, _ancestors
from thriftree.zoo import tiny

pytestmark = [pytest.mark.live, pytest.mark.slow]
WARM, MORE = 500, 2000
GROWTH_MIB = 48  # of all processes together; the drafters' own bound, 8 MiB here, included


def resident_mib(root: int) -> float:
    """Of a process and everything below it, without what they share."""
    total = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and root in (int(folder.name), *_ancestors(int(folder.name))):
            try:
                text = (folder / "smaps_rollup").read_text()
            except OSError:
                continue
            total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total / 1024


def load(url: str, count: int, seed: int) -> list[int]:
    """That many requests of random text, eight at a time; every tenth client leaves early."""

    def one(index: int) -> int:
        rng = random.Random(seed * 100_000 + index)
        words = " ".join(rng.choice("abcdefgh") * rng.randint(1, 5) for _ in range(rng.randint(4, 60)))
        body = {"prompt": words, "max_tokens": rng.randint(4, 48), "temperature": rng.choice([0, 1]), "seed": index}
        try:
            return httpx.post(f"{url}/v1/completions", json=body, timeout=0.03 if index % 10 == 0 else 60).status_code
        except httpx.TimeoutException:
            return 499

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, range(count)))


def test_flat_over_thousands_of_requests(tmp_path: Path) -> None:
    model = str(tiny.ensure("llama-gqa"))
    # Few blocks, so that all of them have been touched before it is measured.
    flags = [model, "--enforce-eager", "--max-model-len", "1024", "--num-gpu-blocks-override", "256"]
    with LiveServer(tmp_path, [*flags, "--speculation-memory-mib", "8"]) as server:
        assert set(load(server.url, WARM, 1)) <= {200, 499}
        before = resident_mib(server.pid)
        answers = load(server.url, MORE, 2)
        assert set(answers) <= {200, 499} and answers.count(200) >= 0.85 * MORE
        assert server.wait_idle()
        after = resident_mib(server.pid)
        drafters = server.metric("thriftree_drafter_state_bytes") / (1 << 20)
        print(
            f"\n{before:.0f} MiB after {WARM} requests, {after:.0f} MiB after {MORE} more, drafters {drafters:.1f} MiB"
        )
        assert after - before < GROWTH_MIB and drafters <= 8
        assert server.metric("vllm:kv_cache_usage_perc") == 0
