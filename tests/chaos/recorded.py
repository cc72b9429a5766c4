"""Registries that record every call, optionally with an old bug put back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, TypeVar, Unpack

import msgspec

from agentic import (
    AgentInfo,
    AgentNotFoundError,
    AgentRegistry,
    AgentReplacedError,
    BackendError,
    RedisRegistry,
    RegistryError,
    SQLiteRegistry,
)
from agentic.agent import USUAL_BEAT, AgentChanges, Beat
from agentic.backends.redis.backend import RedisBackend
from agentic.backends.redis.server_info import Greeting
from tests.chaos.history import Journal, Seen

T = TypeVar("T")


class Recorded(AgentRegistry):
    """Records every call."""

    journal: Journal
    name: str

    async def register(self, agent: AgentInfo, *, incarnation: int = 0) -> AgentInfo:
        call = super().register(agent, incarnation=incarnation)
        return await self._one("register", agent.id, agent.current_load, call, incarnation)

    async def heartbeat(self, agent_id: str, *, incarnation: int = 0) -> Beat:
        call = super().heartbeat(agent_id, incarnation=incarnation)
        return await self._one("heartbeat", agent_id, None, call, incarnation)

    async def get(self, agent_id: str) -> AgentInfo:
        return await self._one("get", agent_id, None, super().get(agent_id))

    async def update(self, agent_id: str, *, incarnation: int = 0, **changes: Unpack[AgentChanges]) -> AgentInfo:
        call = super().update(agent_id, incarnation=incarnation, **changes)
        return await self._one("update", agent_id, changes.get("current_load"), call, incarnation)

    async def deregister(self, agent_id: str, *, incarnation: int = 0) -> None:
        call = super().deregister(agent_id, incarnation=incarnation)
        await self._one("deregister", agent_id, None, call, incarnation)

    async def list(self) -> list[AgentInfo]:
        return await self._recorded("list", "", None, super().list(), seen=lambda agents: map(_seen, agents))

    async def reap(self, ttl: Any = None, *, on_marked: Callable[[Any], object] | None = None) -> list[str]:  # type: ignore[valid-type]
        reported: list[str] = []

        def marked(ids: Any) -> None:
            reported.extend(ids)
            if on_marked is not None:
                on_marked(ids)

        return await self._recorded("reap", "", None, super().reap(ttl, on_marked=marked), reported=reported)

    async def _one(self, kind: str, agent_id: str, load: int | None, call: Awaitable[T], incarnation: int = 0) -> T:
        result = await self._recorded(
            kind, agent_id, load, call, lambda agent: [_seen(agent)] if kind == "get" else [], incarnation=incarnation
        )
        if isinstance(result, AgentInfo) and not result.id == result.metadata["id"] == agent_id:
            self.journal.note("crossed", f"{kind} of {agent_id} was answered with {result.id}")
        return result

    async def _recorded(
        self,
        kind: str,
        agent_id: str,
        load: int | None,
        call: Awaitable[T],
        seen: Callable[[Any], Any] = lambda _: (),
        reported: Sequence[str] = (),
        incarnation: int = 0,
    ) -> T:
        number = self.journal.begin(self.name, kind, agent_id, load, incarnation)
        try:
            result = await call
        except AgentNotFoundError:
            self.journal.end(number, "absent")
            raise
        except AgentReplacedError:
            self.journal.end(number, "replaced")
            raise
        except BaseException:
            self.journal.end(number, "failed", reported=reported)
            raise
        given_out = result.incarnation if kind == "register" and isinstance(result, AgentInfo) else 0
        self.journal.end(number, "ok", seen(result), reported, given_out)
        return result


def _seen(agent: AgentInfo) -> Seen:
    return Seen(agent.id, agent.status, agent.current_load)


class RecordedRedis(Recorded, RedisRegistry):
    pass


class RecordedSQLite(Recorded, SQLiteRegistry):
    pass


class Buggy(RedisBackend):
    async def _read_and_write(self, agent_id: str, changed: dict[str, str], **options: Any) -> bool:
        """Read a record and write it back with changed fields, not atomically."""
        key = self._keys.agent(agent_id)
        client = self._servers._client  # type: ignore[attr-defined]  # noqa: SLF001  below everything that prevents the bug
        record = await self._servers.execute(client.get, key, repeatable=False)
        if record is not None:
            text = msgspec.json.encode(msgspec.json.decode(record) | changed)
            await self._servers.execute(partial(client.set, **options), key, text, repeatable=False)
        return record is not None


class GetThenSet(Buggy):
    """The bug: a heartbeat reads the record and writes it back."""

    async def touch(self, beats: Sequence[tuple[str, int]]) -> Sequence[Beat | RegistryError | None]:
        changed = {"last_heartbeat": datetime.now(UTC).isoformat(), "status": "available"}
        calls = [self._read_and_write(agent_id, changed, px=self._milliseconds) for agent_id, _ in beats]
        return [USUAL_BEAT if present else None for present in await asyncio.gather(*calls)]


class ReapBlindly(Buggy):
    """The bug: a sweep marks agents offline without checking that they are still stale."""

    async def _mark(self, ids: list[str], found: Any) -> list[tuple[str, Any]]:
        for agent_id in ids:
            await self._read_and_write(agent_id, {"status": "offline"}, keepttl=True)
        return [(agent_id, 1) for agent_id in ids]


class ListSwallows(RecordedRedis):
    """The bug: a list that fails returns a partial result."""

    async def list(self) -> list[AgentInfo]:
        return await self._recorded("list", "", None, self._partial_list(), seen=lambda agents: map(_seen, agents))

    async def _partial_list(self) -> list[AgentInfo]:  # type: ignore[valid-type]
        agents = []
        try:
            async for agent in self.scan():
                agents.append(agent)  # noqa: PERF401  keep what was read before the error
        except BackendError:
            pass
        return agents


class IgnoresStarts(RedisBackend):
    """The bug: a call of an earlier start is made."""

    async def touch(self, beats: Sequence[tuple[str, int]]) -> Sequence[Beat | RegistryError | None]:
        return await super().touch([(agent_id, 0) for agent_id, _ in beats])

    async def delete(self, starts: Sequence[tuple[str, int]]) -> Sequence[bool | RegistryError]:
        return await super().delete([(agent_id, 0) for agent_id, _ in starts])


class ForgetsLosses(RedisBackend):
    """The bug: a write of unknown outcome may take effect after later ones."""

    async def open(self) -> None:
        await super().open()
        self.writer.generations.lost = lambda family, sent: None  # type: ignore[method-assign]


class AsksAnyServer(RedisBackend):
    """The bug: a demoted server without a link to its primary is still read."""

    async def open(self) -> None:
        Greeting.check_in_sync = lambda *_: None  # type: ignore[method-assign]
        await super().open()


def with_bug(name: str, *arguments: Any, **options: Any) -> RecordedRedis:
    """Return a registry with the named bug put back; an empty name means none."""
    if name == "list-swallows-errors":
        return ListSwallows(*arguments, **options)
    registry = RecordedRedis(*arguments, **options)
    if name:
        registry.backend.__class__ = _BACKENDS[name]
    return registry


_BACKENDS: Final[dict[str, type[RedisBackend]]] = {
    "heartbeat-get-then-set": GetThenSet,
    "reap-without-compare": ReapBlindly,
    "late-writes-accepted": ForgetsLosses,
    "starts-ignored": IgnoresStarts,
    "any-server-is-read": AsksAnyServer,
}
BUGS: Final = (*_BACKENDS, "list-swallows-errors")
