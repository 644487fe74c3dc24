"""Head files: which KV heads of a model look back at earlier occurrences, as `thriftree probe heads` found it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_VERSION = 1
_SHIPPED = Path(__file__).parent / "data"

#: Shares of all KV heads that give the default model the heads its table was measured with: 4 of 90, and 1 of 90.
INDUCTION, ECHO = 0.045, 0.011

Scores = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Fingerprint:
    """What a head file is about: it fits every checkpoint of this shape, fine-tuned ones among them."""

    model_type: str
    layers: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, config: Any) -> Fingerprint:
        """Of a transformers config."""
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(config.model_type, config.num_hidden_layers, kv_heads, dim)


@dataclass(frozen=True)
class HeadFile:
    """Scores of every KV head, ``[layers][kv_heads]`` in [0, 1].

    Induction: mean attention to the token that followed an earlier occurrence of the current one. Echo: to these
    occurrences themselves. Both are the maximum over the query heads of a KV head.
    """

    model: str
    fingerprint: Fingerprint
    induction: Scores
    echo: Scores
    tokens: int  # random tokens that were repeated
    repeats: int
    seed: int

    def retrieval(self, induction: int | float = INDUCTION, echo: int | float = ECHO) -> tuple[tuple[int, ...], ...]:
        """The retrieval heads of each layer: the best by induction, and the best by echo among the others.

        Args:
            induction, echo: how many heads (int), or the share of all KV heads (float; above 0 at least one head).

        Raises:
            ValueError: more heads than there are, or a negative number.
        """
        best = self.ranked(induction, echo)
        return tuple(tuple(sorted(h for at, h in best if at == layer)) for layer in range(self.fingerprint.layers))

    def ranked(self, induction: int | float = INDUCTION, echo: int | float = ECHO) -> list[tuple[int, int]]:
        """The same heads as (layer, head): by echo first, then by induction, the best first.

        Whoever cannot afford all of them takes them from the front.
        """
        by_induction, by_echo = self._count("induction", induction), self._count("echo", echo)
        if by_induction + by_echo > (total := self.fingerprint.layers * self.fingerprint.kv_heads):
            raise ValueError(f"induction + echo: {by_induction} + {by_echo} heads of a model that has {total}")
        chosen = _order(self.induction)[:by_induction]
        return [head for head in _order(self.echo) if head not in chosen][:by_echo] + chosen

    def _count(self, name: str, asked: int | float) -> int:
        if asked < 0 or (isinstance(asked, float) and not asked <= 1.0):
            raise ValueError(f"{name}: must be a number of heads or a share in [0, 1], not {asked}")
        if isinstance(asked, int):
            return asked
        return max(1, round(asked * self.fingerprint.layers * self.fingerprint.kv_heads)) if asked else 0

    def check(self, found: Fingerprint) -> None:
        """
        Raises:
            ValueError: the heads are those of another model.
        """
        mine, theirs = asdict(self.fingerprint), asdict(found)
        differ = [f"{name} {mine[name]} != {theirs[name]}" for name in mine if mine[name] != theirs[name]]
        if differ:
            raise ValueError(f"head file of {self.model}: not for this model ({', '.join(differ)})")

    def dump(self) -> str:
        """JSON, one layer a line."""
        head = {"version": _VERSION, **asdict(self)}
        induction, echo = head.pop("induction"), head.pop("echo")
        lines = [f" {json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
        for name, scores, end in (("induction", induction, ","), ("echo", echo, "")):
            rows = ",\n".join(f"  {json.dumps(list(row))}" for row in scores)
            lines.append(f' "{name}": [\n{rows}\n ]{end}')
        return "{\n" + "\n".join(lines) + "\n}\n"

    @classmethod
    def load(cls, path: str | Path) -> HeadFile:
        """
        Raises:
            ValueError: not there, or not a head file; the message names the file and the field.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"head file {path}: {error.strerror or error}") from error
        except ValueError as error:
            raise ValueError(f"head file {path}: not JSON ({error})") from error
        try:
            return _parse(data)
        except ValueError as error:
            raise ValueError(
                f"head file {path}: {error}; `thriftree probe heads MODEL --out FILE` makes one"
            ) from error


def shipped(fingerprint: Fingerprint) -> HeadFile | None:
    """The head file in this package for a model of that shape, if there is one."""
    found = (HeadFile.load(path) for path in sorted(_SHIPPED.glob("*.heads.json")))
    return next((file for file in found if file.fingerprint == fingerprint), None)


def _order(scores: Scores) -> list[tuple[int, int]]:
    """(layer, head), the best first; of equals the first in the model."""
    heads = [(layer, head) for layer, row in enumerate(scores) for head in range(len(row))]
    return sorted(heads, key=lambda at: (-scores[at[0]][at[1]], at))


def _parse(data: Any) -> HeadFile:
    if not isinstance(data, dict):
        raise ValueError("must be an object")
    if data.get("version") != _VERSION:
        raise ValueError(f"version: must be {_VERSION}, not {data.get('version')!r}")
    mark = data.get("fingerprint")
    if not isinstance(mark, dict):
        raise ValueError("fingerprint: must be an object")
    shape = {name: _whole(mark, name, "fingerprint.") for name in ("layers", "kv_heads", "head_dim")}
    fingerprint = Fingerprint(model_type=_text(mark, "model_type", "fingerprint."), **shape)
    induction, echo = (_scores(data, name, fingerprint) for name in ("induction", "echo"))
    tokens, repeats, seed = (_whole(data, name, least=least) for name, least in _SETTINGS)
    return HeadFile(_text(data, "model"), fingerprint, induction, echo, tokens, repeats, seed)


_SETTINGS = (("tokens", 1), ("repeats", 2), ("seed", 0))


def _text(data: dict[str, Any], name: str, prefix: str = "") -> str:
    if not isinstance(found := data.get(name), str) or not found:
        raise ValueError(f"{prefix}{name}: must be a text, not {found!r}")
    return found


def _whole(data: dict[str, Any], name: str, prefix: str = "", least: int = 1) -> int:
    if not isinstance(found := data.get(name), int) or isinstance(found, bool) or found < least:
        raise ValueError(f"{prefix}{name}: must be a whole number from {least}, not {found!r}")
    return found


def _scores(data: dict[str, Any], name: str, shape: Fingerprint) -> Scores:
    rows = data.get(name)
    if not isinstance(rows, list) or len(rows) != shape.layers:
        raise ValueError(f"{name}: must be a list of {shape.layers} layers")
    for layer, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != shape.kv_heads or not all(map(_is_score, row)):
            raise ValueError(f"{name}[{layer}]: must be {shape.kv_heads} numbers in [0, 1]")
    return tuple(tuple(float(score) for score in row) for row in rows)


def _is_score(score: Any) -> bool:
    return isinstance(score, int | float) and not isinstance(score, bool) and 0.0 <= score <= 1.0


def rounded(scores: Sequence[Sequence[float]]) -> Scores:
    """To what a file holds, so that the last bits of a machine's arithmetic do not show."""
    return tuple(tuple(round(min(max(float(s), 0.0), 1.0), 4) for s in row) for row in scores)
