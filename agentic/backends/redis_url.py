"""Redis URLs, checked here rather than by the driver, which guesses: a wrong one is an error that shows no password."""

from __future__ import annotations

from typing import Any, Final, NoReturn
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from agentic.errors import ConfigurationError

SCHEMES: Final = ("redis", "rediss", "valkey", "valkeys", "unix")


def connection_options(url: str) -> dict[str, Any]:
    """Return what a URL says of the connection: `host` and `port`, or `path`; `db`, `username`, `password`, `ssl`.

    Accepted: `redis[s]://[[user]:password@][host][:port][/db]`, the same with `valkey[s]`, and
    `unix://[[user]:password@]/path/to/socket[?db=1]`.

    Raises:
        ConfigurationError: Anything else. The message shows no part of the URL that may hold a password.
    """
    parts = _split(url)
    options: dict[str, Any] = {}
    if parts.scheme == "unix":
        if parts.hostname or not parts.path.strip("/"):
            raise ConfigurationError("unix URL: expected unix:///path/to/socket")
        options["path"] = unquote(parts.path)
        options["db"] = _database(dict(_query(parts, ("db",))).get("db", ""))
    else:
        _query(parts, ())
        options["host"] = unquote(parts.hostname or "localhost")
        options["port"] = _port(parts)
        options["db"] = _database(parts.path.removeprefix("/"))
        options["ssl"] = parts.scheme.endswith("ss") or parts.scheme == "valkeys"
    if parts.username:
        options["username"] = unquote(parts.username)
    if parts.password:
        options["password"] = unquote(parts.password)
    return options


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


def _port(parts: SplitResult) -> int:
    try:
        port = parts.port
    except ValueError:
        _malformed("its port must be a number from 1 to 65535")
    if port == 0:
        _malformed("its port must be a number from 1 to 65535")
    return port or 6379


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
