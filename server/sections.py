"""The sections of the settings, each a part of the gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from thriftree.plugins.kv_cache import registry as kv_methods
from thriftree.plugins.speculative import registry
from thriftree.plugins.vision import registry as vision_methods
from thriftree.server.body import MAX_VALUES


def split_commas(value: Any) -> Any:
    """Flags and the environment give one text with commas."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def need_slashes(value: list[str]) -> list[str]:
    """Every one a path."""
    for route in value:
        if not route.startswith("/"):
            raise ValueError(f"a route starts with a slash, {route!r} does not")
    return value


class Routes(BaseModel):
    """Which routes are open."""

    model_config = ConfigDict(extra="forbid")

    allow: Annotated[list[str], NoDecode] = Field(
        default=[], description="more routes of vLLM to open, e.g. /tokenize,/v1/score"
    )

    _list = field_validator("allow", mode="before")(split_commas)
    _paths = field_validator("allow")(need_slashes)


class Speculation(BaseModel):
    """Defaults and caps of token-tree speculation; the engine's options under the same names."""

    model_config = ConfigDict(extra="forbid")

    method: str = Field(default="auto", description="method of requests that name none (see `thriftree methods`)")
    max_nodes: int = Field(
        default=16, ge=1, le=1024, description="tree nodes per step: a request's default and its cap"
    )
    memory_mib: int = Field(default=64, ge=1, description="memory for all drafters' state, in MiB")
    adaptive: bool = Field(default=True, description="let measured step cost choose the nodes; false: always max_nodes")
    seed_share: float = Field(default=0.125, ge=0, le=1, description="share of a prompt's rows that teach the drafter")
    linear: Literal["auto", "stock"] = Field(
        default="auto", description="linear layers of few rows: ours where faster (weights held twice), or vLLM's"
    )

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        if method not in registry.names():
            raise ValueError(f"unknown method {method!r}, expected one of {', '.join(registry.names())}")
        return method


class KV(BaseModel):
    """Defaults and caps of KV-cache compression; the engine's options under the same names."""

    model_config = ConfigDict(extra="forbid")

    compression: Literal["auto", "on", "off"] = Field(
        default="auto", description="requests may ask for it: where the model allows it, always (or no start), or never"
    )
    method: str = Field(
        default="auto", description="method of requests that name none; auto: razor_observed, or observed without heads"
    )
    keep: float = Field(
        default=0.5, gt=0, le=1, description="share of the prompt kept by requests that say neither budget nor keep"
    )
    heads: str = Field(
        default="default",
        description="head file of the retrieval heads: default (the one shipped for this model), a path, or off",
    )
    tiers: int = Field(default=1, ge=1, le=8, description="groups of layers with budgets of their own, for pyramid_kv")
    max_tokens: int | None = Field(
        default=None, ge=64, description="tokens that a request may keep per layer; longer ones are compressed"
    )

    @field_validator("compression", "heads", mode="before")
    @classmethod
    def _yaml_words(cls, value: Any) -> Any:
        """YAML reads a bare `off` as false and `on` as true."""
        return {False: "off", True: "on"}[value] if isinstance(value, bool) else value

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        if method not in ("auto", *kv_methods.names()):
            raise ValueError(f"unknown method {method!r}, expected one of auto, {', '.join(kv_methods.names())}")
        return method


class Vision(BaseModel):
    """Defaults and caps of visual-token pruning; the engine's options under the same names."""

    model_config = ConfigDict(extra="forbid")

    pruning: Literal["auto", "on", "off"] = Field(
        default="auto", description="requests may ask for it: where the model allows it, always (or no start), or never"
    )
    method: str = Field(default=vision_methods.DEFAULT_METHOD, description="method of requests that name none")
    keep: float = Field(
        default=0.25, gt=0, le=1, description="share of an image kept by requests that say neither keep nor keep_tokens"
    )
    max_keep: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="largest share of an image that a request may keep; below 1 all are pruned",
    )
    late_layer: int | None = Field(
        default=None,
        ge=1,
        description="first layer that requests may spare visual tokens (vision.late); no trees and KV compression then",
    )

    @field_validator("pruning", mode="before")
    @classmethod
    def _yaml_words(cls, value: Any) -> Any:
        """YAML reads a bare `off` as false and `on` as true."""
        return {False: "off", True: "on"}[value] if isinstance(value, bool) else value

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        if method not in vision_methods.names():
            raise ValueError(f"unknown method {method!r}, expected one of {', '.join(vision_methods.names())}")
        return method


class Limits(BaseModel):
    """What a client may cost."""

    model_config = ConfigDict(extra="forbid")

    max_body_bytes: int = Field(default=64 << 20, ge=1024, description="largest request body, in bytes")
    body_seconds: float = Field(default=30, gt=0, description="seconds in which a request body must have arrived")
    max_body_values: int = Field(
        default=MAX_VALUES,
        ge=1024,
        description="most JSON values in a body (64 MB of them take seconds and 1.7 GB)",
    )
    max_header_bytes: int = Field(default=64 << 10, ge=1024, description="largest request line and headers, in bytes")
    header_seconds: float = Field(default=10, gt=0, description="seconds in which line and headers must have arrived")
    private_media: bool = Field(
        default=False, description="images by URL may come from addresses that are not public, too"
    )


class Auth(BaseModel):
    """Who may ask."""

    model_config = ConfigDict(extra="forbid")

    database: Path | None = Field(default=None, description="SQLite file of the keys that `thriftree keys` makes")
    keys_file: Path | None = Field(default=None, description="YAML file of keys, for those without a database")
    keys: Annotated[list[SecretStr], NoDecode] = Field(
        default=[], description="keys of the tenant `default`; as THRIFTREE_AUTH__KEYS, flags can be seen by others"
    )
    open: bool = Field(default=False, description="where no keys are configured: serve everybody, beyond loopback too")
    open_routes: Annotated[list[str], NoDecode] = Field(
        default=[], description="routes that need no key, e.g. /metrics; /health and /ready never need one"
    )

    _lists = field_validator("keys", "open_routes", mode="before")(split_commas)
    _paths = field_validator("open_routes")(need_slashes)


class Quotas(BaseModel):
    """Where the state of quotas lives; the figures belong to keys and tenants."""

    model_config = ConfigDict(extra="forbid")

    snapshot: Path | None = Field(
        default=None, description="SQLite file that keeps quotas over a restart (default: beside the key database)"
    )
    redis: str | None = Field(default=None, description="redis:// URL shared by several replicas")
    redis_prefix: str = Field(default="thriftree:", description="what the names of all keys in Redis begin with")
    redis_timeout: float = Field(default=0.1, gt=0, description="seconds that a request waits for Redis")
    redis_down: Literal["local", "refuse"] = Field(
        default="local", description="without Redis: each replica counts on its own, or refuses with 503"
    )


class Admission(BaseModel):
    """Who gets in, and how many wait."""

    model_config = ConfigDict(extra="forbid")

    max_running: int | None = Field(
        default=None, ge=1, description="requests in the engine at once (default: the engine's --max-num-seqs)"
    )
    max_queue: int = Field(default=1024, ge=0, description="requests that wait; more are refused with 429")
    max_queue_tokens: int = Field(default=1 << 20, ge=1, description="prompt and completion tokens that wait")


class Deadlines(BaseModel):
    """Seconds; 0: none. A request may ask for a shorter total with `x-thriftree-timeout`."""

    model_config = ConfigDict(extra="forbid")

    queue: float = Field(default=60, ge=0, description="seconds that a request may wait for the engine; 0: no limit")
    first_token: float = Field(default=300, ge=0, description="seconds from arrival to the first byte; 0: no limit")
    between_tokens: float = Field(default=120, ge=0, description="seconds between two chunks; 0: no limit")
    total: float = Field(default=0, ge=0, description="seconds from arrival to the last byte; 0: no limit")


class Remote(BaseModel):
    """How engines of `--engine` are used."""

    model_config = ConfigDict(extra="forbid")

    key: str | None = Field(default=None, description="bearer key that the gateway shows to the engines")
    prefix_bytes: int = Field(default=1024, ge=0, description="prompt bytes that choose the engine; 0: no affinity")
    health_seconds: float = Field(default=2, gt=0, description="seconds between two health checks of an engine")
    connect_seconds: float = Field(default=2, gt=0, description="seconds to connect to an engine")
    max_connections: int = Field(default=1024, ge=1, description="open connections to one engine")
