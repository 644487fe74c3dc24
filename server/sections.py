"""The sections of the settings, each a part of the gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_settings import NoDecode

from thriftree.plugins.speculative import registry


class Routes(BaseModel):
    """Which routes are open."""

    model_config = ConfigDict(extra="forbid")

    allow: Annotated[list[str], NoDecode] = Field(
        default=[], description="more routes of vLLM to open, e.g. /tokenize,/v1/score"
    )

    @field_validator("allow", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Flags and the environment give one text with commas."""
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("allow")
    @classmethod
    def _paths(cls, value: list[str]) -> list[str]:
        for route in value:
            if not route.startswith("/"):
                raise ValueError(f"a route starts with a slash, {route!r} does not")
        return value


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

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        if method not in registry.names():
            raise ValueError(f"unknown method {method!r}, expected one of {', '.join(registry.names())}")
        return method


class Limits(BaseModel):
    """What a client may cost."""

    model_config = ConfigDict(extra="forbid")

    max_body_bytes: int = Field(default=64 << 20, ge=1024, description="largest request body, in bytes")
    body_seconds: float = Field(default=30, gt=0, description="seconds in which a request body must have arrived")


class Auth(BaseModel):
    """Who may ask."""

    model_config = ConfigDict(extra="forbid")

    database: Path | None = Field(default=None, description="SQLite file of the keys that `thriftree keys` makes")
    keys_file: Path | None = Field(default=None, description="YAML file of keys, for those without a database")
    open: bool = Field(default=False, description="serve without keys, also beyond loopback")


class Quotas(BaseModel):
    """Where the state of quotas lives; the figures belong to keys and tenants."""

    model_config = ConfigDict(extra="forbid")

    snapshot: Path | None = Field(
        default=None, description="SQLite file that keeps quotas over a restart (default: beside the key database)"
    )
    redis: str | None = Field(default=None, description="redis:// URL shared by several replicas")


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
