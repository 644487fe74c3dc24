"""`thrift.vision` through the whole gateway: contract to the engine, figures to the client, counters, a key's caps."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from tests.server.asgi import Answer, FakeEngine, call
from tests.server.conftest import Gateway
from tests.server.layers import BEARER, keyring, stack
from thriftree.plugins.engine.contract_var import CURRENT
from thriftree.plugins.vision.request import Terms
from thriftree.server import methods, permits
from thriftree.server.contract import method_of
from thriftree.server.errors import ContractError
from thriftree.server.principal import Caps

CHAT = "/v1/chat/completions"
ANSWER = b'{"choices":[],"usage":{"total_tokens":17}}'
EVENT = b'data: {"choices":[],"usage":{"total_tokens":17}}\n\n'
TERMS = Terms(None, {"hiprune": "no attention"}, method="divprune")
CAN = replace(methods.capabilities(True, "auto", 16), vision=TERMS)
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}


class Seeing(FakeEngine):
    """Reports two images, as the engine client does: one pruned, one whole."""

    images: tuple[tuple[str | None, int, int], ...] = (("divprune", 576, 144), (None, 64, 64))
    late: tuple[tuple[int, str, int, int], ...] = ()  # of each choice

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        contract = CURRENT.get()
        if contract is not None:
            for image in self.images:
                contract.report.count_vision(*image)
            for choice in self.late:
                contract.report.count_late(*choice)
        await super().__call__(scope, receive, send)


async def ask(gateway: Gateway, body: Any, terms: Terms = TERMS, **more: Any) -> tuple[Answer, Any, Any]:
    engine = Seeing([more.pop("answer", ANSWER)], more.pop("kind", "application/json"))
    engine.images, engine.late = more.pop("images", Seeing.images), more.pop("late", ())
    app, state = gateway(engine)
    state.capabilities = replace(state.capabilities, vision=terms)
    return await call(app, "POST", CHAT, {"messages": [IMAGE], **body}), engine, state


async def test_request_in_usage_and_counters_out(gateway: Gateway) -> None:
    answer, engine, state = await ask(gateway, {"thrift": {"vision": {"keep": 0.25}}})
    assert answer.status == 200
    assert engine.contracts[0].thrift["vision"] == {"method": "divprune", "keep": 0.25}
    thrift = answer.json["usage"]["thrift"]
    assert thrift["vision"] == {"method": "divprune", "tokens_seen": 640, "tokens_kept": 208}
    assert thrift["exact"] is False
    assert 'thriftree_visual_tokens_dropped_total{method="divprune"} 432.0' in state.metrics.render().decode()


async def test_in_a_stream(gateway: Gateway) -> None:
    body = {"stream": True, "thrift": {"vision": {"keep_tokens": 144}}}
    answer, engine, _ = await ask(gateway, body, answer=EVENT, kind="text/event-stream")
    assert engine.contracts[0].thrift["vision"] == {"method": "divprune", "keep_tokens": 144}
    event = json.loads(answer.body.decode().split("data: ")[1])
    assert event["usage"]["thrift"]["vision"]["tokens_kept"] == 208


async def test_nothing_dropped_is_exact_and_not_counted(gateway: Gateway) -> None:
    answer, engine, state = await ask(gateway, {}, images=((None, 576, 576),))
    assert engine.contracts[0].thrift["vision"] == "off"
    thrift = answer.json["usage"]["thrift"]
    assert thrift["exact"] is True
    assert thrift["vision"] == {"method": None, "tokens_seen": 576, "tokens_kept": 576}
    assert "thriftree_visual_tokens_dropped_total{" not in state.metrics.render().decode()


LATE = replace(TERMS, late_layer=8, step_tokens=2048)


async def test_late_layers(gateway: Gateway) -> None:
    """A request that asks for these alone keeps its images whole before them; two choices are counted as two."""
    more: Any = {"images": ((None, 576, 576),), "late": ((8, "drop", 576, 0),) * 2}
    answer, engine, state = await ask(gateway, {"thrift": {"vision": {"late": {}}}}, LATE, **more)
    late = {"keep": 0.0, "method": "drop"}
    assert engine.contracts[0].thrift["vision"] == {"method": "divprune", "keep": 1.0, "late": late}
    thrift = answer.json["usage"]["thrift"]
    assert thrift["vision"]["late"] == {"layer": 8, "method": "drop", "tokens_seen": 1152, "tokens_kept": 0}
    assert thrift["vision"]["method"] is None and thrift["exact"] is False
    metrics = state.metrics.render().decode()
    assert 'thriftree_late_visual_tokens_dropped_total{method="drop"} 1152.0' in metrics
    assert "thriftree_visual_tokens_dropped_total{" not in metrics


async def test_late_layers_that_nothing_left_at(gateway: Gateway) -> None:
    more: Any = {"images": ((None, 576, 576),), "late": ((8, "attention", 576, 576),)}
    answer, *_ = await ask(gateway, {"thrift": {"vision": {"late": {"keep": 0.2}}}}, LATE, **more)
    assert answer.json["usage"]["thrift"]["exact"] is True


@pytest.mark.parametrize(
    ("vision", "terms", "param", "code"),
    [
        ({"keep": 2}, TERMS, "thrift.vision.keep", "thrift_invalid"),
        ({"method": "hiprune"}, TERMS, "thrift.vision.method", "thrift_unsupported"),
        ({"keep": 0.5}, replace(TERMS, max_keep=0.25), "thrift.vision.keep", "thrift_forbidden"),
        ({"keep": 0.5}, Terms(reason="this model sees no images"), "thrift.vision", "thrift_unsupported"),
        ({"late": {}}, TERMS, "thrift.vision.late", "thrift_unsupported"),
        ({"late": {"keep": 2}}, LATE, "thrift.vision.late.keep", "thrift_invalid"),
        ({"late": 0.5}, LATE, "thrift.vision.late", "thrift_invalid"),
    ],
)
async def test_refused(gateway: Gateway, vision: Any, terms: Terms, param: str, code: str) -> None:
    answer, engine, _ = await ask(gateway, {"thrift": {"vision": vision}}, terms=terms)
    assert answer.status == 400 and not engine.contracts
    assert (answer.json["error"]["param"], answer.json["error"]["code"]) == (param, code)


async def test_a_key_that_may_not(gateway: Gateway) -> None:
    app = stack(Seeing([ANSWER], "application/json"), keyring(Caps(methods=("auto", "stride"))))
    body = {"messages": [IMAGE], "thrift": {"vision": {"method": "divprune"}}}
    answer = await call(app, "POST", CHAT, body, headers=BEARER)
    assert (answer.status, answer.json["error"]["code"]) == (400, "thrift_forbidden")
    assert answer.json["error"]["param"] == "thrift.vision.method"


@pytest.mark.parametrize(
    ("caps", "vision", "method"),
    [
        (Caps(), {}, "divprune"),
        (Caps(methods=("auto", "stride")), {}, "stride"),  # the first that the key may use
        (Caps(methods=("auto", "stride")), "off", None),
        (Caps(profiles=("exact", "max")), {"method": "tome"}, "tome"),
    ],
)
def test_within_the_caps(caps: Caps, vision: Any, method: str | None) -> None:
    assert method_of(permits.resolve_for({"vision": vision}, CAN, caps), "vision") == method


@pytest.mark.parametrize(
    ("caps", "param"),
    [
        (Caps(methods=("auto", "snapkv")), "thrift.vision"),
        (Caps(profiles=("exact",)), "thrift.vision"),
        (Caps(methods=("stride",)), "thrift.vision.method"),
    ],
)
def test_outside_of_the_caps(caps: Caps, param: str) -> None:
    with pytest.raises(ContractError) as caught:
        permits.resolve_for({"vision": {"method": "divprune"}}, CAN, caps)
    assert (caught.value.code, caught.value.param) == ("thrift_forbidden", param)


async def test_method_table(gateway: Gateway) -> None:
    app, state = gateway(None)
    state.capabilities = replace(state.capabilities, vision=replace(TERMS, max_keep=0.5))
    listed = (await call(app, "GET", "/v1/thrift/methods")).json["methods"]
    rows = {row["name"]: row for row in listed if row["family"] == "vision"}
    assert [row["name"] for row in rows.values() if row["default"]] == ["divprune"]
    assert (rows["hiprune"]["available"], rows["hiprune"]["reason"]) == (False, "no attention")
    assert rows["divprune"]["available"] and rows["divprune"]["exact"] is False
    assert rows["divprune"]["parameters"]["properties"]["keep"]["maximum"] == 0.5
    assert {"divprune", "hiprune", "fopru", "globalcom2", "todre", "aim", "pitome", "vflowopt", "recoverable"} < set(
        rows
    )
    assert {"token_corr_like", "visionzip", "dpp", "tome", "avgpool", "random", "stride"} < set(rows)


async def test_a_keys_cap_goes_to_the_engine(gateway: Gateway) -> None:
    engine = Seeing([ANSWER], "application/json")
    app = stack(engine, keyring(Caps(max_visual_tokens=200)))
    assert (await call(app, "POST", CHAT, {"messages": [IMAGE]}, headers=BEARER)).status == 200
    assert engine.contracts[0].max_visual_tokens == 200
    # Images reach pooling models too, and there nobody counts them.
    answer = await call(app, "POST", "/v1/embeddings", {"messages": [IMAGE]}, headers=BEARER)
    assert (answer.status, answer.json["error"]["code"]) == (403, "route_not_allowed")
    assert "max_visual_tokens" in answer.json["error"]["message"]
