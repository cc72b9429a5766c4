"""The driver, set up and understood: no retries of its own, and errors that say what to do."""

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
from agentic.backends.redis.server_info import MISREAD, Refused
from agentic.backends.redis.topology import Topology
from agentic.errors import BackendError, BackendRejectedError, BackendUnavailableError, ConfigurationError
from agentic.text import type_name

CONNECT_TIMEOUT: Final = 5.0

_OF_SENTINELS_TOO: Final = ("retry", "protocol", "maint_notifications_config")
"""What connections to sentinels have in common with those to servers, where the driver has it."""


class _PrimaryClient(aioredis.Redis):
    """A client of the primary that sentinels name, which closes its clients of the sentinels as well."""

    sentinels: Sequence[aioredis.Redis] = ()

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        try:
            await super().aclose(close_connection_pool)
        finally:
            await asyncio.gather(*(each.aclose() for each in self.sentinels))


def make_client(options: dict[str, Any], timeout: float) -> aioredis.Redis | Topology:
    """Return a client, or those of a cluster's nodes, with none of the driver's retries, which would repeat writes.

    Args:
        options: What `connection_options` made of a URL, and `max_connections`, over which the driver raises.
        timeout: Seconds that connecting may take, 5 at most.

    Raises:
        BackendRejectedError: A file of certificates or of a key cannot be used.
    """
    options = options | {
        # Deadlines are set for each call; a second timer on each read costs a fifth of the driver's speed.
        "socket_timeout": None,
        "socket_connect_timeout": min(CONNECT_TIMEOUT, timeout),
        "retry": Retry(NoBackoff(), 0),
        # From 8.0 on the default, and what the answer to HELLO is read for.
        "protocol": 3,
        # It would greet each new connection with a command that older servers answer with an error.
        **_known({"maint_notifications_config": MaintNotificationsConfig(enabled=False)}),
    }
    certificates = {name: options.pop(name) for name in tuple(options) if name.startswith("ssl_")}
    check_certificates(certificates)
    if "ssl_certfile" in certificates:
        certificates.setdefault("ssl_keyfile", certificates["ssl_certfile"])  # Up to 7.1 nothing is sent without it.
    tls = options.pop("ssl", False)
    if "sentinels" in options:
        return _sentinel_client(options, certificates, tls)
    if tls:
        options |= certificates
    if "cluster" in options:
        # Time is left to ask another node, once, who has taken over from one that does not answer.
        return _topology(options | {"socket_timeout": 0.4 * timeout}, tls)
    connection_class = TLSConnection if tls else UnixConnection if "path" in options else Connection
    # Not the driver's pool that waits for a free connection: see `Servers`.
    return aioredis.Redis.from_pool(Pool(connection_class=connection_class, **options))


def _known(options: dict[str, Any]) -> dict[str, Any]:
    """Return those options that the installed release of the driver has."""
    parameters = signature(aioredis.Redis).parameters
    return {name: value for name, value in options.items() if name in parameters}


def _topology(options: dict[str, Any], tls: bool) -> Topology:
    seeds = options.pop("cluster")
    return Topology(seeds, options | {"connection_class": ClusterTLSConnection if tls else ClusterConnection})


def _sentinel_client(options: dict[str, Any], certificates: dict[str, Any], tls: bool) -> aioredis.Redis:
    addresses, service = options.pop("sentinels"), options.pop("service")
    own = _credentials(options.pop("sentinel_username", None), options.pop("sentinel_password", None))
    credentials = SentinelCredentials(own, _credentials(options.get("username"), options.get("password")))
    # A sentinel that does not answer must not cost a call all of its time: the next one is asked.
    seconds = options["socket_connect_timeout"] / (len(addresses) + 1)
    asking: dict[str, Any] = {name: options[name] for name in _OF_SENTINELS_TOO if name in options}
    asking |= {"socket_timeout": seconds, "socket_connect_timeout": seconds, "credential_provider": credentials}
    asking["connection_class"] = SentinelConnection
    if options.pop("sentinel_tls", tls):
        asking |= certificates | {"connection_class": SentinelTLSConnection}
    clients = [aioredis.Redis.from_pool(Pool(host=host, port=port, **asking)) for host, port in addresses]
    if tls:
        options |= certificates
    connection_class = PrimaryTLSConnection if tls else PrimaryConnection
    asked = Sentinels(clients, credentials)
    pool = cast("Any", PrimaryPool)(service, asked, connection_class=connection_class, **options)
    client = cast("_PrimaryClient", _PrimaryClient.from_pool(pool))
    client.sentinels = clients
    return client


def _credentials(username: str | None, password: str | None) -> tuple[str, ...]:
    """Return the words of AUTH; none without a password."""
    if password is None:
        return ()
    return (username, password) if username else (password,)


def check_client(client: object, connection: Mapping[str, object]) -> None:
    """Check a client that a user has made.

    Args:
        client: The user's.
        connection: Options of a connection, which would be the client's own.

    Raises:
        ConfigurationError: It is no client, is wrongly set up, or there are options beside it.
    """
    if not isinstance(client, (aioredis.Redis, aioredis.RedisCluster)) or isinstance(client, Pipeline):
        raise ConfigurationError(f"client: must be a client of redis.asyncio, got {type_name(client)}")
    if isinstance(client, aioredis.RedisCluster) and (client.read_from_replicas or client.load_balancing_strategy):
        raise ConfigurationError("client: must not read from replicas, which may lack what was just written")
    if _decodes(client):
        raise ConfigurationError("client: must be made with decode_responses=False; records are bytes")
    for name, value in connection.items():
        if value is not None:
            raise ConfigurationError(
                f"{name}: is the client's own; give either an option of the connection or a client"
            )


def _decodes(client: aioredis.Redis | aioredis.RedisCluster) -> bool:
    if isinstance(client, aioredis.RedisCluster):
        return bool(client.connection_kwargs.get("decode_responses"))
    options = client.connection_pool.connection_kwargs
    return bool(options.get("decode_responses"))


# What the server answers while it cannot serve, and will again without anybody's doing.
_FOR_NOW: Final = (
    "LOADING", "READONLY", "MASTERDOWN", "NOREPLICAS", "BUSY", "TRYAGAIN", "ASK", "CLUSTERDOWN", "UNBLOCKED"
)  # fmt: skip
_SLOT_MOVES: Final = "a slot of the cluster is being moved to another node: writes to its agents wait until it has"
_HINTS: Final = {
    "OOM": "the server's memory is full: raise maxmemory, or remove what is not needed; deregister still works",
    "MISCONF": "the server cannot save to its disk: see its log",
    "NOPERM": "the user lacks a right: see the ACL that the documentation gives",
    "WRONGPASS": "check the user name and the password",
    "NOAUTH": "the server wants a password: put it into the URL",
    "NOREPLICAS": "the server waits for its replicas",
    "READONLY": "the server is a replica",
    "BUSY": "a script blocks the server: see SCRIPT KILL",
    "WRONGTYPE": "a key of the registry holds another type of value",
    "TRYAGAIN": _SLOT_MOVES,
    "ASK": _SLOT_MOVES,
}
_CODE: Final = re.compile(rf"\b({'|'.join((*_FOR_NOW, *_HINTS))})\b")


def hint_of_closing(options: dict[str, Any]) -> str:
    """Return why a server may close a connection that is made with these options, before it has answered."""
    if not options.get("ssl"):
        return "if it closes at once, it may speak TLS, which rediss:// is for"
    if "ssl_certfile" in options:
        return "it may not accept the client's certificate: see cert and key"
    return "it may want a certificate of its clients: see cert and key"


def backend_error(error: Exception, what: str, when_closed: str = "") -> BackendError:
    """Return what a driver's error means to callers; it never holds a password.

    Args:
        error: The driver's.
        what: What failed, which the message begins with.
        when_closed: What to say where the server has closed the connection.
    """
    if isinstance(error, Refused):
        return BackendRejectedError(f"{what}: {error}")
    if isinstance(error, MISREAD):
        return BackendUnavailableError(f"{what}: the driver could not read an answer ({type(error).__name__}: {error})")
    code = _code(error)
    hint = _HINTS.get(code, "") or _hint(error, when_closed)
    message = f"{what}: {str(error).rstrip('.')}; {hint}" if hint else f"{what}: {error}"
    if code:
        return (BackendUnavailableError if code in _FOR_NOW else BackendRejectedError)(message)
    if isinstance(error, (AuthenticationError, ResponseError)) or _caused_by(error, ssl.SSLError):
        return BackendRejectedError(message)
    return BackendUnavailableError(message)


def brief(error: Exception) -> Exception:
    """Return a driver's error without the tracebacks of its chain, forty lines deep; the messages say all that matters.

    What the driver misread is left as it is, to be looked into.
    """
    if not isinstance(error, MISREAD):
        for each in _chain(error):
            each.__traceback__, each.__suppress_context__ = None, True
    return error


def _code(error: Exception) -> str:
    """Return the word by which the server names an error; the driver drops it where it has a class for it."""
    for kind, code in _CLASSES.items():
        if isinstance(error, kind):
            return code
    if isinstance(error, AuthenticationError):
        return "NOAUTH" if re.search("required|already authenticated", str(error)) else "WRONGPASS"
    if re.search("The user executing the script can't|ACL failure in script", str(error)):
        return "NOPERM"  # As Redis 7.0, and 7.2 and later, say it of a command inside a script, without the word.
    # Redis 6 wraps a script's error in others, so the word may stand anywhere.
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
        return "the server's certificate is not trusted, or is another host's: see the options for rediss://"
    if _caused_by(error, ssl.SSLError) and re.search("alert.*(certificate|unknown ca)", str(error), re.IGNORECASE):
        return "the server wants another certificate of its clients: see cert and key"
    if _caused_by(error, ssl.SSLError):
        return "does this port speak TLS? redis:// is for those that do not"
    if _caused_by(error, ConnectionRefusedError) or _caused_by(error, FileNotFoundError):  # a Unix socket
        return "is a server running there? `agentic doctor --url URL` examines it"
    if _caused_by(error, socket.gaierror):
        return "check the name of the host"
    if re.search("closed by server|reset by peer", str(error), re.IGNORECASE):
        return when_closed
    if "cluster support disabled" in str(error):
        return "it is no cluster: redis:// is for a single server"
    return ""


def _caused_by(error: BaseException, kind: type[BaseException]) -> bool:
    return any(isinstance(each, kind) for each in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came from, ten of them at most."""
    following: BaseException | None = error
    for _ in range(10):
        if following is None:
            return
        yield following
        following = following.__cause__ or following.__context__
