"""`thriftree keys create | list | revoke | tenant`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

from thriftree.plugins.engine.contract_var import DEFAULT_TENANT
from thriftree.server import settings
from thriftree.server.errors import StartError
from thriftree.server.keys import limits, token
from thriftree.server.keys.store import KeyRow, Store
from thriftree.server.keys.tenants import check_name

_CAPS = ("models", "max_tokens", "profiles", "methods", "max_kv_budget", "max_visual_tokens", "priority")
_QUOTA = ("requests_per_minute", "tokens_per_minute", "concurrent")
_LISTS = ("models", "profiles", "methods")
_HELP = {
    "models": "model names that the key may use, with commas between them",
    "max_tokens": "completion tokens of one request, over all its choices",
    "profiles": "profiles that it may ask for: off,exact,balanced,max",
    "methods": "methods that it may ask for (see `thriftree methods`)",
    "max_kv_budget": "tokens that a request may keep in its cache, per layer (see `kv.max_tokens`)",
    "max_visual_tokens": "tokens that a request's images and videos may have together",
    "priority": "the best priority that it may claim; lower runs earlier (default: 0)",
    "requests_per_minute": "requests a minute",
    "tokens_per_minute": "prompt and completion tokens a minute",
    "concurrent": "requests at once",
}


def main(argv: Sequence[str]) -> int:
    """0: done; 1: not, with one line on standard error; 2: the command line is wrong."""
    asked = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = asked.run
    try:
        return run(asked)
    except (StartError, ValueError, OSError) as error:
        print(f"thriftree keys {asked.action}: {error}", file=sys.stderr)
        return 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="thriftree keys", description="API keys: printed once, stored as sha256.")
    actions = parser.add_subparsers(dest="action", required=True, parser_class=_Parser)
    where = _Parser(add_help=False)
    where.add_argument(
        "--database", type=Path, metavar="FILE", help="SQLite file (default: auth.database of the settings)"
    )
    where.add_argument("--config", metavar="FILE", help="YAML file of the settings")

    create = actions.add_parser("create", parents=[where], help="make a key and print it: it is shown only now")
    create.add_argument("--tenant", default=DEFAULT_TENANT, help="whose key it is (default: %(default)s)")
    create.add_argument("--name", default="", help="what it is for")
    _add_limits(create, "caps", _CAPS)
    _add_limits(create, "quota", _QUOTA)
    create.set_defaults(run=_create)

    listing = actions.add_parser("list", parents=[where], help="all keys, without their secrets")
    listing.add_argument("--json", action="store_true", help="as JSON, tenants too")
    listing.set_defaults(run=_list)

    revoke = actions.add_parser("revoke", parents=[where], help="refuse a key for ever; servers know within a second")
    revoke.add_argument("id", metavar="ID", help="what `list` shows, the second part of the key")
    revoke.set_defaults(run=_revoke)

    tenant = actions.add_parser(
        "tenant", parents=[where], help="set weight and quota of a tenant; what is not named stays"
    )
    tenant.add_argument("tenant", metavar="NAME")
    tenant.add_argument("--weight", type=float, metavar="X", help="share in fair queueing (a new tenant's: 1)")
    _add_limits(tenant, "quota", _QUOTA)
    tenant.set_defaults(run=_tenant)
    return parser


def _add_limits(parser: argparse.ArgumentParser, group: str, names: Sequence[str]) -> None:
    flags = parser.add_argument_group(group)
    flags.add_argument(f"--{group}", metavar="JSON", help=f"the same as one JSON object with {', '.join(names)}")
    for name in names:
        many = name in _LISTS
        kind: Any = (lambda text: [part.strip() for part in text.split(",") if part.strip()]) if many else int
        metavar = "A,B" if many else "N"
        flags.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=_HELP[name])


def _limits(asked: argparse.Namespace, group: str, names: Sequence[str]) -> dict[str, Any]:
    """The JSON object, with single flags over it."""
    text = getattr(asked, group)
    try:
        given = limits.object_of(text) if text is not None else {}
    except ValueError as error:
        raise ValueError(f"--{group} {text}: {error}") from None
    return given | {name: value for name in names if (value := getattr(asked, name)) is not None}


def _store(asked: argparse.Namespace, create: bool = False) -> Store:
    path: Path | None = asked.database
    if path is None:
        path = settings.load(["--config", asked.config] if asked.config else [])[0].auth.database
    if path is None:
        raise ValueError("say --database FILE, or set auth.database (THRIFTREE_AUTH__DATABASE)")
    return Store(path, create=create)


def _create(asked: argparse.Namespace) -> int:
    tenant = check_name(asked.tenant)
    if len(asked.name) > 200 or not asked.name.isprintable():
        raise ValueError("--name: at most 200 printable characters")
    caps = limits.caps_of(_limits(asked, "caps", _CAPS))
    quota = limits.quota_of(_limits(asked, "quota", _QUOTA))
    key, identity = token.mint()
    with closing(_store(asked, create=True)) as store:
        store.add(identity, token.digest(key.encode()), tenant, asked.name, caps, quota)
    print(key)
    print(f"key {identity} of tenant {tenant}: kept as sha256 only, and shown only now", file=sys.stderr)
    return 0


def _revoke(asked: argparse.Namespace) -> int:
    identity = token.id_of(asked.id.encode()) or asked.id  # a whole key will do
    with closing(_store(asked)) as store:
        before = store.revoke(identity)
    if before is None:
        shown = identity if len(identity) <= 12 and identity.isalnum() else "that"
        raise ValueError(f"no key {shown} in the database (`thriftree keys list` shows the ids)")
    since = "" if before.revoked is None else f" already, {_when(before.revoked)}"
    print(f"revoked{since}: key {identity} of tenant {before.tenant}")
    return 0


def _tenant(asked: argparse.Namespace) -> int:
    name = check_name(asked.tenant)
    with closing(_store(asked, create=True)) as store:
        known = next((row for row in store.tenant_rows() if row.name == name), None)
        weight = _weight(asked.weight if asked.weight is not None else known.weight if known else 1.0)
        kept = limits.object_of(known.quota) if known and asked.quota is None else {}
        quota = limits.quota_of(kept | _limits(asked, "quota", _QUOTA))
        store.set_tenant(name, weight, quota)
    print(f"tenant {name}: weight {weight:g}, quota {limits.to_json(quota)}")
    return 0


def _weight(given: float) -> float:
    try:
        return limits.weight_of(given)
    except ValueError as error:
        raise ValueError(f"--weight: {error}") from None


def _list(asked: argparse.Namespace) -> int:
    with closing(_store(asked)) as store:
        keys, tenants = store.key_rows(), store.tenant_rows()
    if asked.json:
        shown = [{"name": row.name, "weight": row.weight, "quota": limits.object_of(row.quota)} for row in tenants]
        print(json.dumps({"object": "list", "keys": [_row(row) for row in keys], "tenants": shown}, indent=2))
        return 0
    table = Table(box=None, pad_edge=False)
    for head in ("id", "tenant", "name", "caps and quota", "created", "last used", "state"):
        table.add_column(head, overflow="fold", no_wrap=head == "id")
    for row in keys:
        state = "valid" if row.revoked is None else f"revoked {_when(row.revoked)}"
        last = "never" if row.last_used is None else _when(row.last_used)
        table.add_row(row.id, row.tenant, row.name, _short(row), _when(row.created), last, state)
    if keys:
        Console(markup=False, highlight=False).print(table)
    else:
        print("no keys")
    return 0


def _short(row: KeyRow) -> str:
    """Caps and quota in a cell: ``max_tokens=512 models=a,b``."""
    given = limits.object_of(row.caps) | limits.object_of(row.quota)
    return " ".join(
        f"{name}={','.join(value) if isinstance(value, list) else value}" for name, value in sorted(given.items())
    )


def _row(row: KeyRow) -> dict[str, Any]:
    times = {"created": row.created, "last_used": row.last_used, "revoked": row.revoked}
    return {
        "id": row.id,
        "tenant": row.tenant,
        "name": row.name,
        "caps": limits.object_of(row.caps),
        "quota": limits.object_of(row.quota),
        **{name: None if when is None else _when(when) for name, when in times.items()},
    }


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
