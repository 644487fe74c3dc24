"""From settings to a keyring, and what is not served without one."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from thriftree.server import settings
from thriftree.server.errors import StartError
from thriftree.server.keys.start import is_loopback, open_keyring, require_keys, take_vllm_keys
from thriftree.server.sections import Auth


def test_vllms_keys_are_taken_away_from_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sk-variable")
    args = argparse.Namespace(api_key=["sk-flag", "sk-other"])
    assert take_vllm_keys(args) == ["sk-flag", "sk-other"]
    assert args.api_key is None and "VLLM_API_KEY" not in os.environ
    monkeypatch.setenv("VLLM_API_KEY", "sk-variable")
    assert take_vllm_keys(args) == ["sk-variable"] and "VLLM_API_KEY" not in os.environ
    assert take_vllm_keys(args) == []


def test_nothing_configured_is_no_keyring() -> None:
    assert open_keyring(Auth(), []) is None


def test_every_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys.yaml").write_text("keys: [{key: sk-file, tenant: acme}]")
    monkeypatch.setenv("THRIFTREE_AUTH__KEYS", "sk-env, sk-env-2")
    flags = ["--auth-keys-file", str(tmp_path / "keys.yaml"), "--auth-database", str(tmp_path / "keys.db")]
    auth = settings.load(flags)[0].auth
    assert "sk-env" not in repr(auth)
    ring = open_keyring(auth, ["sk-vllm"])
    assert ring is not None
    tenants = [found.tenant for key in (b"sk-env", b"sk-env-2", b"sk-vllm", b"sk-file") if (found := ring.lookup(key))]
    assert tenants == ["default", "default", "default", "acme"]
    ring.close()


def test_an_empty_database_refuses_everybody(tmp_path: Path) -> None:
    ring = open_keyring(Auth(database=tmp_path / "keys.db"), [])
    assert ring is not None and ring.lookup(b"sk-any") is None
    require_keys(ring, Auth(), "0.0.0.0", None)


@pytest.mark.parametrize("host", [None, "", "0.0.0.0", "::", "10.0.0.1", "no.such.host.invalid"])
def test_nobody_serves_everybody_by_accident(host: str | None) -> None:
    assert not is_loopback(host)
    with pytest.raises(StartError) as caught:
        require_keys(None, Auth(), host, None)
    said = str(caught.value)
    assert "--auth-open true" in said and "thriftree keys create" in said and "\n" not in said
    require_keys(None, Auth(open=True), host, None)
    require_keys(None, Auth(), host, "/run/thriftree.sock")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    require_keys(None, Auth(), host, None)


def test_open_routes_are_paths() -> None:
    assert settings.load(["--auth-open-routes", "/metrics,/version"])[0].auth.open_routes == ["/metrics", "/version"]
    with pytest.raises(StartError, match=r"auth\.open_routes"):
        settings.load(["--auth-open-routes", "metrics"])
