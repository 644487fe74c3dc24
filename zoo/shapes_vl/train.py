"""The recipe: teach the tower to see, then the projector and the decoder to answer. Resumes where it was cut."""

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

_SAVE_SECONDS = 45.0
_REPORT = 50


@dataclass(frozen=True)
class Recipe:
    """Everything that the weights depend on, but the machine's rounding."""

    seed: int = 1
    scenes: int = 12_000
    see_steps: int = 1_200
    see_batch: int = 32
    see_rate: float = 1.5e-3
    answer_steps: int = 2_000
    answer_batch: int = 16
    answer_rate: float = 1.5e-3
    each: int = 12  # questions behind a picture


class Course:
    """The training as a sequence of steps; `state` is all of it between two steps."""

    def __init__(self, recipe: Recipe, notebook: Path, progress: Say = say) -> None:
        import torch

        self.recipe, self.notebook, self.progress = recipe, notebook, progress
        self.tokenizer = words.tokenizer()
        self.writer = Writer(self.tokenizer)
        self.model = net.build(len(self.tokenizer), recipe.seed)
        self.heads = net.heads()
        self.tower = self.model.model.vision_tower
        self.step, self.losses = 0, [math.nan, math.nan]
        self._pool: dict[int, Lesson] = {}
        self._optimizers = [
            _adam(torch, [self.tower, self.heads], recipe.see_rate),
            _adam(
                torch,
                [self.model.model.multi_modal_projector, self.model.model.language_model, self.model.lm_head],
                recipe.answer_rate,
            ),
        ]
        self._load()

    @property
    def steps(self) -> int:
        return self.recipe.see_steps + self.recipe.answer_steps

    def run(self, seconds: float = math.inf) -> bool:
        """Train until the end or for `seconds`; true at the end. The notebook then holds the state."""
        started = saved = time.monotonic()
        while self.step < self.steps and time.monotonic() - started < seconds:
            seeing = self.step < self.recipe.see_steps
            (self._see if seeing else self._answer)()
            self.step += 1
            if self.step % _REPORT == 0 or self.step == self.steps:
                self._report(time.monotonic() - started)
            if time.monotonic() - saved > _SAVE_SECONDS:
                self.save()
                saved = time.monotonic()
        self.save()
        return self.step >= self.steps

    def _report(self, seconds: float) -> None:
        part = "seeing" if self.step <= self.recipe.see_steps else "answering"
        loss = self.losses[part == "answering"]
        self.progress(f"shapes-vl: step {self.step} of {self.steps} ({part}, loss {loss:.3f}, {seconds:.0f} s)")

    def _lessons(self, count: int, rng: Any) -> list[Lesson]:
        seeds = rng.integers(self.recipe.scenes, size=count)
        for seed in map(int, seeds):
            if seed not in self._pool:
                self._pool[seed] = lessons.lesson(seed)
        return [self._pool[int(seed)] for seed in seeds]

    def _rate(self, optimizer: Any, done: float, top: float) -> None:
        """Warm-up, then a cosine."""
        for group in optimizer.param_groups:
            group["lr"] = top * min(1.0, done * 20) * (0.51 + 0.49 * math.cos(math.pi * done))

    def _see(self) -> None:
        rng = default_rng((self.recipe.seed, self.step))
        batch = self._lessons(self.recipe.see_batch, rng)
        optimizer = self._optimizers[0]
        self._rate(optimizer, (self.step + 1) / self.recipe.see_steps, self.recipe.see_rate)
        features = self.tower(_pixels(batch, rng)).last_hidden_state
        self._learn(0, seeing_loss(self.heads, features, batch), optimizer)

    def _answer(self) -> None:
        import torch

        rng = default_rng((self.recipe.seed, self.step))
        done = (self.step + 1 - self.recipe.see_steps) / self.recipe.answer_steps
        batch = self._lessons(self.recipe.answer_batch, rng)
        share = 1.0 if rng.random() < 0.25 else float(rng.random() ** 2)
        written = self.writer.batch(batch, self.recipe.each, rng, share)
        optimizer = self._optimizers[1]
        self._rate(optimizer, done, self.recipe.answer_rate)
        with torch.no_grad():
            features = self.tower(_pixels(batch, rng)).last_hidden_state
        self._learn(1, answering_loss(self.model, features, written), optimizer)

    def _learn(self, part: int, loss: Any, optimizer: Any) -> None:
        import torch

        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
        optimizer.step()
        before, now = self.losses[part], float(loss.detach())
        self.losses[part] = now if math.isnan(before) else 0.95 * before + 0.05 * now

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "heads": self.heads, "see": self._optimizers[0], "answer": self._optimizers[1]}

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


def _adam(torch: Any, modules: list[Any], rate: float) -> Any:
    every = [p for module in modules for p in module.parameters()]
    groups = [
        {"params": [p for p in every if p.ndim > 1], "weight_decay": 0.02},
        {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-8)


def _pixels(batch: list[Lesson], rng: Any) -> Any:
    """[B, 3, SIDE, SIDE] in [-1, 1] as the image processor makes them, with a little more light or noise."""
    import torch

    pixels = torch.from_numpy(np.stack([one.pixels for one in batch])).permute(0, 3, 1, 2).float() / 127.5 - 1
    light = torch.from_numpy(rng.normal(0, 0.03, (len(batch), 3, 1, 1)).astype(np.float32))
    noise = torch.from_numpy(rng.standard_normal(pixels.shape, dtype=np.float32) * 0.03)
    return (pixels + light + noise).clamp(-1, 1)


def seeing_loss(heads: Any, features: Any, batch: list[Lesson]) -> Any:
    """What, colour, order, middle and place for every patch; the scene's names for CLS."""
    import torch
    from torch.nn import functional as F

    label = {name: torch.from_numpy(np.stack([one.patches[name] for one in batch])) for name in batch[0].patches}
    names = torch.from_numpy(np.stack([one.names for one in batch]))
    whole, patches = features[:, 0], features[:, 1:]
    shown = label["what"] > 0
    weight = torch.where(shown, 1.0, 0.3)

    def classes(name: str) -> Any:
        loss = F.cross_entropy(heads[name](patches).transpose(1, 2), label[name], reduction="none")
        return (loss * weight).sum() / shown.sum()

    middle = F.binary_cross_entropy_with_logits(heads["middle"](patches)[..., 0], label["middle"], reduction="none")
    where = F.smooth_l1_loss(heads["where"](patches)[shown], label["where"][shown], beta=0.1)
    said = F.binary_cross_entropy_with_logits(heads["names"](whole), names)
    total: Any = classes("what") + classes("colour") + 0.5 * classes("order")
    return total + (middle * weight).sum() / shown.sum() + 2 * where + 10 * said


def answering_loss(model: Any, features: Any, batch: Batch) -> Any:
    """Cross entropy of the answers' tokens."""
    from torch.nn import functional as F

    logits, label = answer_logits(model, features, batch)
    return F.cross_entropy(logits, label)


def answer_logits(model: Any, features: Any, batch: Batch) -> tuple[Any, Any]:
    """Logits [n, vocabulary] where answers are given, and the right tokens [n]."""
    import torch

    rows, ids = torch.from_numpy(batch.rows), torch.from_numpy(batch.ids)
    seen = model.model.multi_modal_projector(
        torch.gather(features[:, 1:], 1, rows[..., None].expand(-1, -1, features.shape[-1]))
    )
    embedded = model.model.language_model.embed_tokens(ids)
    start = 2  # after <s> and the role
    embedded = torch.cat([embedded[:, :start], seen, embedded[:, start + rows.shape[1] :]], 1)
    hidden = model.model.language_model(
        inputs_embeds=embedded,
        position_ids=torch.from_numpy(batch.position),
        attention_mask=_mask(torch.from_numpy(batch.block), torch.from_numpy(batch.chained)),
        use_cache=False,
    ).last_hidden_state
    label = torch.from_numpy(batch.label)[:, 1:]
    given = label >= 0
    return model.lm_head(hidden[:, :-1][given]), label[given]


def _mask(block: Any, chained: Any) -> Any:
    """[B, 1, T, T]: the past, but of other questions only where they are a conversation."""
    import torch

    length = block.shape[1]
    mine, theirs = block[:, :, None], block[:, None, :]
    past = torch.ones(length, length, dtype=torch.bool).tril()
    allowed = (theirs == -1) | (theirs == mine) | (chained[:, None, None] & (theirs >= 0))
    return ((past & allowed & (theirs != -2)) | torch.eye(length, dtype=torch.bool))[:, None]
