"""Which store, from a URL, a mapping or the environment: the only module that knows all of them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Self
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from agentic.backends.memory import MemoryRegistry
from agentic.backends.redis import RedisRegistry
from agentic.backends.redis_url import SCHEMES as REDIS_SCHEMES
from agentic.backends.sqlite import SQLiteRegistry
from agentic.errors import ConfigurationError
from agentic.registry import AgentRegistry

ENVIRONMENT_PREFIX: Final = "AGENTIC_"
_KNOWN_PARAMETERS: Final = ("prefix", "ttl", "db", "ca")


@dataclass(frozen=True, kw_only=True, repr=False)
class RegistryConfig:
    """Which store to use and how; `open_registry` checks it.

    Attributes:
        backend: `"memory"` (also when empty), `"sqlite"` or `"redis"`. Where a `url` is given, its scheme decides;
            another `backend` than memory must agree with it.
        path: The SQLite file; `~/.config/agentic/registry.db` when empty.
        url: The store's URL, as `open_registry` takes it; `redis://localhost:6379/0` for Redis when empty.
        prefix: What every Redis key begins with; `"agentic"` when empty. Other stores have none.
        ttl: Seconds after which an agent that nobody writes is gone; None for the store's own default, which is 300 in
            Redis and never in the others.
    """

    backend: str = "memory"
    path: str = ""
    url: str = ""
    prefix: str = ""
    ttl: float | None = None

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Read a mapping such as a table of a TOML or YAML file; None stands for an absent value, a number may be text.

        Raises:
            ConfigurationError: A key is none of the fields, or a value has the wrong type.
        """
        names = [field.name for field in fields(cls)]
        values: dict[str, Any] = {}
        for name, value in mapping.items():
            if name not in names:
                raise ConfigurationError(f"unknown registry option {name!r}: expected {', '.join(names)}")
            if value is not None:
                values[name] = _seconds(value) if name == "ttl" else _string(name, value)
        return cls(**values)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read the environment.

        Variables: `AGENTIC_BACKEND`, `AGENTIC_PATH`, `AGENTIC_URL`, `AGENTIC_PREFIX`, `AGENTIC_TTL`; empty means unset.

        Raises:
            ConfigurationError: `AGENTIC_TTL` is no number.
        """
        environ = os.environ if environ is None else environ
        found = {field.name: environ.get(ENVIRONMENT_PREFIX + field.name.upper()) for field in fields(cls)}
        return cls.from_mapping({name: value or None for name, value in found.items()})

    def __repr__(self) -> str:
        url = _shown(self.url) if self.url else ""
        options = f"backend={self.backend!r}, path={self.path!r}, url={url!r}, prefix={self.prefix!r}, ttl={self.ttl}"
        return f"RegistryConfig({options})"


def open_registry(url_or_config: str | RegistryConfig | Mapping[str, Any] | None = None) -> AgentRegistry:
    """Return the registry that a URL or a configuration names, not yet open: enter it with `async with`.

    URLs: `memory://`, `sqlite:///relative.db`, `sqlite:////absolute.db`, `sqlite://` (the default file),
    `redis[s]://[[user]:password@]host[:port][/db]`, the same with `valkey[s]://`, and `unix:///path/to/socket?db=0`.
    Query parameters: `ttl` in seconds, and `prefix` for Redis.

    Args:
        url_or_config: A URL, a `RegistryConfig`, a mapping with its fields, or None for the environment's `AGENTIC_*`
            variables, which name the memory store when none is set.

    Raises:
        ConfigurationError: It names no store, or an option is wrong; a password never appears in the message.
    """
    config = resolved(_config(url_or_config))
    options: dict[str, Any] = {} if config.ttl is None else {"ttl": config.ttl}
    match config.backend:
        case "" | "memory":
            return MemoryRegistry(**options)
        case "sqlite":
            return SQLiteRegistry(config.path or None, **options)
        case "redis":
            options |= {name: getattr(config, name) for name in ("url", "prefix") if getattr(config, name)}
            return RedisRegistry(**options)
        case unknown:
            raise ConfigurationError(f"unsupported registry backend: {unknown}")


def _config(source: str | RegistryConfig | Mapping[str, Any] | None) -> RegistryConfig:
    match source:
        case None:
            return RegistryConfig.from_env()
        case str():
            return RegistryConfig(url=source) if source else _no_url(source)
        case RegistryConfig():
            for field in ("backend", "path", "url", "prefix"):
                _string(field, getattr(source, field))
            return source
        case Mapping():
            return RegistryConfig.from_mapping(source)
    raise ConfigurationError(f"expected a URL, a RegistryConfig or a mapping, got {type(source).__name__}")


def resolved(config: RegistryConfig) -> RegistryConfig:
    """Return the configuration with what its URL says moved into the other fields.

    Raises:
        ConfigurationError: The URL is wrong, or its scheme does not agree with `backend`.
    """
    if not config.url:
        return config
    named = _from_url(config.url)
    if config.backend not in ("", "memory", named.backend):
        raise ConfigurationError(f"backend {config.backend!r} does not agree with a URL of {named.backend!r}")
    return replace(
        named,
        path=named.path or config.path,
        prefix=named.prefix or config.prefix,
        ttl=config.ttl if named.ttl is None else named.ttl,
    )


def _from_url(url: str) -> RegistryConfig:
    scheme, separator, _ = url.partition("://")
    if not separator:
        return _no_url(url)
    if scheme in REDIS_SCHEMES:
        return _from_redis_url(url)
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigurationError(f"URL: it cannot be read: {error}") from None
    parameters = _parameters(parts.query)
    ttl = _seconds(parameters.pop("ttl")) if "ttl" in parameters else None
    if parameters:
        raise ConfigurationError(f"URL: unknown parameter {next(iter(parameters))!r} for {scheme}://, expected ttl")
    if scheme == "memory":
        if parts.netloc or parts.path.strip("/"):
            raise ConfigurationError("URL: memory:// names no host and no path")
        return RegistryConfig(backend="memory", ttl=ttl)
    if scheme == "sqlite":
        if parts.netloc or parts.fragment:
            raise ConfigurationError("URL: expected sqlite:///relative.db or sqlite:////absolute.db")
        return RegistryConfig(backend="sqlite", path=unquote(parts.path.removeprefix("/")), ttl=ttl)
    # What stands where a scheme should be may be anything, a password too.
    known = scheme if re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) else "its scheme is none"
    raise ConfigurationError(f"unsupported registry backend: {known}")


def _from_redis_url(url: str) -> RegistryConfig:
    # Split by hand: a password with raw special characters is for the Redis URL's own check to refuse.
    address, _, query = url.partition("?")
    if "@" in query:
        return RegistryConfig(backend="redis", url=url)
    parameters = _parameters(query)
    prefix = parameters.pop("prefix", "")
    ttl = _seconds(parameters.pop("ttl")) if "ttl" in parameters else None
    rest = f"{address}?{urlencode(parameters)}" if parameters else address
    return RegistryConfig(backend="redis", url=rest, prefix=prefix, ttl=ttl)


def _shown(url: str) -> str:
    """Return a URL that nobody has checked, with `***` for each part that may hold a password."""
    scheme, _, rest = url.partition("://")
    user_info, at, address = rest.rpartition("@")
    # Either a password with a raw '?' or a parameter with a raw '@'.
    if scheme not in ("memory", "sqlite", *REDIS_SCHEMES) or "?" in user_info or "#" in rest:
        return "***"
    user, _, password = user_info.partition(":")
    shown_user = f"{user}:***@" if password else "***@" if at else ""
    address, mark, query = address.partition("?")
    parameters = (each if each.partition("=")[0] in _KNOWN_PARAMETERS else "***" for each in query.split("&"))
    return f"{scheme}://{shown_user}{address}{mark}{'&'.join(parameters) if mark else ''}"


def _parameters(query: str) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    parameters = dict(pairs)
    if len(parameters) < len(pairs):
        raise ConfigurationError("URL: a parameter is given twice")
    return parameters


def _seconds(value: object) -> float:
    try:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise ConfigurationError(f"ttl: must be a number of seconds, got {value!r}")


def _string(name: str, value: object) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise ConfigurationError(f"{name}: must be a string, got {type(value).__name__}")
    return value


def _no_url(text: str) -> RegistryConfig:
    raise ConfigurationError(
        "unsupported registry backend: not a URL; expected memory://, sqlite:///file.db or redis://localhost:6379/0"
    )
