"""The grammar of store URLs, and what a message or a repr shows of them."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic import (
    AgentRegistry,
    BackendUnavailableError,
    ConfigurationError,
    RedisRegistry,
    RegistryConfig,
    RegistryError,
    SQLiteRegistry,
    open_registry,
)
from agentic.backends.redis.url import connection_options
from agentic.urls import StoreURL

TLS = {"host": "h", "port": 6379, "db": 0, "ssl": True}
FLEET = {"sentinels": [("h", 26379)], "service": "fleet", "db": 0, "ssl": False}


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("redis://", {"host": "localhost", "port": 6379, "db": 0, "ssl": False}),
        ("redis://h:7/5", {"host": "h", "port": 7, "db": 5, "ssl": False}),
        ("redis://[::1]:7", {"host": "::1", "port": 7, "db": 0, "ssl": False}),
        ("rediss://u:p%40%2F%25@h/", TLS | {"username": "u", "password": "p@/%"}),
        ("valkeys://:p:q@h", TLS | {"password": "p:q"}),
        ("redis://:p+q;r=s&t@h:1", {"host": "h", "port": 1, "db": 0, "ssl": False, "password": "p+q;r=s&t"}),
        ("rediss://h?ca=/a/b%20c.pem", TLS | {"ssl_ca_certs": "/a/b c.pem"}),
        (
            "rediss://h?cert=c.pem&key=k+1;x=%26.pem",
            TLS | {"ssl_certfile": "c.pem", "ssl_keyfile": "k+1;x=&.pem"},
        ),
        ("unix:///a%20b.sock", {"path": "/a b.sock", "db": 0}),
        ("unix://u:p@/s.sock?db=2", {"path": "/s.sock", "db": 2, "username": "u", "password": "p"}),
        ("redis+sentinel://h1,h2:5/fleet", FLEET | {"sentinels": [("h1", 26379), ("h2", 5)]}),
        (
            "rediss+sentinel://u:p%40@h/a%2Fb/3",
            FLEET | {"service": "a/b", "db": 3, "username": "u", "password": "p@", "ssl": True},
        ),
        (
            "redis+sentinel://h/fleet?sentinel_username=u&sentinel_password=p%20q&sentinel_tls=yes",
            FLEET | {"sentinel_username": "u", "sentinel_password": "p q", "sentinel_tls": True},
        ),
        ("redis+sentinel://h/fleet?sentinel_tls=no", FLEET | {"sentinel_tls": False}),
        ("valkey+cluster://h1:1,[::1]:2", {"cluster": [("h1", 1), ("::1", 2)], "db": 0, "ssl": False}),
    ],
)
def test_what_a_redis_url_says(url: str, options: dict[str, Any]) -> None:
    assert connection_options(StoreURL.parse(url)) == options


def test_an_option_beside_the_url_overrides_the_one_in_it() -> None:
    url = StoreURL.parse("rediss+sentinel://u:p@h/fleet/3?ca=a.pem&sentinel_tls=no")
    options = connection_options(url, db=4, password="q", ca="b.pem", cert=None, sentinel_tls=True)
    expected = {"db": 4, "password": "q", "ssl_ca_certs": "b.pem", "sentinel_tls": True, "username": "u"}
    assert options.items() >= expected.items()
    assert "ssl_certfile" not in options


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("redis://h/abc", "its database must be a number"),
        ("redis://h/-1", "its database must be a number"),
        ("redis://h/0/1", "its database must be a number"),
        ("redis://h/" + "9" * 10, "its database must be a number"),
        ("unix:///s?db=x", "db: must be a whole number"),
        ("redis+sentinel://h/fleet/x", "its database must be a number"),
        ("redis+cluster://h/2", "no database but 0"),
        ("redis://h:0", "its port a number from 1 to 65535"),
        ("redis://h:70000", "its port"),
        ("redis://h:port", "its port"),
        ("redis://h:", "its port"),
        ("redis://h\u2488com", "a name or address of ASCII letters"),
        ("redis://h%2Fx", "a name or address of ASCII letters"),
        ("redis://[::1", "a name or address"),
        ("redis://[1.2.3.4]", "must be an IPv6 address"),
        ("redis://[::::]", "must be an IPv6 address"),
        ("redis://h,i", r"several hosts are for redis\+sentinel://"),
        ("redis+sentinel://h", "name the service"),
        ("redis+sentinel:///fleet", "expected host:port"),
        ("redis+cluster://h,,i", "expected host:port"),
        ("unix://host/s.sock", "expected unix:///path/to/socket"),
        ("unix://", "expected unix:///path/to/socket"),
        ("unix:///", "expected unix:///path/to/socket"),
        ("redis://h#x", "must be percent-encoded"),
        ("redis://h#", "must be percent-encoded"),
        ("redis://:a/b@h", "must be percent-encoded"),
        ("redis://:a?b@h", "must be percent-encoded"),
        ("redis://:a#b@h", "must be percent-encoded"),
        ("redis://:a@b@h", "must be percent-encoded"),
        ("redis://:a[b@h", "must be percent-encoded"),
        ("redis://:a]b@h", "must be percent-encoded"),
        ("redis://:a b@h", "must be percent-encoded"),
        ("sqlite:///x.db#y", "must be percent-encoded"),
        ("redis://h\t", "not printable"),
        ("redis://:a\nb@h", "not printable"),
        ("sqlite:///a\0b", "not printable"),
        ("sqlite:///a%00b", "must be printable and UTF-8"),
        ("redis://:a%0Ab@h", "must be printable and UTF-8"),
        ("redis://h?prefix=%FF", "must be printable and UTF-8"),
        ("redis://:%ff%fe@h", "must be printable and UTF-8"),
        ("redis://:100%@h", "two hexadecimal digits"),
        ("redis://:%zz@h", "two hexadecimal digits"),
        ("redis://h?", "name=value"),
        ("redis://h?prefix", "name=value"),
        ("redis://h?prefix=", "name=value"),
        ("redis://h?=x", "name=value"),
        ("redis://h?ttl=5&&prefix=x", "name=value"),
        ("redis://h?prefix=a&prefix=b", "given twice"),
        ("sqlite:///x.db?ttl=1&ttl=2", "given twice"),
        ("redis://h?socket_timeout=1", "unknown parameter"),
        ("redis://h?prefx=a", "unknown parameter; did you mean 'prefix'?"),
        ("redis://h?pre%66ix=a", "unknown parameter"),
        ("redis://h?password=s3", "unknown parameter"),
        ("redis://h?db=3", "unknown parameter"),
        ("redis://h?ca=x", "ca: needs TLS"),
        ("rediss://h?key=x", "key: needs the cert"),
        ("redis://h?sentinel_tls=yes", "sentinel_tls: needs sentinels"),
        ("redis+sentinel://h/s?sentinel_tls=1", "sentinel_tls: must be yes, no, true or false"),
        ("redis://h?ttl=soon", "ttl: must be a number of seconds"),
        ("redis://h?ttl=1e400", "ttl: must be a number of seconds"),
        ("redis://h?ttl=nan", "ttl must be finite"),
        ("redis://h?max_connections=1.5", "max_connections: must be a whole number"),
        ("memory://host", "takes no host"),
        ("memory:///x", "takes no path"),
        ("memory://?prefix=p", "unknown parameter: expected ttl, timeout, stale_after"),
        ("sqlite://rel.db", "sqlite:///relative/file or sqlite:////absolute/file"),
        ("sqlite://u:p@/rel.db", "sqlite:///relative/file or sqlite:////absolute/file"),
        ("sqlite:///x.db?mode=ro", "unknown parameter"),
        ("sqlite:///x.db?path=y", "unknown parameter"),
        ("mongodb://h", "^unsupported registry backend: expected a URL"),
        ("localhost:6379", "^unsupported registry backend: expected a URL"),
        ("/tmp/x.db", "^unsupported registry backend: expected a URL"),
        ("redis+other://h", "RedisRegistry takes redis, rediss"),
        ("redis+://h", "RedisRegistry takes redis, rediss"),
        ("unix+sentinel://h", "RedisRegistry takes redis, rediss"),
        ("redis:/h", "^unsupported registry backend: expected a URL"),
        (" redis://h", "^unsupported registry backend: expected a URL"),
        ("", "URL: must not be empty"),
        ("redis://h/" + "x" * 5000, "URL: must be at most 4096 characters, got 5010"),
        ("redis://\ud800", "lone surrogate"),
    ],
)
def test_a_malformed_url_is_refused(url: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem) as caught:
        open_registry(url)
    assert len(str(caught.value)) < 400


def test_a_redis_registry_takes_parameters_of_its_connection_only() -> None:
    assert RedisRegistry("unix:///s?db=3").url == "unix:///s?db=3"
    with pytest.raises(ConfigurationError, match="open_registry takes every option"):
        RedisRegistry("redis://h?prefix=p")
    with pytest.raises(ConfigurationError, match="open_registry takes the URLs of other stores"):
        RedisRegistry("sqlite:///x.db")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://u:p@h:1/2?prefix=p&ttl=5", "redis://u:***@h:1/2?prefix=p&ttl=5"),
        ("redis://:p@[::1]:1", "redis://:***@[::1]:1"),
        ("redis://secret@h", "redis://***@h"),
        ("redis://longsecret", "redis://***"),
        ("redis://longsecret:1", "redis://longsecret:1"),
        ("redis://long.secret", "redis://long.secret"),
        ("redis://localhost", "redis://localhost"),
        ("rediss+sentinel://u:p@h1,h2:5/fleet?ca=/x.pem", "rediss+sentinel://u:***@h1,h2:5/fleet?ca=/x.pem"),
        (
            "redis+sentinel://h/f?sentinel_username=u&sentinel_password=p",
            "redis+sentinel://h/f?sentinel_username=u&sentinel_password=***",
        ),
        ("unix:///run/redis.sock?db=3", "unix:///run/redis.sock?db=3"),
        ("sqlite:////var/r.db", "sqlite:////var/r.db"),
        ("sqlite:///a%3Fb@c.db", "sqlite:///a%3Fb%40c.db"),
        ("memory://", "memory://"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert str(StoreURL.parse(url)) == shown
    assert repr(RegistryConfig(url=url)) == f"RegistryConfig(url={shown!r})"


SECRET = "hunter2s3cret"


def everything_shown(make: Callable[..., object], *args: Any, **options: Any) -> str:
    """Return all that a person or a tool could see of a call: its result's repr, or its error with all it refers to."""
    try:
        result = make(*args, **options)
    except RegistryError as error:
        seen: list[BaseException | None] = [error, error.__cause__, error.__context__]
        lines = "".join(traceback.format_exception_only(error))
        return lines + "".join(f"{each!r} {each.args}" for each in seen if each is not None)
    return f"{result!r} {result}"


def from_env(**environ: Any) -> AgentRegistry:
    return open_registry(RegistryConfig.from_env(environ))


PLACES = [
    "redis://u:{}@h:x/0", "redis://u:{}@h/x", "redis://u:{}@h?zz=1", "redis://u:{}@[::1", "redis://u:a/{}@h", "redis://u:a#{}@h",
    "redis://u:{}", "redis://{}", "redis://{}@h", "redis://h?password={}", "redis://h?{}=1", "redis://h?{}", "redis://h/{}", "redis://h#{}",
    "redis://h?ttl={}", "redis://h?prefix={}@x", "http://u:{}@h", "u:{}@h:6379", "{}@h", "{}", "{}://h", "redis+cluster://u:{}@h,i/4",
    "redis+sentinel://u:{}@h,:x/s", "unix://u:{}@h/p", "sqlite://u:{}@h/x", "memory:///{}", "redis://u:{}\n@h:1", " redis://u:{}@h",
    "redis:/u:{}@h", "redis://u:[{}]@h", "redis://u:{}\u2100@h", "redis://h:{}", "redis://h?timeout={}", "redis://h?max_connections={}",
    "redis://h?stale_after={}", "sqlite:///x?create={}", "sqlite:///x?synchronous={}", "redis+sentinel://h/s?sentinel_tls={}",
    "redis+sentinel://h/s?sentinel_password={}", "redis+sentinel://h/s?sentinel_password={}&x=1", "redis://h?a=1&{}=2", "redis://%FF{}@h",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_secret_in_a_url_is_never_shown(place: str) -> None:
    url = place.format(SECRET)
    assert SECRET not in everything_shown(open_registry, url)
    assert SECRET not in everything_shown(open_registry, {"backend": "redis", "url": url})
    assert SECRET not in everything_shown(RedisRegistry, url)
    assert SECRET not in everything_shown(RegistryConfig, url=url)
    assert SECRET not in everything_shown(from_env, AGENTIC_URL=url)


@pytest.mark.parametrize("url", ["redis://{}", "redis+cluster://{}", "redis+sentinel://{}/fleet"])
async def test_a_secret_in_place_of_the_host_is_not_in_the_error_of_a_connection(url: str) -> None:
    with pytest.raises(BackendUnavailableError) as caught:
        await open_registry(url.format(SECRET), timeout=20)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


FULL = f"redis://:{SECRET}@h:6379/0"


@pytest.mark.parametrize("value", [FULL, [FULL], FULL.encode()], ids=type)
@pytest.mark.parametrize("field", sorted(vars(RegistryConfig())))
def test_a_url_in_any_other_field_is_never_shown(field: str, value: Any) -> None:
    backend = "sqlite" if field in ("path", "synchronous", "create") else "redis"
    fields = {"backend": backend, field: value}
    assert SECRET not in everything_shown(RegistryConfig, **{field: value})
    assert SECRET not in everything_shown(open_registry, fields)
    assert SECRET not in everything_shown(lambda: open_registry(RegistryConfig(**fields)))
    assert SECRET not in everything_shown(from_env, **{f"AGENTIC_{field.upper()}": value})


@pytest.mark.parametrize(
    ("make", "args", "options"),
    [
        (SQLiteRegistry, (FULL,), {}),
        (SQLiteRegistry, (f"  rediss://:{SECRET}@h",), {}),
        (SQLiteRegistry, (f"redis:/:{SECRET}@h",), {}),
        (SQLiteRegistry, ("x",), {"synchronous": SECRET}),
        (RedisRegistry, (), {"prefix": FULL}),
        (RedisRegistry, (), {"prefix": SECRET.encode()}),
        (RedisRegistry, (), {"password": [SECRET]}),
        (RedisRegistry, (), {"db": SECRET}),
        (RedisRegistry, (), {"max_connections": SECRET}),
        (RedisRegistry, (), {"timeout": SECRET}),
        (RedisRegistry, (), {"client": SECRET}),
        (RedisRegistry, ("rediss://h",), {"ca": FULL}),
        (open_registry, ({SECRET: 1},), {}),
        (open_registry, (FULL.encode(),), {}),
        (open_registry, ({"backend": SECRET},), {}),
        (open_registry, ({"backend": FULL, "url": "sqlite:///x"},), {}),
        (RegistryConfig, (), {"password": SECRET, "backend": "redis"}),
        (RegistryConfig, (), {"sentinel_password": SECRET, "url": "redis+sentinel://h/s"}),
    ],
)
def test_a_secret_in_a_wrong_place_is_never_shown(
    make: Callable[..., object], args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    assert SECRET not in everything_shown(make, *args, **options)


@settings(max_examples=50)
@given(secret=st.text(st.sampled_from("S3cr3t@/:#?%[]&= "), min_size=6).filter(lambda text: "3" in text))
def test_a_password_is_never_shown_however_it_is_written(secret: str) -> None:
    for url in (
        f"redis://user:{secret}@host:6379/0",
        f"unix://user:{secret}@/s.sock",
        f"redis://:{secret}@host/x",
        f"redis://{secret}@host",
        f"redis://host?password={secret}",
        f"redis+cluster://{secret}@h1,h2?{secret}",
        f"redis+sentinel://u@h/fleet#{secret}",
        f"rediss+sentinel://user:{secret}@h1,h2:5/fleet/3",
        f"valkey+cluster://:{secret}@h1:1,[::1]:2",
        f"user:{secret}@host:6379",
        f"user:{secret}@foo://x",
        f"https://{secret}",
    ):
        assert secret not in everything_shown(open_registry, url)
        assert secret not in everything_shown(RegistryConfig, url=url)
