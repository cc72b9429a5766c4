"""What a server says of itself, beside what it is asked for: its kind, its role, whether it is in sync, its time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, RedisError, ResponseError

# As bytes, so that the driver gives the answers as they are. Every user may send HELLO, whatever the ACL says.
HELLO: Final = (b"HELLO",)
TIME: Final = (b"TIME",)
REPLICATION: Final = (b"INFO", b"replication")

LATEST: Final = datetime.max.replace(tzinfo=UTC)
"""The time of a server that does not tell it: no heartbeat is later."""

LONGEST_SILENCE: Final = 15
"""Seconds after which a replica that hears nothing is not in sync: a primary sends something every 10 s by default."""

MISREAD: Final = (ValueError, LookupError, TypeError, AttributeError)
"""What the driver raises over answers of another form than those it asked for."""

DRIVER_ERRORS: Final = (RedisError, OSError, *MISREAD)


class Refused(ResponseError):
    """The server will not do until an operator acts; the message is complete."""


class NotInSync(RedisConnectionError):
    """The server may lack what its primary, or its successor, has acknowledged."""


class OutOfStep(RedisConnectionError):
    """An answer is of another form than what was asked for: it may be that to an earlier command."""


class Kind(StrEnum):
    """What a server can be, by the word that it has for it."""

    SINGLE = "standalone"
    CLUSTER = "cluster"
    SENTINEL = "sentinel"


_DESCRIBED: Final = {
    Kind.SINGLE: "a single server: use redis://",
    Kind.CLUSTER: "a node of a cluster: use redis+cluster://",
    Kind.SENTINEL: "a sentinel: use redis+sentinel://host:port/service",
}


class Greeting(NamedTuple):
    """The answer to HELLO."""

    kind: str
    role: str

    @classmethod
    def of(cls, reply: Any) -> Greeting:
        """Read it; a refusal tells nothing, and any other error is raised.

        Raises:
            OutOfStep: It is no answer to HELLO.
        """
        if is_refusal(reply):
            return cls("", "")
        facts = answered(reply)
        if isinstance(facts, list):
            facts = dict(zip(facts[::2], facts[1::2], strict=False))
        if not isinstance(facts, dict):
            raise OutOfStep("the answer to HELLO is none: does a Redis server listen there?")
        kind, role = (facts.get(name, b"") for name in (b"mode", b"role"))
        return cls(kind.decode(), role.decode())

    @property
    def is_primary(self) -> bool:
        """Whether the server says that it copies no other one."""
        return self.role == "master"

    def check_kind(self, wanted: Kind) -> None:
        """Check that the server is one that can be used as `wanted`; one of a kind that is not known passes.

        Raises:
            Refused: It is of another kind.
        """
        if self.kind != wanted and self.kind in set(Kind):
            raise Refused(f"the server is {_DESCRIBED[Kind(self.kind)]}")

    def check_in_sync(self, info: Any) -> None:
        """Check by the answer to `REPLICATION` that a replica follows its primary.

        Raises:
            NotInSync: It does not.
            Refused: The user may not ask.
        """
        if is_refusal(info):
            if self.role:
                raise Refused(
                    f"the server is a replica, and the user may not ask if it is in sync: grant +info ({info})"
                )
            return  # A server without HELLO and INFO tells nothing of itself.
        if b"role:master" in answered(info):
            return
        silence = re.search(rb"master_last_io_seconds_ago:(-?\d+)", info)
        if silence is None or b"master_link_status:up" not in info or int(silence[1]) > LONGEST_SILENCE:
            raise NotInSync("the server is a replica, and not in sync with its primary")


def is_refusal(reply: Any) -> bool:
    """Tell whether the user may not send such a command, or the server has none."""
    return isinstance(reply, NoPermissionError) or (
        isinstance(reply, ResponseError) and "unknown command" in str(reply)
    )


def answered(reply: Any) -> Any:
    """Return an answer; raises the error that it may be."""
    if isinstance(reply, Exception):
        raise reply
    return reply


def time_of(reply: Any) -> datetime:
    """Return the instant that an answer to `TIME` tells."""
    seconds, microseconds = map(int, in_step(reply, 2))
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=microseconds)


def in_step(reply: Any, length: int) -> Sequence[Any]:
    """Return an answer that must be a list of so many items.

    Raises:
        OutOfStep: It is something else.
    """
    answer: Sequence[Any] = answered(reply)
    if not isinstance(answer, (list, tuple)) or len(answer) != length:
        raise OutOfStep(f"an answer is not the list of {length} that was asked for: the connection is out of step")
    return answer
