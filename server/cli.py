"""The `thriftree` command: a thin front, so that everything but `serve` answers at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

from thriftree.server.commands import methods_command, metrics_command, serve_help

_HELP = """usage: thriftree COMMAND ...

  serve [MODEL] [flags of `vllm serve`] [--thrift off|exact|balanced|max] [--config FILE]
                       the server; MODEL: a folder or a hub id (default: SmolLM2-135M-Instruct, unpacked once)
  keys create|list|revoke|tenant
                       API keys: tenant, caps, quotas
  methods [--json]     the methods of this release
  metrics              the page of all metrics (docs/metrics.md)
  model prepare|path   the default model
  probe heads [MODEL]  which KV heads of a model keep facts: a head file for KV-cache compression
  bench NAME ...       benchmarks
  tune NAME ...        fit the shipped defaults to measurements
  version              this release
`thriftree COMMAND --help` says more."""


def _serve(argv: Sequence[str]) -> int:
    if {"-h", "--help"} & set(argv):
        return serve_help()
    from thriftree.server import serve

    return serve.main(argv)


def _model(argv: Sequence[str]) -> int:
    from thriftree.zoo.__main__ import main as zoo

    return zoo(argv, prog="thriftree model")


def _lazy(module: str) -> Callable[[Sequence[str]], int]:
    """A command whose module is imported when it runs: benchmarks need more than a server does."""

    def run(argv: Sequence[str]) -> int:
        from importlib import import_module

        try:
            found = import_module(module)
        except ModuleNotFoundError as error:
            ours = str(error.name).startswith("thriftree")
            cure = "it is not in this release" if ours else "pip install 'thriftree[dev]'"
            print(f"thriftree: this command needs {error.name}: {cure}", file=sys.stderr)
            return 1
        return int(found.main(list(argv)) or 0)

    return run


def _version(argv: Sequence[str]) -> int:
    print(f"thriftree {version('thriftree')}")
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "serve": _serve,
    "keys": _lazy("thriftree.server.keys.commands"),
    "methods": methods_command,
    "metrics": metrics_command,
    "model": _model,
    "probe": _lazy("thriftree.server.probe"),
    "bench": _lazy("thriftree.benchmarks.cli"),
    "tune": _lazy("thriftree.benchmarks.tune"),
    "version": _version,
}


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_HELP)
        return 0 if words else 2
    name = words[0].removeprefix("--")
    if name not in COMMANDS:
        print(f"thriftree: unknown command {words[0]!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return COMMANDS[name](words[1:])


if __name__ == "__main__":
    sys.exit(main())
