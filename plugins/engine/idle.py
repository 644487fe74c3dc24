"""Readers of vLLM's shared-memory queues that nap while they wait, for machines where every core computes.

vLLM's processes wait for each other in a busy loop for a second before they sleep. With a core of their own that saves
microseconds; where they share it with a computing thread, every parallel region waits for whoever was pushed aside.
(Sleeping at once, on vLLM's own wake-up socket, is no way: under load it loses wake-ups, and a step takes a second.)
"""

from __future__ import annotations

import functools
import os
from time import monotonic, sleep
from typing import Any

from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

_NAP_SECONDS = 1e-4


def no_core_to_spare() -> bool:
    """Whether vLLM was told to compute on all cores."""
    return os.environ.get("VLLM_CPU_NUM_OF_RESERVED_CPU") == "0"


def nap_while_waiting() -> None:
    """In this process, from now on. Safe to call twice."""
    stock = SpinCondition.wait
    if getattr(stock, "thriftree", False):
        return

    @functools.wraps(stock)
    def wait(self: Any, *args: Any, **kwargs: Any) -> None:
        if monotonic() <= self.last_read + self.busy_loop_s:
            sleep(_NAP_SECONDS)
        else:
            stock(self, *args, **kwargs)

    wait.thriftree = True  # type: ignore[attr-defined]
    SpinCondition.wait = wait
