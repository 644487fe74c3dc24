"""The small commands."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence


def methods_command(argv: Sequence[str]) -> int:
    """``thriftree methods [--json]``."""
    parser = argparse.ArgumentParser(prog="thriftree methods", description="The methods of this release.")
    parser.add_argument("--json", action="store_true", help="the same data as GET /v1/thrift/methods")
    as_json = parser.parse_args(argv).json
    from thriftree.plugins.kv_cache.request import SHARED as KV_SHARED
    from thriftree.plugins.vision.request import SHARED as VISION_SHARED
    from thriftree.server.methods import PROFILES_NOTE, SHARED_NOTE, table

    rows = table()
    if as_json:
        print(json.dumps({"object": "list", "methods": rows}, indent=2))  # as the route answers it
        return 0
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, pad_edge=False)
    for head in ("method", "family", "law", "available", "own parameters", "paper", "what it does"):
        shown.add_column(head, overflow="fold", no_wrap=head in ("method", "family", "law", "paper"))
    for row in rows:
        name = row["name"] + (" (default)" if row["default"] else "")
        law, available = "exact" if row["exact"] else "lossy", "yes" if row["available"] else row["reason"]
        own = [name for name in row["parameters"]["properties"] if name not in (*KV_SHARED, *VISION_SHARED)]
        shown.add_row(name, row["family"], law, available, ", ".join(own), row["paper"], row["summary"])
    console = Console()
    console.print(shown)
    console.print(SHARED_NOTE, highlight=False, style="dim")
    console.print(PROFILES_NOTE, highlight=False, style="dim")
    return 0


def metrics_command(argv: Sequence[str]) -> int:
    """``thriftree metrics``."""
    argparse.ArgumentParser(prog="thriftree metrics", description="docs/metrics.md, from the code.").parse_args(argv)
    from thriftree.server.metrics_doc import render

    print(render(), end="")
    return 0


def serve_help() -> int:
    """Our flags, and where vLLM's are."""
    from thriftree.server.settings import add_flags

    parser = argparse.ArgumentParser(
        prog="thriftree serve",
        usage="thriftree serve [MODEL] [--thrift PROFILE] [--config FILE] [any flag of `vllm serve`]",
        epilog="Every setting is also an environment variable (THRIFTREE_DRAIN_TIMEOUT=5) and a YAML key. "
        "All other flags go to vLLM: --host, --port, --dtype, --max-model-len, ... "
        "(`vllm serve --help=all` or vLLM's documentation lists them).",
    )
    add_flags(parser)
    parser.print_help()
    return 0
