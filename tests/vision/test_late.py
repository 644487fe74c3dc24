"""What a request may say of late layers, and which tokens go on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thriftree.plugins.refused import Refused
from thriftree.plugins.vision import request
from thriftree.plugins.vision.late import METHODS, Late, checked
from thriftree.plugins.vision.late_rows import Gone, chosen, staying
from thriftree.plugins.vision.registry import describe
from thriftree.plugins.vision.request import Terms

TERMS = Terms(None, late_layer=4, step_tokens=100)


@pytest.mark.parametrize(
    ("asked", "late"),
    [
        ({}, Late(0.0, "drop")),
        ({"keep": 0}, Late(0.0, "drop")),
        ({"keep": 0, "method": "attention"}, Late(0.0, "drop")),
        ({"method": "drop"}, Late(0.0, "drop")),
        ({"keep": 0.25}, Late(0.25, "attention")),
        ({"keep": 0.25, "method": "stride"}, Late(0.25, "stride")),
        ({"keep": 1}, None),
        ({"keep": 1.0, "method": "random"}, None),
        ("off", None),
    ],
)
def test_what_it_comes_to(asked: Any, late: Late | None) -> None:
    assert checked(asked) == late


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"keep": -0.1}, "vision.late.keep"),
        ({"keep": 1.5}, "vision.late.keep"),
        ({"keep": float("nan")}, "vision.late.keep"),
        ({"keep": True}, "vision.late.keep"),
        ({"keep": "0.5"}, "vision.late.keep"),
        ({"method": "best"}, "vision.late.method"),
        ({"method": ["drop"]}, "vision.late.method"),
        ({"keep": 0.5, "method": "drop"}, "vision.late.method"),
        ({"layer": 2}, "vision.late.layer"),
        (None, "vision.late"),
        ("on", "vision.late"),
        (0.5, "vision.late"),
    ],
)
def test_mistakes_are_named(asked: Any, field: str) -> None:
    with pytest.raises(Refused) as caught:
        request.checked({"late": asked}, TERMS)
    assert (caught.value.code, caught.value.field) == ("thrift_invalid", field)


def test_a_server_without_late_layers() -> None:
    with pytest.raises(Refused, match="--vision-late-layer") as caught:
        request.checked({"late": {"keep": 0}}, Terms(None))
    assert (caught.value.code, caught.value.field) == ("thrift_unsupported", "vision.late")
    assert request.checked({"keep": 0.5, "late": {"keep": 1}}, Terms(None)) == {"method": "divprune", "keep": 0.5}


def test_alone_it_leaves_the_first_stage_out() -> None:
    late = {"keep": 0.0, "method": "drop"}
    assert request.checked({"late": {}}, TERMS) == {"method": "divprune", "keep": 1.0, "late": late}
    with_cap = Terms(None, max_keep=0.5, late_layer=4)
    assert request.checked({"late": {}}, with_cap) == {"method": "divprune", "keep": 0.5, "late": late}
    both = request.checked({"method": "stride", "late": {}}, TERMS)
    assert both == {"method": "stride", "keep": 0.25, "late": late}
    assert request.checked(both, TERMS) == both
    assert request.first_stage(both) == {"method": "stride", "keep": 0.25} and request.first_stage("off") == "off"


def test_attention_needs_a_prompt_of_one_step() -> None:
    request.check_late({"keep": 0.5}, 100, TERMS)
    request.check_late({"keep": 0.5, "method": "random"}, 101, TERMS)
    request.check_late("off", 101, TERMS)
    with pytest.raises(Refused, match="101 tokens are above this server's 100 ") as caught:
        request.check_late({"keep": 0.5}, 101, TERMS)
    assert (caught.value.code, caught.value.field) == ("thrift_unsupported", "vision.late.method")


def test_it_is_in_the_method_table() -> None:
    assert "late" in request.parameters(describe("divprune"), TERMS)["properties"]
    assert "late" not in request.parameters(describe("divprune"), Terms(None))["properties"]


shares = st.floats(0.01, 0.99)
choices = st.one_of(
    st.just(Late()), st.builds(Late, shares, st.sampled_from([method for method in METHODS if method != "drop"]))
)


@given(choices, st.integers(1, 300), st.booleans(), st.integers(0, 2**32))
def test_an_exact_count_in_order(late: Late, visual: int, last: bool, seed: int) -> None:
    scores = torch.randn(visual, generator=torch.Generator().manual_seed(seed))
    rows = chosen(late, visual, last, seed, scores)
    count = staying(late, visual, last)
    assert len(rows) == count <= visual and (np.diff(rows) > 0).all()
    assert not len(rows) or (rows[0] >= 0 and rows[-1] < visual)
    assert not last or rows[-1] == visual - 1
    expected = 0 if late.method == "drop" else max(1, int(late.keep * visual + 0.5))
    assert count == max(expected, int(last))


def test_the_best_stay() -> None:
    scores = torch.tensor([0.1, 0.4, 0.4, 0.3, 0.0])
    assert chosen(Late(0.4, "attention"), 5, False, 0, scores).tolist() == [1, 2]
    assert chosen(Late(0.4, "attention"), 5, True, 0, scores).tolist() == [1, 4]
    assert chosen(Late(0.4, "stride"), 5, False).tolist() == [1, 3]
    first, second = (chosen(Late(0.4, "random"), 50, False, seed).tolist() for seed in (1, 2))
    assert first != second and first == chosen(Late(0.4, "random"), 50, False, 1).tolist()


@given(st.sets(st.integers(0, 40)), st.integers(0, 50), st.integers(0, 20))
def test_places_without_holes(gone: set[int], start: int, more: int) -> None:
    """What is left keeps its order and stands without holes; asked piece by piece it is the same."""
    book, stop = Gone(np.array(sorted(gone), dtype=np.int64)), start + more
    there = [position for position in range(stop) if position not in gone]
    assert book.length(stop) == len(there)
    assert book.stay(start, stop).tolist() == [position for position in there if position >= start]
    for place, position in enumerate(there):
        assert book.length(position) == place


@pytest.mark.parametrize(("keep", "method"), [(0.5, "drop"), (0.0, "attention"), (1.0, "stride"), (0.5, "none")])
def test_what_there_is_not(keep: float, method: str) -> None:
    with pytest.raises(ValueError):
        Late(keep, method)
