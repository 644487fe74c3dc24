"""Prompts with images where users put them, as requests of an engine and as what the reference reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from vllm import SamplingParams

from thriftree.zoo import tiny_vision

from ..engines import Answer, Ask, Engine, engine
from .images import picture
from .reference import Prompt, Reference, Reply, Selections

FAMILIES = tuple(tiny_vision.FAMILIES)
TOLERANCE = 2e-5  # of a log-probability, float32
CANDIDATES = 5  # log-probabilities that a request asks for
SYSTEM = "You answer in few words."


@dataclass(frozen=True)
class Scene:
    """A prompt with its images. `text` says where they stand: ``*`` is an image."""

    text: str
    sizes: tuple[tuple[int, int], ...] = ((168, 168),)
    seed: int = 1

    @property
    def images(self) -> list[Any]:
        return [picture(self.seed + i, *size) for i, size in enumerate(self.sizes)]


#: Where an image stands, and how many there are. No prompt begins like another, so that none finds another's blocks.
SCENES = {
    "first": Scene("* what is in this picture?"),
    "last": Scene("Say in one word what is in this picture: *"),
    "middle": Scene("Here is a picture * and now: what is in it?"),
    "only": Scene("*"),
    "two": Scene("One * and another * differ in what?", ((168, 168), (320, 120)), seed=3),
    "two_touch": Scene("Both: ** alike?", ((100, 300), (168, 168)), seed=5),
    "same_twice": Scene("Left * and right *", ((168, 168), (168, 168)), seed=7),
    "small": Scene("A small one * here", ((60, 60),), seed=9),
    "wide": Scene("A wide one * here", ((320, 120),), seed=10),
    "large": Scene("A large one * here", ((700, 500),), seed=11),
    "odd": Scene("An odd one * here", ((211, 133),), seed=12),
    "system": Scene(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n*What?<|im_end|>\n", seed=13),
    "no_image": Scene("No picture at all, just words.", ()),
}


def ids_of(tokenizer: Any, family: str, text: str) -> list[int]:
    """Token ids of `text` in which every ``*`` is an image as this family marks it."""
    ids: list[int] = tokenizer.encode(text.replace("*", tiny_vision.FAMILIES[family].image), add_special_tokens=False)
    return ids


def params(tokens: int = 8, **more: Any) -> SamplingParams:
    """Greedy with log-probabilities, to the end of `tokens`."""
    return SamplingParams(max_tokens=tokens, temperature=0.0, logprobs=CANDIDATES, ignore_eos=True, **more)


def ask(tokenizer: Any, family: str, scene: Scene, tokens: int = 8, arrives: int = 0, **more: Any) -> Ask:
    """A scene as a request; `more` goes to its sampling parameters (`extra_args`, say)."""
    prompt = ids_of(tokenizer, family, scene.text)
    return Ask(prompt, params(tokens, **more), arrives, images=scene.images)


def lay_out(reference: Reference, ask: Ask, selections: Selections = None) -> Prompt:
    """The same request for the reference."""
    return reference.lay_out(ask.prompt, [reference.see(image) for image in ask.images], selections)


def expect(reference: Reference, ask: Ask, selections: Selections = None) -> Reply:
    """What a request must answer, given which rows of each image it keeps (None: all)."""
    assert ask.params.max_tokens is not None
    return reference.generate(lay_out(reference, ask, selections), ask.params.max_tokens)


def gap(answer: Answer | None, reply: Reply) -> float:
    """Largest difference of a log-probability over all tokens; infinite where a token is another."""
    assert answer is not None and answer.logprobs[0] is not None
    if answer.tokens[0] != reply.tokens:
        return float("inf")
    steps = zip(answer.logprobs[0], reply.logprobs, strict=True)
    return max(abs(value - float(row[token])) for step, row in steps for token, value in step.items())


def assert_equal(answers: Sequence[Answer | None], replies: Sequence[Reply], tolerance: float = TOLERANCE) -> None:
    """Tokens equal, log-probabilities within `tolerance`.

    Raises:
        AssertionError: it says which requests differ and by how much.
    """
    gaps = [gap(answer, reply) for answer, reply in zip(answers, replies, strict=True)]
    assert all(one <= tolerance for one in gaps), f"log-probabilities differ by {[f'{one:.1e}' for one in gaps]}"


def assert_bitwise(plain: Sequence[Answer | None], ours: Sequence[Answer | None]) -> None:
    """Tokens and log-probabilities equal to the last bit."""
    for number, (a, b) in enumerate(zip(plain, ours, strict=True)):
        assert a is not None and b is not None
        assert b.tokens == a.tokens, f"request {number}"
        assert b.logprobs == a.logprobs, f"request {number}"


def flags(**more: Any) -> dict[str, Any]:
    """Settings of an engine for these models: several images a request, small blocks, one thread's worth of memory."""
    return {"limit_mm_per_prompt": {"image": 4, "video": 0}, "block_size": 32, "max_model_len": 1024, **more}


@contextmanager
def two_ranks(path: str, **more: Any) -> Iterator[Engine]:
    """An engine on two tensor-parallel ranks, each a process of its own (so `Engine.runner` is out of reach)."""
    ranks = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        with engine(path, **flags(**ranks, **more)) as running:
            yield running
