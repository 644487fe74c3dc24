"""The command: flags, start-up without an engine in the process, and stop."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from tests.server.live import COMMAND, _environment
from tests.server.remote.loopback import Engine, until
from thriftree.server.errors import StartError
from thriftree.server.remote.args import parse, take_port
from thriftree.server.remote.engines import Engines
from thriftree.server.remote.upstream import Upstream
from thriftree.server.settings import Settings, load
from thriftree.server.state import GatewayState

ENGINE = ["--engine", "http://127.0.0.1:1"]
_WATCHED = """
import sys
from thriftree.server import serve
code = serve.main(sys.argv[1:])
heavy = sorted({name.split(".")[0] for name in sys.modules} & {"vllm", "torch", "transformers"})
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("modules", heavy, "peak", peak.split()[1])
sys.exit(code)
"""


def test_flags_of_a_gateway() -> None:
    settings, rest = load([*ENGINE, "--engine", "https://b", "--port", "81", "--host", "::1", "--root-path", "/llm"])
    args = parse(settings, rest)
    assert settings.engine == ["http://127.0.0.1:1", "https://b"]
    assert (args.port, args.host, args.root_path) == (81, "::1", "/llm")
    assert parse(Settings(engine=["http://a"], vllm={"port": 82, "host": "0.0.0.0"}), []).port == 82


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--max-model-len", "4096"], "--max-model-len"),
        (["some/model"], "model some/model"),
        (["--port", "x"], "--port"),
        (["--ssl-certfile", "/nowhere.pem"], "/nowhere.pem"),
        (["--thrift", "exact"], "thrift"),
        (["--speculation-max-nodes", "8"], "speculation"),
        (["--kv-compression", "on"], "setting kv"),
    ],
)
def test_what_is_not_for_a_gateway_is_named(words: Sequence[str], named: str) -> None:
    settings, rest = load([*ENGINE, *words])
    with pytest.raises(StartError, match=named):
        parse(settings, rest)


@pytest.mark.parametrize("url", ["http://", "http://a:99999999", "http://a/?x=1", "http://a:x"])
def test_no_engine_url(url: str) -> None:
    with pytest.raises(StartError, match="--engine"):
        Upstream(url, GatewayState().metrics)


def test_passwords_are_not_shown() -> None:
    assert Upstream("http://me:secret@a:1/base/", GatewayState().metrics).name == "http://a:1/base"


def test_a_taken_port_and_a_unix_socket(tmp_path: Path) -> None:
    args = parse(Settings(engine=["http://a"]), ["--port", "0"])
    sock, url = take_port(args)
    with sock, pytest.raises(StartError, match="cannot listen"):
        args.port = int(url.rsplit(":", 1)[1])
        take_port(args)
    args.uds = str(tmp_path / "gateway.sock")
    sock, url = take_port(args)
    sock.close()
    assert url == f"unix:{args.uds}"


async def test_start_and_stop_without_vllm(tmp_path: Path) -> None:
    async with Engine() as engine:
        out = tmp_path / "out.txt"
        words = ["--engine", engine.url, "--port", "0", "--uvicorn-log-level", "warning"]
        begun = time.monotonic()
        with out.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-c", _WATCHED, *words], stdout=file, stderr=subprocess.STDOUT, env=_environment()
            )
        try:
            await until(lambda: "ready: " in out.read_text() or process.poll() is not None, 30)
            seconds = time.monotonic() - begun
            url = out.read_text().split("ready: ")[1].split("/v1")[0]
            async with httpx.AsyncClient(base_url=url) as client:
                assert (await client.get("/ready")).status_code == 200
                got = await client.post("/v1/completions", json={"model": "tiny", "prompt": "a"})
                assert got.json()["port"] == engine.port
                metrics = (await client.get("/metrics")).text
            assert f'thriftree_upstream_up{{engine="{engine.url}"}} 1.0' in metrics
        finally:
            process.send_signal(signal.SIGTERM)
            await until(lambda: process.poll() is not None, 15)
        text = out.read_text()
        print(f"ready after {seconds:.1f} s; {text.splitlines()[-1]}")
        assert process.returncode == 0, text
        assert "modules []" in text and engine.url in text
        assert int(text.split("peak ")[1]) < 200_000  # KiB


def test_a_start_that_cannot_be_says_why_in_one_line() -> None:
    done = subprocess.run([*COMMAND, *ENGINE, "--dtype", "half"], capture_output=True, text=True, env=_environment())
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "--dtype" in done.stderr


def test_the_model_list_of_engines_is_json() -> None:
    told, silent = (Upstream(url, GatewayState().metrics) for url in ("http://a", "http://b"))
    told.up = silent.up = True
    engines = Engines([told, silent], 1)
    assert engines.models() is None
    told.models = {"m": {"id": "m"}}
    assert json.loads(engines.models() or b"") == {"object": "list", "data": [{"id": "m"}]}
