"""The tests' own loop around an engine ends where the engine does: a broken step is a failed test and not a wait."""

from __future__ import annotations

from time import monotonic
from typing import Any, NoReturn

import pytest
from vllm import SamplingParams

from thriftree.zoo import tiny

from .engines import Ask, Stuck, engine

pytestmark = pytest.mark.engine
FLAGS: dict[str, Any] = {"block_size": 32, "max_model_len": 256, "num_gpu_blocks_override": 12}


def asks(number: int) -> list[Ask]:
    return [Ask([5, 6, 7 + i], SamplingParams(max_tokens=8, ignore_eos=True)) for i in range(number)]


def test_a_step_that_fails_fails_the_run_and_every_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine(str(tiny.ensure("llama-gqa")), **FLAGS) as here:
        assert all(here.run(asks(3)))
        stock, calls = here.scheduler.update_from_output, 0

        def fails(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            return stock(*args) if calls < 3 else broken()

        def broken() -> NoReturn:
            raise KeyError("broken on purpose")

        monkeypatch.setattr(here.scheduler, "update_from_output", fails)
        with pytest.raises(KeyError, match="broken on purpose"):
            here.run(asks(3))
        monkeypatch.setattr(here.scheduler, "update_from_output", stock)
        begun = monotonic()
        with pytest.raises(RuntimeError, match="failed in an earlier run") as told:
            here.run(asks(1))
        assert isinstance(told.value.__cause__, KeyError) and monotonic() - begun < 1


def test_leaked_blocks_end_the_run() -> None:
    with engine(str(tiny.ensure("llama-gqa")), **FLAGS) as here:
        here.patience = 1.0
        pool = here.scheduler.kv_cache_manager.block_pool
        pool.get_new_blocks(pool.get_num_free_blocks())
        with pytest.raises(Stuck, match="1 waiting, 0 free blocks"):
            here.run(asks(1))
