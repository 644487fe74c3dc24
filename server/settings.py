"""Our own settings: one model, filled by flags, then `THRIFTREE_*`, then YAML, then defaults.

Everything else on the command line belongs to vLLM's parser and goes there untouched (`vllm_args`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from thriftree.server.errors import StartError
from thriftree.server.sections import (
    KV,
    Admission,
    Auth,
    Deadlines,
    Limits,
    Quotas,
    Remote,
    Routes,
    Speculation,
    Vision,
)

Profile = Literal["off", "exact", "balanced", "max"]


class Settings(BaseSettings):
    """thriftree's settings; `vllm` holds flags of `vllm serve` for those who keep all in one file.

    Profiles: off, nothing; exact, speculation `auto`; balanced and max, what `profiles.py` of plugins/kv_cache and
    plugins/vision add.
    """

    model_config = SettingsConfigDict(env_prefix="THRIFTREE_", env_nested_delimiter="__", extra="forbid")

    thrift: Profile = Field(default="exact", description="profile of requests that name none")
    speculation: Speculation = Speculation()
    kv: KV = KV()
    vision: Vision = Vision()
    routes: Routes = Routes()
    limits: Limits = Limits()
    auth: Auth = Auth()
    quotas: Quotas = Quotas()
    admission: Admission = Admission()
    deadlines: Deadlines = Deadlines()
    engine: Annotated[list[str], NoDecode] = Field(
        default=[], description="URL of a running server to stand in front of, instead of an engine here; repeatable"
    )
    remote: Remote = Remote()
    drain_timeout: float = Field(default=30, ge=0, description="seconds that running answers get after SIGTERM")
    log_file: str | None = Field(
        default=None, description="where the engine's log goes; - for standard error (default: the cache folder)"
    )
    access_log: str | None = Field(
        default=None, description="file for one JSON line per request; - for standard output (default: none)"
    )
    vllm: dict[str, Any] = Field(default={}, description="flags of `vllm serve` as JSON (meant for YAML)")

    @field_validator("engine", mode="before")
    @classmethod
    def _urls(cls, value: Any) -> Any:
        """The environment gives one text with commas."""
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("engine")
    @classmethod
    def _http(cls, value: list[str]) -> list[str]:
        for url in value:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"an engine is http://host:port, {url!r} is not")
        return [url.rstrip("/") for url in value]

    @field_validator("thrift", mode="before")
    @classmethod
    def _yaml_off(cls, value: Any) -> Any:
        """YAML reads a bare `off` as false."""
        return "off" if value is False else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls)


def leaves(
    model: type[BaseModel] = Settings, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Every setting with its path: ``("limits", "max_body_bytes")``."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, (*path, name))
        else:
            yield (*path, name), field


def add_flags(parser: argparse.ArgumentParser) -> None:
    """``--thrift``, ``--limits-max-body-bytes``, ...: a flag for every setting."""
    group = parser.add_argument_group("thriftree")
    group.add_argument("--config", metavar="FILE", help="YAML file with these settings")
    for path, field in leaves():
        flag = "--" + "-".join(path).replace("_", "-")
        values = "|".join(map(str, get_args(field.annotation))) if get_origin(field.annotation) is Literal else "VALUE"
        many: dict[str, Any] = {"action": "append"} if path == ("engine",) else {}
        group.add_argument(flag, dest=".".join(path), metavar=values, help=field.description, **many)


def load(argv: Sequence[str]) -> tuple[Settings, list[str]]:
    """Settings, and what is left of the command line for vLLM.

    Raises:
        StartError: a value is wrong; names the setting.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_flags(parser)
    flags, rest = parser.parse_known_args(argv)
    file = flags.config
    if file is not None and not Path(file).is_file():
        raise StartError(f"--config {file}: no such file")
    given: dict[str, Any] = {}
    for path, field in leaves():
        value = getattr(flags, ".".join(path))
        if value is not None:
            node = given
            for name in path[:-1]:
                node = node.setdefault(name, {})
            node[path[-1]] = _value(path, field, value)
    source = type("_Settings", (Settings,), {"model_config": {**Settings.model_config, "yaml_file": file}})
    try:
        return source(**given), rest
    except ValidationError as error:
        first = error.errors()[0]
        raise StartError(
            f"setting {'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"
        ) from None
    except (SettingsError, ValueError, OSError) as error:
        raise StartError(f"settings{f' in {file}' if file else ''}: {error}") from None
    except Exception as error:  # the YAML library's own errors, which are no ValueErrors
        raise StartError(f"--config {file}: {' '.join(str(error).split())}") from None


def _value(path: tuple[str, ...], field: FieldInfo, text: str) -> Any:
    """Objects are JSON; pydantic reads the rest."""
    if str(field.annotation).startswith("dict"):
        try:
            return json.loads(text)
        except ValueError:
            raise StartError(f"--{'-'.join(path).replace('_', '-')} {text}: not a JSON object") from None
    return text
