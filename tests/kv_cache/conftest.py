"""Lets the tests of this folder import their shared helpers (the suite runs with pytest's importlib mode)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
