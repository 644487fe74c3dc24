"""The recipe: first the tower learns to see, then the decoder to answer beside it. Resumes where it was cut."""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import default_rng

from thriftree.zoo.cache import Say, ZooError, say
from thriftree.zoo.shapes_vl import lessons, net, words
from thriftree.zoo.shapes_vl.lessons import Batch, Lesson, Writer
from thriftree.zoo.shapes_vl.losses import Naming, answering_loss, seeing_loss

_SAVE_SECONDS = 45.0
_REPORT = 50


@dataclass(frozen=True)
class Recipe:
    """Everything that the weights depend on, but the machine's rounding."""

    seed: int = 1
    scenes: int = 8_000
    see_steps: int = 700
    see_batch: int = 32
    see_rate: float = 2e-3
    answer_steps: int = 1_500
    answer_batch: int = 16
    answer_rate: float = 1.2e-3
    see_on: float = 0.5  # share of the tower's rate while the decoder learns
    naming: float = 0.2  # weight of that loss
    each: int = 12  # questions behind a picture


class Course:
    """The training as a sequence of steps; `state` is all of it between two steps."""

    def __init__(self, recipe: Recipe, notebook: Path, progress: Say = say) -> None:
        from thriftree.zoo.shapes_vl.optim import optimizers

        self.recipe, self.notebook, self.progress = recipe, notebook, progress
        self.tokenizer = words.tokenizer()
        self.writer = Writer(self.tokenizer)
        self.naming = Naming(self.writer)
        self.model = net.build(len(self.tokenizer), recipe.seed)
        self.heads = net.heads()
        self.tower = self.model.model.vision_tower
        self.step, self.losses = 0, [math.nan, math.nan]
        self._pool: dict[int, Lesson] = {}
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

    def _lessons(self, count: int, rng: Any) -> list[Lesson]:
        seeds = rng.integers(self.recipe.scenes, size=count)
        for seed in map(int, seeds):
            if seed not in self._pool:
                self._pool[seed] = lessons.lesson(seed)
        return [self._pool[int(seed)] for seed in seeds]

    def _rate(self, part: int, done: float, share: float = 1.0) -> None:
        """Warm-up, then a cosine."""
        factor = share * min(1.0, done * 20) * (0.51 + 0.49 * math.cos(math.pi * done))
        for group in (group for one in self._optimizers[part] for group in one.param_groups):
            group["lr"] = group["top"] * factor

    def _see(self) -> None:
        rng = default_rng((self.recipe.seed, self.step))
        batch = self._lessons(self.recipe.see_batch, rng)
        self._rate(0, (self.step + 1) / self.recipe.see_steps)
        features = self.tower(_pixels(batch, rng)).last_hidden_state
        self._learn(0, seeing_loss(self.heads, features, batch))

    def _answer(self) -> None:
        """The answers never teach the tower: it would spread what it sees over all patches, and any could be spared."""
        rng = default_rng((self.recipe.seed, self.step))
        batch = self._lessons(self.recipe.answer_batch, rng)
        written = self._written(batch, rng)
        done = (self.step + 1 - self.recipe.see_steps) / self.recipe.answer_steps
        self._rate(0, done, self.recipe.see_on)
        self._rate(1, done)
        features = self.tower(_pixels(batch, rng)).last_hidden_state
        self._learn(0, seeing_loss(self.heads, features, batch))
        self._learn(1, self._answers_loss(features.detach(), batch, written))

    def _answers_loss(self, features: Any, batch: list[Lesson], written: Batch) -> Any:
        named = self.naming.loss(self.model, features, batch)
        return answering_loss(self.model, features, written) + self.recipe.naming * named

    def _written(self, batch: list[Lesson], rng: Any) -> Batch:
        """A quarter of the batches keep all of the ground, the others little of it more often than much."""
        share = 1.0 if rng.random() < 0.25 else float(rng.random() ** 2)
        return self.writer.batch(batch, self.recipe.each, rng, share)

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
            state = torch.load(self.notebook, weights_only=True)
        except Exception as error:
            raise ZooError(f"{self.notebook} is damaged ({error}): delete it to begin again") from None
        if state["recipe"] != asdict(self.recipe):
            raise ZooError(f"{self.notebook} belongs to another recipe: delete it to begin again")
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.step, self.losses = state["step"], state["losses"]
        self.progress(f"shapes-vl: goes on at step {self.step} of {self.steps}")


def _pixels(batch: list[Lesson], rng: Any) -> Any:
    """[B, 3, SIDE, SIDE] in [-1, 1] as the image processor makes them, with a little more light or noise."""
    import torch

    pixels = torch.from_numpy(np.stack([one.pixels for one in batch])).permute(0, 3, 1, 2).float() / 127.5 - 1
    light = torch.from_numpy(rng.normal(0, 0.03, (len(batch), 3, 1, 1)).astype(np.float32))
    noise = torch.from_numpy(rng.standard_normal(pixels.shape, dtype=np.float32) * 0.03)
    return (pixels + light + noise).clamp(-1, 1)
