"""Which store a URL, a mapping or the environment names, with which options, and what is refused."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio as aioredis

from agentic import (
    AgentInfo,
    AgentRegistry,
    ConfigurationError,
    MemoryRegistry,
    RedisRegistry,
    RegistryConfig,
    SQLiteRegistry,
    open_registry,
)
from agentic.config import choose
from agentic.stores import options_of


def attributes(registry: AgentRegistry) -> dict[str, Any]:
    return {name: value for name, value in vars(registry).items() if name in ("url", "path", "prefix", "ttl")}


DEFAULT_PATH = "~/.config/agentic/registry.db"
REDIS = "redis://localhost:6379/0"


@pytest.mark.parametrize(
    ("source", "kind", "expected"),
    [
        (None, MemoryRegistry, {"ttl": None}),
        ({}, MemoryRegistry, {"ttl": None}),
        ({"backend": "", "url": None}, MemoryRegistry, {"ttl": None}),
        ({"ttl": 60}, MemoryRegistry, {"ttl": 60.0}),
        ({"backend": "memory", "ttl": "60"}, MemoryRegistry, {"ttl": 60.0}),
        (RegistryConfig(), MemoryRegistry, {"ttl": None}),
        ("memory://", MemoryRegistry, {"ttl": None}),
        ("memory://?ttl=1.5", MemoryRegistry, {"ttl": 1.5}),
        ("sqlite://", SQLiteRegistry, {"path": DEFAULT_PATH, "ttl": None}),
        ("sqlite:///", SQLiteRegistry, {"path": DEFAULT_PATH, "ttl": None}),
        ("sqlite:///rel.db", SQLiteRegistry, {"path": "rel.db", "ttl": None}),
        ("sqlite:///a/b%20c%3F.db?ttl=60", SQLiteRegistry, {"path": "a/b c?.db", "ttl": 60.0}),
        ("sqlite:///a+b;c@d.db", SQLiteRegistry, {"path": "a+b;c@d.db", "ttl": None}),
        ("sqlite:///file:x.db", SQLiteRegistry, {"path": "file:x.db", "ttl": None}),
        ("sqlite:////abs/x.db", SQLiteRegistry, {"path": "/abs/x.db", "ttl": None}),
        ("sqlite:///:memory:", SQLiteRegistry, {"path": ":memory:", "ttl": None}),
        ({"backend": "sqlite"}, SQLiteRegistry, {"path": DEFAULT_PATH, "ttl": None}),
        ({"path": "x.db"}, SQLiteRegistry, {"path": "x.db", "ttl": None}),
        ({"backend": "sqlite", "path": Path("x.db"), "ttl": 5}, SQLiteRegistry, {"path": "x.db", "ttl": 5.0}),
        (Path("a b.db"), SQLiteRegistry, {"path": "a b.db", "ttl": None}),
        ("REDIS://H:1/2", RedisRegistry, {"url": "redis://H:1/2", "prefix": "agentic", "ttl": 300.0}),
        ("SQLite:///X.db", SQLiteRegistry, {"path": "X.db", "ttl": None}),
        ({"backend": "Redis"}, RedisRegistry, {"url": REDIS, "prefix": "agentic", "ttl": 300.0}),
        (RegistryConfig(backend="redis"), RedisRegistry, {"url": REDIS, "prefix": "agentic", "ttl": 300.0}),
        ({"backend": "redis", "prefix": "p", "ttl": 9}, RedisRegistry, {"url": REDIS, "prefix": "p", "ttl": 9.0}),
        ("redis://h:1/2?prefix=p%2Fq&ttl=60", RedisRegistry, {"url": "redis://h:1/2", "prefix": "p/q", "ttl": 60.0}),
        ("redis://h?prefix=a+b;c", RedisRegistry, {"url": "redis://h", "prefix": "a+b;c", "ttl": 300.0}),
        ("rediss://u:p@h", RedisRegistry, {"url": "rediss://u:***@h", "prefix": "agentic", "ttl": 300.0}),
        ("valkey://h", RedisRegistry, {"url": "valkey://h", "prefix": "agentic", "ttl": 300.0}),
        ("valkeys://h", RedisRegistry, {"url": "valkeys://h", "prefix": "agentic", "ttl": 300.0}),
        ("unix:///run/r.sock?db=3&prefix=p", RedisRegistry, {"url": "unix:///run/r.sock", "prefix": "p", "ttl": 300.0}),
        (RegistryConfig(url=REDIS, prefix="p"), RedisRegistry, {"url": REDIS, "prefix": "p", "ttl": 300.0}),
        (RegistryConfig(url=REDIS + "?prefix=q", prefix="p"), RedisRegistry, {"url": REDIS, "prefix": "q", "ttl": 300.0}),
        (RegistryConfig(backend="redis", url=REDIS), RedisRegistry, {"url": REDIS, "prefix": "agentic", "ttl": 300.0}),
    ],
)  # fmt: skip
def test_a_store_is_picked_with_its_options(source: Any, kind: type[AgentRegistry], expected: dict[str, Any]) -> None:
    registry = open_registry(source)
    assert type(registry) is kind
    assert attributes(registry) == expected


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"backend": "etcd"}, "^unsupported registry backend: expected a URL .* installed are memory, sqlite, redis"),
        ({"backend": "rediss"}, "^backend: rediss is the scheme of a URL: give a url such as rediss://, or redis$"),
        ({"backend": "Valkeys", "url": REDIS}, "^backend: valkeys is the scheme of a URL"),
        ({"backend": "unix"}, "^backend: unix is the scheme of a URL"),
        ({"backend": "redis://:secret@host"}, "^backend: looks like a URL; open_registry, AGENTIC_URL and `url` take"),
        ("sqlite+aiosqlite:///x.db", "^URL: sqlite takes nothing between its name and ://$"),
        ("memory+x://", "^URL: memory takes nothing between its name and ://$"),
        (RegistryConfig(backend=None), "^backend: must be a string, got NoneType$"),  # type: ignore[arg-type]
        ({"backnd": "redis"}, "unknown registry option; did you mean 'backend'?"),
        ({"x": 1}, "unknown registry option: expected backend, url, "),
        ({7: 1}, "unknown registry option: "),
        ({"ttl": "soon"}, "^ttl: must be a number of seconds, got another text$"),
        ({"ttl": True}, "^ttl: must be a number"),
        ({"ttl": "null"}, "^ttl: must be a number"),
        ({"ttl": 0}, "^ttl must be greater than 0"),
        ({"ttl": "nan"}, "^ttl must be finite"),
        (RegistryConfig(ttl="60"), "^ttl: must be a number of seconds, got str$"),  # type: ignore[arg-type]
        (RegistryConfig(path="x", create="no"), "^create: must be True or False"),  # type: ignore[arg-type]
        ({"backend": "redis", "max_connections": "many"}, "^max_connections: must be a whole number, got another text$"),
        ({"backend": "redis", "max_connections": 0}, "^max_connections: must be from 1"),
        ({"backend": "redis", "db": 2**31}, "^db: must be from 0"),
        ({"backend": "redis", "prefix": 5}, "^prefix: must be a string, got int$"),
        ({"backend": "sqlite", "synchronous": "OFF"}, "^synchronous: must be"),
        ({"backend": "sqlite", "path": "x" * 10_000_000}, "^path: must be at most 4096 characters, got 10000000$"),
        ([("ttl", 5)], "^expected a URL, a pathlib.Path, a RegistryConfig or a mapping, got list$"),
        (7, "^expected a URL, a pathlib.Path, a RegistryConfig or a mapping, got int$"),
        (Path("/"), "^path: holds a NUL character, or names a folder$"),
        (RegistryConfig(backend="sqlite", url=REDIS), "^backend: sqlite does not agree with the URL, which names redis$"),
        (RegistryConfig(backend="memory", url=REDIS), "^backend: memory does not agree"),
        ({"path": "x.db", "url": REDIS}, "^path: name the file either in the URL or here$"),
        ({"path": "x.db", "url": "sqlite://"}, "^path: name the file"),
        ({"path": "x.db", "backend": "memory"}, "^path: the memory store has no such option"),
        ({"path": "x.db", "backend": "redis"}, "^path: the redis store has no such option"),
        ({"prefix": "p", "backend": "memory"}, "^prefix: the memory store has no such option"),
        ({"prefix": "p", "path": "x.db"}, "^prefix: the sqlite store has no such option"),
        ({"prefix": "p", "url": "sqlite:///x.db"}, "^prefix: the sqlite store has no such option"),
        ({"synchronous": "FULL", "url": REDIS}, "^synchronous: the redis store has no such option"),
    ],
)  # fmt: skip
def test_what_names_no_store_or_contradicts_itself_is_refused(source: Any, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem) as caught:
        open_registry(source)
    assert isinstance(caught.value, ValueError)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        ("memory://", {"ttl": 30}, {"ttl": 30.0}),
        ("memory://?ttl=60", {"ttl": 30}, {"ttl": 30.0}),
        (None, {"ttl": timedelta(seconds=30), "wait": 5}, {"ttl": 30.0, "wait": 5.0}),
        ("sqlite:///x.db", {"synchronous": "FULL", "create": False}, {"synchronous": "FULL", "create": False}),
        (Path("x.db"), {"timeout": 1}, {"path": "x.db", "timeout": 1.0}),
        (REDIS + "?prefix=q&ttl=60", {"prefix": "p", "ttl": None}, {"url": REDIS, "prefix": "p", "ttl": None}),
        ({"url": REDIS, "max_connections": 4}, {"max_connections": 8}, {"max_connections": 8}),
        (RegistryConfig(url=REDIS), {"stale_after": 5}, {"stale_after": 5.0}),
    ],
)  # fmt: skip
def test_keywords_count_where_the_source_says_something_else(
    source: Any, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    registry = open_registry(source, **options)
    assert {name: getattr(registry, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("source", "options", "problem"),
    [
        ("memory://", {"prefix": "p"}, "^prefix: the memory store has no such option: expected ttl, timeout, stale_after, wait$"),
        (REDIS, {"prefx": "p"}, "^the redis store has no such option; did you mean 'prefix'?"),
        (REDIS, {"url": REDIS}, "^url: the redis store has no such option"),
        ("sqlite:///x.db", {"path": "y.db"}, "^path: the sqlite store has no such option"),
        (REDIS, {"ttl": "30"}, "^ttl must be seconds or a timedelta, got str$"),
        (REDIS, {"timeout": None}, "^timeout must be seconds or a timedelta, got NoneType$"),
        (REDIS, {"wait": -1}, "^wait must not be negative, got -1$"),
    ],
)  # fmt: skip
def test_a_keyword_that_is_wrong_is_refused(source: Any, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        open_registry(source, **options)


@pytest.mark.parametrize(
    ("source", "store"),
    [
        ("memory://", "memory://"),
        ("sqlite:///a%20b.db", "sqlite:///a%20b.db"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("redis://u:s3cr3t@h:1/2?prefix=p", "redis://u:***@h:1/2?prefix=p"),
        ("redis://h?timeout=1", "redis://h"),
        ("unix:///r.sock?db=3", "unix:///r.sock?db=3"),
        ("sqlite:///:warning:[red].db", "sqlite:///:warning:[red].db"),
        ({"path": "a b/100%?é\x1b.db"}, "sqlite:///a%20b/100%25%3F%C3%A9%1B.db"),
        ({"backend": "redis", "prefix": "p", "db": 3}, "redis://localhost:6379/0?db=3&prefix=p"),
    ],
)
def test_a_registry_names_its_store_without_secrets(source: Any, store: str) -> None:
    registry = open_registry(source)
    assert registry.store == store
    if "***" not in store and "%1B" not in store and "db=3&" not in store:
        assert open_registry(store).store == store


def test_the_default_file_is_named_by_its_whole_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert open_registry("sqlite://").store == "sqlite:////home/somebody/.config/agentic/registry.db"


@pytest.mark.parametrize("name", sorted({*options_of(SQLiteRegistry), *options_of(RedisRegistry)} - {"path", "url"}))
def test_an_option_of_one_store_names_no_store_by_itself(name: str) -> None:
    if name in options_of(MemoryRegistry):
        assert type(open_registry({name: 5})) is MemoryRegistry
        return
    value = {"max_connections": 5, "db": 5, "create": True, "sentinel_tls": True}.get(name, "x")
    with pytest.raises(
        ConfigurationError, match=f"^{name}: names no store by itself: give a url .AGENTIC_URL. or a backend"
    ):
        open_registry({name: value})


EVERY_OPTION: list[tuple[str, str, str, object]] = [
    ("memory://", "ttl", "60", 60.0),
    ("sqlite:///x.db", "timeout", "1.5", 1.5),
    ("redis://h", "stale_after", "9", 9.0),
    ("memory://", "wait", "30", 30.0),
    ("sqlite:///x.db", "synchronous", "FULL", "FULL"),
    ("redis://h", "prefix", "fleet", "fleet"),
    ("sqlite:///x.db", "create", "no", False),
    ("redis://h", "max_connections", "4", 4),
]


@pytest.mark.parametrize(("url", "name", "text", "value"), EVERY_OPTION)
def test_an_option_is_set_by_url_mapping_and_environment(url: str, name: str, text: str, value: object) -> None:
    environment = {"AGENTIC_URL": url, f"AGENTIC_{name.upper()}": text}
    for source in (
        f"{url}?{name}={text}",
        {"url": url, name: value},
        {"url": url, name: text},
        RegistryConfig(**{"url": url, name: value}),  # type: ignore[arg-type]
        RegistryConfig.from_env(environment),
    ):
        assert getattr(open_registry(source), name) == value


@pytest.mark.parametrize(
    ("url", "options", "expected"),
    [
        ("redis://h", {"db": "3", "password": "p"}, {"db": 3, "password": "p"}),
        ("redis://:q@h/1", {"db": "3", "password": "p"}, {"db": 1, "password": "q"}),
        ("unix:///s?db=2", {"db": "3"}, {"db": 2}),
        ("redis+sentinel://h/s", {"db": "3"}, {"db": 3}),
        ("redis+sentinel://h/s/1", {"db": "3"}, {"db": 1}),
        ("rediss://h", {"ca": "a", "cert": "b", "key": "c"}, {"ssl_ca_certs": "a", "ssl_certfile": "b", "ssl_keyfile": "c"}),
        ("rediss://h?ca=z", {"ca": "a"}, {"ssl_ca_certs": "z"}),
        ("redis+sentinel://h/s", {"sentinel_username": "u", "sentinel_password": "p", "sentinel_tls": "yes"}, {
            "sentinel_username": "u", "sentinel_password": "p", "sentinel_tls": True,
        }),
    ],
)  # fmt: skip
def test_options_of_the_connection_are_set_beside_the_url(
    url: str, options: dict[str, str], expected: dict[str, Any]
) -> None:
    for config in (
        RegistryConfig.from_mapping({"url": url, **options}),
        RegistryConfig.from_env(
            {"AGENTIC_URL": url} | {f"AGENTIC_{name.upper()}": text for name, text in options.items()}
        ),
    ):
        registry = open_registry(config)
        assert isinstance(registry, RedisRegistry)
        assert registry.backend._options.items() >= expected.items()  # noqa: SLF001  shown nowhere: secrets are among them


@pytest.mark.parametrize("wrong", [5, "url", [("url", "memory://")]])
def test_only_a_mapping_is_read_as_one(wrong: Any) -> None:
    for read in (RegistryConfig.from_mapping, RegistryConfig.from_env):
        with pytest.raises(ConfigurationError, match="^expected a mapping of options"):
            read(wrong)


class Strange(str):
    """A text whose own methods must not be called."""

    def __len__(self) -> int:
        raise RuntimeError

    def __format__(self, spec: str) -> str:
        raise RuntimeError

    partition = __format__  # type: ignore[assignment]


def test_methods_of_a_subclass_of_text_are_not_called() -> None:
    registry = open_registry(RegistryConfig(url=Strange("redis://h"), prefix=Strange("p")))
    assert isinstance(registry, RedisRegistry)
    assert (registry.url, registry.prefix, type(registry.prefix)) == ("redis://h", "p", str)
    assert repr(RegistryConfig(path=Strange("x.db"))) == "RegistryConfig(path='x.db')"


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTIC_BACKEND", "sqlite")
    monkeypatch.setenv("AGENTIC_PATH", "env.db")
    monkeypatch.setenv("AGENTIC_TTL", "42")
    monkeypatch.setenv("AGENTIC_PREFIX", "")
    assert RegistryConfig.from_env() == RegistryConfig(backend="sqlite", path="env.db", ttl=42)
    assert attributes(open_registry()) == {"path": "env.db", "ttl": 42}
    assert attributes(open_registry("memory://")) == {"ttl": None}
    assert RegistryConfig.from_env({"AGENTIC_URL": REDIS, "PATH": "/bin"}) == RegistryConfig(url=REDIS)
    monkeypatch.setenv("AGENTIC_TTL", "soon")
    with pytest.raises(ConfigurationError, match="ttl"):
        open_registry()


def test_a_path_in_the_environment_means_sqlite_and_a_prefix_is_refused() -> None:
    assert attributes(open_registry(RegistryConfig.from_env({"AGENTIC_PATH": "fleet.db"})))["path"] == "fleet.db"
    with pytest.raises(ConfigurationError, match="AGENTIC_URL"):
        open_registry(RegistryConfig.from_env({"AGENTIC_PREFIX": "fleet"}))


def test_misspelt_variables_are_logged_where_nothing_names_a_store(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "agentic.config"):
        RegistryConfig.from_env({"AGENTIC_URL": "memory://", "AGENTIC_OTHER": "x"})
        assert not caplog.records
        RegistryConfig.from_env({"AGENTIC_REDIS_URL": "redis://h", "AGENTIC_TTL": "5"})
    (record,) = caplog.records
    assert "AGENTIC_REDIS_URL" in record.getMessage()


async def test_a_registry_picked_by_url_works(redis_url: str, tmp_path: Path) -> None:
    for url in ("memory://", f"sqlite:///{tmp_path}/x.db", f"{redis_url}?prefix=test-config&ttl=60"):
        async with open_registry(url) as registry:
            await registry.register(AgentInfo("a"))
            assert await registry.flush() == 1


def test_what_a_url_says_is_an_option_of_the_store() -> None:
    store = choose(
        RegistryConfig(url="unix://:p@/run/redis.sock?db=3&prefix=fleet&ttl=60&timeout=2", ttl=5, password="q")
    )
    url = store.options["url"]
    assert store.kind is RedisRegistry
    assert {**store.options, "url": url.written} == {
        "url": "unix://:p@/run/redis.sock", "db": 3, "prefix": "fleet", "ttl": 60.0, "timeout": 2.0, "password": None,
    }  # fmt: skip
    assert choose(RegistryConfig(url="sqlite:///x.db")).options == {"path": "x.db"}
    assert (choose(RegistryConfig()).kind, choose(RegistryConfig()).options) == (MemoryRegistry, {})


def test_a_configuration_is_copied_and_pickled_whole() -> None:
    config = RegistryConfig(url="redis://u:p@h/0?ttl=5", sentinel_password="q", max_connections=3)
    for each in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config)), replace(config)):
        assert each == config
        assert hash(each) == hash(config)


def test_a_wrong_configuration_shows_only_which_fields_are_given() -> None:
    assert repr(RegistryConfig(backend="sqlit", path="x.db")) == "RegistryConfig(backend='***', path='***')"
    assert repr(RegistryConfig(backend="sqlite", path="x.db", ttl=5)) == (
        "RegistryConfig(backend='sqlite', ttl=5, path='x.db')"
    )
    assert repr(RegistryConfig(backend="redis", password="p")) == "RegistryConfig(backend='redis', password='***')"
    assert repr(RegistryConfig()) == "RegistryConfig()"


@pytest.mark.parametrize("wrong", ["", "\ud800", None, 5, "redis://h", "x" * 5000])
def test_a_prefix_that_cannot_be_a_key_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="^prefix: "):
        RedisRegistry(prefix=wrong)


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), "1", True, 10**400, -(10**5000), [], b"1"], ids=type)
def test_durations_that_cannot_work_are_refused(wrong: Any) -> None:
    for kind in (MemoryRegistry, SQLiteRegistry, RedisRegistry):
        for name in ("ttl", "timeout", "stale_after"):
            with pytest.raises(ConfigurationError, match=f"^{name} must") as caught:
                kind(**{name: wrong})
            assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: SQLiteRegistry(5), "path"),  # type: ignore[arg-type]
        (lambda: SQLiteRegistry(""), "path"),
        (lambda: SQLiteRegistry("a\0b"), "path"),
        (lambda: SQLiteRegistry("\ud800.db"), "path"),
        (lambda: SQLiteRegistry("sqlite:///x.db"), "path"),
        (lambda: SQLiteRegistry("https://x"), "path"),
        (lambda: SQLiteRegistry("x", clock=5), "clock"),  # type: ignore[arg-type]
        (lambda: MemoryRegistry(clock=None), "clock"),  # type: ignore[arg-type]
        (lambda: SQLiteRegistry("x", synchronous=[]), "synchronous"),  # type: ignore[arg-type]
        (lambda: open_registry(RegistryConfig(url=5)), "url"),  # type: ignore[arg-type]
        (lambda: open_registry(RegistryConfig(backend="sqlite", path=5)), "path"),  # type: ignore[arg-type]
        (lambda: RedisRegistry(5), "URL"),  # type: ignore[arg-type]
        (lambda: RedisRegistry(max_connections="x"), "max_connections"),  # type: ignore[arg-type]
        (lambda: RedisRegistry(max_connections=0), "max_connections"),
        (lambda: RedisRegistry(max_connections=-(10**5000)), "max_connections"),
        (lambda: RedisRegistry(db=-1), "db"),
        (lambda: RedisRegistry(db="4"), "db"),  # type: ignore[arg-type]
        (lambda: RedisRegistry("redis+cluster://h", db=1), "db"),
        (lambda: RedisRegistry(password=5), "password"),  # type: ignore[arg-type]
        (lambda: RedisRegistry(ca="x.pem"), "ca"),
        (lambda: RedisRegistry("rediss://h", ca=5), "ca"),  # type: ignore[arg-type]
        (lambda: RedisRegistry("rediss://h", key="x.pem"), "key"),
        (lambda: RedisRegistry(sentinel_password="x"), "sentinel_password"),
        (lambda: RedisRegistry("redis+sentinel://h/s", sentinel_tls="yes"), "sentinel_tls"),  # type: ignore[arg-type]
        (lambda: RedisRegistry(client=redis.Redis()), "client"),  # type: ignore[arg-type]
        (lambda: RedisRegistry(client=aioredis.Redis().pipeline()), "client"),
        (lambda: RedisRegistry(client=aioredis.Redis(), password="x"), "password"),
        (lambda: RedisRegistry(client=aioredis.Redis(), db=0), "db"),
        (lambda: RedisRegistry(client=aioredis.Redis(), ca="x"), "ca"),
    ],
)
def test_a_wrong_option_is_named(make: Callable[[], object], field: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{field}: ") as caught:
        make()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("seconds", [1e12, 1e300, 10**300])
async def test_a_duration_longer_than_a_century_is_a_century(seconds: float, tmp_path: Path) -> None:
    for registry in (
        MemoryRegistry(ttl=seconds, timeout=seconds),
        SQLiteRegistry(tmp_path / "r.db", ttl=seconds, timeout=seconds),
    ):
        async with registry:
            await registry.register(AgentInfo("a"))
            assert await registry.reap(seconds) == []
