"""Agents in Redis or Valkey: one expiring key per agent, shared by any number of processes and with the Go original."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final, TypeVar

import anyio
import msgspec
import redis.asyncio as aioredis
from redis.exceptions import AuthenticationError, NoScriptError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from agentic.agent import (
    MAX_RECORD_BYTES,
    AgentChanges,
    AgentInfo,
    CorruptRecord,
    decode_agent,
    encode_around_heartbeat,
    too_large,
)
from agentic.backends.redis_client import CONNECT_TIMEOUT, backend_error, make_client
from agentic.backends.redis_pulse import Pulse, decode_pulse, heartbeat_as_written
from agentic.backends.redis_url import connection_options, redacted
from agentic.clock import format_instant, parse_instant, stale_before
from agentic.errors import (
    BackendError,
    BackendRejectedError,
    BackendUnavailableError,
    ConfigurationError,
    CorruptRecordError,
    RegistryError,
)
from agentic.registry import AgentRegistry
from agentic.tasks import one_ahead

logger = logging.getLogger("agentic.redis")

T = TypeVar("T")

Record = tuple[bytes, bytes]
"""A key and what it holds."""

PAGE_SIZE: Final = 1000

# The scripts' outcomes for one agent.
_DONE, _ABSENT, _CORRUPT, _WRONG_TYPE = 1, 0, -1, -2


class RedisRegistry(AgentRegistry):
    """A registry in Redis 6.2 or later, or Valkey: the key `{prefix}:agent:{id}` holds an agent's JSON and expires.

    Every change is one script, atomic in the server and on the server's clock. `list`, `scan`, `reap` and `flush` ask
    for one page's records and the next page's keys in one round trip; they keep the ids they have seen, since the
    server may repeat a key.

    Attributes:
        url: The URL, its password replaced by `***`; None where a client was passed.
        prefix: What every key begins with.
        max_connections: As given.
    """

    flushes_per_lane = 2

    def __init__(
        self,
        url: str = "redis://localhost:6379/0",
        *,
        client: aioredis.Redis | None = None,
        password: str | None = None,
        db: int | None = None,
        prefix: str = "agentic",
        ttl: float | timedelta | None = 300.0,
        timeout: float | timedelta = 5.0,
        max_connections: int = 16,
    ) -> None:
        """Check the options; no I/O.

        Args:
            url: `redis[s]://`, `valkey[s]://` or `unix://`.
            client: A client of your own, used in place of `url` and left open; its retries are its own.
            password: Overrides the URL's.
            db: Overrides the URL's.
            prefix: Keeps several registries apart in one database.
            ttl: Seconds, to the millisecond, after its last registration or heartbeat at which an agent is gone; None
                keeps it.
            timeout: Seconds a call may take, waiting for a free connection included.
            max_connections: Connections at most; further calls wait for one.

        Raises:
            ConfigurationError: An option is wrong.
        """
        super().__init__(ttl=ttl, timeout=timeout)
        self.prefix = _valid_prefix(prefix)
        self.max_connections = max_connections
        self.url: str | None = None
        self._own_client = client is None
        if client is None:
            self._options = connection_options(url)
            self.url = redacted(url)
            self._options |= {name: value for name, value in (("password", password), ("db", db)) if value is not None}
            self._options["max_connections"] = max_connections
        else:
            if client.connection_pool.connection_kwargs.get("decode_responses"):
                raise ConfigurationError("client: must be made with decode_responses=False; records are bytes")
            self._client = client
        self._milliseconds = 0 if self.ttl is None else max(1, round(self.ttl * 1000))
        self._key_prefix = f"{self.prefix}:agent:".encode()
        self._pattern = _glob_escaped(self._key_prefix) + b"*"

    def __repr__(self) -> str:
        return f"RedisRegistry(url={self.url!r}, prefix={self.prefix!r}, ttl={self.ttl})"

    async def _connect(self) -> None:
        if self._own_client:
            self._client = make_client(self._options, self.timeout)
        # The driver's own pool that waits has been seen to leave a caller waiting beside free connections.
        self._free_connections = asyncio.Semaphore(self.max_connections)
        await self._ping()

    async def _disconnect(self) -> None:
        if self._own_client:
            await self._client.aclose()

    async def _ping(self) -> None:
        seconds = min(CONNECT_TIMEOUT, self.timeout)
        try:
            with anyio.fail_after(seconds):
                await self._client.ping()
        except TimeoutError as error:
            raise BackendUnavailableError(
                f"failed to connect to Redis: no answer within {seconds:g} s; does this port speak TLS? then rediss://"
            ) from error
        except (RedisError, OSError) as error:
            raise backend_error(error, "failed to connect to Redis") from error

    # --- agents, by id ---

    async def _insert(self, agents: Sequence[AgentInfo]) -> Sequence[AgentInfo | RegistryError]:
        args: list[str | bytes] = []
        for agent in agents:
            before, after = encode_around_heartbeat(agent)
            args += (before, "" if agent.last_heartbeat is None else format_instant(agent.last_heartbeat), after)
        reply = await self._script("register", [agent.id for agent in agents], args, ttl=True)
        now = parse_instant(reply[0].decode())
        return [
            agent.stamped(now) if result == _DONE else _failure(result, agent.id)
            for agent, result in zip(agents, reply[1:], strict=True)
        ]

    async def _touch(self, ids: Sequence[str]) -> Sequence[bool | RegistryError]:
        # A heartbeat may be repeated: it never creates, and a second one stamps what the first would have.
        reply = await self._script("heartbeat", ids, (), ttl=True, repeatable=True)
        return _facts(reply, ids)

    async def _fetch(self, ids: Sequence[str]) -> Sequence[AgentInfo | RegistryError | None]:
        keys = self._keys(ids)
        records = await self._command("MGET", *keys, repeatable=True)
        return [
            None if record is None else self._decoded(key, record) for key, record in zip(keys, records, strict=True)
        ]

    async def _patch(self, changes: Sequence[tuple[str, AgentChanges]]) -> Sequence[AgentInfo | RegistryError | None]:
        args: list[str | bytes | int] = [MAX_RECORD_BYTES]
        for _, fields in changes:
            args.append(len(fields))
            for name, value in fields.items():
                args += (name, b"" if value in ((), {}) else msgspec.json.encode(value))
        ids = [agent_id for agent_id, _ in changes]
        reply = await self._script("update", ids, args)
        return [self._patched(result, agent_id) for agent_id, result in zip(ids, reply, strict=True)]

    def _patched(self, result: bytes | int | list[int], agent_id: str) -> AgentInfo | RegistryError | None:
        if isinstance(result, bytes):
            return self._decoded(self._key(agent_id), result)
        return None if result == _ABSENT else _failure(result, agent_id)

    async def _delete(self, ids: Sequence[str]) -> Sequence[bool | RegistryError]:
        return _facts(await self._script("deregister", ids, ()), ids)

    # --- the whole fleet ---

    async def _pages(self) -> AsyncGenerator[Sequence[AgentInfo], None]:
        async with self._records() as pages:
            async for page in pages:
                agents = []
                for key, record in page:
                    agent = self._decoded(key, record)
                    if isinstance(agent, AgentInfo):
                        agents.append(agent)
                    else:
                        logger.warning("skipped: %s", agent)
                yield agents

    async def _sweep(self, ttl: timedelta) -> AsyncGenerator[Sequence[str], None]:
        boundary = stale_before(await self._time(), ttl)
        async with self._records() as pages:
            async for page in pages:
                stale = [(pulse.id, written) for pulse, written in self._pulses(page) if pulse.is_stale(boundary)]
                ids = [agent_id for agent_id, _ in stale]
                found = [heartbeat_as_written(record) for _, record in stale]
                marked = await self._script("reap", ids, found) if stale else []
                yield [agent_id for agent_id, done in zip(ids, marked, strict=True) if done]

    async def _clear(self) -> AsyncGenerator[int, None]:
        async with self._records() as pages:
            async for page in pages:
                # Only records that name their key's id: under a shorter prefix, another registry's keys can match too.
                ids = [pulse.id for pulse, _ in self._pulses(page)]
                yield sum(await self._script("deregister", ids, ())) if ids else 0

    def _records(self) -> aclosing[AsyncGenerator[list[Record], None]]:
        return aclosing(one_ahead(self._round_trips()))

    async def _round_trips(self) -> AsyncGenerator[list[Record], None]:
        """Yield the key and record of every agent, each key once, a page for each round trip."""
        seen = _Seen()
        cursor, found = await self._command(*self._scan(0), repeatable=True)
        while True:
            keys = seen.only_new(found)
            commands = []
            if keys:
                commands.append(("MGET", *keys))
            if cursor:
                commands.append(self._scan(cursor))
            replies = await self._pipeline(commands)
            records = replies[0] if keys else []
            yield [(key, record) for key, record in zip(keys, records, strict=True) if record is not None]
            if not cursor:
                return
            cursor, found = replies[-1]

    def _scan(self, cursor: int) -> tuple[Any, ...]:
        return ("SCAN", cursor, "MATCH", self._pattern, "COUNT", PAGE_SIZE)

    async def _time(self) -> datetime:
        seconds, microseconds = await self._command("TIME", repeatable=True)
        return datetime.fromtimestamp(seconds, UTC).replace(microsecond=microseconds)

    # --- keys and records ---

    def _key(self, agent_id: str) -> bytes:
        return self._key_prefix + agent_id.encode()

    def _keys(self, ids: Sequence[str]) -> list[bytes]:
        prefix = self._key_prefix
        return [prefix + agent_id.encode() for agent_id in ids]

    def _decoded(self, key: bytes, record: bytes) -> AgentInfo | CorruptRecordError:
        """Return a record's agent, or the error that says why there is none in it."""
        try:
            agent = decode_agent(record)
        except CorruptRecord as error:
            return self._corrupt(key, str(error))
        if self._key(agent.id) != key:
            return self._corrupt(key, "it names the id of another key")
        return agent

    def _corrupt(self, key: bytes, why: str) -> CorruptRecordError:
        agent_id = key.removeprefix(self._key_prefix).decode(errors="replace")
        return CorruptRecordError(f"the record at key {key.decode(errors='replace')!r} is corrupt: {why}", agent_id)

    def _pulses(self, page: list[Record]) -> Iterator[tuple[Pulse, bytes]]:
        """Yield the pulse of each record, with the record; a corrupt one is skipped, with a logged warning."""
        prefix = self._key_prefix
        for key, record in page:
            try:
                pulse = decode_pulse(record)
            except CorruptRecord as error:
                logger.warning("skipped: %s", self._corrupt(key, str(error)))
                continue
            if prefix + pulse.id.encode() == key:
                yield pulse, record
            else:
                logger.warning("skipped: %s", self._corrupt(key, "it names the id of another key"))

    # --- the driver ---

    async def _script(
        self, name: str, ids: Sequence[str], args: Sequence[Any], *, ttl: bool = False, repeatable: bool = False
    ) -> list[Any]:
        """Run a script on the agents' keys, from the server's cache, or sent whole where it is not there."""
        sha, text = SCRIPTS[name]
        rest = (len(ids), *self._keys(ids), *((self._milliseconds,) if ttl else ()), *args)
        try:
            return list(await self._command("EVALSHA", sha, *rest, repeatable=repeatable))
        except BackendError as error:
            if not isinstance(error.__cause__, NoScriptError):
                raise
        return list(await self._command("EVAL", text, *rest, repeatable=repeatable))

    async def _command(self, *command: Any, repeatable: bool = False) -> Any:
        execute: Callable[..., Awaitable[Any]] = self._client.execute_command
        return await self._driven(lambda: execute(*command), repeatable)

    async def _pipeline(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send reads in one round trip; nothing at all when there are none."""
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return await self._driven(pipeline.execute, repeatable=True)

    async def _driven(self, call: Callable[[], Awaitable[T]], repeatable: bool) -> T:
        """Await the driver, its errors mapped; a call that may be repeated is tried twice when the connection broke."""
        try:
            async with self._free_connections:
                try:
                    return await call()
                except AuthenticationError:
                    raise
                except RedisConnectionError:
                    if not repeatable:
                        raise
                return await call()
        except (RedisError, OSError) as error:
            if isinstance(error, ReadOnlyError):
                # A primary that has become a replica: new connections may find the new primary behind the same name.
                await self._client.connection_pool.disconnect(inuse_connections=False)
            raise backend_error(error, "Redis failed") from error


class _Seen:
    """The keys that were given already: in many sets, none so large that its growth would hold the event loop."""

    def __init__(self) -> None:
        self._parts: list[set[bytes]] = [set() for _ in range(256)]

    def only_new(self, keys: Sequence[bytes]) -> list[bytes]:
        parts, new = self._parts, []
        for key in keys:
            part = parts[hash(key) & 255]
            if key not in part:
                part.add(key)
                new.append(key)
        return new


def _facts(reply: Sequence[int], ids: Sequence[str]) -> list[bool | RegistryError]:
    return [
        result == _DONE if result in (_DONE, _ABSENT) else _failure(result, agent_id)
        for result, agent_id in zip(reply, ids, strict=True)
    ]


def _failure(result: int | list[int], agent_id: str) -> RegistryError:
    """Return the error that a script's outcome for one agent stands for."""
    if isinstance(result, list):
        return too_large(result[1])
    if result == _CORRUPT:
        return CorruptRecordError(f"the record of agent {agent_id!r} is corrupt: it is no JSON object", agent_id)
    return BackendRejectedError(f"the key of agent {agent_id!r} holds another type of value than a string")


def _valid_prefix(prefix: object) -> str:
    if not isinstance(prefix, str) or not prefix:
        raise ConfigurationError(f"prefix: must be a string that is not empty, got {prefix!r}")
    try:
        prefix.encode()
    except UnicodeEncodeError:
        raise ConfigurationError("prefix: holds a lone surrogate") from None
    return prefix


def _glob_escaped(text: bytes) -> bytes:
    r"""Return a pattern that matches this text alone: `*`, `?`, `[`, `]`, `^`, `-` and `\` escaped."""
    return re.sub(rb"([*?\[\]^\\-])", rb"\\\1", text)


def _load(name: str) -> tuple[str, str]:
    """Return a script's SHA-1 and text, what the scripts share included."""
    folder = files("agentic.backends") / "lua"
    text = (folder / "record.lua").read_text() + (folder / f"{name}.lua").read_text()
    return sha1(text.encode(), usedforsecurity=False).hexdigest(), text


SCRIPTS: Final = {name: _load(name) for name in ("register", "heartbeat", "update", "deregister", "reap")}
