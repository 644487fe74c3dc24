"""The head probe on heads whose weights we set, and on a model of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from thriftree.plugins.kv_cache import hooked, probe
from thriftree.plugins.kv_cache.heads import HeadFile
from thriftree.plugins.kv_cache.hooked import Call
from thriftree.server import probe as command
from thriftree.zoo import tiny

_VOCABULARY, _SHARP = 64, 14.0
_INDUCTION, _ECHO = 3, 5  # the planted heads; the others look at what is near


def _call(ids: Tensor, group: int) -> Call:
    """The second layer of a hand-made model (its first has told every place the token before it): 8 KV heads."""
    now = one_hot(ids, _VOCABULARY).float()
    before = torch.cat((torch.zeros(1, _VOCABULARY), now[:-1]))
    near = torch.arange(len(ids), dtype=torch.float32)[:, None] * 0.2  # a penalty on the distance, as a key
    one = torch.ones(len(ids), 1)
    local = (torch.cat((one, 0.0 * now), 1), torch.cat((near, 0.0 * now), 1))
    search = torch.cat((0 * one, _SHARP * now), 1)
    query, key = [local[0]] * 8 * group, [local[1]] * 8
    query[_INDUCTION * group + group - 1] = query[_ECHO * group] = search  # one query head of the group will do
    key[_INDUCTION], key[_ECHO] = (torch.cat((near, of), 1) for of in (before, now))
    return Call(
        0, torch.stack(query)[None], torch.stack(key)[None], torch.stack([torch.cat((0 * one, now), 1)] * 8)[None], 1.0
    )


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("lead", [0, 1])
def test_planted_heads_are_found(group: int, lead: int) -> None:
    ids = probe.repeated(_VOCABULARY, 60, 4, seed=2, avoid={0, 1, 2}, lead=[0] * lead)[0]
    noted = probe.Probe(60, lead)
    noted(_call(ids, group))
    induction, echo = noted.induction[0], noted.echo[0]
    assert induction.argmax() == _INDUCTION and echo.argmax() == _ECHO
    assert induction[_INDUCTION] > 0.99 and induction.sort().values[-2] < 0.05
    # An echo head that sees itself spreads over all copies, its own token among them: 1/2, 2/3, 3/4.
    assert echo[_ECHO] == pytest.approx((1 / 2 + 2 / 3 + 3 / 4) / 3, abs=0.01)
    assert echo.sort().values[-2] < 0.05


def test_scores_are_those_of_the_whole_matrix() -> None:
    ids = probe.repeated(_VOCABULARY, 50, 3, seed=0, avoid=set(), lead=[7])[0]
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, len(ids), 16, generator=generator) for heads in (6, 2, 2))
    noted = probe.Probe(50, lead=1)
    out = noted(Call(4, query, key, value, 0.7))
    full = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=0.7, enable_gqa=True
    )
    torch.testing.assert_close(out, full)
    logits = (query.view(2, 3, -1, 16) @ key[0, :, None].mT * 0.7).masked_fill(
        ~torch.ones(len(ids), len(ids)).tril().bool(), -torch.inf
    )
    matrix = logits.softmax(-1)
    same = (ids[:, None] == ids) & torch.ones(len(ids), len(ids)).tril(-1).bool()
    follows = torch.cat((torch.zeros(len(ids), 1, dtype=torch.bool), same[:, :-1]), 1)
    follows[:, 1] = False  # the lead's follower: the lead is no copy
    for found, pairs in ((noted.echo[4], same), (noted.induction[4], follows)):
        torch.testing.assert_close(found, ((matrix * pairs)[:, :, 51:].sum((2, 3)) / 100).amax(1))


def test_sliding_windows_hide_the_copies() -> None:
    ids = probe.repeated(_VOCABULARY, 60, 4, seed=2, avoid=set(), lead=[])[0]
    call = _call(ids, 1)
    noted = probe.Probe(60)
    noted(Call(0, call.query, call.key, call.value, 1.0, window=32))
    assert noted.induction[0].max() < 0.05


@pytest.mark.parametrize("name", ["llama-gqa", "bias", "sliding"])
def test_a_random_model_runs_through(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tiny.ensure(name), tmp_path / "heads.json"
    assert command.main(["heads", str(folder), "--tokens", "40", "--out", str(out)]) == 0
    found = HeadFile.load(out)
    assert found.model == folder.name and found.fingerprint.layers == 4 and found.tokens == 40
    assert "retrieval heads" in capsys.readouterr().err
    assert command.main(["heads", str(folder), "--tokens", "40"]) == 0
    assert capsys.readouterr().out == out.read_text(), "the same seed makes the same file"


def test_the_attention_that_we_put_in_is_that_of_transformers() -> None:
    from transformers import AutoModelForCausalLM

    folder = str(tiny.ensure("bias"))
    ids = probe.repeated(256, 40, 4, seed=0, avoid=set(), lead=[])
    with torch.inference_mode(), hooked.hooked(probe.Probe(40)):
        ours = hooked.load(folder)(input_ids=ids, use_cache=False).logits
    with torch.inference_mode():
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tokens", "511"], "tokens: must be at most"),
        (["--tokens", "1"], "must be at least 2"),
        (["--tokens", "400", "--repeats", "9"], "below the model's context of 2048"),
    ],
)
def test_bad_numbers_are_told(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["heads", str(tiny.ensure("llama-gqa")), *arguments]) == 1
    assert said in capsys.readouterr().err


def test_a_model_without_rope_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert command.main(["heads", str(tmp_path)]) == 1
    assert "no rotary position embedding" in capsys.readouterr().err
