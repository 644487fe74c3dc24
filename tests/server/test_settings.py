"""Flags over environment over YAML over defaults; wrong values in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from thriftree.server import settings
from thriftree.server.errors import StartError


def test_defaults_and_the_rest_goes_to_vllm() -> None:
    ours, rest = settings.load(["model/x", "--dtype", "float32", "--thrift", "off", "--port", "9000"])
    assert ours.thrift == "off"
    assert ours.limits.max_body_bytes == 64 << 20
    assert rest == ["model/x", "--dtype", "float32", "--port", "9000"]


def test_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "thriftree.yaml"
    file.write_text(
        "thrift: off\nspeculation: {max_nodes: 8}\nlimits: {max_body_bytes: 2048}\ndrain_timeout: 7\n"
        "routes: {allow: [/tokenize]}\nvllm: {max-model-len: 512}\n"
    )
    monkeypatch.setenv("THRIFTREE_LIMITS__MAX_BODY_BYTES", "4096")
    monkeypatch.setenv("THRIFTREE_CACHE", str(tmp_path))  # not a setting, and no mistake either
    flags = ["--config", str(file), "--drain-timeout", "3", "--routes-allow", "/a,/b"]
    ours, rest = settings.load(flags)
    assert (ours.drain_timeout, ours.limits.max_body_bytes) == (3, 4096)
    assert (ours.routes.allow, ours.speculation.max_nodes, ours.vllm) == (["/a", "/b"], 8, {"max-model-len": 512})
    assert ours.thrift == "off" and rest == []


def test_lists_in_the_environment_have_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRIFTREE_ROUTES__ALLOW", "/tokenize, /v1/score")
    monkeypatch.setenv("THRIFTREE_SPECULATION__MAX_NODES", "8")
    ours, _ = settings.load(["--speculation-method", "suffix"])
    assert ours.routes.allow == ["/tokenize", "/v1/score"]
    assert (ours.speculation.method, ours.speculation.max_nodes) == ("suffix", 8)


def test_an_unknown_setting_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRIFTREE_LIMITS__FOO", "1")
    with pytest.raises(StartError, match=r"limits\.foo"):
        settings.load([])


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["--thrift", "fast"], "thrift"),
        (["--drain-timeout", "soon"], "drain_timeout"),
        (["--speculation-max-nodes", "0"], "speculation.max_nodes"),
        (["--speculation-method", "eagle9"], "speculation.method"),
        (["--kv-compression", "sometimes"], "kv.compression"),
        (["--kv-method", "snapkw"], "kv.method"),
        (["--kv-method", "token_recycling"], "kv.method"),
        (["--kv-keep", "0"], "kv.keep"),
        (["--kv-keep", "nan"], "kv.keep"),
        (["--kv-tiers", "0"], "kv.tiers"),
        (["--kv-max-tokens", "63"], "kv.max_tokens"),
        (["--vllm", "{"], "--vllm"),
        (["--routes-allow", "tokenize"], "routes.allow"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml"),
    ],
)
def test_wrong_values_are_named(argv: list[str], names: str) -> None:
    with pytest.raises(StartError) as caught:
        settings.load(argv)
    assert names in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "word"), [("off", "off"), ("on", "on"), ("auto", "auto"), ('"off"', "off")])
def test_words_of_yaml(tmp_path: Path, text: str, word: str) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(f"kv: {{compression: {text}, heads: off, max_tokens: 4096}}\n")
    ours, _ = settings.load(["--config", str(file)])
    assert (ours.kv.compression, ours.kv.heads, ours.kv.max_tokens) == (word, "off", 4096)


def test_a_path_is_a_head_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRIFTREE_KV__HEADS", "/data/heads.json")
    ours, _ = settings.load(["--kv-method", "knorm", "--kv-tiers", "4", "--kv-keep", "0.25"])
    assert (ours.kv.heads, ours.kv.method, ours.kv.tiers, ours.kv.keep) == ("/data/heads.json", "knorm", 4, 0.25)


@pytest.mark.parametrize("text", ["thrift: [", "thrifty: exact\n", "limits: {max_bytes: 1}\n", "- a\n"])
def test_wrong_files_are_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(text)
    with pytest.raises(StartError) as caught:
        settings.load(["--config", str(file)])
    assert "\n" not in str(caught.value)
