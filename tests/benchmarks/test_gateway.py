"""`thriftree bench gateway`: its smallest run, its tables, and what is refused."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from thriftree.benchmarks.gateway import http, latency, litellm, main, report
from thriftree.benchmarks.gateway.latency import Cell, Cpu
from thriftree.benchmarks.gateway.memory import Memory
from thriftree.benchmarks.gateway.overload import SERVICE, Fairness, Overload, Vanished

SMALLEST = [
    *("--rounds", "2", "--bursts", "1", "--cpu-rounds", "1", "--tokens", "8", "--requests", "40", "--clients", "20"),
    *("--seconds", "0.6", "--no-litellm", "--contenders", "gateway", "keys+quota+log", "remote"),
]


@pytest.mark.live
def test_the_smallest_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, page = tmp_path / "out.json", tmp_path / "out.md"
    assert main.main([*SMALLEST, "--json", str(file), "--markdown", str(page)]) == 0
    said, result = capsys.readouterr().out, json.loads(file.read_text())
    assert "commit" in said and "seed 0" in said and f"`{result['conditions']['command']}`" in said
    cells = {(row["cell"]["stream"], row["cell"]["size"], row["cell"]["concurrency"]) for row in result["rows"]}
    assert len(cells) == 8 and {row["name"] for row in result["rows"]} == {
        "bare",
        "gateway",
        "keys+quota+log",
        "remote",
    }
    assert all(0 < row["p50"] <= row["p99"] for row in result["rows"])
    assert all(one["request"] > 0 for one in result["cpu"]) and len(result["memory"]) == len(result["cpu"]) == 4
    overload, vanished = result["overload"], result["vanished"]
    assert overload["answered"] > 0 < len(overload["refused"])
    assert (overload["server_errors"], overload["others"], overload["bare_refusals"]) == (0, 0, 0)
    assert (vanished["clients"], vanished["running"], vanished["waiting"]) == (20, 0, 0)
    assert "| LiteLLM | left out |" in page.read_text()


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["--rounds", "0"], "--rounds"),
        (["--cpu-rounds", "-1"], "--cpu-rounds"),
        (["--tokens", "1"], "--tokens"),
        (["--seconds", "0"], "--seconds"),
        (["--litellm", "--no-litellm"], "--no-litellm"),
        (["--json", "no/such/folder/out.json"], "folder"),
        (["--parts", "speed"], "speed"),
        (["--contenders", "nginx"], "nginx"),
    ],
)
def test_a_bad_flag_is_named_before_anything_runs(
    argv: list[str], names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(argv) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert names in said[-1]


def test_the_short_and_the_long_form() -> None:
    short, full = main.options([]), main.options(["--full"])
    assert (short.requests, short.clients, full.requests, full.clients) == (2000, 200, 20000, 1000)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_leaves_no_server_behind(number: int) -> None:
    command = [sys.executable, "-m", "thriftree.server.cli", "bench", "gateway", "--parts", "memory"]
    command += ["--contenders", "gateway", "--requests", "10000000"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        try:
            _wait(lambda: len(_servers(run.pid)) == 2)
            servers = _servers(run.pid)
            run.send_signal(number)
            assert run.wait(30) == (130 if number == signal.SIGTERM else -signal.SIGKILL)
            _wait(lambda: not any(server.is_running() for server in servers))
        finally:
            run.kill()


def _servers(pid: int) -> list[psutil.Process]:
    return [
        child for child in psutil.Process(pid).children() if "thriftree.benchmarks.gateway.serve" in child.cmdline()
    ]


def _wait(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_litellm_that_cannot_be_installed_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRIFTREE_CACHE", str(tmp_path))
    monkeypatch.setattr(litellm, "PACKAGE", str(tmp_path / "no-such-package"))
    with pytest.raises(http.Failed, match=r"cannot be installed: .*no-such-package"):
        litellm.install()
    assert not litellm.ready()


def found(slow: float = 0.0, left: int = 0, errors: int = 0) -> report.Found:
    cell = Cell(False, 1000, 1)
    rows = [
        latency._row(cell, name, {"bare": [0.001] * 5, "gateway": [0.0014 + slow] * 5}) for name in ("bare", "gateway")
    ]
    fair = Fairness([SERVICE] * 9, [SERVICE + 0.01] * 9, [SERVICE + 0.02] * 9)
    return report.Found(
        rows,
        [Cpu("bare", 1e-4, 1e-5, 0, 0), Cpu("gateway", 2e-4, 2e-5, 1e-4, 1e-5)],
        [Memory("gateway", 50_000_000, 51_000_000, 2000, 200, 20_000.0)],
        Overload(80.0, 79.0, 100, [0.001] * 99 + [0.002], 0, errors),
        fair,
        Vanished(100, left, 0, 90, 0, 0.01),
        {"LiteLLM": "not installed"},
    )


def test_rows_are_differences_to_bare() -> None:
    row = found().rows[1]
    assert (row.added_p50, row.added_p99, row.paired_p99) == pytest.approx((0.0004,) * 3)


def test_targets() -> None:
    assert {cells[-1] for cells in report.targets(found())} == {"ok"}
    for one, claim in (
        (found(slow=0.01), "latency p50"),
        (found(left=1), "left behind"),
        (found(errors=1), "5xx"),
    ):
        missed = [cells[0] for cells in report.targets(one) if cells[-1] == "MISSED"]
        assert missed and any(claim in name for name in missed)


def test_tables_and_page() -> None:
    console = Console(width=120, record=True, quiet=True)
    report.show(console, found())
    page = report.markdown(found(), ["the machine"])
    assert "- the machine" in page and "| LiteLLM | not installed |" in page
    assert all(len(row) == len(table.columns) for table in report.tables(found()) for row in table.rows)


async def test_the_client_reads_both_kinds_of_answers() -> None:
    answers = [
        [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nRetry-After: 7\r\n\r\nab", b"cd"],
        [b"HTTP/1.1 429 No\r\nTransfer-Encoding: chunked\r\n\r\n", b"2\r\nab\r\n0\r", b"\n\r\n"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab"],  # and closes
    ]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for pieces in answers:
            await reader.readuntil(b"\r\n\r\n")
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0.02)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        connection = await http.Connection.to(server.sockets[0].getsockname()[1])
        whole = await connection.ask(http.request("/"))
        assert (whole.status, whole.body, whole.header("retry-after")) == (200, b"abcd", "7")
        assert whole.first + 0.01 < whole.seconds and whole.seconds >= 0.02
        cut = await connection.ask(http.request("/"))
        assert cut.status == 429 and cut.seconds >= 0.03
        with pytest.raises(http.Failed, match="closed"):
            await connection.ask(http.request("/"))
