"""`thriftree tune tree MODEL`: a deployment's own static tree for `token_recycling`.

The model answers prompts greedily, with the eight most likely tokens of every step. Replayed in order, each answer asks
the rows that the earlier ones left: was the true next token in the row, and as which child? These shares are the rank
acceptance; `tuned_shape` makes the best tree of it. Rows come from emitted tokens only, so an engine, which also keeps
the rows of rejected nodes and of prompts, finds a row more often; the shares of found rows hardly change.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thriftree.benchmarks import prompts
from thriftree.plugins.speculative.rows import Rows, pair_key
from thriftree.plugins.speculative.shape import Shape, tuned_shape

TOP = 8


@dataclass(frozen=True, slots=True)
class Spoken:
    """An answer: `rows[i]` are the most likely tokens where `output[i]` was said."""

    prompt: Sequence[int]
    output: Sequence[int]
    rows: Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Ranks:
    """How often the next token was child r of the row known for its context."""

    acceptance: tuple[float, ...]
    asked: int  # positions where a row was known
    positions: int


def rank_acceptance(answers: Iterable[Spoken]) -> Ranks:
    """Rows of the last two tokens, else of the last one, as `token_recycling` reads them."""
    rows = Rows()
    hits = [0] * TOP
    asked = positions = 0
    for answer in answers:
        before, last = (-1, -1, *answer.prompt[-2:])[-2:]
        for token, row in zip(answer.output, answer.rows, strict=True):
            known = rows.two.get(pair_key(before, last)) if before >= 0 else ()
            known = known or rows.one.get(last)
            positions += 1
            if known:
                asked += 1
                if token in known:
                    hits[known.index(token)] += 1
            padded = [*row[:TOP], *[-1] * (TOP - len(row))]
            rows.write([(before, last)], np.array([padded], dtype=np.int32))
            before, last = last, token
    return Ranks(tuple(hit / asked if asked else 0.0 for hit in hits), asked, positions)


def paths(shape: Shape) -> str:
    """As `token_recycling`'s `shape` parameter: paths of child ranks."""
    made: list[str] = []
    for parent, rank in zip(shape.parents, shape.ranks, strict=True):
        made.append((made[parent] if parent >= 0 else "") + str(rank))
    return " ".join(made)


def main(argv: list[str]) -> int:
    try:
        args = _parser().parse_args(argv)
    except SystemExit as leaving:
        return int(leaving.code or 0)
    try:
        asked = _prompts(args.prompts)[: args.limit]
        ranks = rank_acceptance(_speak(args, asked))
        if not ranks.asked:
            raise ValueError("the answers were too short or too different: no row was ever met again")
        shape = tuned_shape(ranks.acceptance, args.nodes)
        args.out.write_text(json.dumps(_result(args, len(asked), ranks, shape), indent=1) + "\n")
    except (OSError, ValueError, RuntimeError) as error:
        print(f"thriftree tune tree: {error}", file=sys.stderr)
        return 1
    print(f"{ranks.asked} of {ranks.positions} positions had a row; rank acceptance:")
    for rank, share in enumerate(ranks.acceptance):
        print(f"  {rank}  {share:.3f}")
    print(f"{len(shape)} nodes, {1 + sum(shape.values):.2f} tokens per step expected where rows are known: {args.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="thriftree tune", description=__doc__.split("\n\n")[1])
    tree = made.add_subparsers(dest="what", required=True, metavar="tree").add_parser("tree")
    tree.add_argument("model", help="a folder or a hub id; 'default' for the default model")
    tree.add_argument(
        "--prompts", type=Path, metavar="FILE", help='JSON lines with "prompt" (default: the benchmark\'s)'
    )
    tree.add_argument("--out", type=Path, default=Path("shape.json"), metavar="FILE")
    tree.add_argument("--nodes", type=_count, default=64)
    tree.add_argument("--tokens", type=_count, default=96, help="longest answer")
    tree.add_argument("--limit", type=_count, default=None, help="use the first so many prompts")
    tree.add_argument("--dtype", default="float32")
    return made


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _prompts(file: Path | None) -> list[str]:
    if file is None:
        lists = list(prompts.load().values())
        return [members[i].text for i in range(max(map(len, lists))) for members in lists if i < len(members)]
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
                raise ValueError(f'{file}, line {number}: expected an object with "prompt"')
            found.append(row["prompt"])
    if not found:
        raise ValueError(f"{file} has no prompts")
    return found


def _speak(args: argparse.Namespace, texts: Sequence[str]) -> list[Spoken]:
    """Greedy answers of plain vLLM, with the most likely tokens of every step."""
    from thriftree.server import vllm_args

    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if args.model == "default":
        from thriftree.zoo import smollm2

        args.model = str(smollm2.ensure())
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    vllm_args.environment()
    from vllm import LLM, SamplingParams

    context = prompts.context(args.model, 4096)
    wanted = [prompts.Prompt("", text) for text in texts]
    encoded = prompts.encode(wanted, args.model, context - args.tokens - 1)
    engine = LLM(args.model, dtype=args.dtype, max_model_len=context, max_num_seqs=16)
    params = SamplingParams(temperature=0, max_tokens=args.tokens, logprobs=TOP)
    outputs = engine.generate([{"prompt_token_ids": list(p.ids)} for p in encoded], params)
    return [_spoken(output) for output in outputs]


def _spoken(output: Any) -> Spoken:
    answer = output.outputs[0]
    rows = [sorted(step, key=lambda token: -step[token].logprob)[:TOP] for step in answer.logprobs]
    return Spoken(output.prompt_token_ids, answer.token_ids, rows)


def _result(args: argparse.Namespace, count: int, ranks: Ranks, shape: Shape) -> dict[str, Any]:
    return {
        "model": Path(args.model).name,
        "dtype": args.dtype,
        "prompts": count,
        "positions": ranks.positions,
        "known_rows": ranks.asked,
        "rank_acceptance": [round(share, 4) for share in ranks.acceptance],
        "expected_tokens_per_step": round(1 + sum(shape.values), 3),
        "speculation": {"method": "token_recycling", "shape": paths(shape)},
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
