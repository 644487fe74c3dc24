"""The heap of a process that serves: what the start made is looked at by the garbage collector for the last time."""

from __future__ import annotations

import gc


def settle() -> None:
    """Call once, at the end of the start and before the first request that counts.

    Modules, schemas and routes are some hundred thousand objects that never become garbage. A full collection passes
    over all of them (tens of milliseconds, in which no request is answered); frozen, they are left out of it.
    """
    gc.collect()
    gc.freeze()
