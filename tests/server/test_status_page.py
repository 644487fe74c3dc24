"""The status page: its routes in memory, and the page in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.server.asgi import FakeEngine, call
from tests.server.browser import MODEL, WORDS, chromium, needs_chromium, served, toy_engine
from tests.server.conftest import Gateway
from thriftree.plugins.engine.contract_var import Report
from thriftree.server.status import DATA, PAGE
from thriftree.server.status.counts import totals

FILES = Path(__file__).parents[2] / "server" / "status"
KEY = "0123456789abcdef" * 2
LOCKED = {"keys": [KEY], "open_routes": list(PAGE)}
ANSWER = b'{"choices":[],"usage":{"total_tokens":17}}'


async def test_page_and_parts_carry_a_strict_policy(gateway: Gateway) -> None:
    app, _ = gateway(None)
    kinds = ("text/html", "text/javascript", "text/css", "image/svg+xml")
    for path, kind in zip(PAGE, kinds, strict=True):
        answer = await call(app, "GET", path)
        assert answer.status == 200 and answer.headers["content-type"].startswith(kind)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert (await call(app, "HEAD", "/")).status == 200


async def test_the_page_needs_no_key_and_its_data_does(gateway: Gateway) -> None:
    app, _ = gateway(FakeEngine([ANSWER]), auth=LOCKED)
    assert [(await call(app, "GET", path)).status for path in (*PAGE, DATA)] == [200] * 4 + [401]
    assert (await call(app, "GET", DATA, headers={"authorization": f"Bearer {KEY}"})).status == 200


def test_nothing_comes_from_elsewhere_and_nothing_is_inline() -> None:
    page = (FILES / "index.html").read_text()
    assert set(re.findall(r'(?:src|href)="([^"]+)"', page)) == {
        *(path[1:] for path in PAGE[1:]),
        "v1/models",
        "metrics",
        "v1/thrift/methods",
    }
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script[^>]*>[^<]", page)
    assert "url(" not in (FILES / "status.css").read_text()
    script = (FILES / "status.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|localStorage", script)


async def test_base_follows_the_root_path(gateway: Gateway) -> None:
    app, _ = gateway(None)

    async def behind(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "root_path": '/team/"a'}, receive, send)

    assert '<base href="/team/&quot;a/">' in (await call(behind, "GET", "/")).body.decode()
    assert "<base" not in (await call(app, "GET", "/")).body.decode()


async def test_data(gateway: Gateway) -> None:
    app, state = gateway(FakeEngine([ANSWER]))
    await call(app, "POST", "/v1/chat/completions", {})
    status = (await call(app, "GET", DATA)).json
    assert status["phase"] == "ready" and status["speculation"] == {"method": "auto", "max_nodes": 16}
    assert status["totals"] == {
        "generated_tokens": 10,
        "completion_tokens": 10,
        "steps": 4,
        "drafted": 24,
        "accepted": 6,
        "kv_dropped": 0,
    }
    assert not state.metrics.answering
    state.phase = "draining"
    assert (await call(app, "GET", DATA)).json["phase"] == "draining"


async def test_answers_under_way_are_in_the_totals_and_never_twice(gateway: Gateway) -> None:
    seen: list[Any] = []
    engine = FakeEngine([ANSWER])
    app, state = gateway(engine)

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        await engine(scope, receive, send)
        seen.append(totals(state.metrics))

    state.engine_app = watched
    await call(app, "POST", "/v1/chat/completions", {})
    assert seen == [totals(state.metrics)] and seen[0]["completion_tokens"] == 10
    state.metrics.answering[0] = Report(
        steps=1, completion_tokens=2, drafted=9
    )  # without a method: nothing was drafted
    assert totals(state.metrics) == {
        "generated_tokens": 12,
        "completion_tokens": 12,
        "steps": 5,
        "drafted": 24,
        "accepted": 6,
        "kv_dropped": 0,
    }


# ---- in a browser


class Page:
    """What a visitor does and sees."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        driver.get(url)

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def until(self, what: Any, seconds: float = 15) -> Any:
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.driver, seconds, 0.05).until(lambda _: what())

    def say(self, message: str) -> None:
        self.one("#message").send_keys(message + "\n")

    def console(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pytest.importorskip("selenium")
    with chromium(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture
def page(gateway: Gateway, driver: Any) -> Iterator[Page]:
    app, _ = gateway(toy_engine)
    with served(app) as url:
        shown = Page(driver, f"{url}/")
        shown.until(lambda: shown.one("#model").text == MODEL)
        yield shown


@needs_chromium
def test_state_and_methods(page: Page) -> None:
    assert page.one("#state").text == "ready"
    rows = [row.text for row in page.driver.find_elements("css selector", "#methods tr")]
    assert any(row.startswith("auto ") and "yes, the default" in row for row in rows)
    assert page.console() == []


@needs_chromium
def test_an_answer_streams_with_its_usage_and_once_more_without(page: Page) -> None:
    page.one("#compare").click()
    page.say("slow")
    first = page.until(lambda: page.one(".answer .text").text)
    assert first != "".join(WORDS), "it came at once"
    page.until(lambda: "same" in page.one("#said").text)
    cards = page.driver.find_elements("css selector", ".answer")
    assert [card.find_element("css selector", ".text").text for card in cards] == ["".join(WORDS)] * 2
    usage = [card.find_element("css selector", ".usage").text for card in cards]
    assert (
        "40 tokens in" in usage[0] and "16 steps, 2.50 tokens per step · 24 of 64 drafted tokens accepted" in usage[0]
    )
    assert "40 steps, 1.00 tokens per step · nothing drafted" in usage[1]
    page.until(lambda: page.one("#saved").text == "24" and page.one("#per-step").text == "1.43")
    assert page.driver.find_elements("css selector", ".answer b") == []
    assert page.console() == []


@needs_chromium
@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("refuse", "The server refused this: messages: too many <i>words</i>."),
        ("break", "The answer ended early: internal error"),
    ],
)
def test_errors_are_told_in_words(page: Page, message: str, told: str) -> None:
    page.say(message)
    page.until(lambda: page.one(".answer .error").text.startswith(told))
    assert page.one("#message").get_attribute("value") == message
    assert not [line for line in page.console() if "Content Security Policy" in line or "Uncaught" in line]


@needs_chromium
def test_a_stream_can_be_stopped(page: Page) -> None:
    page.say("slow")
    page.until(lambda: page.one(".answer .text").text)
    page.one("#send").click()
    page.until(lambda: page.one("#said").text == "Stopped.")
    assert page.one("#send").text == "Send"


@needs_chromium
def test_a_server_that_goes_away_is_told(gateway: Gateway, driver: Any) -> None:
    app, state = gateway(toy_engine)
    with served(app) as url:
        page = Page(driver, f"{url}/")
        page.until(lambda: page.one("#state").text == "ready")
        state.phase = "draining"
        page.until(lambda: page.one("#state").text == "stopping")
        page.say("hello")
        page.until(lambda: "The server is not ready: the server is stopping" in page.one("#said").text)
    page.until(lambda: page.one("#state").text == "no answer")


@needs_chromium
def test_a_key_is_asked_for_and_kept_in_this_tab(gateway: Gateway, driver: Any) -> None:
    app, _ = gateway(toy_engine, auth=LOCKED)
    with served(_under_team(app)) as url:
        page = Page(driver, f"{url}/team")
        page.until(lambda: page.one("#key-form").is_displayed())
        page.until(lambda: page.one("#state").text == "ready")
        page.one("#key").send_keys("wrong\n")
        page.until(lambda: "does not know this key" in page.one("#key-why").text)
        page.one("#key").send_keys(f"{KEY}\n")
        page.until(lambda: page.one("#model").text == MODEL)
        assert not page.one("#key-form").is_displayed()
        page.say("hello")
        page.until(lambda: page.one("#said").text == "Done.")
        stored = "return [JSON.stringify(sessionStorage), localStorage.length, document.cookie]"
        assert driver.execute_script(stored) == [f'{{"thriftree.key":"{KEY}"}}', 0, ""]


def _under_team(app: ASGIApp) -> ASGIApp:
    """What a proxy does that takes `/team` away and says so."""

    async def under(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix("/team") or "/"
        await app({**scope, "path": path, "raw_path": path.encode(), "root_path": "/team"}, receive, send)

    return under
