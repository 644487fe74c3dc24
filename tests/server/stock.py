"""vLLM's own server, as it comes, for comparison with ours."""

from __future__ import annotations

import sys

from tests.server.live import LiveServer


class StockServer(LiveServer):
    """``with StockServer(folder, ["--model", path]) as server: ...``"""

    command = (sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--host", "127.0.0.1")
    ready_path = "/health"
