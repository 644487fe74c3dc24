"""Head files: what is read is checked, and what is chosen is exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from thriftree.plugins.kv_cache.heads import Fingerprint, HeadFile, shipped

_MARK = Fingerprint("llama", 3, 2, 16)
_FILE = HeadFile(
    "toy", _MARK, ((0.1, 0.9), (0.2, 0.2), (0.8, 0.0)), ((0.5, 0.99), (0.0, 0.6), (0.1, 0.6)), 10, 4, 0
)  # fmt: skip


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "toy.json"
    path.write_text(_FILE.dump())
    assert HeadFile.load(path) == _FILE


def test_heads_by_count() -> None:
    assert _FILE.retrieval(induction=2, echo=0) == ((1,), (), (0,))
    # The best by echo is the best by induction already: the next one counts, and of equals the first.
    assert _FILE.retrieval(induction=1, echo=1) == ((1,), (1,), ())
    assert _FILE.retrieval(induction=1, echo=2) == ((1,), (1,), (1,))
    assert _FILE.ranked(induction=3, echo=1) == [(1, 1), (0, 1), (2, 0), (1, 0)]
    assert _FILE.retrieval(0, 0) == ((), (), ())
    assert _FILE.retrieval(6, 0) == ((0, 1),) * 3


def test_heads_by_share() -> None:
    assert _FILE.retrieval(0.5, 0.0) == _FILE.retrieval(3, 0)
    assert _FILE.retrieval(0.01, 0.01) == _FILE.retrieval(1, 1), "a share above nothing is a head at least"
    assert _FILE.retrieval() == _FILE.retrieval(1, 1)
    assert _FILE.retrieval(1.0, 0.0) == ((0, 1),) * 3


@pytest.mark.parametrize(
    ("asked", "said"),
    [((7, 0), "6"), ((5, 2), "6"), ((-1, 0), "induction"), ((1, -0.5), "echo"), ((1.5, 0), "induction")],
)
def test_impossible_numbers_are_told(asked: tuple[Any, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        _FILE.retrieval(*asked)


def test_another_model_is_told() -> None:
    _FILE.check(_MARK)
    with pytest.raises(ValueError, match=r"toy: not for this model \(layers 3 != 4\)"):
        _FILE.check(Fingerprint("llama", 4, 2, 16))


def _broken(field: str, value: Any) -> str:
    data = json.loads(_FILE.dump())
    *path, last = field.split(".")
    at = data
    for name in path:
        at = at[name]
    at[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object"),
        (_broken("version", 2), "version: must be 1, not 2"),
        (_broken("model", ""), "model: must be a text"),
        (_broken("fingerprint", None), "fingerprint: must be an object"),
        (_broken("fingerprint.layers", 4), "induction: must be a list of 4 layers"),
        (_broken("fingerprint.layers", 0), "fingerprint.layers: must be a whole number from 1"),
        (_broken("fingerprint.kv_heads", True), "fingerprint.kv_heads: must be a whole number"),
        (_broken("fingerprint.model_type", 3), "fingerprint.model_type: must be a text"),
        (_broken("echo", [[0, 0], [0], [0, 0]]), r"echo\[1\]: must be 2 numbers"),
        (_broken("induction", [[0, 0], [0, 1.5], [0, 0]]), r"induction\[1\]: must be 2 numbers in \[0, 1\]"),
        (_broken("induction", [[0, 0], [0, "x"], [0, 0]]), r"induction\[1\]"),
        (_broken("induction", [[0, 0], [0, float("nan")], [0, 0]]), r"induction\[1\]"),
        (_broken("repeats", 1), "repeats: must be a whole number from 2"),
        (_broken("seed", 0.5), "seed: must be a whole number from 0"),
    ],
)
def test_a_broken_file_names_file_and_field(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"broken.json: .*{said}.*thriftree probe heads|broken.json: {said}"):
        HeadFile.load(path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no\.json: No such file"):
        HeadFile.load(tmp_path / "no.json")


def test_the_default_model_has_its_file() -> None:
    found = shipped(Fingerprint("llama", 30, 3, 64))
    assert found is not None and found.model == "smollm2-135m-instruct"
    chosen = found.retrieval()
    assert sum(map(len, chosen)) == 5 and chosen == found.retrieval(4, 1)
    assert shipped(_MARK) is None
