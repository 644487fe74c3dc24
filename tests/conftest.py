"""For all tests: hypothesis without a clock (the machine is shared), the same examples on every run."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("thriftree", deadline=None, derandomize=True)
settings.load_profile("thriftree")
