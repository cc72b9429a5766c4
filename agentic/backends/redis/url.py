"""Connection options from a Redis URL. Parsed here because redis-py guesses at malformed URLs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from agentic.errors import ConfigurationError
from agentic.options import count, flag, flag_of, text
from agentic.urls import Host, StoreURL, file_path, malformed

PORT: Final = 6379
SENTINEL_PORT: Final = 26379

# redis-py's names for the TLS files.
_FILES: Final = {"ca": "ssl_ca_certs", "cert": "ssl_certfile", "key": "ssl_keyfile"}
_SCHEME: Final = re.compile(r"unix|(redis|valkey)s?(\+(sentinel|cluster))?")
_PARAMETERS: Final = (*_FILES, "sentinel_username", "sentinel_password", "sentinel_tls")


def connection_options(url: StoreURL, **given: object) -> dict[str, Any]:
    """Return the options for connecting to the servers in a URL.

    Args:
        url: With parameters of the connection only: `ca`, `cert`, `key`, `sentinel_username`, `sentinel_password`,
            `sentinel_tls`, and `db` for a Unix socket.
        given: The same options, `db` and `password`, passed separately. They override the URL; None means not given.

    Returns:
        `host` and `port`, or `path`, or `sentinels` and `service`, or `cluster`; `db`; `ssl` except for a Unix socket;
        and if given, `username`, `password`, `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`, `sentinel_username`,
        `sentinel_password` and `sentinel_tls`.

    Raises:
        ConfigurationError: The URL or an option is wrong; the message shows no secret.
    """
    if not _SCHEME.fullmatch(url.scheme):
        malformed(
            "RedisRegistry takes redis, rediss, valkey and valkeys, alone and with +sentinel or +cluster, and unix; "
            "open_registry takes the URLs of other stores"
        )
    is_unix, tls = url.scheme == "unix", url.scheme.startswith(("rediss", "valkeys"))
    known = (*_PARAMETERS, "db") if is_unix else _PARAMETERS
    if not set(known).issuperset(url.parameters):
        malformed(f"RedisRegistry takes only {', '.join(known)} as parameters; open_registry takes every option")
    options = _location(url)
    if not is_unix:
        options["ssl"] = tls
    if url.username:
        options["username"] = url.username
    if url.password:
        options["password"] = url.password
    in_url = {name: _parameter(name, value) for name, value in url.parameters.items()}
    overrides = {name: value for name, value in given.items() if value is not None}
    for name, value in (in_url | overrides).items():
        options[_FILES.get(name, name)] = _checked(name, value, tls=tls, kind=url.scheme.partition("+")[2])
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        raise ConfigurationError("key: needs the cert that it belongs to")
    return options


def options_in(url: StoreURL) -> dict[str, Any]:
    """Return the arguments of `RedisRegistry` that a URL specifies outside its query.

    `password` and `db` are None if the URL has them, so that the URL overrides a configuration.

    Raises:
        ConfigurationError: `db` is a parameter, although the path names the database.
    """
    options: dict[str, Any] = {"url": url.without_parameters()}
    if url.password:
        options["password"] = None
    if url.scheme == "unix":
        return options
    if "db" in url.parameters:
        malformed("unknown parameter: the database is in the path, as in redis://localhost:6379/0")
    if any(url.segments[1:] if url.scheme.endswith("+sentinel") else url.segments):
        options["db"] = None
    return options


def _parameter(name: str, value: str) -> str | int | bool:
    return _database([value]) if name == "db" else flag_of(value, name) if name == "sentinel_tls" else value


def _checked(name: str, value: object, *, tls: bool, kind: str) -> str | int | bool:
    if name in _FILES and not tls:
        raise ConfigurationError(f"{name}: needs TLS, as in rediss://")
    if name.startswith("sentinel_") and kind != "sentinel":
        raise ConfigurationError(f"{name}: needs sentinels, as in redis+sentinel://")
    if name == "db":
        db = count(value, name, 0)
        if db and kind == "cluster":
            raise ConfigurationError("db: a cluster has none but 0")
        return db
    if name == "sentinel_tls":
        return flag(value, name)
    return file_path(value, name) if name in _FILES else text(value, name)


def _location(url: StoreURL) -> dict[str, Any]:
    """Return the addresses of the servers, and the database."""
    kind = url.scheme.partition("+")[2]
    if url.scheme == "unix":
        if url.hosts != (("", None),) or not url.path.strip("/"):
            malformed("expected unix:///path/to/socket")
        return {"path": f"/{url.path}", "db": 0}
    if kind == "cluster":
        if _database(url.segments):
            malformed("a cluster has no database but 0")
        return {"cluster": [_address(host, PORT) for host in url.hosts], "db": 0}
    if kind == "sentinel":
        service = url.segments[0] if url.segments else ""
        if not service:
            malformed("name the service that the sentinels watch, as in redis+sentinel://host:26379/mymaster")
        addresses = [_address(host, SENTINEL_PORT) for host in url.hosts]
        return {"sentinels": addresses, "service": service, "db": _database(url.segments[1:])}
    (host, port), *others = url.hosts
    if others:
        malformed("several hosts are for redis+sentinel:// and redis+cluster://")
    return {"host": host or "localhost", "port": port or PORT, "db": _database(url.segments)}


def _address(host: Host, default_port: int) -> tuple[str, int]:
    name, port = host
    if not name:
        malformed("expected host:port,host:port")
    return name, port or default_port


def _database(segments: Sequence[str]) -> int:
    number = "/".join(segments)
    if number and not (number.isascii() and number.isdigit() and len(number) < 10):
        malformed("its database must be a number, as in redis://localhost:6379/0")
    return int(number or 0)
