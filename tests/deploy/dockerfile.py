"""A Dockerfile as data: stages and instructions, and the shell steps that one stage is made of."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """``RUN apt-get update``: word and text, continuation lines joined."""

    word: str
    text: str


@dataclass
class Stage:
    """What follows one FROM."""

    base: str
    name: str
    steps: list[Instruction] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        return [step.text for step in self.steps if step.word == word]


def instructions(text: str) -> Iterator[Instruction]:
    """In order; comments and empty lines are left out."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "")
    for line in joined.splitlines():
        word, _, rest = line.strip().partition(" ")
        yield Instruction(word.upper(), rest.strip())


def parse(file: Path, arguments: Mapping[str, str]) -> dict[str, Stage]:
    """Stages by name (the last one: ""), with the arguments before the first FROM filled in where FROM uses them."""
    stages: dict[str, Stage] = {}
    known: dict[str, str] = {}
    current: Stage | None = None
    for step in instructions(file.read_text()):
        if step.word == "FROM":
            base, _, name = fill(step.text, known).partition(" AS ")
            current = stages[name] = Stage(base, name)
        elif current is None:
            name, _, default = step.text.partition("=")
            known[name] = arguments.get(name, default)
        else:
            current.steps.append(step)
    return stages


def fill(text: str, values: Mapping[str, str]) -> str:
    """``${NAME}`` replaced; an unknown name is a KeyError."""
    return re.sub(r"\$\{(\w+)\}", lambda match: values[match.group(1)], text)


def lineage(stages: Mapping[str, Stage], name: str) -> list[Stage]:
    """The stage and what it is built on, the oldest first."""
    stage = stages[name]
    return [*lineage(stages, stage.base), stage] if stage.base in stages else [stage]


def script(stages: Mapping[str, Stage], name: str, arguments: Mapping[str, str]) -> str:
    """The stage as a bash script: RUN as written, ENV and ARG exported, COPY as `cp` from the folder `/context`."""
    lines = ["set -eux"]
    for stage in lineage(stages, name):
        for step in stage.steps:
            lines += _shell(step, arguments)
    return "\n".join(lines) + "\n"


def _shell(step: Instruction, arguments: Mapping[str, str]) -> list[str]:
    if step.word == "RUN":
        return [f"sh -euc {shlex.quote(step.text)}"]
    if step.word == "ENV":
        return [f"export {step.text}"]
    if step.word == "ARG":
        name, _, default = step.text.partition("=")
        return [f"export {name}={shlex.quote(arguments.get(name, default))}"]
    if step.word == "WORKDIR":
        return [f"mkdir -p {step.text}", f"cd {step.text}"]
    if step.word == "COPY" and not step.text.startswith("--"):
        *sources, target = step.text.split()
        return [f"cp -r /context/{source} {target}" for source in sources]
    raise ValueError(f"no shell for {step.word} {step.text}")
