"""Choose a store and its options from a URL, a path, a mapping or the environment."""

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

_DEFAULT_STORE: Final = "memory"
_STORE_FOR_PATH: Final = "sqlite"
_IN_URLS_ONLY: Final = ("rediss", "valkey", "valkeys", "unix")
"""Schemes that say how to connect; as a `backend`, without a URL, that would be lost: `rediss` would not mean TLS."""

_EXPECTED: Final = {str: "a string", float: "a number of seconds", int: "a whole number"}


@dataclass(frozen=True, kw_only=True, repr=False)
class RegistryConfig:
    """A store and its options. `open_registry` checks them.

    A field that is None or empty counts as not given. `url` or `backend` names the store. Without either, the store is
    SQLite if `path` is given, and memory otherwise. Options that the store does not have are refused.

    Attributes:
        backend: The store: `"memory"`, `"sqlite"`, `"redis"`, or the scheme of another installed store.
        url: The store's URL, as in `open_registry`. Options in it override the other fields.
        ttl: As in every store, like the next three.
        timeout: As in every store.
        stale_after: As in every store.
        wait: As in every store.
        path: As in `SQLiteRegistry`, like `synchronous` and `create`; cannot be combined with a `url`.
        synchronous: As in `SQLiteRegistry`.
        create: As in `SQLiteRegistry`.
        prefix: As in `RedisRegistry`, like all fields that follow.
        max_connections: As in `RedisRegistry`.
        db: As in `RedisRegistry`.
        password: As in `RedisRegistry`; never shown.
        ca: As in `RedisRegistry`.
        cert: As in `RedisRegistry`.
        key: As in `RedisRegistry`.
        sentinel_username: As in `RedisRegistry`.
        sentinel_password: As in `RedisRegistry`; never shown.
        sentinel_tls: As in `RedisRegistry`.
        options: Other options of the store, by name. Text is converted to the type that the store expects.
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
        """Read a mapping, such as a table of a TOML or YAML file.

        Numbers may be text. `yes`, `no`, `true` and `false` are read as a `bool`. None and empty text count as not
        given.

        Raises:
            ConfigurationError: A key is not the name of a field, or a value has the wrong type; the message shows
                neither.
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
        """Read one environment variable per option, such as `AGENTIC_URL`. An empty one counts as not given.

        If no variable names a store, unknown variables that begin with `AGENTIC_` are logged.

        Raises:
            ConfigurationError: A value has the wrong type; the message does not show it. Or there are unknown
                variables, and the store is not installed, so its options are not known.
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
            # The invalid value may be a misplaced secret.
            shown: dict[str, object] = dict.fromkeys(given, "***")
        else:
            shown = _shown(given) | ({} if store.url is None else {"url": str(store.url)})
        return f"RegistryConfig({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


_FIELDS: Final = plain_arguments(RegistryConfig.__init__)
"""The type of each field that is given, except `options`."""


class RegistryOptions(TypedDict, total=False):
    """The keywords of `open_registry` for the stores of this package: the arguments of their classes."""

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
"""The first argument of `open_registry`."""


def open_registry(source: Source = None, **options: Unpack[RegistryOptions]) -> AgentRegistry:
    """Return a registry, not yet open, for a URL, a path or a configuration.

    Open it with `async with`, or with `await`, which returns it.

    URLs: `memory://`, `sqlite:///relative.db`, `sqlite:////absolute.db`, `sqlite://` (the default file),
    `redis[s]://[[user]:password@]host[:port][/db]`, `redis[s]+sentinel://…host[:port],host…/service[/db]`,
    `redis[s]+cluster://…host[:port],host…`, the same with `valkey[s]`, and `unix:///path/to/socket[?db=0]`. All other
    options of the store are query parameters: `redis://host/0?prefix=fleet&ttl=60`. Other distributions can add stores
    with their own schemes.

    Opening fails with `BackendUnavailableError` if the store does not answer. With `wait=30`, it retries for 30 seconds
    first, in case the store starts later than the program.

    Args:
        source: A URL; a `pathlib.Path` of a SQLite file; a `RegistryConfig`; a mapping with its fields; or None for the
            environment variables `AGENTIC_*`. If nothing names a store, the memory store is used.
        **options: The arguments of the store's class, except `url` and `path`. They override `source`.

    Raises:
        ConfigurationError: The store is not installed, the configuration contradicts itself, or an option is invalid.
            The message contains no secret.
    """
    return choose(as_config(source)).with_options(**options).registry()


@dataclass(frozen=True, repr=False)
class StoreChoice:
    """A store, and the arguments for its class.

    Attributes:
        name: The scheme, or the `backend`, that names the store.
        kind: Its class.
        options: Arguments of the class. Their names have been checked; the class checks their values.
        url: The URL, if one is given.
        is_default: Whether the store was chosen because nothing names one.
    """

    name: str
    kind: type[AgentRegistry]
    options: Mapping[str, Any] = FrozenDict()
    url: StoreURL | None = None
    is_default: bool = False

    def with_options(self, **options: Any) -> StoreChoice:
        """Return a copy in which `options` override the present ones.

        Raises:
            ConfigurationError: The store has no such option.
        """
        _check_names(options, self, without=("url", "path"))
        return replace(self, options={**self.options, **options})

    def registry(self) -> AgentRegistry:
        """Create the registry.

        Raises:
            ConfigurationError: An option is invalid.
        """
        return self.kind(**self.options)


def choose(config: RegistryConfig) -> StoreChoice:
    """Return the store for a configuration. Options in its URL override its fields.

    Raises:
        ConfigurationError: The store is not installed, the configuration contradicts itself, or an option is unknown to
            the store or has the wrong type.
    """
    given = {name: _read(name, _FIELDS[name], value) for name, value in _given(config).items() if name in _FIELDS}
    backend, written = refuse_url(given.pop("backend", ""), "backend").lower(), given.pop("url", "")
    if backend in _IN_URLS_ONLY:
        raise ConfigurationError(
            f"backend: {backend} is the scheme of a URL: give a url such as {backend}://, or redis"
        )
    name = store_name(written) if written else backend or (_STORE_FOR_PATH if "path" in given else _DEFAULT_STORE)
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
    """Return a copy in which the options of a URL override those of fields."""
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
    """Convert the text among options to the types that the store expects."""
    types = options_of(kind)
    return {name: _read(name, types[name], value, strict=False) for name, value in values.items()}


def as_config(source: Source) -> RegistryConfig:
    """Convert the first argument of `open_registry` to a configuration.

    Raises:
        ConfigurationError: It has the wrong type, or an invalid option.
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
    """Return options with secrets replaced by `***`."""
    return {
        name: "***" if is_secret(name) else _shown(value) if isinstance(value, Mapping) else plain(value)
        for name, value in options.items()
    }


def _read(name: str, kind: type, value: object, *, strict: bool = True) -> Any:
    """Check the type of an option and return its value. Text is converted to that type unless `strict`."""
    value = plain(os.fspath(value) if isinstance(value, os.PathLike) else value)
    if kind is bool:
        return flag_of(value, name) if isinstance(value, str) and not strict else flag(value, name)
    if kind is float and isinstance(value, timedelta):
        return value.total_seconds()
    with suppress(msgspec.ValidationError, ValueError):  # Their messages show the value.
        return msgspec.convert(value, kind, strict=strict)
    got = "another text" if isinstance(value, str) and not strict else type_name(value)
    raise ConfigurationError(f"{name}: must be {_EXPECTED[kind]}, got {got}")
