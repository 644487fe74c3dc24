from __future__ import annotations

import gc
import weakref

from thriftree.server import heap


class Node:
    def __init__(self) -> None:
        self.itself = self


def test_what_the_start_made_is_looked_at_no_more() -> None:
    garbage = weakref.ref(Node())
    kept = Node()
    before = gc.get_freeze_count()
    try:
        heap.settle()
        assert garbage() is None, "garbage of the start is not kept for ever"
        assert gc.get_freeze_count() > before + 1000
        assert not any(one is kept for one in gc.get_objects())
    finally:
        gc.unfreeze()
