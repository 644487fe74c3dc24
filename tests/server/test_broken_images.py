"""Broken, huge, empty and odd images over HTTP: a 400 that says so or an answer, and the next request is answered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.bad_requests import CHAT_PATH
from tests.server.broken_images import bodies, body, contents, data_url, saved
from tests.server.live import LiveServer
from tests.server.test_fuzz import check
from thriftree.zoo import tiny_vision

pytestmark = pytest.mark.live
FLAGS = ["--enforce-eager", "--max-model-len", "1024", "--served-model-name", "tiny", "--dtype", "float32"]
#: Pictures that a browser shows, and so do we: of several frames the first.
FINE = (
    "large", "one pixel", "a line", "a long line", "animated gif", "animated webp", "animated png",
    "two pages of tiff", "cmyk", "sixteen bits", "palette", "transparent", "grey with alpha", "says text",
)  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    flags = [str(tiny_vision.ensure("llava")), *FLAGS, "--limit-mm-per-prompt", '{"image": 4}']
    with LiveServer(tmp_path_factory.mktemp("broken"), flags) as running:
        yield running


def send(server: LiveServer, content: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{server.url}{CHAT_PATH}", json=content, timeout=30)


@pytest.mark.parametrize("name", bodies())
def test_no_500(server: LiveServer, name: str) -> None:
    answer = send(server, bodies()[name])
    error = check(answer)
    assert (error is None) == (name in FINE) or name not in contents(), (answer.status_code, error)
    assert send(server, body({"type": "image_url", "image_url": {"url": data_url(saved("PNG"))}})).status_code == 200
