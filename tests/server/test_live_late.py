"""Late layers over HTTP: asked for, counted, streamed, refused by the field."""

from __future__ import annotations

import concurrent.futures
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.bad_requests import CHAT_PATH
from tests.server.broken_images import data_url, saved
from tests.server.live import LiveServer
from tests.server.test_live_images import BLUE, FLAGS, RED, ask, shown
from thriftree.zoo import tiny_vision

pytestmark = pytest.mark.live
LATE = ["--vision-late-layer", "2", "--no-enable-prefix-caching", "--max-num-batched-tokens", "512"]
DROP: dict[str, Any] = {"vision": {"late": {}}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    flags = [str(tiny_vision.ensure("llava")), *FLAGS, *LATE, "--limit-mm-per-prompt", '{"image": 4}']
    with LiveServer(tmp_path_factory.mktemp("late"), flags) as running:
        yield running


def vision(answer: Any) -> Any:
    thrift = answer["usage"]["thrift"]
    return thrift["exact"], thrift["vision"]


def test_asked_and_counted(server: LiveServer) -> None:
    whole, late = ask(server, shown(RED, BLUE)), ask(server, shown(RED, BLUE), thrift=DROP)
    assert vision(whole) == (True, {"method": None, "tokens_seen": 288, "tokens_kept": 288})
    counts = {"layer": 2, "method": "drop", "tokens_seen": 288, "tokens_kept": 0}
    assert vision(late) == (False, {"method": None, "tokens_seen": 288, "tokens_kept": 288, "late": counts})
    assert late["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    assert late["choices"][0]["message"]["content"] != whole["choices"][0]["message"]["content"]


def test_behind_the_first_stage_and_by_scores(server: LiveServer) -> None:
    asked = {"vision": {"method": "stride", "keep": 0.5, "late": {"keep": 0.25}}}
    counts = {"layer": 2, "method": "attention", "tokens_seen": 72, "tokens_kept": 18}
    expected = {"method": "stride", "tokens_seen": 144, "tokens_kept": 72, "late": counts}
    assert vision(ask(server, shown(RED), thrift=asked)) == (False, expected)


def test_a_stream_says_it_at_its_end(server: LiveServer) -> None:
    body = {"model": "tiny", "messages": [shown(RED)], "max_tokens": 4, "stream": True, "thrift": DROP}
    body["stream_options"] = {"include_usage": True}
    text = httpx.post(f"{server.url}{CHAT_PATH}", json=body, timeout=60).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert vision(events[-1])[1]["late"] == {"layer": 2, "method": "drop", "tokens_seen": 144, "tokens_kept": 0}


def test_choices_add_up_and_text_has_none(server: LiveServer) -> None:
    late = vision(ask(server, shown(RED), thrift=DROP, n=2, temperature=1.0))[1]["late"]
    assert (late["tokens_seen"], late["tokens_kept"]) == (288, 0)
    assert "late" not in vision(ask(server, {"role": "user", "content": "Hello"}, thrift=DROP))[1]


def test_requests_at_once_do_not_mix(server: LiveServer) -> None:
    wishes = [None, DROP, {"vision": {"late": {"keep": 0.3, "method": "stride"}}}, {"vision": {"keep": 0.25}}] * 3
    alone = [ask(server, shown(RED), thrift=one or {}) for one in wishes[:4]]
    with concurrent.futures.ThreadPoolExecutor(len(wishes)) as pool:
        together = list(pool.map(lambda one: ask(server, shown(RED), thrift=one or {}), wishes))
    for index, answer in enumerate(together):
        assert answer["choices"][0]["message"] == alone[index % 4]["choices"][0]["message"]
        assert vision(answer) == vision(alone[index % 4])


@pytest.mark.parametrize(
    ("thrift", "pictures", "param"),
    [
        ({"vision": {"late": {"keep": 0.5}}}, 4, "thrift.vision.late.method"),  # 576 tokens, and a step has 512
        ({"vision": {"late": {"keep": 2}}}, 1, "thrift.vision.late.keep"),
        ({"speculation": "auto"}, 1, "thrift.speculation"),
        ({"kv": {"budget": 64}}, 1, "thrift.kv"),
    ],
)
def test_what_cannot_be(server: LiveServer, thrift: Any, pictures: int, param: str) -> None:
    new = [data_url(saved("PNG", mode=mode)) for mode in ("L", "LA")]
    body = {"model": "tiny", "messages": [shown(*(new * 2)[:pictures])], "thrift": thrift}
    answer = httpx.post(f"{server.url}{CHAT_PATH}", json=body, timeout=60)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert vision(ask(server, shown(*new)))[1]["tokens_kept"] == 288, (
        "what was refused is not taken to be at the engine"
    )


def test_the_method_table_and_the_counter(server: LiveServer) -> None:
    rows = httpx.get(f"{server.url}/v1/thrift/methods").json()["methods"]
    late = next(row for row in rows if row["name"] == "divprune")["parameters"]["properties"]["late"]
    assert late["properties"]["method"]["enum"] == ["drop", "attention", "random", "stride"]
    assert 'thriftree_late_visual_tokens_dropped_total{method="drop"}' in httpx.get(f"{server.url}/metrics").text
