"""Decode records into agents or errors, and find the records that a sweep must change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Final

from msgspec.structs import replace

from agentic.agent import AgentInfo, AgentStatus, Drain
from agentic.backends.redis.keys import Keys, id_in
from agentic.clock import NEVER
from agentic.errors import CorruptRecordError
from agentic.incarnations import latest
from agentic.text import printable
from agentic.wire import CorruptRecord, decode_agent, decode_pulse, heartbeat_as_written

Stored = tuple[bytes, bytes, datetime]
"""A key, its record, and the time of the server that returned it."""


OnCorrupt = Callable[[CorruptRecordError], object]


MAYBE_DRAINED: Final = Drain("", "", NEVER)
"""Stands for a drain that must be looked up, because the record of the agent is marked, or may have lost its mark."""


class Records:
    """Decodes the records of a registry."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._latest: tuple[datetime | None, int] = None, 0

    def _latest_as_of(self, now: datetime) -> int:
        """Return the highest incarnation that is believed; computed once for the agents of a page."""
        as_of, found = self._latest
        if as_of is not now:
            found = latest(now)
            self._latest = now, found
        return found

    def decoded(self, key: bytes, record: bytes, now: datetime) -> AgentInfo | CorruptRecordError:
        """Return the agent in a record as of `now`, or the error of a corrupt record.

        Its drain is None, or `MAYBE_DRAINED`.
        """
        try:
            agent = decode_agent(record)
        except CorruptRecord as error:
            return self.corrupt(key, str(error))
        if self._keys.agent(agent.id) == key:
            if agent.incarnation > self._latest_as_of(now):
                agent = replace(agent, incarnation=0)
            if not agent.incarnation or b'"marked"' in record:
                agent = replace(agent, draining=MAYBE_DRAINED)
            heartbeat = agent.last_heartbeat
            return agent if heartbeat is not None and heartbeat <= now else agent.stamped(now)
        return self.corrupt(key, "it names the id of another key")

    def corrupt(self, key: bytes, why: str) -> CorruptRecordError:
        """Return the error of a corrupt record."""
        shown = printable(key.decode(errors="replace"))
        return CorruptRecordError(f"the record at key '{shown}' is corrupt: {printable(why)}", id_in(key))

    def agents(self, page: Sequence[Stored], on_corrupt: OnCorrupt) -> list[AgentInfo]:
        """Return the agent of each record; skip corrupt records and pass them to `on_corrupt`."""
        agents = []
        for key, record, now in page:
            agent = self.decoded(key, record, now)
            if isinstance(agent, AgentInfo):
                agents.append(agent)
            else:
                on_corrupt(agent)
        return agents

    def due(
        self, page: Sequence[Stored], boundary: datetime, on_corrupt: OnCorrupt
    ) -> Iterator[tuple[str, tuple[bytes, bytes]]]:
        """Yield the id of each agent that a sweep must change, with its heartbeat as stored, and the reason.

        The reason is `stale`, or `future` if the heartbeat is ahead of its server's clock. Corrupt records are skipped
        and passed to `on_corrupt`.
        """
        for key, record, now in page:
            try:
                pulse = decode_pulse(record)
            except CorruptRecord as error:
                on_corrupt(self.corrupt(key, str(error)))
                continue
            heartbeat = pulse.last_heartbeat or NEVER
            # Includes offline agents: after a clock step back, the record would outlive its time to live.
            is_stale = heartbeat < boundary and pulse.status != AgentStatus.OFFLINE
            reason = b"future" if heartbeat > now else b"stale" if is_stale else b""
            if self._keys.agent(pulse.id) == key and not reason:
                continue
            # Decode the whole record: a record that `list` reports as corrupt must not be written.
            for agent in self.agents([(key, record, now)], on_corrupt):
                yield agent.id, (heartbeat_as_written(record), reason)
