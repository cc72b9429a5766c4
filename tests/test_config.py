"""Which store a URL, a mapping or the environment names, and what is refused without showing a secret."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

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
from agentic.backends.redis_url import connection_options, redacted
from agentic.config import resolved


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
        ({"backend": "memory", "ttl": "60"}, MemoryRegistry, {"ttl": 60.0}),
        (RegistryConfig(), MemoryRegistry, {"ttl": None}),
        ("memory://", MemoryRegistry, {"ttl": None}),
        ("memory://?ttl=1.5", MemoryRegistry, {"ttl": 1.5}),
        ("sqlite://", SQLiteRegistry, {"path": DEFAULT_PATH, "ttl": None}),
        ("sqlite:///", SQLiteRegistry, {"path": DEFAULT_PATH, "ttl": None}),
        ("sqlite:///rel.db", SQLiteRegistry, {"path": "rel.db", "ttl": None}),
        ("sqlite:///a/b%20c%3F.db?ttl=60", SQLiteRegistry, {"path": "a/b c?.db", "ttl": 60.0}),
        ("sqlite:////abs/x.db", SQLiteRegistry, {"path": "/abs/x.db", "ttl": None}),
        ("sqlite:///:memory:", SQLiteRegistry, {"path": ":memory:", "ttl": None}),
        ({"backend": "sqlite"}, SQLiteRegistry, {"path": DEFAULT_PATH, "ttl": None}),
        ({"backend": "sqlite", "path": Path("x.db"), "ttl": 5}, SQLiteRegistry, {"path": "x.db", "ttl": 5.0}),
        (RegistryConfig(backend="redis"), RedisRegistry, {"url": REDIS, "prefix": "agentic", "ttl": 300.0}),
        ({"backend": "redis", "prefix": "p", "ttl": 9}, RedisRegistry, {"url": REDIS, "prefix": "p", "ttl": 9.0}),
        ("redis://h?prefix=", RedisRegistry, {"url": "redis://h", "prefix": "agentic", "ttl": 300.0}),
        ("redis://h:1/2?prefix=p%2Fq&ttl=60", RedisRegistry, {"url": "redis://h:1/2", "prefix": "p/q", "ttl": 60.0}),
        ("rediss://u:p@h", RedisRegistry, {"url": "rediss://u:***@h", "prefix": "agentic", "ttl": 300.0}),
        ("valkey://h", RedisRegistry, {"url": "valkey://h", "prefix": "agentic", "ttl": 300.0}),
        ("valkeys://h", RedisRegistry, {"url": "valkeys://h", "prefix": "agentic", "ttl": 300.0}),
        ("unix:///run/r.sock?db=3&prefix=p", RedisRegistry, {"url": "unix:///run/r.sock?db=3", "prefix": "p", "ttl": 300.0}),
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
    ("url", "options"),
    [
        ("redis://", {"host": "localhost", "port": 6379, "db": 0, "ssl": False}),
        ("redis://h:7/5", {"host": "h", "port": 7, "db": 5, "ssl": False}),
        ("redis://[::1]:7", {"host": "::1", "port": 7, "db": 0, "ssl": False}),
        (
            "rediss://u:p%40%2F@h/",
            {"host": "h", "port": 6379, "db": 0, "ssl": True, "username": "u", "password": "p@/"},
        ),
        ("valkeys://:p@h", {"host": "h", "port": 6379, "db": 0, "ssl": True, "password": "p"}),
        ("unix:///a%20b.sock", {"path": "/a b.sock", "db": 0}),
        ("unix://u:p@/s.sock?db=2", {"path": "/s.sock", "db": 2, "username": "u", "password": "p"}),
    ],
)
def test_what_a_redis_url_says(url: str, options: dict[str, Any]) -> None:
    assert connection_options(url) == options


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("mongodb://h", "^unsupported registry backend: mongodb$"),
        ("", "^unsupported registry backend: not a URL"),
        ("localhost:6379", "^unsupported registry backend: not a URL"),
        ("/tmp/x.db", "^unsupported registry backend: not a URL"),
        ({"backend": "etcd"}, "^unsupported registry backend: etcd$"),
        (RegistryConfig(backend="Redis"), "^unsupported registry backend: Redis$"),
        ({"backnd": "redis"}, "unknown registry option 'backnd': expected backend, path, url, prefix, ttl"),
        ({"ttl": "soon"}, "ttl: must be a number of seconds, got 'soon'"),
        ({"ttl": True}, "ttl: must be a number"),
        ({"ttl": 0}, "ttl must be greater than 0"),
        ({"ttl": "nan"}, "ttl must be finite"),
        ({"prefix": 5}, "prefix: must be a string, got int"),
        (7, "expected a URL, a RegistryConfig or a mapping, got int"),
        (RegistryConfig(backend="sqlite", url=REDIS), "backend 'sqlite' does not agree with a URL of 'redis'"),
        ("memory://host", "names no host"),
        ("memory://?prefix=p", "unknown parameter 'prefix'"),
        ("sqlite://rel.db", "expected sqlite:///relative.db or sqlite:////absolute.db"),
        ("sqlite:///x.db?mode=ro", "unknown parameter 'mode'"),
        ("sqlite:///x.db?ttl=1&ttl=2", "given twice"),
        ("redis://h?prefix=a&prefix=b", "given twice"),
        ("redis://h/abc", "its database, after the host's '/', must be a number"),
        ("redis://h/-1", "must be a number"),
        ("redis://h/0/1", "must be a number"),
        ("redis://h:0", "its port must be a number from 1 to 65535"),
        ("redis://h:70000", "its port must be"),
        ("redis://h:port", "its port must be"),
        ("redis://h?socket_timeout=1", "unknown parameter 'socket_timeout'"),
        ("redis://h#x", "must be percent-encoded"),
        ("redis://[::1", "cannot be read"),
        ("unix://host/s.sock", "expected unix:///path/to/socket"),
        ("unix://", "expected unix:///path/to/socket"),
        ("redis://h?ttl=soon", "ttl: must be a number"),
    ],
)
def test_what_names_no_store_is_refused(source: Any, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem) as caught:
        open_registry(source)
    assert isinstance(caught.value, ValueError)


@given(secret=st.text(st.sampled_from("S3cr3t@/:#?%[]&= "), min_size=6).filter(lambda text: "3" in text))
def test_a_password_is_never_shown_however_it_is_written(secret: str) -> None:
    for url in (
        f"redis://user:{secret}@host:6379/0",
        f"unix://user:{secret}@/s.sock",
        f"redis://:{secret}@host/x",
        f"rediss+sentinel://user:{secret}@h1,h2:5/fleet/3",
        f"valkey+cluster://:{secret}@h1:1,[::1]:2",
    ):
        try:
            shown = repr(open_registry(url)) + str(attributes(open_registry(url)))
        except ConfigurationError as error:
            shown = str(error) + "".join(traceback.format_exception_only(error))
        shown += repr(RegistryConfig(url=url))
        assert secret not in shown


@given(secret=st.text(st.sampled_from("S3cr3t@/:#?%[]&= "), min_size=6).filter(lambda text: "3" in text))
def test_a_configuration_nobody_has_checked_shows_no_password_in_an_odd_place(secret: str) -> None:
    for url in (
        f"redis://{secret}@host",
        f"redis://host?password={secret}",
        f"redis://host/0?ttl=5&{secret}&prefix=p",
        f"redis+cluster://{secret}@h1,h2?{secret}",
        f"redis+sentinel://u@h/fleet#{secret}",
        f"user:{secret}@host:6379",
        f"user:{secret}@foo://x",
        f"https://{secret}",
    ):
        config = RegistryConfig(url=url)
        assert secret not in repr(config)
        assert config == RegistryConfig(url=url)
        assert config.url == url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://u:p@h:1/2?prefix=p&ttl=5", "redis://u:***@h:1/2?prefix=p&ttl=5"),
        ("redis://h?password=s3", "redis://h?***"),
        ("redis://secret@h", "redis://***@h"),
        ("rediss+sentinel://u:p@h1,h2:5/fleet?ca=/x.pem", "rediss+sentinel://u:***@h1,h2:5/fleet?ca=/x.pem"),
        ("unix:///run/redis.sock?db=3", "unix:///run/redis.sock?db=3"),
        ("sqlite:////var/r.db", "sqlite:////var/r.db"),
        ("memory://", "memory://"),
        ("", ""),
    ],
)
def test_a_configuration_shows_the_rest_of_its_url(url: str, shown: str) -> None:
    assert f"url={shown!r}," in repr(RegistryConfig(url=url))


def test_redaction_keeps_everything_but_the_password() -> None:
    assert redacted("redis://h:1/2?x=1") == "redis://h:1/2?x=1"
    assert redacted("redis://user@h") == "redis://user@h"
    assert redacted("redis://user:p:w@h:1") == "redis://user:***@h:1"


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


async def test_a_registry_picked_by_url_works(redis_url: str, tmp_path: Path) -> None:
    for url in ("memory://", f"sqlite:///{tmp_path}/x.db", f"{redis_url}?prefix=test-config&ttl=60"):
        async with open_registry(url) as registry:
            await registry.register(AgentInfo("a"))
            assert await registry.flush() == 1


@pytest.mark.parametrize("wrong", ["", "\ud800", None, 5])
def test_a_prefix_that_cannot_be_a_key_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="^prefix: "):
        RedisRegistry(prefix=wrong)


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), "1", True])
def test_durations_that_cannot_work_are_refused(wrong: Any) -> None:
    for kind in (MemoryRegistry, SQLiteRegistry, RedisRegistry):
        with pytest.raises(ConfigurationError, match="^ttl must"):
            kind(ttl=wrong)
        with pytest.raises(ConfigurationError, match="^timeout must"):
            kind(timeout=wrong)


def test_a_resolved_configuration_keeps_of_its_url_what_only_the_url_can_say() -> None:
    found = resolved(RegistryConfig(url="unix:///run/redis.sock?db=3&prefix=fleet&ttl=60"))
    assert found == RegistryConfig(backend="redis", url="unix:///run/redis.sock?db=3", prefix="fleet", ttl=60.0)


@pytest.mark.parametrize("url", ["sqlite://[", "memory://[x", "http://[", "user:secret@foo://x"])
def test_a_url_that_cannot_be_read_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_registry(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: SQLiteRegistry(5), "path"),  # type: ignore[arg-type]
        (lambda: SQLiteRegistry("\ud800.db"), "path"),
        (lambda: open_registry(RegistryConfig(url=5)), "url"),  # type: ignore[arg-type]
        (lambda: open_registry(RegistryConfig(backend="sqlite", path=5)), "path"),  # type: ignore[arg-type]
        (lambda: RedisRegistry(max_connections="x"), "max_connections"),  # type: ignore[arg-type]
        (lambda: RedisRegistry(max_connections=0), "max_connections"),
        (lambda: RedisRegistry(db=-1), "db"),
        (lambda: RedisRegistry(password=5), "password"),  # type: ignore[arg-type]
        (lambda: RedisRegistry(client=redis.Redis()), "client"),  # type: ignore[arg-type]
    ],
)
def test_an_option_of_a_wrong_type_is_named(make: Callable[[], object], field: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{field}: "):
        make()


@pytest.mark.parametrize("seconds", [1e12, 1e300])
async def test_a_duration_longer_than_a_century_is_a_century(seconds: float, tmp_path: Path) -> None:
    for registry in (
        MemoryRegistry(ttl=seconds, timeout=seconds),
        SQLiteRegistry(tmp_path / "r.db", ttl=seconds, timeout=seconds),
    ):
        async with registry:
            await registry.register(AgentInfo("a"))
            assert await registry.reap(seconds) == []


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("redis+sentinel://h1,h2:5/fleet", {"sentinels": [("h1", 26379), ("h2", 5)], "service": "fleet", "db": 0}),
        ("rediss+sentinel://u:p%40@h/fleet/3", {"service": "fleet", "db": 3, "username": "u", "password": "p@", "ssl": True}),
        ("valkey+cluster://h1:1,[::1]:2", {"cluster": [("h1", 1), ("::1", 2)], "db": 0, "ssl": False}),
    ],
)  # fmt: skip
def test_urls_of_several_servers(url: str, options: dict[str, object]) -> None:
    assert connection_options(url).items() >= options.items()


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("redis+sentinel://h", "name the service"),
        ("redis+sentinel:///fleet", "expected host:port"),
        ("redis+cluster://h,,i", "expected host:port"),
        ("redis+cluster://h/2", "no database but 0"),
        ("redis+cluster://h:x", "port"),
        ("redis+sentinel://h/fleet/x", "database"),
    ],
)
def test_wrong_urls_of_several_servers(url: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        open_registry(url)
