"""What an operator sets of KV compression, and how it gets onto vLLM's flags. No engine."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from thriftree.plugins.engine import launch
from thriftree.plugins.engine.kv import support
from thriftree.plugins.engine.kv.options import KVOptions
from thriftree.plugins.engine.options import SpeculationOptions
from thriftree.plugins.kv_cache.request import NOT_HERE
from thriftree.server.sections import KV, Speculation
from thriftree.server.serve import _wanted
from thriftree.server.settings import Settings


def of(**given: Any) -> KVOptions:
    return KVOptions.of({"thriftree": {"kv": given}})


def test_it_is_off_unless_it_is_named() -> None:
    for config in ({}, {"thriftree": None}, {"thriftree": {"speculation": {}}}):
        assert KVOptions.of(config).compression == "off"
    assert of().compression == "auto"


def test_the_settings_are_the_options() -> None:
    assert of(**KV().model_dump()) == of()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"budget": 3}, "budget"),
        ({"compression": "maybe"}, "compression"),
        ({"compression": True}, "compression"),
        ({"method": "suffix"}, "method"),
        ({"method": None}, "method"),
        ({"keep": 0}, "keep"),
        ({"keep": True}, "keep"),
        ({"keep": "half"}, "keep"),
        ({"keep": float("nan")}, "keep"),
        ({"heads": "/nowhere.json"}, "heads"),
        ({"heads": None}, "heads"),
        ({"tiers": 0}, "tiers"),
        ({"tiers": 2.0}, "tiers"),
        ({"max_tokens": 51}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
    ],
)
def test_mistakes_are_named(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"thriftree\.kv.*{named}"):
        of(**given)
    with pytest.raises(ValueError, match=r"thriftree\.kv must be an object"):
        KVOptions.of({"thriftree": {"kv": "on"}})


def test_a_head_file_may_be_anywhere(tmp_path: Path) -> None:
    file = tmp_path / "heads.json"
    file.write_text("{}")
    assert of(heads=str(file)).heads == str(file)


def test_on_refuses_and_auto_says_why() -> None:
    with pytest.raises(ValueError, match="--kv-compression on: a sliding window"):
        of(compression="on").terms("a sliding window", {}, 16)
    assert of().terms("a sliding window", {}, 16).reason == "a sliding window"
    assert of(compression="off").terms(None, {}, 16).reason == NOT_HERE
    assert of(compression="on").terms(None, {}, 16).reason is None


def test_what_is_missing_says_what_would_bring_it() -> None:
    terms = of(heads="off").terms(None, {"knorm": "not on this engine"}, 32, layers=1)
    assert {"razor_observed", "razor_keydiff", "razor_attention", "pyramid_kv", "knorm", "lacache"} == set(
        terms.missing
    )
    assert "--kv-heads" in terms.missing["razor_observed"] and "--kv-tiers" in terms.missing["pyramid_kv"]
    assert "model of 1 layers" in terms.missing["lacache"]
    assert (terms.method, terms.block, terms.least()) == ("observed", 32, 68)
    assert set(of(tiers=4).terms(None, {}, 16, layers=30).missing) == set()


def test_the_default_method() -> None:
    assert of().terms(None, {}, 16).method == "razor_observed"
    assert of().terms(None, {"razor_observed": "no head file for this model"}, 16).method == "observed"
    assert of(method="h2o").terms(None, {}, 16).method == "h2o"
    with pytest.raises(ValueError, match=r"--kv-method pyramid_kv: .*--kv-tiers"):
        of(method="pyramid_kv").terms(None, {}, 16)


def test_a_cap_has_room_for_a_block() -> None:
    assert of(max_tokens=164).terms(None, {}, 128).max_tokens == 164
    with pytest.raises(ValueError, match="--kv-max-tokens 163: must be at least 164"):
        of(max_tokens=163).terms(None, {}, 128)


def test_a_model_without_a_head_file_has_no_razor(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimpleNamespace(
        additional_config={"thriftree": {"kv": {}}},
        model_config=SimpleNamespace(hf_text_config=SimpleNamespace(num_hidden_layers=30)),
    )
    monkeypatch.setattr(support, "support", lambda vllm_config: support.KVSupport())
    for heads, method in ((None, "observed"), (((0,),), "razor_observed")):
        monkeypatch.setattr(support, "retrieval_heads", lambda config, options, heads=heads: heads)
        terms = support.terms_of(config)
        assert (terms.method, terms.layers) == (method, 30)
        assert ("razor_attention" in terms.missing) == (heads is None)
        if heads is None:
            assert "no head file is shipped for this model (--kv-heads" in terms.missing["razor_observed"]


def test_a_default_method_that_drops_nothing_cannot_hold_a_cap() -> None:
    assert of(method="recycled_attention").terms(None, {}, 16).method == "recycled_attention"
    with pytest.raises(ValueError, match=r"--kv-method recycled_attention: .*--kv-max-tokens"):
        of(method="recycled_attention", max_tokens=4096).terms(None, {}, 16)


def args(**given: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{"speculative_config": None, "additional_config": None, "async_scheduling": None, **given}
    )


def test_launch_puts_both_on_the_flags() -> None:
    flags = args(additional_config={"other": 1, "thriftree": {"kv": {"keep": 0.125}}})
    assert launch.configure(flags, Speculation().model_dump(), KV(method="h2o").model_dump())
    assert flags.additional_config["other"] == 1
    options = KVOptions.of(flags.additional_config)
    assert (options.keep, options.method) == (0.125, "h2o")  # what the flag itself says wins
    assert SpeculationOptions.of(flags.additional_config).max_nodes == 16
    assert flags.speculative_config["num_speculative_tokens"] == 16


def test_compression_without_speculation() -> None:
    for more in ({}, {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}}):
        flags = args(**more)
        wanted = Speculation().model_dump() if more else None
        assert launch.configure(flags, wanted, KV().model_dump()) is False
        assert KVOptions.of(flags.additional_config).compression == "auto"
        assert flags.speculative_config == more.get("speculative_config")


def test_off_means_off_and_the_operators_own_words_are_checked() -> None:
    flags = args()
    assert launch.configure(flags, None) is False and flags.additional_config is None
    with pytest.raises(ValueError, match=r"thriftree\.kv\.keep"):
        launch.configure(args(additional_config={"thriftree": {"kv": {"keep": 2}}}), None)


@pytest.mark.parametrize(
    ("settings", "speculates", "compresses"),
    [
        ({}, True, True),
        ({"thrift": "off"}, False, False),
        ({"kv": {"compression": "off"}}, True, False),
        ({"thrift": "max", "kv": {"compression": "on"}}, True, True),
    ],
)
def test_what_a_profile_starts(settings: dict[str, Any], speculates: bool, compresses: bool) -> None:
    speculation, kv, vision = _wanted(Settings(**settings))
    assert (speculation is not None, kv is not None) == (speculates, compresses)
    assert (vision is not None) == (settings.get("thrift") != "off")
