"""The part of a record that a sweep reads: whose it is, whether it is offline, when it was last heard of."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from agentic.agent import CorruptRecord
from agentic.clock import NEVER, parse_instant


class Pulse(msgspec.Struct, gc=False):
    """One agent, as far as a sweep needs to know it."""

    id: str
    status: str | None = None
    last_heartbeat: datetime | None = None

    def is_stale(self, boundary: datetime) -> bool:
        """Tell whether a sweep marks the agent, given the instant before which heartbeats are stale."""
        return self.status != "offline" and (self.last_heartbeat or NEVER) < boundary


class _Written(msgspec.Struct):
    id: str
    status: str | None = None
    last_heartbeat: msgspec.Raw = msgspec.Raw()


_decode_own = msgspec.json.Decoder(Pulse).decode
_decode_written = msgspec.json.Decoder(_Written).decode
_decode_text = msgspec.json.Decoder(str | None).decode


def decode_pulse(record: bytes) -> Pulse:
    """Return the pulse of a record, whoever wrote it.

    Raises:
        CorruptRecord: It is no JSON object, has no id, or its heartbeat is no time.
    """
    try:
        pulse = _decode_own(record)
        if pulse.last_heartbeat is not None and pulse.last_heartbeat.tzinfo is UTC:
            return pulse
    except (ValueError, RecursionError):
        pass  # Not as this library writes it; whether it is right is told below.
    try:
        found = _decode_written(record)
        text = _decode_text(found.last_heartbeat) if found.last_heartbeat else None
        return Pulse(found.id, found.status, parse_instant(text) if text else NEVER)
    except (ValueError, RecursionError) as error:
        raise CorruptRecord(str(error)) from error


def heartbeat_as_written(record: bytes) -> bytes:
    """Return the JSON of a record's `last_heartbeat`, byte for byte; empty where it has none."""
    return bytes(_decode_written(record).last_heartbeat)
