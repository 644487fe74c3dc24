"""Images over HTTP: pruned on request and counted; broken, huge, empty and odd ones a 400 or an answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.bad_requests import CHAT_PATH
from tests.server.broken_images import bodies, body, contents, data_url, parts, saved, url_of
from tests.server.live import LiveServer
from tests.server.test_fuzz import check
from thriftree.zoo.shapes_vl.items import Item, held_out

pytestmark = pytest.mark.live
FLAGS = ["--enforce-eager", "--max-model-len", "1024", "--served-model-name", "tiny", "--dtype", "float32"]
#: Pictures that a browser shows, and so do we: of several frames the first.
FINE = (
    "large", "one pixel", "a line", "a long line", "animated gif", "animated webp", "animated png",
    "two pages of tiff", "cmyk", "sixteen bits", "palette", "transparent", "grey with alpha", "says text",
)  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    flags = ["zoo:shapes-vl", *FLAGS, "--limit-mm-per-prompt", '{"image": 4}']
    with LiveServer(tmp_path_factory.mktemp("images"), flags) as running:
        yield running


def send(server: LiveServer, content: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{server.url}{CHAT_PATH}", json=content, timeout=30)


@pytest.mark.parametrize("name", bodies())
def test_no_500(server: LiveServer, name: str) -> None:
    answer = send(server, bodies()[name])
    error = check(answer)
    assert (error is None) == (name in FINE) or name not in contents(), (answer.status_code, error)
    assert send(server, body({"type": "image_url", "image_url": {"url": data_url(saved("PNG"))}})).status_code == 200


@pytest.mark.parametrize("role", ["user", "assistant", "system", "tool"])
def test_a_null_type_is_named(server: LiveServer, role: str) -> None:
    """Also where the word is written with escapes."""
    part = parts()["type null"]
    message = {"role": role, "content": [{"type": "text", "text": "a"}, part], "tool_call_id": "x"}
    asked = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "a"}, message], "max_tokens": 2})
    for text in (asked, asked.replace('"type": null', '"\\u0074ype" : null')):
        answer = httpx.post(f"{server.url}{CHAT_PATH}", content=text, headers={"content-type": "application/json"})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == "messages[1].content[1].type"


#: Refused with the picture already processed: the engine never gets it.
REFUSED: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": -3},
    "logit_bias": {"logit_bias": {"99999999": 1}},
    "top_logprobs": {"logprobs": True, "top_logprobs": 1000},
    "min_tokens": {"min_tokens": 100},
    "a grammar": {"structured_outputs": {"regex": "("}},
    "stop": {"stop": [""]},
    "n": {"n": 0},
    "seed": {"seed": 1 << 70},
    "length": {"max_tokens": 100_000},
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_picture_can_be_sent_again(server: LiveServer, name: str, stream: bool) -> None:
    """vLLM's front end would take the engine to have it, and the next one to send it would get a 500."""
    side = 40 + 2 * list(REFUSED).index(name) + stream  # no other test has this picture
    good = body({"type": "image_url", "image_url": {"url": data_url(saved("PNG", (side, side)))}})
    refused = send(server, {**good, "stream": stream, **REFUSED[name]})
    assert refused.status_code == 400 or (stream and '"code": 400' in refused.text), refused.text
    again = send(server, good)
    assert again.status_code == 200, again.text
    assert again.json()["usage"] == send(server, good).json()["usage"]


def test_metrics_ask_the_workers_for_failures(server: LiveServer) -> None:
    """Zeros of every method are there as soon as the workers, in processes of their own, have answered."""
    metrics = httpx.get(f"{server.url}/metrics", timeout=30).text
    for method in ("divprune", "pitome"):
        assert f'thriftree_visual_selection_failures_total{{method="{method}"}} 0.0' in metrics


RED, BLUE = (data_url(saved("PNG", mode=mode)) for mode in ("RGB", "P"))


def shown(*pictures: str, text: str = "What is it?") -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def ask(server: LiveServer, *turns: dict[str, Any], **more: Any) -> Any:
    asked = {
        "model": "tiny",
        "messages": list(turns),
        "max_tokens": 8,
        "temperature": 0,
        "return_token_ids": True,
        **more,
    }
    answer = httpx.post(f"{server.url}{CHAT_PATH}", json=asked, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def counts(answer: Any) -> tuple[int, Any]:
    """Tokens of the prompt beyond the first image's rows, and what is said of images."""
    usage = answer["usage"]
    return usage["prompt_tokens"], usage["thrift"]["vision"]


def right(server: LiveServer, items: list[Item], **vision: Any) -> float:
    """Share of right answers."""
    asked = [shown(url_of(item.image), text=item.question) for item in items]
    answers = [ask(server, message, thrift={"vision": vision or "off"}) for message in asked]
    said = [answer["choices"][0]["message"]["content"] for answer in answers]
    return sum(item.right(words) for item, words in zip(items, said, strict=True)) / len(items)


def test_right_answers_from_a_ninth_of_the_tokens(server: LiveServer) -> None:
    """And not from any ninth."""
    items = held_out(28)
    assert right(server, items) >= 0.95
    assert right(server, items, method="divprune", keep=0.11) >= 0.95
    assert right(server, items, method="random", keep=0.11) <= 0.7


def test_fewer_tokens_of_an_image(server: LiveServer) -> None:
    whole, vision = counts(ask(server, shown(RED)))
    assert vision == {"method": None, "tokens_seen": 144, "tokens_kept": 144}
    for wish, kept, method in (
        ({"keep": 0.25}, 36, "divprune"),
        ({"method": "hiprune", "keep_tokens": 20}, 20, "hiprune"),
        ({"method": "recoverable", "keep": 0.5}, 72, "recoverable"),
        ({"method": "visionzip", "keep": 1}, 144, None),
        ("off", 144, None),
    ):
        answer = ask(server, shown(RED), thrift={"vision": wish})
        prompt, vision = counts(answer)
        assert vision == {"method": method, "tokens_seen": 144, "tokens_kept": kept}
        assert whole - prompt == 144 - kept
        assert answer["usage"]["thrift"]["exact"] is (method is None)


def test_several_images_and_the_same_one_again_with_other_settings(server: LiveServer) -> None:
    _, vision = counts(ask(server, shown(RED, BLUE), thrift={"vision": {"keep": 0.25}}))
    assert vision["tokens_kept"] == 72
    said = [ask(server, shown(RED, text="Say it.")) for _ in range(2)]
    pruned = ask(server, shown(RED, text="Say it."), thrift={"vision": {"method": "stride", "keep": 0.1}})
    again = ask(server, shown(RED, text="Say it."))
    tokens = [one["choices"][0]["token_ids"] for one in (*said, pruned, again)]
    assert tokens[0] == tokens[1] == tokens[3] != tokens[2]
    turns = [shown(RED, text="Say it."), {"role": "assistant", "content": "It is."}, shown(BLUE)]
    assert counts(ask(server, *turns, thrift={"vision": {"keep_tokens": 10}}))[1]["tokens_kept"] == 20


def test_a_stream_says_it_at_its_end(server: LiveServer) -> None:
    body = {"model": "tiny", "messages": [shown(RED)], "max_tokens": 4, "stream": True}
    body |= {"stream_options": {"include_usage": True}, "thrift": {"vision": {"keep": 0.25}}}
    text = httpx.post(f"{server.url}{CHAT_PATH}", json=body, timeout=60).text
    assert '"vision":{"method":"divprune","tokens_seen":144,"tokens_kept":36}' in text


@pytest.mark.parametrize(
    ("vision", "param"),
    [
        ({"keep": 0}, "thrift.vision.keep"),
        ({"keep_tokens": 145}, "thrift.vision.keep_tokens"),
        ({"method": "magic"}, "thrift.vision.method"),
        ({"method": "divprune", "alpha": 1}, "thrift.vision.alpha"),
    ],
)
def test_wishes_that_cannot_be(server: LiveServer, vision: Any, param: str) -> None:
    body = {"model": "tiny", "messages": [shown(RED)], "thrift": {"vision": vision}}
    answer = httpx.post(f"{server.url}{CHAT_PATH}", json=body, timeout=60)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_text_alone_and_a_method_that_reads_it(server: LiveServer) -> None:
    answer = ask(server, {"role": "user", "content": "Hello"}, thrift={"vision": {"keep": 0.25}})
    assert answer["usage"]["thrift"]["vision"] == {"method": None, "tokens_seen": 0, "tokens_kept": 0}
    body = {"model": "tiny", "messages": [{"role": "user", "content": shown(RED)["content"][:1]}]}
    body["thrift"] = {"vision": {"method": "recoverable"}}
    answer = httpx.post(f"{server.url}{CHAT_PATH}", json=body, timeout=60)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "thrift.vision.method")


def test_counters_and_the_method_table(server: LiveServer) -> None:
    text = httpx.get(f"{server.url}/metrics").text
    assert 'thriftree_visual_tokens_dropped_total{method="divprune"}' in text
    rows = httpx.get(f"{server.url}/v1/thrift/methods").json()["methods"]
    vision = {row["name"]: row for row in rows if row["family"] == "vision"}
    assert len(vision) == 16 and all(row["available"] for row in vision.values())
