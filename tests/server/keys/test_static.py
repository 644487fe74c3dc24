"""Keys that are listed in a file or given as text."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from thriftree.server.errors import StartError
from thriftree.server.keys.static import from_file, from_texts
from thriftree.server.principal import Caps, Quota

DIGEST = hashlib.sha256(b"sk-hashed").hexdigest()
FILE = f"""
keys:
  - key: sha256:{DIGEST}
    tenant: acme
    name: ci
    caps: {{models: [small], max_tokens: 512, profiles: [off, exact], methods: [suffix], priority: 5}}
    quota: {{requests_per_minute: 60, tokens_per_minute: 1000, concurrent: 2}}
  - key: sk-plain
tenants:
  acme: {{weight: 2, quota: {{tokens_per_minute: 100000}}}}
"""


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(FILE)
    found = from_file(file).by_digest
    acme, other = found[bytes.fromhex(DIGEST)], found[hashlib.sha256(b"sk-plain").digest()]
    assert (acme.tenant, acme.key_id, acme.weight) == ("acme", "ci", 2.0)
    assert acme.caps == Caps(("small",), 512, ("off", "exact"), ("suffix",), None, 5)
    assert acme.quota == Quota(60, 1000, 2) and acme.tenant_quota == Quota(tokens_per_minute=100000)
    assert (other.tenant, other.key_id) == ("default", hashlib.sha256(b"sk-plain").hexdigest()[:12])
    assert other.caps == Caps() and not other.quota.limited


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("keys: [", "not YAML (line"),
        ("[]", "must be an object"),
        ("kees: []", "kees: unknown"),
        ("keys: {}", "keys: must be a list"),
        ("keys: [sk-secret]", "entry 1: an entry: must be an object"),
        ("keys: [{key: 12}]", "entry 1: key: must be text"),
        ("keys: [{sk-secret-0123456789: x}]", "entry 1: a member: unknown"),
        ("keys: [{secretsecretsecret: x}]", "entry 1: a member: unknown"),
        ("keys: [{tenant: acme}]", "entry 1: key"),
        ("keys: [{key: a}, {key: a}]", "entry 2: the same key"),
        ("keys: [{key: a, name: x}, {key: b, name: x}]", "entry 2: the same key or name"),
        ("keys: [{key: 'sk-secret with spaces'}]", "entry 1: a key is"),
        ("keys: [{key: a, caps: {tokens: 1}}]", "caps: tokens: unknown"),
        ("keys: [{key: a, caps: {max_tokens: 0}}]", "caps: max_tokens: must be an integer from 1"),
        ("keys: [{key: a, caps: {max_tokens: true}}]", "caps: max_tokens"),
        ("keys: [{key: a, caps: {methods: [eagle9]}}]", "caps: methods: unknown name 'eagle9'"),
        ("keys: [{key: a, caps: {models: small}}]", "caps: models: must be a list"),
        ("keys: [{key: a, caps: {max_visual_tokens: 0}}]", "caps: max_visual_tokens"),
        ("keys: [{key: a, caps: [1]}]", "caps: must be an object"),
        ("keys: [{key: a, quota: {concurrent: x}}]", "quota: concurrent"),
        ("keys: [{key: a, tenant: 'x y'}]", "a name is"),
        ("tenants: {acme: {weight: 0}}", "tenant acme: must be a number above 0"),
        ("tenants: {acme: {weight: .nan}}", "tenant acme: must be a number above 0"),
        ("tenants: {acme: 3}", "tenant acme"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_place(tmp_path: Path, text: str, names: str) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(text)
    with pytest.raises(StartError) as caught:
        from_file(file)
    said = str(caught.value)
    assert names in said and str(file) in said and "\n" not in said and "secret" not in said


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="No such file"):
        from_file(tmp_path / "none.yaml")


def test_texts() -> None:
    found = from_texts(["sk-1", f"sha256:{DIGEST}"], "auth.keys").by_digest
    assert set(found) == {hashlib.sha256(b"sk-1").digest(), bytes.fromhex(DIGEST)}
    with pytest.raises(StartError, match=r"auth\.keys, key 2") as caught:
        from_texts(["fine", "not secret"], "auth.keys")
    assert "not secret" not in str(caught.value)
