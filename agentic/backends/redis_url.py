"""Redis URLs, checked here rather than by the driver, which guesses: a wrong one is an error that shows no password."""

from __future__ import annotations

from typing import Any, Final, NoReturn
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from agentic.errors import ConfigurationError

SCHEMES: Final = (
    "redis", "rediss", "valkey", "valkeys", "unix", *(
        f"{scheme}+{kind}" for kind in ("sentinel", "cluster") for scheme in ("redis", "rediss", "valkey", "valkeys")
    )
)  # fmt: skip
SENTINEL_PORT: Final = 26379


def connection_options(url: str) -> dict[str, Any]:
    """Return what a URL says of the connection.

    That is `host` and `port`, or `path`, or `sentinels` and `service`, or `cluster`; and `db`, `username`, `password`,
    `ssl`.

    Accepted: `redis[s]://[[user]:password@][host][:port][/db]`, the same with `valkey[s]`,
    `unix://[[user]:password@]/path/to/socket[?db=1]`, `redis[s]+sentinel://[[user]:password@]host[:port],.../service[/db]`
    and `redis[s]+cluster://[[user]:password@]host[:port],...`. Those with TLS take `?ca=/path/to/ca.pem`, for
    certificates that the system's own authorities did not sign.

    Raises:
        ConfigurationError: Anything else. The message shows no part of the URL that may hold a password.
    """
    parts = _split(url)
    options: dict[str, Any] = {}
    scheme, _, kind = parts.scheme.partition("+")
    tls = scheme in ("rediss", "valkeys")
    authorities = dict(_query(parts, ("ca",))) if tls else {}
    if authorities:
        options["ssl_ca_certs"] = authorities["ca"]
    if kind:
        _query(parts, ("ca",) if tls else ())
        options |= _several(parts, kind)
        options["ssl"] = tls
    elif parts.scheme == "unix":
        if parts.hostname or not parts.path.strip("/"):
            raise ConfigurationError("unix URL: expected unix:///path/to/socket")
        options["path"] = unquote(parts.path)
        options["db"] = _database(dict(_query(parts, ("db",))).get("db", ""))
    else:
        _query(parts, ("ca",) if tls else ())
        options["host"] = unquote(parts.hostname or "localhost")
        options["port"] = _port(parts)
        options["db"] = _database(parts.path.removeprefix("/"))
        options["ssl"] = tls
    if parts.username:
        options["username"] = unquote(parts.username)
    if parts.password:
        options["password"] = unquote(parts.password)
    return options


def _several(parts: SplitResult, kind: str) -> dict[str, Any]:
    hosts = parts.netloc.rpartition("@")[2]
    addresses = [_address(host, SENTINEL_PORT if kind == "sentinel" else 6379) for host in hosts.split(",")]
    service, _, db = parts.path.removeprefix("/").partition("/")
    if kind == "cluster":
        if _database(service) or db:
            _malformed("a cluster has no database but 0")
        return {"cluster": addresses, "db": 0}
    if not service:
        _malformed("name the service that the sentinels watch, as in redis+sentinel://host:26379/mymaster")
    return {"sentinels": addresses, "service": unquote(service), "db": _database(db)}


def _address(text: str, port: int) -> tuple[str, int]:
    one = urlsplit(f"redis://{text}")
    if not one.hostname:
        _malformed("expected host:port,host:port")
    return unquote(one.hostname), _port(one, port)


def redacted(url: str) -> str:
    """Return any URL with `***` for what may be its password, however malformed it is."""
    scheme, separator, rest = url.partition("://")
    user_info, at, address = rest.rpartition("@")
    return f"{scheme}{separator}{user_info.partition(':')[0]}:***@{address}" if ":" in user_info and at else url


def _split(url: str) -> SplitResult:
    if not isinstance(url, str):
        raise ConfigurationError(f"Redis URL: must be a string, got {type(url).__name__}")
    try:
        parts = urlsplit(url)
    except ValueError:
        _malformed("it cannot be read as a URL")
    if parts.scheme not in SCHEMES:
        # An address without a scheme is refused unseen: what stands before its colon may be anything.
        raise ConfigurationError(
            f"Redis URL: its scheme must be one of {', '.join(SCHEMES)}, as in redis://localhost:6379/0"
        )
    if "@" in parts.path + parts.query + parts.fragment or parts.netloc.count("@") > 1 or parts.fragment:
        _malformed(
            "special characters in a user name or password must be percent-encoded ('@' is %40, '/' is %2F, '#' is %23)"
        )
    return parts


def _port(parts: SplitResult, default: int = 6379) -> int:
    try:
        port = parts.port
    except ValueError:
        _malformed("its port must be a number from 1 to 65535")
    if port == 0:
        _malformed("its port must be a number from 1 to 65535")
    return port or default


def _database(text: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()):
        _malformed("its database, after the host's '/', must be a number")
    return int(text)


def _query(parts: SplitResult, known: tuple[str, ...]) -> list[tuple[str, str]]:
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    for name, _ in pairs:
        if name not in known:
            _malformed(f"it has an unknown parameter {name!r}")
    return pairs


def _malformed(problem: str) -> NoReturn:
    raise ConfigurationError(f"Redis URL: {problem}") from None
