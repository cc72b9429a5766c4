"""A registry's records as they are read: agents, or errors that say why not, and what a sweep has to write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

from agentic.agent import AgentInfo, AgentStatus
from agentic.backends.redis.keys import Keys, id_in
from agentic.clock import NEVER
from agentic.errors import CorruptRecordError
from agentic.text import printable
from agentic.wire import CorruptRecord, decode_agent, decode_pulse, heartbeat_as_written

Stored = tuple[bytes, bytes, datetime]
"""A key, the record that it holds, and the time of the server that said so."""


OnCorrupt = Callable[[CorruptRecordError], object]


class Records:
    """Decodes the records of a registry."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def decoded(self, key: bytes, record: bytes, now: datetime) -> AgentInfo | CorruptRecordError:
        """Return a record's agent as of `now`, or the error that says why there is none in it."""
        try:
            agent = decode_agent(record)
        except CorruptRecord as error:
            return self.corrupt(key, str(error))
        if self._keys.agent(agent.id) == key:
            heartbeat = agent.last_heartbeat
            return agent if heartbeat is not None and heartbeat <= now else agent.stamped(now)
        return self.corrupt(key, "it names the id of another key")

    def corrupt(self, key: bytes, why: str) -> CorruptRecordError:
        """Return the error of a corrupt record."""
        shown = printable(key.decode(errors="replace"))
        return CorruptRecordError(f"the record at key '{shown}' is corrupt: {printable(why)}", id_in(key))

    def agents(self, page: Sequence[Stored], on_corrupt: OnCorrupt) -> list[AgentInfo]:
        """Return the agent of each record; a corrupt one is skipped."""
        agents = []
        for key, record, now in page:
            agent = self.decoded(key, record, now)
            if isinstance(agent, AgentInfo):
                agents.append(agent)
            else:
                on_corrupt(agent)
        return agents

    def not_live(
        self, page: Sequence[Stored], boundary: datetime, on_corrupt: OnCorrupt
    ) -> Iterator[tuple[str, tuple[bytes, bytes]]]:
        """Yield the id of each agent that a sweep has to write, with its heartbeat as stored, and why.

        The reason is `stale`, or `future` for a heartbeat that its server's clock has not reached. A corrupt record is
        skipped.
        """
        for key, record, now in page:
            try:
                pulse = decode_pulse(record)
            except CorruptRecord as error:
                on_corrupt(self.corrupt(key, str(error)))
                continue
            heartbeat = pulse.last_heartbeat or NEVER
            # Of an offline agent too, a heartbeat of the future keeps the record for longer than its time to live.
            is_stale = heartbeat < boundary and pulse.status != AgentStatus.OFFLINE
            why = b"future" if heartbeat > now else b"stale" if is_stale else b""
            if self._keys.agent(pulse.id) == key and not why:
                continue
            # Read as a whole now: what `list` would call corrupt must not be written.
            for agent in self.agents([(key, record, now)], on_corrupt):
                yield agent.id, (heartbeat_as_written(record), why)
