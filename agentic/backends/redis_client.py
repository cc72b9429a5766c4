"""The driver, set up and understood: no retries of its own, commands packed in C, errors that say what to do."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any, Final, cast

import hiredis
import redis.asyncio as aioredis
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    ResponseError,
    TryAgainError,
)
from redis.maint_notifications import MaintNotificationsConfig

from agentic.errors import BackendError, BackendRejectedError, BackendUnavailableError

CONNECT_TIMEOUT: Final = 5.0


class _PackedInC(AbstractConnection):
    """Packs commands with hiredis, as the driver's blocking connections do; its asyncio ones do it in Python."""

    def pack_command(self, *args: Any) -> list[bytes]:
        name, *rest = args
        # The driver gives names of several words, such as "CLIENT SETNAME", as one.
        words = name.encode().split() if isinstance(name, str) else name.split()
        return [hiredis.pack_command(cast("Any", (*words, *rest)))]


class _Connection(_PackedInC, aioredis.Connection):
    pass


class _SSLConnection(_PackedInC, aioredis.SSLConnection):
    pass


class _UnixConnection(_PackedInC, aioredis.UnixDomainSocketConnection):
    pass


class _SentinelConnection(_PackedInC, SentinelManagedConnection):
    pass


class _SentinelSSLConnection(_PackedInC, SentinelManagedSSLConnection):
    pass


class _Sentinels(Sentinel):
    """Sentinels, asked with a list of one's own: the driver reorders it, and two at once would lose a sentinel."""

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        own = copy(self)
        own.sentinels = list(self.sentinels)
        host, port = await Sentinel.discover_master(own, service_name)
        self.sentinels = own.sentinels
        return host, port


class _PrimaryClient(aioredis.Redis):
    """A client of the primary that sentinels name, which closes its clients of the sentinels as well."""

    sentinels: Sequence[aioredis.Redis] = ()

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)
        for each in self.sentinels:
            await each.aclose()


def make_client(options: dict[str, Any], timeout: float) -> aioredis.Redis | aioredis.RedisCluster:
    """Return a client with pools of its own and none of the driver's retries, which would repeat writes.

    Args:
        options: What `connection_options` made of a URL, and `max_connections`, over which the driver raises.
        timeout: Seconds that connecting may take, 5 at most.
    """
    options = options | {
        # Deadlines are set for each call; a second timer on each read costs a fifth of the driver's speed.
        "socket_timeout": None,
        "socket_connect_timeout": min(CONNECT_TIMEOUT, timeout),
        "retry": Retry(NoBackoff(), 0),
        # Both would greet each new connection with commands that older servers answer with errors.
        "driver_info": None,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    ssl_wanted = options.pop("ssl", False)
    if "cluster" in options:
        # Time is left to ask another node, once, who has taken over from one that does not answer.
        return _cluster_client(options | {"socket_timeout": 0.4 * timeout}, ssl_wanted)
    if "sentinels" in options:
        return _sentinel_client(options, ssl_wanted)
    if ssl_wanted:
        connection_class: type[AbstractConnection] = _SSLConnection
    else:
        connection_class = _UnixConnection if "path" in options else _Connection
    # Not the driver's pool that waits for a free connection: see `Servers`.
    return aioredis.Redis.from_pool(aioredis.ConnectionPool(connection_class=connection_class, **options))


def _cluster_client(options: dict[str, Any], ssl_wanted: bool) -> aioredis.RedisCluster:
    nodes = [ClusterNode(host, port) for host, port in options.pop("cluster")]
    options.pop("db")
    return aioredis.RedisCluster(startup_nodes=nodes, ssl=ssl_wanted, require_full_coverage=True, **options)


def _sentinel_client(options: dict[str, Any], ssl_wanted: bool) -> aioredis.Redis:
    addresses, service = options.pop("sentinels"), options.pop("service")
    # The user and password are the servers', not the sentinels'. A sentinel that does not answer must not cost a call
    # all of its time: the next one is asked.
    seconds = options["socket_connect_timeout"] / (len(addresses) + 1)
    asking = {name: options[name] for name in ("retry", "driver_info", "maint_notifications_config")}
    asking |= {"socket_timeout": seconds, "socket_connect_timeout": seconds}
    sentinel = cast("Any", _Sentinels)(addresses, sentinel_kwargs=asking)
    connection_class = _SentinelSSLConnection if ssl_wanted else _SentinelConnection
    pool = cast("Any", SentinelConnectionPool)(service, sentinel, connection_class=connection_class, **options)
    client = cast("_PrimaryClient", _PrimaryClient.from_pool(pool))
    client.sentinels = sentinel.sentinels
    return client


# What the server answers while it cannot serve, and will again without anybody's doing.
_FOR_NOW: Final = ("LOADING", "READONLY", "MASTERDOWN", "NOREPLICAS", "BUSY", "TRYAGAIN", "CLUSTERDOWN", "UNBLOCKED")
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
}
_CODE: Final = re.compile(rf"\b({'|'.join((*_FOR_NOW, *_HINTS))})\b")


def backend_error(error: Exception, what: str, *, connecting: bool = False) -> BackendError:
    """Return what a driver's error means to callers; it never holds a password."""
    answer = _answer(error)
    code = _code(answer)
    hint = _HINTS.get(code, "") or _hint(answer, connecting)
    told = str(error) if str(answer) in str(error) else f"{error}: {answer}"
    message = f"{what}: {told}{hint and '; '}{hint}"
    if code:
        return (BackendUnavailableError if code in _FOR_NOW else BackendRejectedError)(message)
    if isinstance(answer, (AuthenticationError, ResponseError)) or _caused_by(error, ssl.SSLError):
        return BackendRejectedError(message)
    return BackendUnavailableError(message)


def _answer(error: Exception) -> Exception:
    """Return what a server has answered, which a cluster's driver wraps in errors of its own."""
    if isinstance(error, RedisClusterException):
        for each in _chain(error):
            if isinstance(each, (AuthenticationError, ResponseError)):
                return each
    return error


def _code(error: Exception) -> str:
    """Return the word by which the server names an error; the driver drops it where it has a class for it."""
    for kind, code in _CLASSES.items():
        if isinstance(error, kind):
            return code
    if isinstance(error, AuthenticationError):
        return "NOAUTH" if re.search("required|already authenticated", str(error)) else "WRONGPASS"
    if "can't run this command" in str(error):
        return "NOPERM"  # As Redis 7.0 says it of a command inside a script, without the word.
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
    ClusterDownError: "CLUSTERDOWN",
}


def _hint(error: Exception, connecting: bool) -> str:
    if _caused_by(error, ssl.SSLCertVerificationError):
        return "the server's certificate is not trusted, or is another host's: see the options for rediss://"
    if _caused_by(error, ssl.SSLError):
        return "does this port speak TLS? redis:// is for those that do not"
    if connecting and "closed by server" in str(error).lower():
        return "if it closes at once, it may speak TLS, which rediss:// is for"
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
