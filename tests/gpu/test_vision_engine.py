"""vLLM's engine on a CUDA GPU with pruned images: its V2 runner, its CUDA graphs, and our Triton kernels in use."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: it runs where vLLM's CUDA build is installed, on a GPU")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: it runs on a machine with a GPU"),
]

#: Of a log-probability, float32 without TF32 (on a CPU 4e-5). The smallest mistake that was tried moves one by 4e-3.
TOLERANCE = 2e-3


@pytest.fixture(scope="module", params=["llava", "qwen2.5-vl"])
def played(request: pytest.FixtureRequest) -> Any:
    from .vision_engines import play

    return play(request.param)


def test_it_is_the_v2_runner(played: Any) -> None:
    assert played.runner.startswith("vllm.v1.worker.gpu."), played.runner


def test_unpruned_is_stock_vllm(played: Any) -> None:
    for ours in played.plain:
        for number, (a, b) in enumerate(zip(played.stock, ours, strict=True)):
            assert a.tokens == b.tokens, f"request {number}"
            steps = zip(a.logprobs[0], b.logprobs[0], strict=True)
            worst = max(abs(x[token] - y[token]) for x, y in steps for token in x.keys() & y.keys())
            assert worst <= TOLERANCE, f"request {number}: {worst:.1e}"


def test_pruned_equals_transformers_on_the_same_rows(played: Any) -> None:
    """A batch of mixed settings, in chunks that cut images."""
    assert max(played.gaps(played.mixed, played.asks())) <= TOLERANCE


def test_what_comes_later_finds_its_own(played: Any) -> None:
    """A prefix hit behind the image; other settings for the same picture; another question."""
    from .vision_engines import LATER

    assert max(played.gaps(played.later, played.asks(LATER))) <= TOLERANCE
    assert played.later[0].cached_tokens >= 32


def test_positions_that_nobody_corrects_are_seen(played: Any) -> None:
    if not played.reference.mrope:
        assert played.broken == []
        return
    from tests.engine.vision.conftest import MIXED

    several = [i for i, (_, vision, _) in enumerate(MIXED) if vision and vision.get("keep", 1.0) < 1.0]
    gaps = played.gaps(played.broken, played.asks())
    assert min(gaps[i] for i in several) > 3 * TOLERANCE


def test_no_method_failed_and_our_kernels_ran(played: Any) -> None:
    assert {type(plan.method).__name__ for plan, _, _ in played.picks.made} >= {"DivPrune", "HiPrune", "VisionZip"}
    assert played.picks.failed == []
    assert played.calls["max_min"] > 0 and played.calls["column_sums"] > 0, played.calls


@pytest.mark.parametrize("family", ["llava", "qwen2.5-vl"])
def test_with_cuda_graphs(family: str) -> None:
    """Decoding steps run as full graphs, and so does a prompt's last chunk of one row of an image."""
    from .vision_engines import EXACT, GRAPHS, Played, Reference, last_row_alone, pruning, tiny_vision

    path = str(tiny_vision.ensure(family))
    played = Played(family, Reference(path))
    alone = last_row_alone(played.reference.processor.tokenizer, family)
    with pruning(path, **{**EXACT, **GRAPHS}) as (running, played.picks):
        graphs = running.runner.compilation_config.cudagraph_mode
        single = running.run([alone])
        together = running.run(played.asks())
    assert max(played.gaps(single, [alone])) <= TOLERANCE
    assert max(played.gaps(together, played.asks())) <= TOLERANCE
    assert graphs.has_full_cudagraphs()


@pytest.mark.parametrize("family", ["llava", "qwen2.5-vl"])
def test_bfloat16_as_served(family: str) -> None:
    """vLLM's own choice of attention. Its rounding hides small mistakes; counts and whole images are exact."""
    from . import vision_engines as on_gpu

    path = str(on_gpu.tiny_vision.ensure(family))
    tokenizer = on_gpu.Reference(path).processor.tokenizer
    flags = {**on_gpu.SMALL, **on_gpu.GRAPHS, "dtype": "bfloat16"}
    plain = [on_gpu.wish(tokenizer, family, scene, None) for scene in on_gpu.WHOLE]
    with on_gpu.stock_models(), on_gpu.engine(path, **on_gpu.scenarios.flags(**flags)) as running:
        stock = running.run(plain)
    with on_gpu.pruning(path, **flags) as (running, picks):
        assert [one.tokens for one in running.run(plain) if one] == [one.tokens for one in stock if one]
        answers = running.run(on_gpu.mixed(tokenizer, family))
    assert all(len(one.tokens[0]) == 8 for one in answers if one) and None not in answers
    assert picks.failed == [] and len(picks.made) >= 10
