"""Pictures for tests: the same for the same seed, busy everywhere, so that no two patches are alike."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

#: Width and height: square, wide, high, small, large (scaled down by every family), odd.
SIZES = ((168, 168), (320, 120), (100, 300), (60, 60), (700, 500), (211, 133))


def picture(seed: int, width: int = 168, height: int = 168) -> Image.Image:
    """An RGB image: a slope of colour, shapes on it, noise over all."""
    rng = np.random.default_rng(seed)
    across, down = np.linspace(0, 1, width)[None, :, None], np.linspace(0, 1, height)[:, None, None]
    ends = rng.uniform(0, 255, (3, 3))
    ground = ends[0] + across * (ends[1] - ends[0]) + down * (ends[2] - ends[0]) / 2
    canvas = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    for _ in range(6):
        x, y = rng.uniform(0, 0.8) * width, rng.uniform(0, 0.8) * height
        box = (x, y, x + rng.uniform(0.1, 0.4) * width, y + rng.uniform(0.1, 0.4) * height)
        colour = tuple(int(part) for part in rng.integers(0, 256, 3))
        (pen.ellipse if rng.random() < 0.5 else pen.rectangle)(box, fill=colour)
    noise = rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(canvas) + noise, 0, 255).astype(np.uint8))
