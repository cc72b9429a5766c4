"""What a server reports about itself: its kind, role, replication state and time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, RedisError, ResponseError

# As bytes, so that the driver returns raw replies. Every user may send HELLO, whatever the ACL.
HELLO: Final = (b"HELLO",)
TIME: Final = (b"TIME",)
REPLICATION: Final = (b"INFO", b"replication")

LATEST: Final = datetime.max.replace(tzinfo=UTC)
"""Stands for an unknown server time: no heartbeat is later."""

MAX_SILENCE: Final = 15
"""Seconds without data from the primary after which a replica is out of sync; a primary pings every 10 s by default."""

PARSE_ERRORS: Final = (ValueError, LookupError, TypeError, AttributeError)
"""Errors that the driver raises when it parses a reply of an unexpected form."""

DRIVER_ERRORS: Final = (RedisError, OSError, *PARSE_ERRORS)


class Refused(ResponseError):
    """The server cannot be used until an operator acts; the message is complete."""


class NotInSync(RedisConnectionError):
    """The server may lack writes that its primary, or its successor, has acknowledged."""


class OutOfStep(RedisConnectionError):
    """A reply has an unexpected form: it may belong to an earlier command."""


class Kind(StrEnum):
    """Kinds of servers, by their `mode` in the reply to HELLO."""

    SINGLE = "standalone"
    CLUSTER = "cluster"
    SENTINEL = "sentinel"


_DESCRIBED: Final = {
    Kind.SINGLE: "a single server: use redis://",
    Kind.CLUSTER: "a node of a cluster: use redis+cluster://",
    Kind.SENTINEL: "a sentinel: use redis+sentinel://host:port/service",
}


class Greeting(NamedTuple):
    """The reply to HELLO."""

    kind: str
    role: str

    @classmethod
    def of(cls, reply: Any) -> Greeting:
        """Parse a reply; a refusal gives empty fields, any other error is raised.

        Raises:
            OutOfStep: It is not a reply to HELLO.
        """
        if is_refusal(reply):
            return cls("", "")
        facts = unwrap(reply)
        if isinstance(facts, list):
            facts = dict(zip(facts[::2], facts[1::2], strict=False))
        if not isinstance(facts, dict):
            raise OutOfStep("unexpected reply to HELLO: is this a Redis server?")
        kind, role = (facts.get(name, b"") for name in (b"mode", b"role"))
        return cls(kind.decode(), role.decode())

    @property
    def is_primary(self) -> bool:
        """Whether the server reports itself as a primary."""
        return self.role == "master"

    def check_kind(self, wanted: Kind) -> None:
        """Check that the server is of the wanted kind; an unknown kind passes.

        Raises:
            Refused: It is of another kind.
        """
        if self.kind != wanted and self.kind in set(Kind):
            raise Refused(f"the server is {_DESCRIBED[Kind(self.kind)]}")

    def check_in_sync(self, info: Any) -> None:
        """Check by the reply to `REPLICATION` that a replica is in sync with its primary.

        Raises:
            NotInSync: It is not.
            Refused: The user may not send INFO.
        """
        if is_refusal(info):
            if self.role:
                raise Refused(
                    f"the server is a replica, and the user may not check that it is in sync: grant +info ({info})"
                )
            return  # A server without HELLO and INFO cannot be checked.
        if b"role:master" in unwrap(info):
            return
        silence = re.search(rb"master_last_io_seconds_ago:(-?\d+)", info)
        if silence is None or b"master_link_status:up" not in info or int(silence[1]) > MAX_SILENCE:
            raise NotInSync("the server is a replica and not in sync with its primary")


def is_refusal(reply: Any) -> bool:
    """Return whether the user may not send the command, or the server does not have it."""
    return isinstance(reply, NoPermissionError) or (
        isinstance(reply, ResponseError) and "unknown command" in str(reply)
    )


def unwrap(reply: Any) -> Any:
    """Return a reply; raise it if it is an error."""
    if isinstance(reply, Exception):
        raise reply
    return reply


def time_of(reply: Any) -> datetime:
    """Return the time in a reply to `TIME`."""
    seconds, microseconds = map(int, checked_list(reply, 2))
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=microseconds)


def checked_list(reply: Any, length: int) -> Sequence[Any]:
    """Return a reply that must be a list of `length` items.

    Raises:
        OutOfStep: It is not.
    """
    answer: Sequence[Any] = unwrap(reply)
    if not isinstance(answer, (list, tuple)) or len(answer) != length:
        raise OutOfStep(f"a reply is not the expected list of {length} items: the connection is out of step")
    return answer
