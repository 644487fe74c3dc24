"""The instrument of `thriftree bench kv`, on tiny models: what is masked is gone, and budgets are equal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import ceil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thriftree.benchmarks.kv import checks, main, report, rows, tasks
from thriftree.benchmarks.kv.lab import Evicted, Lab
from thriftree.benchmarks.kv.policies import RECENT, SINKS, Cache, Policy, affordable, chosen, evicted, spread, together
from thriftree.benchmarks.kv.quality import Figure, Stopped, measure, run
from thriftree.benchmarks.kv.tasks import Case
from thriftree.plugins.kv_cache import registry
from thriftree.plugins.kv_cache.heads import Fingerprint, HeadFile
from thriftree.zoo import tiny

_SHAPE = Fingerprint("llama", 4, 2, 32)
_SCORES = ((0.1, 0.2), (0.3, 0.4), (0.5, 0.6), (0.7, 0.8))
_FILE = HeadFile("toy", _SHAPE, _SCORES, _SCORES[::-1], 10, 4, 0)
_IDS = torch.randint(0, 256, (168,), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.fixture(scope="module")
def lab() -> Lab:
    return Lab(str(tiny.ensure("llama-gqa")))


def test_the_instrument_is_right(lab: Lab) -> None:
    found = checks.check(lab, str(tiny.ensure("llama-gqa")), _IDS)
    assert found.right, str(found)


@pytest.mark.parametrize("part", ["kept", "causal"])
def test_the_check_can_fail(part: str, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    if part == "kept":
        monkeypatch.setattr(checks, "Evicted", lambda keep: Evicted(torch.ones_like(keep)))
    else:
        monkeypatch.setattr(torch.Tensor, "triu", lambda x, k: torch.zeros_like(x))
    assert not checks.check(lab, str(tiny.ensure("llama-gqa")), _IDS).right


def test_reading_on_is_reading_at_once(lab: Lab) -> None:
    once, twice = lab.prefill(_IDS), lab.extend(lab.prefill(_IDS[:100]), _IDS[100:])
    assert once.length == twice.length and once.scale == twice.scale
    for a, b in ((once.keys, twice.keys), (once.values, twice.values), (once.queries, twice.queries)):
        torch.testing.assert_close(torch.stack(a), torch.stack(b), atol=2e-3, rtol=1e-3)


def test_a_compensation_row_stands_for_equal_rows(lab: Lab) -> None:
    prefix = lab.prefill(_IDS)
    for x in (*prefix.keys, *prefix.values):
        x[:, 20:90] = x[:, 20:21]
    policy = Policy("row", "streaming_llm", compensate=0)
    made = evicted(policy, Cache(lab, prefix), 0.48, _FILE)
    assert made.rows is not None
    made.keep[:] = True
    made.keep[..., 20:90] = False
    made.rows[0][:], made.rows[1][:] = (torch.stack(x)[:, :, 20] for x in (prefix.keys, prefix.values))
    made.rows[2][:] = torch.tensor(70.0).log()
    nothing = evicted(Policy("full"), Cache(lab, prefix), 1.0, _FILE)
    found = lab.log_probabilities(lab.read_on(prefix, _IDS[:5], together([nothing, made])))
    torch.testing.assert_close(found[1], found[0], atol=2e-3, rtol=0)
    made.rows[2][:] = 0.0
    found = lab.log_probabilities(lab.read_on(prefix, _IDS[:5], together([nothing, made])))
    assert (found[1] - found[0]).abs().max() > 0.05, "without the logarithm of their number it must not"


_READS = [name for name in registry.names() if registry.describe(name).reads]


@pytest.mark.parametrize("name", _READS)
def test_what_reads_less_reads_whole_blocks(name: str, lab: Lab) -> None:
    mask = evicted(Policy(name, name), Cache(lab, lab.prefill(_IDS)), 0.5, _FILE).keep[0]
    blocks = mask[..., :160].unflatten(-1, (10, 16))
    assert bool((blocks.all(-1) == blocks.any(-1)).all()) and mask[..., 160:].all() and mask[..., :16].all()
    assert mask.sum(-1).min() >= 3 * 16 + 8 and mask.sum(-1).max() <= 84 and mask[..., 128:].all()


@pytest.mark.parametrize("name", sorted(set(registry.names()) - set(_READS)))
def test_every_method_keeps_its_budget(name: str, lab: Lab) -> None:
    cache = Cache(lab, lab.prefill(_IDS))
    policies = [Policy(name, name, induction=1, echo=0), Policy(name, name), Policy(name, name, per_head=True)]
    for policy in policies:
        for keep in (0.5, 0.25, 1.0):
            mask = evicted(policy, cache, keep, _FILE).keep[0]
            budget = 8 * ceil(keep * 168)
            assert budget - 8 - 8 <= int(mask.sum()) <= budget, (policy, keep)
            assert mask[..., :SINKS].all() and mask[..., -RECENT:].all()
            if keep < 0.5:
                continue
            assert bool(mask[3, 1].all()) == (policy.induction == 1 or keep == 1.0)


def test_a_compensation_row_is_paid_for(lab: Lab) -> None:
    cache = Cache(lab, lab.prefill(_IDS))
    plain = evicted(Policy("a", "streaming_llm"), cache, 0.5, _FILE)
    with_row = evicted(Policy("b", "streaming_llm", compensate=2), cache, 0.5, _FILE)
    assert with_row.rows is not None
    rows_of = [int(x.sum()) for x in plain.keep[0, :, 0]], [int(x.sum()) for x in with_row.keep[0, :, 0]]
    assert rows_of == ([84] * 4, [84, 84, 83, 83])
    assert with_row.rows[2].exp().round().tolist() == [[[0, 0], [0, 0], [85, 85], [85, 85]]]


def test_controls_take_as_many_other_heads() -> None:
    probed = chosen(Policy("a", "observed", induction=2, echo=1), _FILE)
    random = chosen(Policy("a", "observed", induction=2, echo=1, control=1), _FILE)
    assert probed == [(0, 1), (3, 1), (3, 0)] and len(random) == 3 and not set(random) & set(probed)
    # 8 heads of 100 rows at a quarter: 200 rows, so one whole head would leave 14 for the others.
    assert affordable(probed, 8, 100, 0.25) == set()
    assert affordable(probed, 8, 1000, 0.25) == {(0, 1)}
    assert affordable(probed, 8, 1000, 0.75) == set(probed)


@given(st.data(), st.integers(1, 40), st.integers(0, 30), st.integers(0, 60))
def test_rows_are_spread_within_bounds(data: st.DataObject, mean: int, least: int, more: int) -> None:
    layers = data.draw(st.lists(st.tuples(st.floats(0.01, 2.0), st.integers(1, 4)), min_size=1, max_size=30))
    shares, heads = [share for share, _ in layers], [count for _, count in layers]
    least, most, total = min(least, mean), max(least + more, mean), mean * sum(heads)
    made = spread(total, shares, heads, least, most)
    used = sum(part * count for part, count in zip(made, heads, strict=True))
    assert used <= total < used + sum(heads) + 1 and all(least <= part <= most for part in made)
    ordered = [part for _, part in sorted(zip(shares, made, strict=True))]
    assert ordered == sorted(ordered)


def _case(task: str = "lookup") -> Case:
    return Case(task, _IDS[:150], _IDS[150:155] if task == "lookup" else [], _IDS[155:160])


def test_nothing_dropped_is_the_full_cache(lab: Lab) -> None:
    cells = [(Policy("all", "observed"), 1.0), (Policy("half", "observed"), 0.5)]
    figures = {f.policy: f for f in measure(lab, _case("plays"), 0, cells, _FILE)}
    assert figures["full"].kl == 0.0 and figures["full"].agree == 1.0
    assert figures["all"].nll == figures["full"].nll and figures["all"].kl == 0.0
    assert (figures["half"].kl or 0.0) > 0.001


def test_seen_questions_are_in_the_cache(lab: Lab) -> None:
    cells = [(Policy("after", "snapkv"), 0.5), (Policy("seen", "snapkv", aware=True), 0.5)]
    figures = list(measure(lab, _case(), 0, cells, _FILE))
    assert [f.policy for f in figures] == ["full", "after", "seen"]
    assert figures[1].nll != figures[2].nll
    everything = [(Policy("seen", "snapkv", aware=True), 1.0)]
    full, _, seen = measure(lab, _case(), 0, [(Policy("x", "snapkv"), 0.5), *everything], _FILE)
    assert seen.nll == pytest.approx(full.nll, abs=2e-3)


def test_the_full_cache_is_told_once(lab: Lab) -> None:
    cells = [(Policy("seen", "snapkv", aware=True), 0.5), (Policy("reads", "recycled_attention", aware=True), 0.5)]
    for task, told in (("lookup", ["full", "seen", "reads"]), ("plays", ["full", "seen", "reads"])):
        assert [f.policy for f in measure(lab, _case(task), 0, cells, _FILE)] == told


def _bytes(text: str) -> list[int]:
    return list(text.encode())


def test_a_stopped_run_goes_on(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_TOKENS", {"lookup": 900, "passkey": 900})
    saved, cells = tmp_path / "run.jsonl", [(Policy("a", "random"), 0.5)]
    say: list[str] = []

    def go(seconds: float, counts: dict[str, int]) -> list[Figure]:
        return run(lab, _bytes, "dev", counts, cells, _FILE, saved, seconds, say.append)

    first = go(60, {"lookup": 1})
    assert {f.policy for f in first} == {"full", "a"} and len(saved.read_text().splitlines()) == 2
    with pytest.raises(Stopped, match="lookup 1"):
        go(-1, {"lookup": 2})
    assert go(-1, {"lookup": 1}) == first, "nothing is measured twice"
    assert go(60, {"lookup": 2})[:2] == first and len(say) == 2


@pytest.mark.parametrize("task", tasks.TASKS)
def test_cases_are_the_same_for_everybody(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_TOKENS", {"lookup": 900, "passkey": 900})
    few, more = (list(tasks.cases(task, "test", count, _bytes)) for count in (2, 3))
    dev = list(tasks.cases(task, "dev", 2, _bytes))
    assert len(more) == 3 and few == more[:2] and few[0].context != dev[0].context
    for case in more:
        if task in tasks.RETRIEVAL:
            text, question = bytes(case.context).decode(), bytes(case.question).decode()
            assert text.count(bytes(case.answer).decode().strip()) == (1 if task == "lookup" else 2)
            assert question.strip().lower() in text.lower()
        else:
            assert len(case.context) == 768 and len(case.answer) == 25


def test_splits_share_no_text() -> None:
    dev, test = ("\n".join(tasks._plays(split)) for split in tasks.SPLITS)
    assert len(dev) * 2 < len(test) and dev[-200:] not in test and test[:200] not in dev
    dev_maths, test_maths = (set(tasks._maths(split)) for split in tasks.SPLITS)
    assert (len(dev_maths), len(test_maths), dev_maths & test_maths) == (35, 105, set())
    readme = (tasks.DATA / "README.md").read_text()
    for file in tasks.DATA.glob("*[!d]"):
        assert f"`{file.name}`" in readme


def test_too_many_cases_are_told() -> None:
    with pytest.raises(ValueError, match="maths: the dev texts are enough for"):
        list(tasks.cases("maths", "dev", 1000, _bytes))


def _figures() -> Iterator[Figure]:
    for case, exact in enumerate((True, True, False)):
        yield Figure("full", 1.0, "lookup", case, 1.0, exact=exact)
        yield Figure("a", 0.5, "lookup", case, 2.0, exact=case != 1)
    for keep, agree in ((0.5, 0.96), (0.25, 1.0)):
        yield Figure("a", keep, "plays", 0, 3.0, kl=0.5, agree=agree)
    yield Figure("b", 0.5, "lookup", 0, 2.0, exact=True)
    yield Figure("b", 0.5, "maths", 0, 3.0, kl=0.125, agree=0.96)


def test_tables() -> None:
    made = report.cells(_figures())
    a, quarter, b = (next(c for c in made if (c.policy, c.keep) == at) for at in (("a", 0.5), ("a", 0.25), ("b", 0.5)))
    assert a.exact["lookup"] == pytest.approx(2 / 3) and a.facts_kept == 0.5 and a.same_token == 0.96 and a.both == 0.5
    assert quarter.facts_kept is None and quarter.both is None and b.both == 0.96
    line = list(report.lines(made, ["b", "a", "nobody"]))
    assert [row[0] for row in line] == ["full", "b", "a"]
    assert line[2] == ["a", "67 / -", "2.0 / -", "- / -", "- / -", "0.500 / 0.500", "- / -", "50 / -", "96.0 / 100.0"]
    assert [said.split(": ")[1] for said in report.verdicts(made)] == ["no setting", "b at 50 %"]
    assert "| b | 100 | 2.0 |" in report.markdown(made, ["b", "a"], ["x"])
    json.dumps(report.data(made))


def test_rows_of_the_table_have_names_of_their_own() -> None:
    made = [p.name for p in (*rows.policies(), *rows.candidates())]
    assert len(set(made)) == len(made) and {p.name for p in rows.short()} <= set(made)
    methods = {p.method for p in rows.policies()}
    assert set(registry.names()) <= methods, "every method of the registry is in the table"
    assert len([name for name in made if name.startswith("random, seed")]) >= 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--keep", "0"], "--keep"),
        (["--plays", "-1"], "--plays"),
        (["--policies", "nobody"], "no 'nobody'"),
        (["--json", "/nowhere/at/all.json"], "no folder"),
    ],
)
def test_bad_flags_are_told(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(arguments) == 2
    assert said in capsys.readouterr().err


def test_a_model_without_a_head_file_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--model", str(tiny.ensure("llama-gqa")), "--lookup", "1"]) == 1
    assert "no head file for this model" in capsys.readouterr().err
