"""Keys without a database: a YAML file, vLLM's `--api-key` and `VLLM_API_KEY`, `THRIFTREE_AUTH__KEYS`.

The file::

    keys:
      - key: sha256:9f86d08...       # `printf %s "$KEY" | sha256sum`; or the key itself
        tenant: acme                 # default: default
        name: ci                     # what logs and metrics call it; default: the first 12 digits of the digest
        caps: {models: [small], max_tokens: 512}
        quota: {requests_per_minute: 60}
    tenants:
      acme: {weight: 2, quota: {tokens_per_minute: 100000}}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from thriftree.plugins.engine.contract_var import DEFAULT_TENANT
from thriftree.server.errors import StartError
from thriftree.server.keys import limits, token
from thriftree.server.keys.tenants import Tenant, check_name
from thriftree.server.principal import Caps, Principal, Quota


@dataclass(frozen=True)
class StaticKeys:
    """`by_digest`: sha256 of a key -> whose it is."""

    by_digest: Mapping[bytes, Principal] = field(default_factory=dict)
    tenants: Mapping[str, Tenant] = field(default_factory=dict)


def from_texts(keys: Iterable[str], where: str) -> StaticKeys:
    """Plain keys (or digests) of the tenant `default`. Raises StartError; never repeats a key."""
    found = {}
    for number, text in enumerate(keys, 1):
        try:
            digest = token.listed(text)
        except ValueError as error:
            raise StartError(f"{where}, key {number}: {error}") from None
        found[digest] = Principal(key_id=_short(digest))
    return StaticKeys(found)


def from_file(path: Path) -> StaticKeys:
    """Keys and tenants of a file. Raises StartError that names file and field; never repeats a key."""
    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, ValueError) as error:
        raise StartError(f"keys file {path}: {getattr(error, 'strerror', None) or 'not text'}") from None
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)  # the error's own text would show the line, and the key in it
        raise StartError(f"keys file {path}: not YAML" + (f" (line {mark.line + 1})" if mark else "")) from None
    try:
        return _read(data)
    except ValueError as error:
        raise StartError(f"keys file {path}: {error}") from None


def _read(data: Any) -> StaticKeys:
    top = _object(data, "the file", ("keys", "tenants"))
    tenants = {
        check_name(name): _tenant(name, given)
        for name, given in _object(_or(top.get("tenants"), {}), "tenants", None).items()
    }
    entries = _or(top.get("keys"), [])
    if not isinstance(entries, list):
        raise ValueError("keys: must be a list")
    found: dict[bytes, Principal] = {}
    for number, entry in enumerate(entries, 1):
        try:
            digest, principal = _key(entry, tenants)
        except ValueError as error:
            raise ValueError(f"keys, entry {number}: {error}") from None
        if digest in found or any(principal.key_id == other.key_id for other in found.values()):
            raise ValueError(f"keys, entry {number}: the same key or name as an entry before it")
        found[digest] = principal
    return StaticKeys(found, tenants)


def _key(entry: Any, tenants: Mapping[str, Tenant]) -> tuple[bytes, Principal]:
    given = _object(entry, "an entry", ("key", "tenant", "name", "caps", "quota"))
    if not isinstance(given.get("key"), str):
        raise ValueError("key: must be text: sha256:<digest>, or the key itself")
    digest = token.listed(given["key"])
    name = check_name(given.get("tenant", DEFAULT_TENANT))
    tenant = tenants.get(name, Tenant())
    key_id = check_name(given["name"]) if "name" in given else _short(digest)
    caps, quota = _limits(given)
    return digest, Principal(name, key_id, caps, quota, tenant.quota, tenant.weight)


def _limits(given: Mapping[str, Any]) -> tuple[Caps, Quota]:
    try:
        caps = limits.caps_of(_or(given.get("caps"), {}))
    except ValueError as error:
        raise ValueError(f"caps: {error}") from None
    try:
        return caps, limits.quota_of(_or(given.get("quota"), {}))
    except ValueError as error:
        raise ValueError(f"quota: {error}") from None


def _tenant(name: Any, given: Any) -> Tenant:
    try:
        found = _object(_or(given, {}), "a tenant", ("weight", "quota"))
        return Tenant(limits.weight_of(found.get("weight", 1)), limits.quota_of(_or(found.get("quota"), {})))
    except ValueError as error:
        raise ValueError(f"tenant {name}: {error}") from None


def _object(data: Any, what: str, names: tuple[str, ...] | None) -> dict[Any, Any]:
    if not isinstance(data, dict):
        raise ValueError(f"{what}: must be an object" + (f" with {', '.join(names)}" if names else ""))
    for name in data:
        if names is not None and name not in names:
            shown = name if isinstance(name, str) and name.isalpha() and len(name) < 16 else "a member"  # maybe a key
            raise ValueError(f"{shown}: unknown; expected {', '.join(names)}")
    return data


def _or(given: Any, default: Any) -> Any:
    """A member without a value is as none."""
    return default if given is None else given


def _short(digest: bytes) -> str:
    return digest.hex()[:12]
