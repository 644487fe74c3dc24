"""`thriftree bench NAME ...`: one command per claim."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

_HELP = """usage: thriftree bench NAME ...

  speculation   token trees against plain vLLM and vLLM's own drafters, in one run, in turns
  kernels       tree attention against vLLM's own operator, work on cached rows against torch
  kernels-gpu   the Triton kernels beside torch on a CUDA device, a CLIP tower's time with them
  kv            what answers lose when the KV cache is compressed, beside controls; requests at once; cost of a step
  vision        right answers about images when the language model gets fewer of their tokens, beside controls
  gateway       what the gateway adds to a request, and what it owes under load; LiteLLM's proxy beside it
  all           everything that is built, in its short form (what `make bench` runs)
`thriftree bench NAME --help` says more."""


def _speculation(argv: Sequence[str]) -> int:
    return int(import_module("thriftree.benchmarks.speculation").main(list(argv)))


def _gateway(argv: Sequence[str]) -> int:
    return int(import_module("thriftree.benchmarks.gateway.main").main(list(argv)))


def _kv(argv: Sequence[str]) -> int:
    return int(import_module("thriftree.benchmarks.kv.parts").main(list(argv)))


def _kernels(argv: Sequence[str]) -> int:
    kept, sys.argv = sys.argv, ["thriftree bench kernels", *argv]
    try:
        runpy.run_module("thriftree.kernels.bench", run_name="__main__")
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(bool(leaving.code))
    finally:
        sys.argv = kept
    return 0


def _kernels_gpu(argv: Sequence[str]) -> int:
    return int(import_module("thriftree.kernels.gpu_bench.__main__").main(list(argv)))


def _vision(argv: Sequence[str]) -> int:
    return int(import_module("thriftree.benchmarks.vision.parts").main(list(argv)))


def _all(argv: Sequence[str]) -> int:
    if argv:
        print("thriftree bench all takes no flags: name one benchmark", file=sys.stderr)
        return 2
    return max(_speculation([]), _kv([]), _vision([]), _gateway([]))


BENCHES: dict[str, Callable[[Sequence[str]], int]] = {
    "speculation": _speculation,
    "kernels": _kernels,
    "kernels-gpu": _kernels_gpu,
    "kv": _kv,
    "vision": _vision,
    "gateway": _gateway,
    "all": _all,
}


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_HELP)
        return 0 if argv else 2
    if argv[0] not in BENCHES:
        print(f"thriftree bench: no benchmark {argv[0]!r}; there are {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    return BENCHES[argv[0]](argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
