"""Registries whose every call is written down; and, on request, with an old bug put back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeVar, Unpack

import msgspec

from agentic import (
    AgentInfo,
    AgentNotFoundError,
    AgentRegistry,
    BackendError,
    RedisRegistry,
    RegistryError,
    SQLiteRegistry,
)
from agentic.agent import AgentChanges
from tests.chaos.history import Journal, Seen

T = TypeVar("T")


class Recorded(AgentRegistry):
    """Writes every call down."""

    journal: Journal

    async def register(self, agent: AgentInfo) -> AgentInfo:
        return await self._one("register", agent.id, agent.current_load, super().register(agent))

    async def heartbeat(self, agent_id: str) -> None:
        await self._one("heartbeat", agent_id, None, super().heartbeat(agent_id))

    async def get(self, agent_id: str) -> AgentInfo:
        return await self._one("get", agent_id, None, super().get(agent_id))

    async def update(self, agent_id: str, **changes: Unpack[AgentChanges]) -> AgentInfo:
        return await self._one("update", agent_id, changes.get("current_load"), super().update(agent_id, **changes))

    async def deregister(self, agent_id: str) -> None:
        await self._one("deregister", agent_id, None, super().deregister(agent_id))

    async def list(self) -> list[AgentInfo]:
        return await self._recorded("list", "", None, super().list(), seen=lambda agents: map(_seen, agents))

    async def reap(self, ttl: Any) -> list[str]:  # type: ignore[valid-type]
        return await self._recorded("reap", "", None, super().reap(ttl), reported=lambda ids: ids)

    async def _one(self, kind: str, agent_id: str, load: int | None, call: Awaitable[T]) -> T:
        result = await self._recorded(
            kind, agent_id, load, call, seen=lambda agent: [_seen(agent)] if kind == "get" else []
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
        reported: Callable[[Any], Any] = lambda _: (),
    ) -> T:
        number = self.journal.begin(kind, agent_id, load)
        try:
            result = await call
        except AgentNotFoundError:
            self.journal.end(number, "absent")
            raise
        except RegistryError as error:
            self.journal.end(number, "failed", reported=getattr(error, "reaped", ()))
            raise
        except BaseException:
            self.journal.end(number, "failed")
            raise
        self.journal.end(number, "ok", seen(result), reported(result))
        return result


def _seen(agent: AgentInfo) -> Seen:
    return Seen(agent.id, agent.status, agent.current_load)


class RecordedRedis(Recorded, RedisRegistry):
    pass


class RecordedSQLite(Recorded, SQLiteRegistry):
    pass


class GetThenSet(RecordedRedis):
    """The bug: a heartbeat reads the record and writes it back."""

    async def _touch(self, ids: Sequence[str]) -> Sequence[bool | RegistryError]:
        return list(await asyncio.gather(*map(self._touch_one, ids)))

    async def _touch_one(self, agent_id: str) -> bool:
        key, client = self._key(agent_id), self._servers._client  # type: ignore[attr-defined]
        record = await client.get(key)
        if record is None:
            return False
        fields = msgspec.json.decode(record)
        fields["last_heartbeat"] = datetime.now(UTC).isoformat()
        if fields["status"] == "offline":
            fields["status"] = "available"
        await client.set(key, msgspec.json.encode(fields), px=self._milliseconds)
        return True


class ReapBlindly(RecordedRedis):
    """The bug: what a sweep has read is written back as offline, whatever has happened meanwhile."""

    async def _mark(self, ids: list[str], records: list[bytes]) -> list[str]:
        client = self._servers._client  # type: ignore[attr-defined]
        for agent_id, record in zip(ids, records, strict=True):
            fields = msgspec.json.decode(record) | {"status": "offline"}
            await client.set(self._key(agent_id), msgspec.json.encode(fields), keepttl=True)
        return ids


class ListSwallows(RecordedRedis):
    """The bug: a list that fails half way returns what it has."""

    async def list(self) -> list[AgentInfo]:
        return await self._recorded("list", "", None, self._what_there_is(), seen=lambda agents: map(_seen, agents))

    async def _what_there_is(self) -> list[AgentInfo]:  # type: ignore[valid-type]
        agents = []
        try:
            async for agent in self.scan():
                agents.append(agent)  # noqa: PERF401  what came before the error is kept
        except BackendError:
            pass
        return agents


BUGS: Final[dict[str, type[RecordedRedis]]] = {
    "heartbeat-get-then-set": GetThenSet,
    "reap-without-compare": ReapBlindly,
    "list-swallows-errors": ListSwallows,
}
