"""How much there may be in a body, beside its bytes."""

from __future__ import annotations

import json

import pytest

from tests.server.asgi import FakeEngine, call
from tests.server.conftest import Gateway

CHAT = "/v1/chat/completions"
ANSWER = b'{"usage":{"total_tokens":17}}'


@pytest.mark.parametrize("values", [b"[]," * 3000, b'{"a":{}},' * 1000, b"1," * 3000, b'{"thrift":[' + b"0," * 3000])
async def test_too_many_values(gateway: Gateway, values: bytes) -> None:
    engine = FakeEngine([ANSWER])
    app, state = gateway(engine, limits={"max_body_values": 2048})
    refused = await call(app, "POST", CHAT, b'{"x":[' + values + b"0]}")
    assert (refused.status, refused.json["error"]["code"], engine.seen) == (413, "body_too_complex", [])
    assert 'rejected_total{reason="body_too_complex"} 1.0' in state.metrics.render().decode()


async def test_few_values_may_be_long(gateway: Gateway) -> None:
    engine = FakeEngine([ANSWER])
    app, _ = gateway(engine, limits={"max_body_values": 2048})
    body = json.dumps({"messages": [{"role": "user", "content": "a" * 100_000}], "ids": list(range(2000))}).encode()
    assert (await call(app, "POST", CHAT, body)).status == 200
    assert engine.seen == [body]
