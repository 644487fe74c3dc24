"""The recipe: first the tower learns to see, then the decoder to answer beside it. Resumes where it was cut."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from thriftree.zoo.cache import Say, ZooError, say
from thriftree.zoo.shapes_vl import net, pool, words
from thriftree.zoo.shapes_vl.lessons import Batch, Writer
from thriftree.zoo.shapes_vl.losses import Naming, answering_loss, seeing_loss
from thriftree.zoo.shapes_vl.pool import Labels, Pool
from thriftree.zoo.shapes_vl.timetable import Timetable

_SAVE_SECONDS = 45.0
_REPORT = 50


@dataclass(frozen=True)
class Recipe:
    """Everything that the weights depend on, but the machine's rounding."""

    seed: int = 1
    scenes: int = 120_000
    see_steps: int = 800
    see_batch: int = 256
    see_rate: float = 2e-3
    answer_steps: int = 2_700
    answer_batch: int = 256
    answer_rate: float = 1.2e-3
    see_on: float = 0.5  # share of the tower's rate while the decoder learns
    naming: float = 0.2  # weight of that loss
    each: int = 12  # questions behind a picture


class Course:
    """The training as a sequence of steps; `state` is all of it between two steps."""

    def __init__(self, recipe: Recipe, notebook: Path, progress: Say = say, device: str = "") -> None:
        import torch

        from thriftree.zoo.shapes_vl.optim import optimizers

        self.recipe, self.notebook, self.progress = recipe, notebook, progress
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_float32_matmul_precision("high" if self.device == "cuda" else "highest")
        self.tokenizer = words.tokenizer()
        self.writer = Writer(self.tokenizer)
        self.naming = Naming(self.writer)
        self.model = net.build(len(self.tokenizer), recipe.seed).to(self.device)
        self.heads = net.heads().to(self.device)
        self.tower = self.model.model.vision_tower
        self.step, self.losses = 0, [math.nan, math.nan]
        self._lessons: Iterator[tuple[Any, Batch | None]] | None = None
        language = [self.model.model.multi_modal_projector, self.model.model.language_model, self.model.lm_head]
        self._optimizers = [
            optimizers([self.tower, self.heads], recipe.see_rate),
            optimizers(language, recipe.answer_rate),
        ]
        for one in self._every():
            for group in one.param_groups:
                group["top"] = group["lr"]
        self._load()

    @property
    def steps(self) -> int:
        return self.recipe.see_steps + self.recipe.answer_steps

    @property
    def part(self) -> str:
        """What the next step is."""
        return "seeing" if self.step < self.recipe.see_steps else "answering"

    def run(self, seconds: float = math.inf) -> bool:
        """Train until the end or for `seconds`; true at the end. The notebook then holds the state."""
        started = saved = time.monotonic()
        while self.step < self.steps and time.monotonic() - started < seconds:
            self.once()
            if self.step % _REPORT == 0 or self.step == self.steps:
                self._report(time.monotonic() - started)
            if time.monotonic() - saved > _SAVE_SECONDS:
                self.save()
                saved = time.monotonic()
        self.save()
        return self.step >= self.steps

    def once(self) -> None:
        """One step."""
        (self._see if self.part == "seeing" else self._answer)()
        self.step += 1

    def _report(self, seconds: float) -> None:
        losses = " and ".join(f"{loss:.3f}" for loss in self.losses if not math.isnan(loss))
        self.progress(f"shapes-vl: step {self.step} of {self.steps} (then {self.part}, loss {losses}, {seconds:.0f} s)")

    def _rate(self, part: int, done: float, share: float = 1.0) -> None:
        """Warm-up, then a cosine."""
        factor = share * min(1.0, done * 20) * (0.51 + 0.49 * math.cos(math.pi * done))
        for group in (group for one in self._optimizers[part] for group in one.param_groups):
            group["lr"] = group["top"] * factor

    @cached_property
    def _pool(self) -> Pool:
        return pool.draw(self.recipe.scenes, self.device)

    def _next(self) -> tuple[Labels, Any, Batch | None]:
        """Labels and pixels [B, 3, SIDE, SIDE] of the next step's pictures, and the questions behind them."""
        import torch

        if self._lessons is None:
            table = Timetable(self.recipe, self._pool, self.writer)
            self._lessons = table.from_step(self.step, beside=self.device != "cpu")
        rows, written = next(self._lessons)
        batch = self._pool.labels.pick(torch.from_numpy(rows).to(self.device))
        return batch, self._pixels(batch.pixels), written and written.on(self.device)

    def _pixels(self, drawn: Any) -> Any:
        """In [-1, 1] as the image processor makes them, with a little more light or noise."""
        import torch

        chance = torch.Generator(self.device).manual_seed(self.recipe.seed * 1_000_003 + self.step)
        pixels = drawn.permute(0, 3, 1, 2).float() / 127.5 - 1
        light = torch.randn(len(pixels), 3, 1, 1, generator=chance, device=self.device)
        noise = torch.randn(pixels.shape, generator=chance, device=self.device)
        return (pixels + 0.03 * (light + noise)).clamp(-1, 1)

    def _see(self) -> None:
        batch, pixels, _ = self._next()
        self._rate(0, (self.step + 1) / self.recipe.see_steps)
        self._learn(0, seeing_loss(self.heads, self.tower(pixels).last_hidden_state, batch))

    def _answer(self) -> None:
        """The answers never teach the tower: it would spread what it sees over all patches, and any could be spared."""
        batch, pixels, written = self._next()
        assert written is not None
        done = (self.step + 1 - self.recipe.see_steps) / self.recipe.answer_steps
        self._rate(0, done, self.recipe.see_on)
        self._rate(1, done)
        features = self.tower(pixels).last_hidden_state
        self._learn(0, seeing_loss(self.heads, features, batch))
        named = self.naming.loss(self.model, features.detach(), batch)
        self._learn(1, answering_loss(self.model, features.detach(), written) + self.recipe.naming * named)

    def _learn(self, part: int, loss: Any) -> None:
        import torch

        mine = self._optimizers[part]
        for one in mine:
            one.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for one in mine for g in one.param_groups for p in g["params"]], 1.0)
        for one in mine:
            one.step()
        before, now = self.losses[part], float(loss.detach())
        self.losses[part] = now if math.isnan(before) else 0.95 * before + 0.05 * now

    def _every(self) -> list[Any]:
        return [one for pair in self._optimizers for one in pair]

    def _parts(self) -> dict[str, Any]:
        steppers = {f"optimizer {number}": one for number, one in enumerate(self._every())}
        return {"model": self.model, "heads": self.heads, **steppers}

    def save(self) -> None:
        import torch

        state = {name: part.state_dict() for name, part in self._parts().items()}
        scratch = self.notebook.with_suffix(".new")
        torch.save({**state, "recipe": asdict(self.recipe), "step": self.step, "losses": self.losses}, scratch)
        os.replace(scratch, self.notebook)

    def _load(self) -> None:
        import torch

        if not self.notebook.exists():
            return
        try:
            state = torch.load(self.notebook, map_location=self.device, weights_only=True)
        except Exception as error:
            raise ZooError(f"{self.notebook} is damaged ({error}): delete it to begin again") from None
        if state["recipe"] != asdict(self.recipe):
            raise ZooError(f"{self.notebook} belongs to another recipe: delete it to begin again")
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.step, self.losses = state["step"], state["losses"]
        self.progress(f"shapes-vl: goes on at step {self.step} of {self.steps}")
