"""Implement the primitives of a store with Redis scripts and commands."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any, Final, TypeVar, cast
from urllib.parse import quote

import redis.asyncio as aioredis
from msgspec.structs import replace

from agentic.abc import Backend, Cursor, DrainOrder, Registered, Step
from agentic.agent import AgentChanges, AgentInfo, Beat, Drain
from agentic.backends.redis.client import (
    CONNECT_TIMEOUT,
    backend_error,
    brief,
    hint_of_closing,
    make_client,
)
from agentic.backends.redis.cluster import Cluster
from agentic.backends.redis.diagnosis import findings_of, may_evict
from agentic.backends.redis.ids import OrderedIds
from agentic.backends.redis.keys import Keys, ShardedKeys, family_of, marks_key, valid_prefix
from agentic.backends.redis.operations import (
    ClearDrains,
    Deregister,
    FindMarks,
    Heartbeat,
    Mark,
    Read,
    ReadDrain,
    ReadDrains,
    ReadType,
    Register,
    SetDrain,
    Settle,
    TrySettle,
    Update,
)
from agentic.backends.redis.outcomes import beats_of, facts, failure, raise_any
from agentic.backends.redis.records import MAYBE_DRAINED, Records
from agentic.backends.redis.requests import Batch, Command, Request, Writer, bounded, requests
from agentic.backends.redis.scan import PAGE_SIZE, FleetScan, Record, RecordPage
from agentic.backends.redis.scripts import ABSENT, ANY, DONE, WRONG_TYPE
from agentic.backends.redis.server_info import DRIVER_ERRORS
from agentic.backends.redis.servers import OneServer, Servers
from agentic.backends.redis.topology import Topology
from agentic.clock import parse_instant, stale_before
from agentic.errors import (
    BackendError,
    BackendRejectedError,
    BackendUnavailableError,
    ConfigurationError,
    RegistryError,
)
from agentic.findings import Finding
from agentic.incarnations import random_distance
from agentic.logs import FieldLogger
from agentic.options import text
from agentic.text import printable
from agentic.urls import refuse_url, with_parameter
from agentic.validation import MAX_RECORD_BYTES
from agentic.wire import decode_drain, encode_field, encode_order, encode_to_stamp

T = TypeVar("T")

logger = logging.getLogger("agentic.redis")

DEFAULT_PREFIX: Final = "agentic"

_ID_OF_BEAT: Final = itemgetter(0)
_INCARNATION_OF_BEAT: Final = itemgetter(1)

EXPECTED_TYPES: Final = (b"none", b"string")
"""The types a key may have after it was read as absent; it is a string if its record was written in between."""

MAX_LOGGED_CHARACTERS: Final = 4_000
"""Limit, in characters, of the ids logged for marked agents that could not be reported."""


@dataclass
class _Sweep:
    """The position of a sweep, and the errors of its last page, raised once the marks of that page are reported."""

    walk: FleetScan
    failed: list[Any] = field(default_factory=list)


class RedisBackend(Backend):
    """Agents as JSON, one key each. The options are those of `RedisRegistry`, which checks the first two."""

    max_batches = 2

    def __init__(
        self,
        connection: aioredis.Redis | aioredis.RedisCluster | Mapping[str, Any],
        *,
        name: str,
        prefix: str,
        ttl: float | timedelta | None,
        timeout: float | timedelta,
        max_connections: int,
    ) -> None:
        """Check the options; no I/O.

        Args:
            connection: A client, which is left open, or connection options.
            name: The URL without its secrets.
            prefix: As in `RedisRegistry`.
            ttl: As in `RedisRegistry`.
            timeout: As in `RedisRegistry`.
            max_connections: As in `RedisRegistry`.

        Raises:
            ConfigurationError: An option is wrong.
        """
        super().__init__(ttl=ttl, timeout=timeout)
        self.writer = Writer()
        self.prefix = valid_prefix(refuse_url(text(prefix, "prefix"), "prefix"))
        self.max_connections = max_connections
        self._name = name
        self._options = dict(connection) if isinstance(connection, Mapping) else {}
        self._client = None if isinstance(connection, Mapping) else connection
        self._servers_to_close: Servers | None = None
        self._milliseconds = 0 if self.ttl is None else max(1, round(self.ttl * 1000))
        in_cluster = isinstance(self._client, aioredis.RedisCluster) or "cluster" in self._options
        self._keys = ShardedKeys(self.prefix) if in_cluster else Keys(self.prefix)
        self._records = Records(self._keys)
        self._is_connected = False
        self._log = FieldLogger(logger, store=self.store)

    @property
    def store(self) -> str:
        """The name, with the prefix unless it is the default."""
        return (
            self._name
            if self.prefix == DEFAULT_PREFIX
            else with_parameter(self._name, "prefix", quote(self.prefix, safe="/:"))
        )

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__() | {"writer": Writer()}  # A copy numbers its own writes.
        for opened in ("_servers", "_marking", "_ordered_ids"):
            state.pop(opened, None)
        return state | {"shard_of": None, "_servers_to_close": None, "_is_connected": False}

    def second(self) -> RedisBackend:
        if self._client is not None:
            raise ConfigurationError("thread: must be False with client=, which belongs to one event loop: pass a URL")
        second = copy(self)
        second.writer = Writer(self.writer.generations)
        return second

    async def open(self) -> None:
        client = self._client or make_client(self._options, self.timeout)
        if isinstance(client, aioredis.RedisCluster):
            client = Topology.of_client(client)
        if isinstance(client, Topology):
            cluster = Cluster(client, self.max_connections, self.timeout, self._keys.probes())
            slot = self._keys.slot
            self._servers: Servers = cluster
            self.shard_of = lambda agent_id: cluster.node_of(slot(agent_id))
        else:
            self._servers = OneServer(client, self.max_connections, self.timeout)
        if self._client is None or isinstance(client, Topology):
            self._servers_to_close = self._servers
        self._marking = asyncio.Lock()
        self._ordered_ids = OrderedIds(lambda page_size: FleetScan(self._servers, self._keys, page_size=page_size))
        seconds = min(CONNECT_TIMEOUT, self.timeout)
        try:
            async with asyncio.timeout(seconds):
                await self._servers.ping()
                await asyncio.gather(*map(self._warn_of_eviction, await self._servers.nodes()))
        except TimeoutError as error:
            raise BackendUnavailableError(
                f"failed to connect to Redis: no answer within {seconds:g} s; "
                "a port speaks TLS (rediss://) or does not (redis://)"
            ) from error
        except DRIVER_ERRORS as error:
            raise backend_error(error, "failed to connect to Redis", hint_of_closing(self._options)) from brief(error)
        self._is_connected = True

    async def _warn_of_eviction(self, node: Any) -> None:
        try:
            policy = may_evict(await self._servers.ask(node, "INFO", "memory"))
        except BackendRejectedError:
            return  # The user lacks the right to ask; `agentic doctor` reports that.
        if policy is not None:
            self._log.warning(
                "the server may evict agents when its memory is full: maxmemory-policy is %s, not noeviction", policy
            )

    async def close(self) -> None:
        if self._is_connected:
            self._is_connected = False
            await self._settle_all()
        if self._servers_to_close is not None:
            await self._servers_to_close.aclose()
            self._servers_to_close = None

    async def _settle_all(self) -> None:
        """Prevent lost writes from taking effect after closing; log agents that were marked but never reported.

        Best effort, for at most half of `timeout`.
        """
        generations, marks = self.writer.generations, self.writer.marks
        with suppress(TimeoutError):
            async with asyncio.timeout(self.timeout / 2):
                await self._settle(FindMarks, marks.unsettled())
                await self._settle(Settle, list(generations.unsettled))
        if unreported := marks.take():
            names = printable(", ".join(sorted(unreported)), MAX_LOGGED_CHARACTERS)
            self._log.warning(
                "%d agents were marked offline and reported to nobody: %s",
                len(unreported),
                names,
                extra={"count": len(unreported)},
            )
        if marks.unsettled():
            self._log.warning("agents may have been marked offline and reported to nobody: no answer from the store")

    # --- agents, by id ---

    async def insert(self, agents: Sequence[AgentInfo]) -> Sequence[Registered | RegistryError]:
        keys = self._keys.agents([agent.id for agent in agents])
        each = [(encode_to_stamp(agent), agent.incarnation or random_distance()) for agent in agents]
        results = await self._run(Register, keys, (self._milliseconds,), each)
        return [_registered(agent, result) for agent, result in zip(agents, results, strict=True)]

    async def touch(self, beats: Sequence[tuple[str, int]]) -> Sequence[Beat | RegistryError | None]:
        keys = self._keys.agents(map(_ID_OF_BEAT, beats))
        if self.writer.generations.unsettled:
            await self._settle_lost(keys)
        starts = [*map(_INCARNATION_OF_BEAT, beats)]
        if not all(starts):
            starts = [incarnation or ANY for incarnation in starts] if any(starts) else []
        results = await self._run(Heartbeat, keys, (self._milliseconds,), starts)
        return beats_of(results, beats)

    async def fetch(self, ids: Sequence[str]) -> Sequence[AgentInfo | RegistryError | None]:
        keys = self._keys.agents(ids)
        if self.writer.generations.unsettled:
            await self._settle_lost(keys)
        found: list[AgentInfo | RegistryError | None] = []
        absent: list[int] = []
        for key, reading in zip(keys, await self._run(Read, keys), strict=True):
            if isinstance(reading, BackendError):
                found.append(reading)
                continue
            record, now = reading
            if record is None:
                absent.append(len(found))
            found.append(None if record is None else self._records.decoded(key, record, now))
        for at, kind in zip(absent, await self._types([keys[at] for at in absent]), strict=True):
            if isinstance(kind, BackendError):
                found[at] = kind
            elif kind not in EXPECTED_TYPES:
                found[at] = failure(WRONG_TYPE, ids[at])
        return await self._with_drains(found)

    async def _types(self, keys: Sequence[bytes]) -> list[bytes | BackendError]:
        """Return the type of each key's value."""
        batch = Batch(keys)
        await self._servers.run([ReadType(batch, [at]) for at in range(len(keys))])
        return batch.outcomes

    async def patch(
        self, changes: Sequence[tuple[str, AgentChanges, int]]
    ) -> Sequence[AgentInfo | RegistryError | None]:
        each = []
        for _, fields, incarnation in changes:
            arguments: list[str | bytes | int] = [incarnation, len(fields)]
            for name, value in fields.items():
                arguments += (name, encode_field(name, value))
            each.append(tuple(arguments))
        ids = [agent_id for agent_id, *_ in changes]
        keys = self._keys.agents(ids)
        reply = await self._run(Update, keys, (MAX_RECORD_BYTES,), each)
        changed = [self._updated(key, result, agent_id) for key, agent_id, result in zip(keys, ids, reply, strict=True)]
        return await self._with_drains(changed)

    def _updated(self, key: bytes, result: Any, agent_id: str) -> AgentInfo | RegistryError | None:
        if isinstance(result, list) and isinstance(result[0], bytes):
            record, stamp = result
            return self._records.decoded(key, record, parse_instant(stamp.decode()))
        return None if result == ABSENT else failure(result, agent_id)

    async def delete(self, starts: Sequence[tuple[str, int]]) -> Sequence[bool | RegistryError]:
        ids = [agent_id for agent_id, _ in starts]
        each = [(incarnation,) for _, incarnation in starts]
        return facts(await self._run(Deregister, self._keys.agents(ids), (), each), ids)

    async def set_drains(
        self, orders: Sequence[tuple[str, DrainOrder | None]]
    ) -> Sequence[Drain | bool | RegistryError]:
        ids = [agent_id for agent_id, _ in orders]
        each: list[Command] = [
            (b"", 0)
            if order is None
            else (encode_order(order.reason, order.by), 0 if order.seconds is None else round(order.seconds * 1e6) or 1)
            for _, order in orders
        ]
        return [_order_outcome(result) for result in await self._run(SetDrain, self._keys.agents(ids), (), each)]

    async def drains(self) -> dict[str, Drain]:
        batch = Batch(self._keys.probes())
        await self._servers.run([ReadDrains(batch, [at]) for at in range(len(batch.keys))])
        return {
            encoded.decode(errors="replace"): drain
            for found, now in raise_any(batch.outcomes)
            for encoded, stored in found.items()
            if (drain := _current(stored, now)) is not None
        }

    async def _with_drains(self, found: list[T]) -> list[T]:
        """Return what was read, with the drains of agents that may have one filled in."""
        maybe = [at for at, each in enumerate(found) if isinstance(each, AgentInfo) and each.draining is MAYBE_DRAINED]
        if not maybe:
            return found
        agents = [cast("AgentInfo", found[at]) for at in maybe]
        keys = self._keys.agents([agent.id for agent in agents])
        whole: list[Any] = [*found]
        for at, agent, reading in zip(maybe, agents, await self._run(ReadDrain, keys), strict=True):
            whole[at] = reading if isinstance(reading, BackendError) else replace(agent, draining=_current(*reading))
        return whole

    # --- the whole fleet ---

    async def page(self, after: str, limit: int, walk: str) -> tuple[Sequence[AgentInfo], str | None]:
        after_id = after.encode(errors="surrogateescape")
        ids, has_more = await self._ordered_ids.page(after_id, min(limit, PAGE_SIZE), walk)
        if not ids:
            return [], None
        keys = [self._keys.of_id(encoded) for encoded in ids]
        records, times, _ = await self._servers.page(None, keys, None)
        agents = await self._agents(RecordPage(list(zip(keys, records, times, strict=True)), None))
        return agents, ids[-1].decode(errors="surrogateescape") if has_more else None

    async def scan(self, cursor: Cursor) -> Step[Sequence[AgentInfo]]:
        walk: FleetScan = cursor or FleetScan(self._servers, self._keys)
        agents, has_more = await walk.next(self._agents)
        return agents, walk if has_more else None

    async def _agents(self, page: RecordPage) -> list[AgentInfo]:
        return raise_any(await self._with_drains(await self._undrained(page)))

    async def _undrained(self, page: RecordPage) -> list[AgentInfo]:
        """Return the agents of a page without their drains."""
        return self._records.agents(await self._strings(page.records), self.on_corrupt)

    async def sweep(self, ttl: timedelta, cursor: Cursor) -> Step[Sequence[str]]:
        if cursor is None:
            missed = await self._mark([], [])
            return [agent_id for agent_id, _ in missed], _Sweep(
                FleetScan(self._servers, self._keys, time_of=self.time_of)
            )

        async def due(page: RecordPage) -> list[tuple[str, Command]]:
            if page.began is None:
                return []
            # Each server's clock decides about the agents on that server.
            boundary = stale_before(page.began, ttl)
            return list(self._records.due(await self._strings(page.records), boundary, self.on_corrupt))

        sweep: _Sweep = cursor
        raise_any(sweep.failed)
        found, has_more = await sweep.walk.next(due)
        marks = await self._mark([agent_id for agent_id, _ in found], [each for _, each in found])
        sweep.failed = [mark for _, mark in marks if isinstance(mark, BackendError)]
        return [agent_id for agent_id, mark in marks if mark == DONE], sweep if has_more or sweep.failed else None

    async def _mark(self, ids: list[str], found: Sequence[Command]) -> list[tuple[str, Any]]:
        """Mark agents offline; return their outcomes, and those of agents marked earlier but not reported yet."""
        outcomes: list[tuple[str, Any]] = []
        # One call at a time: for each family, the store keeps only what the last call marked.
        async with self._marking:
            await self._find_marks()
            for part in bounded(range(len(ids)), [len(heartbeat) for heartbeat, _ in found]):
                keys = self._keys.agents(ids[at] for at in part)
                results = await self._run(Mark, keys, (self._milliseconds,), [found[at] for at in part])
                outcomes += ((ids[at], result) for at, result in zip(part, results, strict=True) if result != DONE)
                if any(isinstance(result, BackendError) for result in results):
                    break
        return [*((agent_id, DONE) for agent_id in self.writer.marks.take()), *outcomes]

    async def _find_marks(self) -> None:
        """Find the agents marked by calls whose replies were lost, and prevent those calls from marking any more."""
        raise_any(await self._settle(FindMarks, self.writer.marks.unsettled()))

    async def _settle_lost(self, keys: Sequence[bytes]) -> None:
        """Prevent lost writes to these keys from taking effect after the following heartbeat or read.

        If the store refuses, for example because replicas are missing, the call continues without this guarantee.
        """
        families = set(map(family_of, keys))
        await self._settle(TrySettle, families.intersection(self.writer.generations.unsettled))

    async def _settle(self, kind: type[Settle], families: Iterable[bytes]) -> list[Any]:
        batch = Batch([marks_key(family, self.writer.generations.writer) for family in families], writer=self.writer)
        await self._servers.run([kind(batch, [at]) for at in range(len(batch.keys))])
        return batch.outcomes

    async def clear(self, cursor: Cursor) -> Step[int]:
        async def deleted(page: RecordPage) -> int:
            # Only records whose id matches their key: the pattern can match keys of another registry too.
            agents = await self._undrained(page)
            keys = self._keys.agents([agent.id for agent in agents])
            return sum(raise_any(await self._run(Deregister, keys, (), [(0,)] * len(keys))))

        walk: FleetScan = cursor or FleetScan(self._servers, self._keys)
        count, has_more = await walk.next(deleted)
        if not has_more:
            batch = Batch(self._keys.probes(), writer=self.writer)
            await self._servers.run([ClearDrains(batch, [at]) for at in range(len(batch.keys))])
            raise_any(batch.outcomes)
        return count, walk if has_more else None

    async def _run(
        self, kind: type[Request], keys: Sequence[bytes], common: Command = (), each: Sequence[Any] | None = None
    ) -> list[Any]:
        """Send requests of one kind for all keys; return the outcome or error of each key."""
        batch = Batch(keys, common, each, self.writer)
        await self._servers.run(requests(kind, batch, self._keys.by_slot(keys)))
        return batch.outcomes

    async def _strings(self, page: Sequence[Record]) -> list[tuple[bytes, bytes, datetime]]:
        """Return the records of a page; skip keys of another type and report them as corrupt."""
        empty = [key for key, record, _ in page if record is None]
        for key, kind in zip(empty, raise_any(await self._types(empty)), strict=True):
            if kind not in EXPECTED_TYPES:
                self.on_corrupt(self._records.corrupt(key, "its key holds another type of value than a string"))
        return [(key, record, now) for key, record, now in page if record is not None]

    async def times(self) -> Sequence[datetime]:
        return await asyncio.gather(*(self.time_of(node) for node in await self._servers.nodes()))

    async def diagnose(self, cursor: Cursor) -> Step[Sequence[Finding]]:
        nodes = await self._servers.nodes() if cursor is None else cursor
        return await findings_of(self._servers, self._keys, nodes[0]), nodes[1:] or None

    async def time_of(self, node: Any) -> datetime:
        """Return the time of one server."""
        return await self._servers.time(node)


def _registered(agent: AgentInfo, result: Any) -> Registered | RegistryError:
    """Return what a registration has stored, or its error."""
    if not isinstance(result, list) or not isinstance(result[0], bytes):
        return failure(result, agent.id)
    stamp, incarnation, last_heartbeat, drain, replaced = result
    now = datetime.fromisoformat(stamp.decode())
    silence = now - parse_instant(last_heartbeat.decode()) if last_heartbeat else None
    heartbeat = now if agent.last_heartbeat is None else min(agent.last_heartbeat, now)
    draining = decode_drain(drain) if drain else None
    stored = replace(agent, last_heartbeat=heartbeat, incarnation=int(incarnation), draining=draining)
    return Registered(stored, silence, int(replaced))


def _order_outcome(result: Any) -> Drain | bool | BackendError:
    """Return the drain that was stored, or whether one was removed, or the error."""
    if isinstance(result, bytes):
        return decode_drain(result)
    return result if isinstance(result, BackendError) else result == DONE


def _current(stored: bytes | None, now: datetime) -> Drain | None:
    """Return a drain that has not ended."""
    drain = decode_drain(stored) if stored else None
    return None if drain is None or (drain.ends_at is not None and drain.ends_at <= now) else drain
