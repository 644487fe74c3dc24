"""For all tests: hypothesis without a clock (the machine is shared), the same examples on every run."""

from __future__ import annotations

import os

from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # Tests side by side: each process, with all that it starts, has cores of its own, or vLLM's engines meet on one.
    _cores = sorted(os.sched_getaffinity(0))
    _number, _count = int(os.environ["PYTEST_XDIST_WORKER"][2:]), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    _mine = _cores[_number % len(_cores) :: _count]
    os.sched_setaffinity(0, _mine)
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("OMP_NUM_THREADS", str(len(_mine)))

settings.register_profile("thriftree", deadline=None, derandomize=True)
settings.load_profile("thriftree")
