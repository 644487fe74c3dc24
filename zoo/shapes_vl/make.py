"""From nothing to a checkpoint folder; cut at any time, the next call goes on. The package has what came out."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from thriftree.zoo import cache
from thriftree.zoo.cache import Say, ZooError, say
from thriftree.zoo.shapes_vl import NAME
from thriftree.zoo.shapes_vl.net import TOKENS
from thriftree.zoo.shapes_vl.scenes import SIDE
from thriftree.zoo.shapes_vl.train import Course, Recipe

_NEED = 200_000_000
_CARD = """# shapes-vl

| | |
|---|---|
| Task | short answers about synthetic scenes: colour, shape, count, presence, place, relation, text |
| Layout | LLaVA-1.5: CLIP tower ({side} x {side} pixels, {tokens} visual tokens), two-layer projector, Llama decoder |
| Weights | {parameters:.1f} million parameters, stored in bfloat16, computed with in float32 |
| Made by | `thriftree.zoo.shapes_vl`, from nothing, recipe {version}; no data but its own drawings |
| Licence | Apache-2.0 |

A test bed for visual-token pruning, not an assistant: it knows nothing beyond such scenes and seven kinds of question.
Each patch of the tower learnt to say what it shows, CLS to name what the scene holds, so that its attention means
something. No answer ever taught the tower, or it would have spread what it sees over all patches. The decoder learnt
from rows of which parts of the empty ground were left out at random: it reads any subset of visual tokens, and what a
pruned answer loses is what was pruned.
"""


def make(out: Path | None = None, recipe: Recipe | None = None, progress: Say = say) -> Path:
    """Train by `recipe` and save in `out` (default: a folder of that recipe in the cache), which appears whole.

    Raises:
        ZooError: interrupted (the state is kept), or `out` cannot be written or is something else.
    """
    recipe = recipe or Recipe()
    target = (out or cache.models() / f"{NAME}-{version(recipe)}").absolute()
    if (target / cache.STAMP).exists():
        return target
    if target.exists():
        raise ZooError(f"{target} is there and is no finished {NAME}: name another folder")
    try:
        with cache.lock(target):
            if not (target / cache.STAMP).exists():
                _make(target, recipe, progress)
    except OSError as error:
        raise ZooError(f"cannot make {NAME} in {target}: {error.strerror or error}") from error
    return target


def version(recipe: Recipe) -> str:
    """Eight digits that another recipe changes."""
    return hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode()).hexdigest()[:8]


def _make(target: Path, recipe: Recipe, progress: Say) -> None:
    from thriftree.zoo.cpu_wheels import repair

    repair()
    cache.require_space(target.parent, _NEED)
    notebook = target.parent / f".{target.name}.training"
    course = Course(recipe, notebook, progress)
    how_long = "six minutes on an H100" if course.device == "cuda" else "days without a GPU"
    progress(f"{NAME}: training it, {how_long}; cut it and call again, and it goes on")
    try:
        course.run()
    except KeyboardInterrupt:
        course.save()
        raise ZooError(f"interrupted at step {course.step} of {course.steps}; the same command goes on there") from None
    with cache.appear(target) as out:
        finish(course, out)
    notebook.unlink(missing_ok=True)
    progress(f"{NAME}: ready")


def finish(course: Course, out: Path) -> None:
    """Checkpoint, card and stamp of a trained course."""
    from thriftree.zoo.shapes_vl import save

    save.save(course.model, course.tokenizer, out)
    fields = {"side": SIDE, "tokens": TOKENS, "version": version(course.recipe)}
    parameters = sum(weight.numel() for weight in course.model.parameters()) / 1e6
    (out / "README.md").write_text(_CARD.format(parameters=parameters, **fields))
    for file in out.iterdir():
        file.chmod(0o644)
    stamp = {"recipe": asdict(course.recipe), "sha256": _sha256(out / "model.safetensors")}
    (out / cache.STAMP).write_text(json.dumps(stamp, indent=2) + "\n")


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
