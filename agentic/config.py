"""Which store, from a URL, a mapping or the environment: the only module that knows all of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from importlib import import_module
from typing import Any, Final, Literal, Self, TypedDict, Unpack, get_args, get_type_hints

import msgspec

from agentic.backends.redis.url import names_database
from agentic.errors import ConfigurationError
from agentic.options import flag, flag_of, text
from agentic.registry import AgentRegistry
from agentic.text import plain, printable, type_name
from agentic.urls import SECRETS, StoreURL, file_path, malformed, refuse_url, suggestion

logger = logging.getLogger("agentic.config")

ENVIRONMENT_PREFIX: Final = "AGENTIC_"

_COMMON: Final = ("ttl", "timeout", "stale_after", "wait")
OPTIONS: Final = {
    "memory": _COMMON,
    "sqlite": (*_COMMON, "path", "synchronous", "create"),
    "redis": (
        *_COMMON, "url", "prefix", "max_connections", "db", "password", "ca", "cert", "key", "sentinel_username",
        "sentinel_password", "sentinel_tls",
    ),
}  # fmt: skip
"""The options of each store, by the names that its class gives them."""

_CLASSES: Final = {
    "memory": ("agentic.backends.memory", "MemoryRegistry"),
    "sqlite": ("agentic.backends.sqlite.registry", "SQLiteRegistry"),
    "redis": ("agentic.backends.redis.registry", "RedisRegistry"),
}

_PATHS: Final = ("path", "ca", "cert", "key")
_MAY_BE_A_URL: Final = ("url", "sentinel_username", *SECRETS)
_EXPECTED: Final = {float: "a number of seconds", int: "a whole number"}
_NOT_PARAMETERS: Final = ("path", "url", "password")
"""What other parts of a URL say."""


@dataclass(frozen=True, kw_only=True, repr=False)
class RegistryConfig:
    """Which store to use and with which options; `open_registry` checks it.

    A field that is None or empty is not given. The store is the one that `url` or `backend` names; without either,
    `path` stands for SQLite, and the options of Redis are refused. Options of another store are always refused.

    Attributes:
        backend: `"memory"`, `"sqlite"` or `"redis"`.
        url: The store's URL, as `open_registry` takes it; what it says counts where a field says something else.
        ttl: As of every store, like the next three.
        timeout: As of every store.
        stale_after: As of every store.
        wait: As of every store.
        path: As of `SQLiteRegistry`, like `synchronous` and `create`; not beside a `url`.
        synchronous: As of `SQLiteRegistry`.
        create: As of `SQLiteRegistry`.
        prefix: As of `RedisRegistry`, like all fields that follow.
        max_connections: As of `RedisRegistry`.
        db: As of `RedisRegistry`.
        password: As of `RedisRegistry`; never shown.
        ca: As of `RedisRegistry`.
        cert: As of `RedisRegistry`.
        key: As of `RedisRegistry`.
        sentinel_username: As of `RedisRegistry`.
        sentinel_password: As of `RedisRegistry`; never shown.
        sentinel_tls: As of `RedisRegistry`.
    """

    backend: str = ""
    url: str = ""
    ttl: float | None = None
    timeout: float | None = None
    stale_after: float | None = None
    wait: float | None = None
    path: str = ""
    synchronous: str = ""
    create: bool | None = None
    prefix: str = ""
    max_connections: int | None = None
    db: int | None = None
    password: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    sentinel_username: str = ""
    sentinel_password: str = ""
    sentinel_tls: bool | None = None

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Read a mapping such as a table of a TOML or YAML file.

        Numbers may be text, and `yes`, `no`, `true` and `false` stand for a `bool`; None and an empty text stand for a
        value that is not given.

        Raises:
            ConfigurationError: A key is none of the fields, or a value has the wrong type; the message shows neither.
        """
        values: dict[str, Any] = {}
        for name, value in _mapping(mapping).items():
            if plain(name) not in _TYPES:
                raise ConfigurationError(f"unknown registry option{suggestion(plain(name), tuple(_TYPES))}")
            if value is not None and not (isinstance(value, str) and not plain(value)):
                values[name] = _read(name, value, strict=False)
        return cls(**values)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read the environment: one variable for each field, such as `AGENTIC_URL`; an empty one is not given.

        Variables that begin with `AGENTIC_` and are none of these are logged where the others name no store.

        Raises:
            ConfigurationError: A value has the wrong type; the message does not show it.
        """
        environ = os.environ if environ is None else _mapping(environ)
        variables = {ENVIRONMENT_PREFIX + name.upper(): name for name in _TYPES}
        config = cls.from_mapping({name: environ.get(variable) for variable, name in variables.items()})
        unknown = sorted(name for name in environ if name.startswith(ENVIRONMENT_PREFIX) and name not in variables)
        if unknown and not (config.url or config.backend or config.path):
            logger.warning(
                "the environment names no store, and it has variables that are unknown here: %s; known are %s",
                printable(", ".join(unknown)),
                ", ".join(variables),
            )
        return config

    def __repr__(self) -> str:
        given = _given(self)
        try:
            open_registry(self)
        except ConfigurationError:
            # What is wrong may be a secret in the wrong place.
            shown: dict[str, object] = dict.fromkeys(given, "***")
        else:
            shown = {name: "***" if name in SECRETS else plain(value) for name, value in given.items()}
            if self.url:
                shown["url"] = str(StoreURL.parse(self.url))
        return f"RegistryConfig({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


_TYPES: Final[dict[str, type]] = {
    name: next(iter(get_args(hint)), hint) for name, hint in get_type_hints(RegistryConfig).items()
}
"""What each field holds where it is given."""


class RegistryOptions(TypedDict, total=False):
    """The keywords of `open_registry`, which are those of the stores' classes."""

    ttl: float | timedelta | None
    timeout: float | timedelta
    stale_after: float | timedelta
    wait: float | timedelta
    synchronous: Literal["NORMAL", "FULL"]
    create: bool
    prefix: str
    max_connections: int
    db: int | None
    password: str | None
    ca: str | os.PathLike[str] | None
    cert: str | os.PathLike[str] | None
    key: str | os.PathLike[str] | None
    sentinel_username: str | None
    sentinel_password: str | None
    sentinel_tls: bool | None


Source = str | os.PathLike[str] | RegistryConfig | Mapping[str, Any] | None
"""What `open_registry` takes."""


def open_registry(source: Source = None, **options: Unpack[RegistryOptions]) -> AgentRegistry:
    """Return the registry that a URL, a path or a configuration names, not yet open.

    Enter it with `async with`, or `await` it, which opens it and returns it.

    URLs: `memory://`, `sqlite:///relative.db`, `sqlite:////absolute.db`, `sqlite://` (the default file),
    `redis[s]://[[user]:password@]host[:port][/db]`, `redis[s]+sentinel://…host[:port],host…/service[/db]`,
    `redis[s]+cluster://…host[:port],host…`, the same with `valkey[s]`, and `unix:///path/to/socket[?db=0]`. Every other
    option of the store is a query parameter of its name: `redis://host/0?prefix=fleet&ttl=60`.

    Opening it fails with `BackendUnavailableError` where the store does not answer. With `wait=30`, it tries again for
    30 seconds before it does, for a store that starts later than its programs.

    Args:
        source: A URL; a `pathlib.Path`, which names a SQLite file; a `RegistryConfig`; a mapping with its fields; or
            None for the environment's `AGENTIC_*` variables. Where nothing names a store, it is the memory store.
        **options: The options of the store's class, but for `url` and `path`; each counts where `source` says something
            else.

    Raises:
        ConfigurationError: It names no store, or contradicts itself, or an option is wrong; no secret appears in the
            message.
    """
    config = resolved(as_config(source))
    arguments = {name: value for name, value in _given(config).items() if name in OPTIONS[config.backend]}
    for name in options:
        if name not in _keywords(config.backend):
            raise ConfigurationError(
                f"the {config.backend} store has no such option{suggestion(name, _keywords(config.backend))}"
            )
    arguments |= options
    return _registry_class(config.backend)(**arguments)


def _registry_class(backend: str) -> type[AgentRegistry]:
    """Import a store's class, and with it a driver that takes long to import, when it is needed."""
    module, name = _CLASSES[backend]
    found: type[AgentRegistry] = getattr(import_module(module), name)
    return found


def _keywords(backend: str) -> tuple[str, ...]:
    return tuple(name for name in OPTIONS[backend] if name not in ("url", "path"))


def resolved(config: RegistryConfig) -> RegistryConfig:
    """Return the configuration with its `backend` named and what its URL says in the fields.

    Of a `url`, what remains is where the servers are.

    Raises:
        ConfigurationError: It is wrong, or contradicts itself.
    """
    given: dict[str, Any] = {name: _read(name, value, strict=True) for name, value in _given(config).items()}
    config = replace(config, **given | {"backend": config.backend.lower()})
    url = StoreURL.parse(config.url) if config.url else None
    backend = _backend(config, url)
    if url is not None:
        config = replace(config, **_said_by(url, config))
    for name in _given(config):
        if name != "backend" and name not in OPTIONS[backend]:
            raise ConfigurationError(f"{name}: the {backend} store has no such option")
    return replace(config, backend=backend)


def shared(source: RegistryConfig) -> RegistryConfig:
    """Return the configuration, resolved, of a store that other programs see, for one that looks at their agents.

    Raises:
        ConfigurationError: It is wrong, or names the memory store, as it does where nothing is given.
    """
    config = resolved(source)
    if config.backend == "memory":
        if not (source.url or source.backend):
            raise ConfigurationError("no store is named: pass --url sqlite:///fleet.db, or set AGENTIC_URL")
        raise ConfigurationError("no program sees another's memory: name a store by its URL, as in AGENTIC_URL")
    return replace(config, wait=None)  # A command that fails at once can be repeated.


def as_config(source: Source) -> RegistryConfig:
    """Return the configuration that `open_registry` makes of its argument.

    Raises:
        ConfigurationError: It is none of the types, or has a wrong option.
    """
    match source:
        case None:
            return RegistryConfig.from_env()
        case str():
            return RegistryConfig(url=text(source, "URL"))
        case RegistryConfig():
            return source
        case os.PathLike():
            return RegistryConfig(path=str(file_path(source, "path")))
    if not isinstance(source, Mapping):
        raise ConfigurationError(
            f"expected a URL, a pathlib.Path, a RegistryConfig or a mapping, got {type_name(source)}"
        )
    return RegistryConfig.from_mapping(source)


def _mapping(value: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"expected a mapping of options, got {type_name(value)}")
    return value


def _given(config: RegistryConfig) -> dict[str, Any]:
    """Return the fields that are given."""
    return {field.name: value for field in fields(config) if (value := getattr(config, field.name)) != field.default}


def _read(name: str, value: object, *, strict: bool) -> object:
    """Return the value of a field, checked; text is converted to what the field holds unless `strict`."""
    kind, value = _TYPES[name], plain(value)
    if kind is str:
        if name in _PATHS:
            return file_path(value, name)
        return text(value, name) if name in _MAY_BE_A_URL else refuse_url(text(value, name), name)
    if kind is bool:
        return flag_of(value, name) if isinstance(value, str) and not strict else flag(value, name)
    if kind is float and isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, (str, int, float)):
        with suppress(msgspec.ValidationError, ValueError):  # Their messages show the value.
            return msgspec.convert(value, kind, strict=strict)
    got = "got another text" if isinstance(value, str) and not strict else f"got {type_name(value)}"
    raise ConfigurationError(f"{name}: must be {_EXPECTED[kind]}, {got}")


def _backend(config: RegistryConfig, url: StoreURL | None) -> str:
    """Return the store that a configuration names, of itself or by the URL in it."""
    if config.backend and config.backend not in OPTIONS:
        raise ConfigurationError(f"unsupported registry backend: expected {', '.join(OPTIONS)}")
    if url is not None:
        if config.backend not in ("", url.store):
            raise ConfigurationError(f"backend: {config.backend} does not agree with the URL, which names {url.store}")
        if config.path:
            raise ConfigurationError("path: name the file either in the URL or here")
        return url.store
    if config.backend or config.path:
        return config.backend or "sqlite"
    for name in _given(config):
        if name not in _COMMON:
            raise ConfigurationError(
                f"{name}: names no store by itself: give a url (AGENTIC_URL) or a backend (AGENTIC_BACKEND) as well"
            )
    return "memory"


def _said_by(url: StoreURL, config: RegistryConfig) -> dict[str, Any]:
    """Return the fields that a URL decides, with what it says of them."""
    known = [name for name in OPTIONS[url.store] if name not in _NOT_PARAMETERS]
    if url.scheme != "unix" and "db" in known:
        known.remove("db")  # It stands in the path.
    url.check_parameters(tuple(known))
    said = {name: _read(name, value, strict=False) for name, value in url.parameters.items()}
    if url.store == "redis":
        # What the URL's other parts say is left to the registry, so that it alone knows their form.
        said["url"] = config.url.partition("?")[0]
        if url.password:
            said["password"] = ""
        if names_database(url):
            said["db"] = None
        return said
    if url.hosts != (("", None),) or url.username or url.password:
        malformed("memory:// and sqlite:// take no host; a file is sqlite:///relative.db or sqlite:////absolute.db")
    if url.store == "memory" and url.path:
        malformed("memory:// takes no path")
    return said | {"url": "", "path": url.path}
