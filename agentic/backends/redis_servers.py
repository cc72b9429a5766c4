"""One server or a cluster of them: where keys live, how scripts reach them, and what may be sent twice."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha1
from importlib.resources import files
from itertools import chain
from typing import Any, Final, TypeVar

import redis.asyncio as aioredis
from redis.asyncio.cluster import ClusterNode
from redis.crc import key_slot
from redis.exceptions import (
    AuthenticationError,
    ClusterDownError,
    NoScriptError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from agentic.backends.redis_client import backend_error
from agentic.errors import BackendError, RegistryClosedError

T = TypeVar("T")

Command = tuple[Any, ...]
Page = tuple[list[bytes | None], tuple[int, list[bytes]] | None]
"""Records, and where a scan goes on with the keys that it found; None at its end."""


def _load(name: str) -> tuple[str, str]:
    """Return a script's SHA-1 and text, what the scripts share included."""
    folder = files("agentic.backends") / "lua"
    text = (folder / "record.lua").read_text() + (folder / f"{name}.lua").read_text()
    return sha1(text.encode(), usedforsecurity=False).hexdigest(), text


SCRIPTS: Final = {name: _load(name) for name in ("register", "heartbeat", "update", "deregister", "reap")}


class Servers(ABC):
    """What a registry asks of Redis; each call is bounded by the caller's deadline.

    A call that may be repeated is tried twice when its connection broke; every other one once.
    """

    def __init__(self, max_connections: int) -> None:
        # The driver's own pool that waits has been seen to leave a caller waiting beside free connections.
        self._free_connections = asyncio.Semaphore(max_connections)
        self._closed = False

    @abstractmethod
    async def ping(self) -> None:
        """Connect; raises the driver's own errors."""

    async def aclose(self) -> None:
        """Close every connection; what is still under way fails, and makes no new one."""
        self._closed = True
        await self._close()

    @abstractmethod
    async def _close(self) -> None: ...

    @abstractmethod
    async def script(
        self, name: str, keys: Sequence[bytes], common: Command, each: Sequence[Command], *, repeatable: bool = False
    ) -> list[Any]:
        """Run a script on keys, each with arguments of its own; return an outcome for each, which may be its error."""

    @abstractmethod
    async def records(self, keys: Sequence[bytes]) -> list[Any]:
        """Return what each key holds, None where it is not there; or its error."""

    @abstractmethod
    async def nodes(self) -> Sequence[Any]:
        """Return the servers that hold the keys, each to be scanned by itself."""

    @abstractmethod
    async def ask(self, node: Any, *command: Any) -> Any:
        """Send a read to one of the nodes."""

    @abstractmethod
    async def page(self, node: Any, keys: Sequence[bytes], scan: Command | None) -> Page:
        """Return the records of a scan's last keys and its next keys, asked for side by side."""

    @abstractmethod
    async def broken(self, error: Exception) -> None:
        """Make the next try reach another server, after an error that asks for that."""

    async def driven(self, call: Callable[[], Awaitable[T]], *, repeatable: bool) -> T:
        """Await the driver, with a connection for it, its errors mapped."""
        try:
            async with self._free_connections:
                self._check_open()
                try:
                    return await call()
                except AuthenticationError:
                    raise
                except (RedisConnectionError, RedisTimeoutError, ReadOnlyError, ClusterDownError) as error:
                    self._check_open()
                    await self.broken(error)
                    if not repeatable or not isinstance(error, RedisConnectionError):
                        raise
                return await call()
        except (RedisError, RedisClusterException, OSError) as error:
            raise backend_error(error, "Redis failed") from error

    def _check_open(self) -> None:
        if self._closed:
            raise RegistryClosedError


class OneServer(Servers):
    """One server and its replicas; with Sentinel, whichever of them is the primary."""

    def __init__(self, client: aioredis.Redis, max_connections: int) -> None:
        super().__init__(max_connections)
        self._client = client
        self._execute: Callable[..., Awaitable[Any]] = client.execute_command

    async def ping(self) -> None:
        await self._execute("PING")

    async def _close(self) -> None:
        await self._client.aclose()

    async def script(
        self, name: str, keys: Sequence[bytes], common: Command, each: Sequence[Command], *, repeatable: bool = False
    ) -> list[Any]:
        sha, text = SCRIPTS[name]
        rest = (len(keys), *keys, *common, *chain.from_iterable(each))
        try:
            return list(await self._command("EVALSHA", sha, *rest, repeatable=repeatable))
        except BackendError as error:
            if not isinstance(error.__cause__, NoScriptError):
                raise
        return list(await self._command("EVAL", text, *rest, repeatable=repeatable))

    async def records(self, keys: Sequence[bytes]) -> list[Any]:
        return list(await self._command("MGET", *keys, repeatable=True))

    async def nodes(self) -> Sequence[Any]:
        return [None]

    async def ask(self, node: Any, *command: Any) -> Any:
        return await self._command(*command, repeatable=True)

    async def page(self, node: Any, keys: Sequence[bytes], scan: Command | None) -> Page:
        commands = [("MGET", *keys)] if keys else []
        if scan is not None:
            commands.append(scan)

        async def call() -> list[Any]:
            pipeline = self._client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            return await pipeline.execute()

        replies = await self.driven(call, repeatable=True)
        return replies[0] if keys else [], None if scan is None else replies[-1]

    async def broken(self, error: Exception) -> None:
        if isinstance(error, ReadOnlyError):
            # A primary that has become a replica: new connections may find the new primary behind the same name.
            await self._client.connection_pool.disconnect(inuse_connections=False)

    async def _command(self, *command: Any, repeatable: bool) -> Any:
        return await self.driven(lambda: self._execute(*command), repeatable=repeatable)


class Cluster(Servers):
    """Redis Cluster: what concerns keys of one slot is one command, and each primary gets its commands in one go.

    A primary that fails fails its own agents alone; a walk of the fleet fails with any of them.
    """

    def __init__(self, client: aioredis.RedisCluster, max_connections: int) -> None:
        super().__init__(max_connections)
        self._client = client

    async def ping(self) -> None:
        await self._client.initialize()
        await asyncio.gather(*(node.execute_command("PING") for node in self._client.get_primaries()))

    async def _close(self) -> None:
        await self._client.aclose()

    async def script(
        self, name: str, keys: Sequence[bytes], common: Command, each: Sequence[Command], *, repeatable: bool = False
    ) -> list[Any]:
        sha, text = SCRIPTS[name]
        groups = _by_slot(keys)
        commands = [
            (len(group), *(keys[at] for at in group), *common, *(argument for at in group for argument in each[at]))
            for group in groups
        ]
        replies = await self._send([("EVALSHA", sha, *rest) for rest in commands], keys, groups, repeatable)
        unknown = [at for at, reply in enumerate(replies) if isinstance(_cause(reply), NoScriptError)]
        if unknown:
            again = [("EVAL", text, *commands[at]) for at in unknown]
            answers = await self._send(again, keys, [groups[at] for at in unknown], repeatable)
            for at, answer in zip(unknown, answers, strict=True):
                replies[at] = answer
        return _for_each_key(keys, groups, replies)

    async def records(self, keys: Sequence[bytes]) -> list[Any]:
        groups = _by_slot(keys)
        commands = [("MGET", *(keys[at] for at in group)) for group in groups]
        return _for_each_key(keys, groups, await self._send(commands, keys, groups, repeatable=True))

    async def nodes(self) -> Sequence[Any]:
        async def call() -> list[ClusterNode]:
            await self._client.initialize()
            return self._client.get_primaries()

        return await self.driven(call, repeatable=True)

    async def ask(self, node: Any, *command: Any) -> Any:
        return await self.driven(lambda: node.execute_command(*command), repeatable=True)

    async def page(self, node: Any, keys: Sequence[bytes], scan: Command | None) -> Page:
        async def scanned() -> Any:
            return None if scan is None else await self.ask(node, *scan)

        records, found = await asyncio.gather(self.records(keys), scanned())
        for record in records:
            if isinstance(record, BackendError):
                raise record
        return records, found

    async def broken(self, error: Exception) -> None:
        # Some other node may have taken the slots over.
        await self._client.nodes_manager.initialize()

    async def _send(
        self, commands: Sequence[Command], keys: Sequence[bytes], groups: Sequence[Sequence[int]], repeatable: bool
    ) -> list[Any]:
        """Send each command to the primary of its keys, side by side; return each one's answer or error."""
        by_node: defaultdict[str, list[int]] = defaultdict(list)
        if self._client.get_default_node() is None:
            await self.nodes()
        for at, group in enumerate(groups):
            by_node[self.node_of(keys[group[0]])].append(at)
        replies: list[Any] = [None] * len(commands)

        async def send(places: list[int]) -> None:
            async def call() -> list[Any]:
                pipeline = self._client.pipeline()
                for at in places:
                    pipeline.execute_command(*commands[at])
                return await pipeline.execute(raise_on_error=False)

            try:
                answers: Sequence[Any] = await self.driven(call, repeatable=repeatable)
            except BackendError as error:
                answers = [error] * len(places)
            for at, answer in zip(places, answers, strict=True):
                replies[at] = _mapped(answer)

        await asyncio.gather(*map(send, by_node.values()))
        return replies

    def node_of(self, key: bytes) -> str:
        """Return the name of the primary that holds a key, as far as is known; empty where it is not."""
        try:
            return str(self._client.nodes_manager.get_node_from_slot(key_slot(key)).name)
        except RedisClusterException:
            return ""


def _by_slot(keys: Sequence[bytes]) -> list[list[int]]:
    """Return the places of the keys, those of one slot together."""
    places: defaultdict[int, list[int]] = defaultdict(list)
    for at, key in enumerate(keys):
        places[key_slot(key)].append(at)
    return list(places.values())


def _for_each_key(keys: Sequence[bytes], groups: Sequence[Sequence[int]], replies: Sequence[Any]) -> list[Any]:
    outcomes: list[Any] = [None] * len(keys)
    for group, reply in zip(groups, replies, strict=True):
        for place, at in enumerate(group):
            outcomes[at] = reply if isinstance(reply, BackendError) else reply[place]
    return outcomes


def _mapped(answer: Any) -> Any:
    if not isinstance(answer, Exception) or isinstance(answer, BackendError):
        return answer
    error = backend_error(answer, "Redis failed")
    error.__cause__ = answer
    return error


def _cause(reply: Any) -> BaseException | None:
    return reply.__cause__ if isinstance(reply, BackendError) else None
