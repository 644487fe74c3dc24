"""LiteLLM's proxy as comparison row: in a virtual environment of its own, made once, on demand."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import venv
from pathlib import Path

from thriftree.benchmarks.gateway.http import Failed
from thriftree.benchmarks.gateway.serve import KEEP_SECONDS
from thriftree.benchmarks.gateway.servers import Server, end_with_parent, wait
from thriftree.zoo import cache

PACKAGE = "litellm[proxy]"
_INSTALL_SECONDS = 900
_START_SECONDS = 120.0
#: No calls home, no debug lines, the price list that it ships: as its own page for production advises.
_ENVIRONMENT = {
    "LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False", "NO_DOCS": "True",
}  # fmt: skip


def home() -> Path:
    return cache.root() / "bench" / "litellm"


def ready() -> bool:
    return (home() / "bin" / "litellm").exists()


def install() -> str:
    """The version that is there, installed where it was not. Raises Failed with pip's last word."""
    if not ready():
        made = home()
        try:
            venv.create(made, with_pip=True, clear=True)
            command = [str(made / "bin" / "python"), "-m", "pip", "install", "--quiet", PACKAGE]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            raise Failed(f"LiteLLM cannot be installed: {error}") from None
        if done.returncode or not ready():
            (made / "bin" / "litellm").unlink(missing_ok=True)
            said = done.stderr.strip().splitlines() or ["pip said nothing"]
            raise Failed(f"LiteLLM cannot be installed: {said[-1]}")
    return version()


def version() -> str:
    ask = "import importlib.metadata as m; print(m.version('litellm'))"
    done = subprocess.run([str(home() / "bin" / "python"), "-c", ask], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "of unknown version"


def start(folder: Path, behind: Server) -> Server:
    """One worker in front of that server. Raises Failed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    model = {"model": "openai/clock", "api_base": f"http://127.0.0.1:{behind.port}/v1", "api_key": "none"}
    config = folder / "litellm.yaml"
    config.write_text(
        json.dumps(
            {
                "model_list": [{"model_name": "clock", "litellm_params": model}],
                "litellm_settings": {"telemetry": False, "set_verbose": False},
                "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},  # else it does not start
            }
        )
    )
    command = [str(home() / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--keepalive_timeout", str(KEEP_SECONDS)]
    log = folder / "litellm.log"
    ours = {"PYTHONPATH", "VIRTUAL_ENV", "PYTHONWARNINGS"}
    environment = {k: v for k, v in os.environ.items() if k not in ours} | _ENVIRONMENT
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, preexec_fn=end_with_parent)
    made = Server("LiteLLM", process, port, behind)
    wait(made, log, "/health/liveliness", _START_SECONDS)
    made.others = _children(process.pid)
    return made


def _children(pid: int) -> list[int]:
    import psutil  # type: ignore[import-untyped]

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


if __name__ == "__main__":
    print(install(), file=sys.stderr)
