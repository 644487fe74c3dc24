"""TLS, a path in front and a browser's origin on a real server: vLLM's flags, as its own server has them."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.server.live import LiveServer
from thriftree.zoo import tiny

pytestmark = pytest.mark.live
ORIGIN = "https://app.example"


def certificate(folder: Path) -> tuple[Path, Path]:
    """Key and certificate of 127.0.0.1, signed by itself."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    asked = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(["openssl", "req", *asked, *names, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return key, cert


class TlsServer(LiveServer):
    scheme = "https"

    def _answers(self, path: str) -> bool:
        try:
            return httpx.get(f"{self.url}{path}", timeout=2, verify=trust(self.folder)).status_code == 200
        except httpx.HTTPError:
            return False


def trust(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=folder / "cert.pem")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("tls")
    key, cert = certificate(folder)
    flags = ["--enforce-eager", "--max-model-len", "256", "--served-model-name", "tiny", "--root-path", "/llm"]
    tls = ["--ssl-keyfile", str(key), "--ssl-certfile", str(cert), "--allowed-origins", f'["{ORIGIN}"]']
    with TlsServer(folder, [str(tiny.ensure("llama-gqa")), *flags, *tls]) as live:
        assert f"ready: {live.url}/v1" in live.console
        yield live
    assert live.code == 0


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, verify=trust(server.folder), timeout=30) as made:
        yield made


def test_only_https(server: LiveServer, client: httpx.Client) -> None:
    assert client.get("/health").status_code == 200
    with pytest.raises(httpx.HTTPError):
        httpx.get(server.url.replace("https", "http") + "/health")
    with pytest.raises(httpx.ConnectError, match="certificate"):
        httpx.get(f"{server.url}/health")


@pytest.mark.parametrize("prefix", ["", "/llm"], ids=["taken off", "left on"])
def test_under_a_path(client: httpx.Client, prefix: str) -> None:
    """Our routes, vLLM's, and those that are closed, whatever the proxy in front does with the path."""
    assert client.get(f"{prefix}/ready").status_code == 200
    assert client.get(f"{prefix}/v1/thrift/methods").json()["object"] == "list"
    assert client.get(f"{prefix}/v1/models").json()["data"][0]["id"] == "tiny"
    body = {"prompt": "a b a b", "max_tokens": 4, "temperature": 0}
    answer = client.post(f"{prefix}/v1/completions", json=body)
    assert answer.json()["usage"]["thrift"]["steps"] >= 1
    for path in ("/tokenize", "/llm/v1/models", "/invocations"):
        assert client.post(f"{prefix or '/llm'}{path}", json={}).json()["error"]["code"] == "route_not_found"


def test_a_browser(client: httpx.Client) -> None:
    asked = {"origin": ORIGIN, "access-control-request-method": "POST"}
    preflight = client.options("/v1/completions", headers=asked)
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, ORIGIN)
    for body in ({"prompt": "a", "max_tokens": 2}, {"prompt": 3}):
        answer = client.post("/v1/completions", json=body, headers={"origin": ORIGIN})
        assert answer.headers.get_list("access-control-allow-origin") == [ORIGIN]
        assert answer.headers.get_list("vary") == ["Origin"]
