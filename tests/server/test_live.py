"""The whole thing as users meet it: one server on the default model, and the `openai` client."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.exposition import differences, exported
from tests.server.live import COMMAND, LiveServer
from thriftree.zoo import smollm2

openai = pytest.importorskip("openai")

pytestmark = pytest.mark.live
MODEL = smollm2.NAME
PROMPTS = ("List three fruits.", "Repeat five times: the cat sat on the mat.", "What is the capital of France?")


@pytest.fixture(scope="module")
def server(default_server: LiveServer) -> LiveServer:
    return default_server


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


def ask(client: Any, prompt: str, tokens: int = 32, thrift: Any = None, **more: Any) -> Any:
    extra = {"thrift": thrift} if thrift is not None else {}
    return client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=tokens,
        temperature=more.pop("temperature", 0),
        extra_body={**extra, **more.pop("extra_body", {})},
        **more,
    )


def saved(usage: Any) -> Any:
    """``usage.thrift``, after what must hold for every one."""
    thrift = usage.model_extra["thrift"]
    tokens = getattr(usage, "completion_tokens", None) or usage.output_tokens
    drafts = thrift["speculation"]
    assert thrift["exact"] is True and thrift["vision"] == {"method": None, "tokens_seen": 0, "tokens_kept": 0}
    assert thrift["steps"] >= 1 and thrift["tokens_per_step"] == pytest.approx(tokens / thrift["steps"], abs=0.01)
    assert 0 <= drafts["accepted"] <= drafts["drafted"]
    assert thrift["kv"]["tokens_seen"] == thrift["kv"]["tokens_kept"] > 0
    return thrift


def test_start_up_says_one_ready_line(server: LiveServer) -> None:
    ready = [line for line in server.console.splitlines() if "ready:" in line]
    assert len(ready) == 1
    for part in (server.url, MODEL, "profile exact", "speculation auto"):
        assert part in ready[0]
    assert 0 < server.alive_seconds < server.ready_seconds


def test_chat(client: Any) -> None:
    answer = ask(client, PROMPTS[0])
    thrift = saved(answer.usage)
    assert thrift["speculation"]["method"] == "auto"
    assert thrift["kv"]["tokens_seen"] == answer.usage.prompt_tokens
    assert answer.choices[0].message.content


def test_stream_with_usage(client: Any) -> None:
    chunks = list(ask(client, PROMPTS[1], stream=True, stream_options={"include_usage": True}))
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    saved(chunks[-1].usage)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == ask(client, PROMPTS[1]).choices[0].message.content


def test_stream_with_usage_in_every_chunk(client: Any) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(ask(client, PROMPTS[0], tokens=8, stream=True, extra_body={"stream_options": options}))
    counted = [
        chunk.usage.model_extra["thrift"]["steps"] for chunk in chunks if chunk.usage and chunk.usage.completion_tokens
    ]
    assert len(counted) > 2 and counted == sorted(counted)


def test_stream_without_usage_has_none(client: Any) -> None:
    assert all(chunk.usage is None for chunk in ask(client, PROMPTS[0], tokens=4, stream=True))


def test_completions(client: Any) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="one two three one two three one two", max_tokens=16, temperature=0
    )
    assert saved(answer.usage)["kv"]["tokens_seen"] == answer.usage.prompt_tokens
    chunks = list(
        client.completions.create(
            model=MODEL, prompt="one two", max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
    )
    saved(chunks[-1].usage)


def test_several_choices_are_summed(client: Any) -> None:
    answer = ask(client, PROMPTS[0], tokens=8, n=2, temperature=0.8, seed=1)
    assert len(answer.choices) == 2
    thrift = saved(answer.usage)
    assert 2 <= thrift["steps"] <= answer.usage.completion_tokens


def test_responses(client: Any) -> None:
    made: dict[str, Any] = {"model": MODEL, "input": PROMPTS[0], "max_output_tokens": 16, "temperature": 0}
    made["extra_body"] = {"thrift": {"speculation": {"method": "suffix"}}}
    answer = client.responses.create(**made)
    assert saved(answer.usage)["speculation"]["method"] == "suffix"
    events = list(client.responses.create(**made, stream=True))
    assert events[-1].type == "response.completed"
    assert saved(events[-1].response.usage)["speculation"]["method"] == "suffix"
    assert events[-1].response.output_text == answer.output_text


@pytest.mark.parametrize("prompt", PROMPTS)
def test_answers_do_not_depend_on_speculation(client: Any, prompt: str) -> None:
    """Token by token, with log-probabilities of the same tokens: float32 is what makes that possible."""

    def tokens(thrift: Any) -> tuple[list[str], Any]:
        answer = ask(client, prompt, tokens=48, thrift=thrift, logprobs=True)
        return [one.token for one in answer.choices[0].logprobs.content], saved(answer.usage)

    plain, report = tokens("off")
    assert report["speculation"] == {"method": None, "drafted": 0, "accepted": 0}
    assert report["steps"] == len(plain)
    for thrift in (
        "exact",
        "balanced",
        "max",
        {"speculation": "auto"},
        {"speculation": {"method": "token_recycling", "max_nodes": 8}},
        {"speculation": {"method": "trie_lookahead"}, "kv": "off"},
        {"speculation": {"method": "suffix", "max_nodes": 4}},
    ):
        assert tokens(thrift)[0] == plain, thrift


def test_streams_at_once(client: Any, server: LiveServer) -> None:
    def stream(index: int) -> str:
        thrift = "off" if index % 2 else "exact"
        chunks = list(ask(client, PROMPTS[index % 3], 24, thrift, stream=True, stream_options={"include_usage": True}))
        assert (saved(chunks[-1].usage)["speculation"]["method"] is None) == (thrift == "off")
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    with ThreadPoolExecutor(6) as pool:
        texts = list(pool.map(stream, range(6)))
    assert texts[:3] == texts[3:]
    assert server.wait_idle()


@pytest.mark.parametrize(
    ("thrift", "param", "code"),
    [
        ("fast", "thrift", "thrift_invalid"),
        ({"speculation": {"method": "eagle9"}}, "thrift.speculation.method", "thrift_invalid"),
        ({"speculation": {"max_nodes": -1}}, "thrift.speculation.max_nodes", "thrift_invalid"),
        ({"speculation": {"max_nodes": 4096}}, "thrift.speculation.max_nodes", "thrift_forbidden"),
        ({"kv": {"method": "snapkw"}}, "thrift.kv.method", "thrift_invalid"),
    ],
)
def test_bad_thrift_is_refused_and_disturbs_nobody(client: Any, thrift: Any, param: str, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, PROMPTS[0], thrift=thrift)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert ask(client, PROMPTS[0], tokens=2).choices


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/nope", None, 404),
        ("POST", "/tokenize", {"prompt": "x"}, 404),
        ("GET", "/openapi.json", None, 404),
        ("GET", "/v1/chat/completions", None, 405),
        ("POST", "/v1/chat/completions", {"messages": 3}, 400),
        ("POST", "/v1/chat/completions", {"messages": [], "max_tokens": "many"}, 400),
        ("POST", "/v1/completions", {"model": "other", "prompt": "x"}, 404),
    ],
)
def test_errors_have_one_shape(server: LiveServer, method: str, path: str, body: Any, status: int) -> None:
    answer = httpx.request(method, f"{server.url}{path}", json=body)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_our_routes(client: Any, server: LiveServer) -> None:
    assert httpx.get(f"{server.url}/health").json()["status"] == "ok"
    assert httpx.get(f"{server.url}/ready").status_code == 200
    assert httpx.get(f"{server.url}/version").json()["version"]
    assert [model.id for model in client.models.list()] == [MODEL]
    methods = httpx.get(f"{server.url}/v1/thrift/methods").json()["methods"]
    assert all(method["available"] or (method["family"] != "speculation" and method["reason"]) for method in methods)
    assert not any(method["available"] for method in methods if method["family"] == "vision"), "it sees no images"
    by_family = {method["family"]: method for method in methods if method["default"]}
    assert by_family["speculation"]["name"] == "auto" and by_family["kv"]["available"]
    assert sum(method["default"] for method in methods) == 3


def test_metrics(client: Any, server: LiveServer) -> None:
    before = server.metric("thriftree_draft_tokens_total")
    usage = saved(ask(client, PROMPTS[1], thrift={"speculation": {"method": "suffix"}}).usage)
    assert server.metric("thriftree_draft_tokens_total") - before == usage["speculation"]["drafted"]
    for name in (
        "thriftree_requests_total",
        "thriftree_request_seconds_count",
        "thriftree_time_to_first_chunk_seconds_count",
        "thriftree_accepted_tokens_total",
        "thriftree_tokens_per_step_count",
        "thriftree_drafter_state_bytes",
    ):
        assert server.metric(name) > 0, name


def test_the_metrics_page_tells_the_truth(client: Any, server: LiveServer) -> None:
    """The dashboards and rules are checked against that page (tests/deploy), so they read what is exported."""
    list(ask(client, PROMPTS[0], tokens=4, stream=True))
    assert differences(exported(httpx.get(f"{server.url}/metrics").text)) == []


def test_a_client_that_leaves_frees_the_engine(client: Any, server: LiveServer) -> None:
    stream = ask(client, "Tell me a very long story.", tokens=2000, stream=True, extra_body={"ignore_eos": True})
    for _, _ in zip(range(3), stream, strict=False):
        pass
    assert server.metric("vllm:num_requests_running") == 1
    stream.close()
    assert server.wait_idle()
    body = {"messages": [{"role": "user", "content": "A story."}], "max_tokens": 2000, "ignore_eos": True}
    with pytest.raises(httpx.ReadTimeout):  # nothing is streamed here: vLLM must hear of it all the same
        httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=1)
    assert server.wait_idle()
    end = time.monotonic() + 10
    while 'route="/v1/chat/completions",status="499"' not in httpx.get(f"{server.url}/metrics").text:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_second_server_on_the_port_says_so_in_one_line(server: LiveServer) -> None:
    done = subprocess.run([*COMMAND, "--port", str(server.port)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    complaint = done.stderr.strip().splitlines()[-1]
    assert complaint.startswith("thriftree: cannot listen on") and "--port" in complaint
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def refused() -> Iterator[dict[str, subprocess.CompletedProcess[str]]]:
    """What became of starts that cannot be, by a word that the complaint must hold; all begun at once."""
    starts = {
        "--pipeline-parallel-size": ["--pipeline-parallel-size", "2"],
        "./no/such/model": ["./no/such/model"],
        "--no-such-flag": ["--no-such-flag"],
    }

    def start(flags: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*COMMAND, "--port", "0", *flags], capture_output=True, text=True, timeout=180)

    with ThreadPoolExecutor(len(starts)) as pool:
        yield dict(zip(starts, pool.map(start, starts.values()), strict=True))


@pytest.mark.parametrize("named", ["--pipeline-parallel-size", "./no/such/model", "--no-such-flag"])
def test_a_start_that_cannot_be_says_why_in_one_line(
    refused: dict[str, subprocess.CompletedProcess[str]], named: str
) -> None:
    done = refused[named]
    assert done.returncode == 1
    assert named in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_stopped_while_loading(tmp_path: Path) -> None:
    server = LiveServer(tmp_path)
    server.start("/health")
    assert httpx.get(f"{server.url}/ready").status_code == 503
    assert httpx.post(f"{server.url}/v1/completions", json={}).json()["error"]["code"] == "starting"
    assert server.stop() == 0
