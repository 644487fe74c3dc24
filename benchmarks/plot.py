"""Gain against batch: as text, and as a PNG where matplotlib is installed."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path

Gains = Mapping[str, Mapping[int, float]]
_WIDTH = 40


def text(gains: Gains, title: str) -> str:
    """A bar per method and batch; the colon marks 1.0, plain vLLM."""
    known = [gain for by in gains.values() for gain in by.values() if not math.isnan(gain)]
    if not known:
        return ""
    top = max(1.2, *known)
    one = round(_WIDTH / top)
    lines = [title]
    for method, by in gains.items():
        for batch, gain in sorted(by.items()):
            filled = 0 if math.isnan(gain) else round(gain / top * _WIDTH)
            bar = "".join(":" if i == one else "█" if i < filled else " " for i in range(_WIDTH + 1))
            lines.append(f"{method:>16} {batch:>3} {bar} {gain:.2f}x")
    return "\n".join(lines)


def check(path: Path) -> None:
    """ValueError, before anything is measured, when the plot could not be written at the end."""
    if path.suffix != ".png":
        raise ValueError(f"--plot {path}: the name must end in .png")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install matplotlib, or leave --plot out") from None


def png(gains: Mapping[str, Gains], path: Path, caption: str) -> None:
    """One panel per dtype."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(gains), figsize=(6 * len(gains), 4.5), squeeze=False, sharey=True)
    for panel, (dtype, methods) in zip(axes[0], gains.items(), strict=True):
        for method, by in methods.items():
            points = sorted(by.items())
            panel.plot([b for b, _ in points], [g for _, g in points], marker="o", label=method)
        panel.axhline(1.0, color="grey", linewidth=1, linestyle="--")
        batches = sorted({batch for by in methods.values() for batch in by})
        panel.set_xscale("log", base=2)
        panel.set_xticks(batches, [str(batch) for batch in batches])
        panel.set_xlabel("requests in flight")
        panel.set_title(dtype)
        panel.legend(fontsize="small")
    axes[0][0].set_ylabel("tokens per second, plain vLLM = 1")
    figure.text(0.01, 0.01, "\n".join(textwrap.wrap(caption, 120 * len(gains))), fontsize=6, color="grey")
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
