"""The parts of vLLM that the prompt counter reads: where its app keeps the tokenizer, and what that can do."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest

from thriftree.server.quota.build import prompt_counter
from thriftree.zoo import tiny

pytestmark = pytest.mark.engine  # starts none, but imports vLLM


def state(tokenizer: Any) -> Any:
    return SimpleNamespace(
        online_renderer=SimpleNamespace(renderer=SimpleNamespace(tokenizer=tokenizer), chat_template=None)
    )


async def test_the_tokenizer_as_vllm_wraps_it() -> None:
    from vllm.tokenizers.hf import maybe_make_thread_pool

    tokenizer = tiny.tokenizer()
    maybe_make_thread_pool(tokenizer, 2)
    count = prompt_counter(state(tokenizer))
    assert count is not None
    messages = [{"role": "user", "content": "Hello there"}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert await count("/v1/chat/completions", {"messages": messages}) == len(expected)
    assert await count("/v1/completions", {"prompt": "Hello"}) == 5
    assert prompt_counter(state(None)) is None  # --skip-tokenizer-init


def test_where_vllms_app_keeps_it() -> None:
    from vllm.entrypoints.launchers.api_server import app_state
    from vllm.renderers.base import BaseRenderer
    from vllm.renderers.online_renderer import OnlineRenderer

    assert "state.online_renderer = OnlineRenderer(" in inspect.getsource(app_state)
    made = inspect.getsource(OnlineRenderer.__init__)
    assert "self.renderer = renderer" in made and "self.chat_template = chat_template" in made
    assert "self.tokenizer = tokenizer" in inspect.getsource(BaseRenderer.__init__)
