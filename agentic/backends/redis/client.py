"""Create redis-py clients without the driver's retries, and translate its errors into this library's."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from typing import Any, Final, cast

import redis.asyncio as aioredis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.maint_notifications import MaintNotificationsConfig

from agentic.backends.redis.certificates import check_certificates
from agentic.backends.redis.connection import (
    ClusterConnection,
    ClusterTLSConnection,
    Connection,
    Pool,
    PrimaryConnection,
    PrimaryPool,
    PrimaryTLSConnection,
    SentinelConnection,
    SentinelTLSConnection,
    TLSConnection,
    UnixConnection,
)
from agentic.backends.redis.sentinel import SentinelCredentials, Sentinels
from agentic.backends.redis.server_info import PARSE_ERRORS, Refused
from agentic.backends.redis.topology import Topology
from agentic.errors import BackendError, BackendRejectedError, BackendUnavailableError, ConfigurationError
from agentic.text import type_name
from agentic.urls import shown_host

CONNECT_TIMEOUT: Final = 5.0

_SHARED_WITH_SENTINELS: Final = ("retry", "protocol", "maint_notifications_config")
"""Options that connections to sentinels share with those to servers, if the installed driver has them."""


class _PrimaryClient(aioredis.Redis):
    """A client for the primary that the sentinels name; closing it also closes its clients for the sentinels."""

    sentinels: Sequence[aioredis.Redis] = ()

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        try:
            await super().aclose(close_connection_pool)
        finally:
            await asyncio.gather(*(each.aclose() for each in self.sentinels))


def make_client(options: dict[str, Any], timeout: float) -> aioredis.Redis | Topology:
    """Return a client, or a cluster's topology, without the driver's retries: they would repeat writes.

    Args:
        options: Parsed from a URL by `connection_options`, plus `max_connections`; beyond it the driver raises.
        timeout: Limit in seconds for connecting; at most 5 are used.

    Raises:
        BackendRejectedError: A certificate or key file is unusable.
    """
    options = options | {
        # Each call has its own deadline; a second timer per read would cost a fifth of the driver's speed.
        "socket_timeout": None,
        "socket_connect_timeout": min(CONNECT_TIMEOUT, timeout),
        "retry": Retry(NoBackoff(), 0),
        # The default since redis-py 8.0. It makes the driver send HELLO, whose reply `Greeting` needs.
        "protocol": 3,
        # Enabled, it sends a command on each new connection that older servers reject.
        **_supported({"maint_notifications_config": MaintNotificationsConfig(enabled=False)}),
    }
    certificates = {name: options.pop(name) for name in tuple(options) if name.startswith("ssl_")}
    check_certificates(certificates)
    if "ssl_certfile" in certificates:
        # Without a key file, redis-py up to 7.1 sends no certificate.
        certificates.setdefault("ssl_keyfile", certificates["ssl_certfile"])
    tls = options.pop("ssl", False)
    if "sentinels" in options:
        return _sentinel_client(options, certificates, tls)
    if tls:
        options |= certificates
    if "cluster" in options:
        # When a node does not answer, this leaves time to ask one other node for its successor.
        return _topology(options | {"socket_timeout": 0.4 * timeout}, tls)
    connection_class = TLSConnection if tls else UnixConnection if "path" in options else Connection
    # Not the driver's blocking pool: see `Servers`.
    return aioredis.Redis.from_pool(Pool(connection_class=connection_class, **options))


def _supported(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that the installed redis-py supports."""
    parameters = signature(aioredis.Redis).parameters
    return {name: value for name, value in options.items() if name in parameters}


def _topology(options: dict[str, Any], tls: bool) -> Topology:
    seeds = options.pop("cluster")
    return Topology(seeds, options | {"connection_class": ClusterTLSConnection if tls else ClusterConnection})


def _sentinel_client(options: dict[str, Any], certificates: dict[str, Any], tls: bool) -> aioredis.Redis:
    addresses, service = options.pop("sentinels"), options.pop("service")
    own = _credentials(options.pop("sentinel_username", None), options.pop("sentinel_password", None))
    credentials = SentinelCredentials(own, _credentials(options.get("username"), options.get("password")))
    # A sentinel that does not answer must not use up the call's time: the next one is tried.
    seconds = options["socket_connect_timeout"] / (len(addresses) + 1)
    settings: dict[str, Any] = {name: options[name] for name in _SHARED_WITH_SENTINELS if name in options}
    settings |= {"socket_timeout": seconds, "socket_connect_timeout": seconds, "credential_provider": credentials}
    settings["connection_class"] = SentinelConnection
    if options.pop("sentinel_tls", tls):
        settings |= certificates | {"connection_class": SentinelTLSConnection}
    clients = [aioredis.Redis.from_pool(Pool(host=host, port=port, **settings)) for host, port in addresses]
    if tls:
        options |= certificates
    connection_class = PrimaryTLSConnection if tls else PrimaryConnection
    sentinels = Sentinels(clients, credentials)
    pool = cast("Any", PrimaryPool)(service, sentinels, connection_class=connection_class, **options)
    client = cast("_PrimaryClient", _PrimaryClient.from_pool(pool))
    client.sentinels = clients
    return client


def _credentials(username: str | None, password: str | None) -> tuple[str, ...]:
    """Return the arguments of AUTH; empty without a password."""
    if password is None:
        return ()
    return (username, password) if username else (password,)


def check_client(client: object, connection: Mapping[str, object]) -> None:
    """Check a client that the user passed in.

    Args:
        client: The user's client.
        connection: Connection options, which conflict with a client.

    Raises:
        ConfigurationError: It is not a client, it is configured wrongly, or connection options were given with it.
    """
    if not isinstance(client, (aioredis.Redis, aioredis.RedisCluster)) or isinstance(client, Pipeline):
        raise ConfigurationError(f"client: must be a client of redis.asyncio, got {type_name(client)}")
    if isinstance(client, aioredis.RedisCluster) and (client.read_from_replicas or client.load_balancing_strategy):
        raise ConfigurationError("client: must not read from replicas: they may lack recent writes")
    if _decodes(client):
        raise ConfigurationError("client: must be made with decode_responses=False; records are bytes")
    for name, value in connection.items():
        if value is not None:
            raise ConfigurationError(f"{name}: the client decides this: pass either connection options or a client")


def _decodes(client: aioredis.Redis | aioredis.RedisCluster) -> bool:
    if isinstance(client, aioredis.RedisCluster):
        return bool(client.connection_kwargs.get("decode_responses"))
    options = client.connection_pool.connection_kwargs
    return bool(options.get("decode_responses"))


# Error codes of a server that cannot serve at present, and recovers without an operator.
_TRANSIENT: Final = (
    "LOADING", "READONLY", "MASTERDOWN", "NOREPLICAS", "BUSY", "TRYAGAIN", "ASK", "CLUSTERDOWN", "UNBLOCKED"
)  # fmt: skip
_SLOT_MOVES: Final = "a slot of the cluster is being moved to another node: writes to its agents wait until it is done"
_HINTS: Final = {
    "OOM": "the server's memory is full: raise maxmemory, or delete unneeded keys; deregister still works",
    "MISCONF": "the server cannot save to its disk: see its log",
    "NOPERM": "the user lacks a permission: see the ACL in the documentation",
    "WRONGPASS": "check the user name and password",
    "NOAUTH": "the server requires a password: add it to the URL",
    "NOREPLICAS": "too few replicas are connected to the server",
    "READONLY": "the server is a replica",
    "BUSY": "a script blocks the server: see SCRIPT KILL",
    "WRONGTYPE": "a key of the registry holds another type of value",
    "TRYAGAIN": _SLOT_MOVES,
    "ASK": _SLOT_MOVES,
}
_CODE: Final = re.compile(rf"\b({'|'.join((*_TRANSIENT, *_HINTS))})\b")

_AT_DEFAULT_PORT: Final = re.compile(r"(?<![\w.-])([\w-]+)(?=:(?:6379|26379)\b)")


def hint_of_closing(options: dict[str, Any]) -> str:
    """Return why a server may close a connection with these options before it replies."""
    if not options.get("ssl"):
        return "if it closes at once, it may expect TLS: use rediss://"
    if "ssl_certfile" in options:
        return "it may reject the client's certificate: see cert and key"
    return "it may require a client certificate: see cert and key"


def backend_error(error: Exception, what: str, when_closed: str = "") -> BackendError:
    """Return the library's error for a driver's error; its message never contains a password.

    Args:
        error: The driver's error.
        what: What failed; the message starts with it.
        when_closed: The hint to add if the server closed the connection.
    """
    if isinstance(error, Refused):
        return BackendRejectedError(f"{what}: {error}")
    if isinstance(error, PARSE_ERRORS):
        return BackendUnavailableError(f"{what}: the driver could not parse a reply ({type(error).__name__}: {error})")
    code = _code(error)
    hint = _HINTS.get(code, "") or _hint(error, when_closed)
    text = _without_secret(str(error))
    message = f"{what}: {text.rstrip('.')}; {hint}" if hint else f"{what}: {text}"
    if code:
        return (BackendUnavailableError if code in _TRANSIENT else BackendRejectedError)(message)
    if isinstance(error, (AuthenticationError, ResponseError)) or _caused_by(error, ssl.SSLError):
        return BackendRejectedError(message)
    return BackendUnavailableError(message)


def brief(error: Exception) -> Exception:
    """Strip the tracebacks, some forty lines deep, from a driver's error and its chain: the messages say enough.

    Parse errors keep theirs, for debugging. Hosts that may be passwords are hidden.
    """
    if not isinstance(error, PARSE_ERRORS):
        for each in _chain(error):
            each.__traceback__, each.__suppress_context__ = None, True
            each.args = tuple(_without_secret(arg) if isinstance(arg, str) else arg for arg in each.args)
    return error


def _without_secret(message: str) -> str:
    """Hide a host that is named without a port, as its URL does, if it may be a misplaced password."""
    return _AT_DEFAULT_PORT.sub(lambda host: shown_host(host[1], None), message)


def _code(error: Exception) -> str:
    """Return the server's error code, such as OOM; the driver strips it where it has a class for it."""
    for kind, code in _CLASSES.items():
        if isinstance(error, kind):
            return code
    if isinstance(error, AuthenticationError):
        return "NOAUTH" if re.search("required|already authenticated", str(error)) else "WRONGPASS"
    if re.search("The user executing the script can't|ACL failure in script", str(error)):
        return "NOPERM"  # Redis 7.0, and 7.2 and later, omit the code for a command in a script.
    # Redis 6 wraps a script's error in other text, so the code may be anywhere in it.
    found = _CODE.search(str(error)) if isinstance(error, ResponseError) else None
    return found[1] if found else ""


_CLASSES: Final[dict[type[Exception], str]] = {
    BusyLoadingError: "LOADING",
    ReadOnlyError: "READONLY",
    OutOfMemoryError: "OOM",
    NoPermissionError: "NOPERM",
    MasterDownError: "MASTERDOWN",
    TryAgainError: "TRYAGAIN",
    AskError: "ASK",
    ClusterDownError: "CLUSTERDOWN",
}


def _hint(error: Exception, when_closed: str) -> str:
    if _caused_by(error, ssl.SSLCertVerificationError):
        return "the server's certificate is not trusted, or is for another host: see the options for rediss://"
    if _caused_by(error, ssl.SSLError) and re.search("alert.*(certificate|unknown ca)", str(error), re.IGNORECASE):
        return "the server requires another client certificate: see cert and key"
    if _caused_by(error, ssl.SSLError):
        return "does this port speak TLS? If not, use redis://"
    if _caused_by(error, ConnectionRefusedError) or _caused_by(error, FileNotFoundError):  # a Unix socket
        return "is a server running there? `agentic doctor --url URL` examines it"
    if _caused_by(error, socket.gaierror):
        return "check the host name"
    if re.search("closed by server|reset by peer", str(error), re.IGNORECASE):
        return when_closed
    if "cluster support disabled" in str(error):
        return "the server is not a cluster: use redis://"
    return ""


def _caused_by(error: BaseException, kind: type[BaseException]) -> bool:
    return any(isinstance(each, kind) for each in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes, at most ten errors."""
    following: BaseException | None = error
    for _ in range(10):
        if following is None:
            return
        yield following
        following = following.__cause__ or following.__context__
