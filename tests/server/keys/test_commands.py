"""`thriftree keys` as a person uses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from thriftree.server.keys.commands import main
from thriftree.server.keys.keyring import Keyring
from thriftree.server.principal import Caps, Quota

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "keys.db")


def listed(file: str, capsys: Capture) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["list", "--json", "--database", file]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_key_is_printed_once_and_alone(file: str, capsys: Capture) -> None:
    flags = ["--models", "a, b", "--max-tokens", "512", "--profiles", "off,exact", "--methods", "suffix"]
    flags += [
        "--priority",
        "-5",
        "--requests-per-minute",
        "60",
        "--quota",
        '{"concurrent": 4, "requests_per_minute": 1}',
    ]
    assert main(["create", "--tenant", "acme", "--name", "night [job]", "--database", file, *flags]) == 0
    said = capsys.readouterr()
    key = said.out.strip()
    assert said.out == key + "\n" and key not in said.err  # `KEY=$(thriftree keys create ...)` works
    found = Keyring(Path(file)).lookup(key.encode())
    assert found is not None and found.tenant == "acme"
    assert found.caps == Caps(("a", "b"), 512, ("off", "exact"), ("suffix",), None, -5)
    assert found.quota == Quota(requests_per_minute=60, concurrent=4)  # the flag over the object
    (row,) = listed(file, capsys)["keys"]
    assert (row["name"], row["tenant"], row["revoked"], row["last_used"]) == ("night [job]", "acme", None, None)
    assert main(["list", "--database", file]) == 0
    table = capsys.readouterr().out
    assert row["id"] in table and key.split("-", 2)[2] not in table


def test_revoke(file: str, capsys: Capture) -> None:
    main(["create", "--database", file])
    key = capsys.readouterr().out.strip()
    (row,) = listed(file, capsys)["keys"]
    assert main(["revoke", row["id"], "--database", file]) == 0
    first = listed(file, capsys)["keys"][0]["revoked"]
    assert first is not None and Keyring(Path(file)).lookup(key.encode()) is None
    assert main(["revoke", key, "--database", file]) == 0
    assert "already" in capsys.readouterr().out
    assert listed(file, capsys)["keys"][0]["revoked"] == first


def test_tenants_keep_what_is_not_named(file: str, capsys: Capture) -> None:
    for flags in (["--weight", "2"], ["--tokens-per-minute", "900"], ["--concurrent", "3"]):
        assert main(["tenant", "acme", *flags, "--database", file]) == 0
    assert listed(file, capsys)["tenants"] == [
        {"name": "acme", "weight": 2.0, "quota": {"tokens_per_minute": 900, "concurrent": 3}}
    ]
    assert main(["tenant", "acme", "--quota", "{}", "--database", file]) == 0
    assert listed(file, capsys)["tenants"] == [{"name": "acme", "weight": 2.0, "quota": {}}]


def test_the_database_of_the_settings(file: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["create"]) == 1
    assert "--database FILE" in capsys.readouterr().err
    monkeypatch.setenv("THRIFTREE_AUTH__DATABASE", file)
    assert main(["create"]) == 0
    config = Path(file).with_suffix(".yaml")
    monkeypatch.delenv("THRIFTREE_AUTH__DATABASE")
    config.write_text(f"auth: {{database: {file}}}")
    assert main(["list", "--config", str(config)]) == 0


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["create", "--tenant", "a b"], "a name is"),
        (["create", "--caps", "[]"], "--caps []: must be a JSON object"),
        (["create", "--caps", '{"tokens": 1}'], "tokens: unknown"),
        (["create", "--max-tokens", "0"], "max_tokens: must be an integer from 1"),
        (["create", "--profiles", "fast"], "profiles: unknown name 'fast'"),
        (["create", "--methods", "eagle9"], "methods: unknown name 'eagle9'"),
        (["create", "--models", " , "], "models: must be a list"),
        (["create", "--name", "a\nb"], "--name"),
        (["revoke", "tt-none"], "no key"),
        (["tenant", "acme", "--weight", "-1"], "--weight: must be a number above 0"),
        (["tenant", "acme", "--concurrent", "0"], "concurrent: must be an integer from 1"),
        (["list", "--database", "/none/keys.db"], "no such file"),
        (["create", "--database", "/none/keys.db"], "No such file"),
    ],
)
def test_one_line_says_what_is_wrong(file: str, capsys: Capture, argv: list[str], names: str) -> None:
    main(["create", "--database", file])
    capsys.readouterr()
    assert main(argv if "--database" in argv else [*argv, "--database", file]) == 1
    said = capsys.readouterr()
    assert names in said.err and said.err.count("\n") == 1 and said.out == ""
    assert said.err.startswith(f"thriftree keys {argv[0]}: ")


@pytest.mark.parametrize("argv", [[], ["mint"], ["create", "--max-tokens", "many"], ["revoke"]])
def test_a_wrong_command_line(argv: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2 and capsys.readouterr().err.count("\n") == 1
