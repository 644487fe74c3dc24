"""Writes the dashboards: ``python deploy/grafana/build.py [FOLDER]`` (default: `dashboards/` beside this file).

Change a panel here, run it, commit both. Tests compare the files with this, and every metric and label with the code.
"""

from __future__ import annotations

import sys
from pathlib import Path

from engine import ENGINE
from service import SERVICE
from thrift import THRIFT

DASHBOARDS = {"service.json": SERVICE, "thrift.json": THRIFT, "engine.json": ENGINE}


def main(folder: Path) -> None:
    for name, dashboard in DASHBOARDS.items():
        (folder / name).write_text(dashboard.text())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "dashboards")
