"""Which store, with which options: from a URL, a path, a mapping or the environment."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any, Final, Literal, Self, TypedDict, Unpack

import msgspec

from agentic.errors import ConfigurationError
from agentic.frozen import FrozenDict
from agentic.options import flag, flag_of, text
from agentic.registry import AgentRegistry
from agentic.stores import options_of, plain_arguments, store_class
from agentic.text import plain, printable, type_name
from agentic.urls import StoreURL, is_secret, malformed, refuse_url, store_name, suggestion

logger = logging.getLogger("agentic.config")

ENVIRONMENT_PREFIX: Final = "AGENTIC_"

_IN_URLS_ONLY: Final = ("rediss", "valkey", "valkeys", "unix")
"""Schemes that say how to connect; as a `backend`, without a URL, that would be lost: `rediss` would not mean TLS."""

_BY_DEFAULT: Final = "memory"
_OF_A_PATH: Final = "sqlite"

_EXPECTED: Final = {str: "a string", float: "a number of seconds", int: "a whole number"}


@dataclass(frozen=True, kw_only=True, repr=False)
class RegistryConfig:
    """Which store to use and with which options; `open_registry` checks it.

    A field that is None or empty is not given. The store is the one that `url` or `backend` names; without either,
    `path` stands for SQLite, and the options of Redis are refused. Options of another store are always refused.

    Attributes:
        backend: The store: `"memory"`, `"sqlite"`, `"redis"`, or the scheme of another one that is installed.
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
        options: Options of a store that none of these fields has, by name; a text is converted to what the store takes.
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
    options: Mapping[str, Any] = FrozenDict()

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", FrozenDict(_mapping(self.options)))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Read a mapping such as a table of a TOML or YAML file.

        Numbers may be text, and `yes`, `no`, `true` and `false` stand for a `bool`; None and an empty text stand for a
        value that is not given.

        Raises:
            ConfigurationError: A key is none of the fields, or a value has the wrong type; the message shows neither.
        """
        names = [field.name for field in fields(cls)]
        values: dict[str, Any] = {}
        for name, value in _mapping(mapping).items():
            if plain(name) not in names:
                raise ConfigurationError(f"unknown registry option{suggestion(plain(name), names)}")
            if value is not None and not (isinstance(value, str) and not plain(value)):
                values[name] = _read(name, _FIELDS[name], value, strict=False) if name in _FIELDS else value
        return cls(**values)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read the environment: one variable for each option, such as `AGENTIC_URL`; an empty one is not given.

        Variables that begin with `AGENTIC_` and are none of these are logged where the others name no store.

        Raises:
            ConfigurationError: A value has the wrong type; the message does not show it. Or there are other variables,
                and the store, whose options they may be, is not installed.
        """
        environ = os.environ if environ is None else _mapping(environ)
        given = {
            name.removeprefix(ENVIRONMENT_PREFIX).lower(): value
            for name, value in environ.items()
            if name.startswith(ENVIRONMENT_PREFIX) and name.isupper()
        }
        config = cls.from_mapping({name: value for name, value in given.items() if name in _FIELDS})
        others = sorted(given.keys() - _FIELDS)
        store = store_name(config.url) or config.backend.lower()
        if others and store:
            known = options_of(store_class(store))
            return replace(config, options={name: given[name] for name in others if name in known and given[name]})
        if others and not (config.url or config.path):
            logger.warning(
                "the environment names no store, and it has variables that are unknown here: %s; known are %s",
                printable(", ".join(ENVIRONMENT_PREFIX + name.upper() for name in others)),
                ", ".join(ENVIRONMENT_PREFIX + name.upper() for name in _FIELDS),
            )
        return config

    def __repr__(self) -> str:
        given = _given(self)
        try:
            store = choose(self)
            store.registry()
        except ConfigurationError:
            # What is wrong may be a secret in the wrong place.
            shown: dict[str, object] = dict.fromkeys(given, "***")
        else:
            shown = _shown(given) | ({} if store.url is None else {"url": str(store.url)})
        return f"RegistryConfig({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


_FIELDS: Final = plain_arguments(RegistryConfig.__init__)
"""What each field holds where it is given, but for `options`."""


class RegistryOptions(TypedDict, total=False):
    """The keywords of `open_registry` for the stores of this package, which are those of their classes."""

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
    option of the store is a query parameter of its name: `redis://host/0?prefix=fleet&ttl=60`. Other distributions add
    stores with schemes of their own.

    Opening it fails with `BackendUnavailableError` where the store does not answer. With `wait=30`, it tries again for
    30 seconds before it does, for a store that starts later than its programs.

    Args:
        source: A URL; a `pathlib.Path`, which names a SQLite file; a `RegistryConfig`; a mapping with its fields; or
            None for the environment's `AGENTIC_*` variables. Where nothing names a store, it is the memory store.
        **options: The options of the store's class, but for `url` and `path`; each counts where `source` says something
            else.

    Raises:
        ConfigurationError: It names no store that is installed, or contradicts itself, or an option is wrong; no
            secret appears in the message.
    """
    return choose(as_config(source)).with_options(**options).registry()


@dataclass(frozen=True, repr=False)
class StoreChoice:
    """A store, and what its class is called with.

    Attributes:
        name: The scheme, or the `backend`, that names the store.
        kind: Its class.
        options: The arguments of the class, each a known one; the class checks their values.
        url: The URL, where one is given.
        is_default: Whether nothing names a store.
    """

    name: str
    kind: type[AgentRegistry]
    options: Mapping[str, Any] = FrozenDict()
    url: StoreURL | None = None
    is_default: bool = False

    def with_options(self, **options: Any) -> StoreChoice:
        """Return the same with options that count before these.

        Raises:
            ConfigurationError: The store has no such option.
        """
        _check_names(options, self, without=("url", "path"))
        return replace(self, options={**self.options, **options})

    def registry(self) -> AgentRegistry:
        """Make the registry.

        Raises:
            ConfigurationError: An option is wrong.
        """
        return self.kind(**self.options)


def choose(config: RegistryConfig) -> StoreChoice:
    """Return the store that a configuration names; an option of its URL counts before a field.

    Raises:
        ConfigurationError: It names no store that is installed, or contradicts itself, or has an option that the store
            does not have, or one of the wrong type.
    """
    given = {name: _read(name, _FIELDS[name], value) for name, value in _given(config).items() if name in _FIELDS}
    backend, written = refuse_url(given.pop("backend", ""), "backend").lower(), given.pop("url", "")
    if backend in _IN_URLS_ONLY:
        raise ConfigurationError(
            f"backend: {backend} is the scheme of a URL: give a url such as {backend}://, or redis"
        )
    name = store_name(written) if written else backend or (_OF_A_PATH if "path" in given else _BY_DEFAULT)
    store = StoreChoice(name, store_class(name), is_default=not (written or backend or "path" in given))
    if written and backend and store_class(backend) is not store.kind:
        raise ConfigurationError(f"backend: {backend} does not agree with the URL, which names {name}")
    if written and "path" in given:
        raise ConfigurationError("path: name the file either in the URL or here")
    _check_names(given, store)
    _check_names(config.options, store, without=("url", "path"))
    store = replace(store, options=given | _from_text(config.options, store.kind))
    return _by_url(store, StoreURL.parse(written)) if written else store


def _by_url(store: StoreChoice, url: StoreURL) -> StoreChoice:
    """Return the choice with the options of a URL in place of those of fields."""
    in_url = store.kind.options_in(url)
    known = [name for name in options_of(store.kind) if name not in (*in_url, "password")]
    for name in url.parameters:
        if name not in known:
            malformed(f"unknown parameter{suggestion(name, known)}")
    return replace(store, url=url, options={**store.options, **in_url, **_from_text(url.parameters, store.kind)})


def _check_names(names: Iterable[str], store: StoreChoice, without: Sequence[str] = ()) -> None:
    known = [name for name in options_of(store.kind) if name not in without]
    for name in names:
        if name not in known and name in _FIELDS and store.is_default:
            raise ConfigurationError(
                f"{name}: names no store by itself: give a url (AGENTIC_URL) or a backend (AGENTIC_BACKEND) as well"
            )
        if name not in known:
            shown = f"{name}: " if name in _FIELDS else ""  # Any other name may be a secret.
            raise ConfigurationError(f"{shown}the {store.name} store has no such option{suggestion(name, known)}")


def _from_text(values: Mapping[str, Any], kind: type[AgentRegistry]) -> dict[str, Any]:
    """Return options with each text converted to what the store takes."""
    types = options_of(kind)
    return {name: _read(name, types[name], value, strict=False) for name, value in values.items()}


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
            return RegistryConfig(path=os.fspath(source))
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


def _shown(options: Mapping[str, Any]) -> dict[str, object]:
    """Return options without what must not be shown of them."""
    return {
        name: "***" if is_secret(name) else _shown(value) if isinstance(value, Mapping) else plain(value)
        for name, value in options.items()
    }


def _read(name: str, kind: type, value: object, *, strict: bool = True) -> Any:
    """Return the value of an option, checked; text is converted to what the option holds unless `strict`."""
    value = plain(os.fspath(value) if isinstance(value, os.PathLike) else value)
    if kind is bool:
        return flag_of(value, name) if isinstance(value, str) and not strict else flag(value, name)
    if kind is float and isinstance(value, timedelta):
        return value.total_seconds()
    with suppress(msgspec.ValidationError, ValueError):  # Their messages show the value.
        return msgspec.convert(value, kind, strict=strict)
    got = "another text" if isinstance(value, str) and not strict else type_name(value)
    raise ConfigurationError(f"{name}: must be {_EXPECTED[kind]}, got {got}")
