"""The interface of a store. Provisional: it may change until presence, placement and watching are built on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar, NamedTuple, TypeVar

from agentic.agent import AgentChanges, AgentInfo, Beat, Drain
from agentic.clock import positive_seconds
from agentic.errors import ConfigurationError, CorruptRecordError, RegistryError
from agentic.findings import Finding

T = TypeVar("T")

Cursor = Any
"""The position of a walk, in any form that suits the store. None starts a walk, and is returned at its end."""

Step = tuple[T, Cursor]
"""The result of one call of a walk: a page, and the cursor for the next call."""


class Registered(NamedTuple):
    """The outcome of a registration.

    Attributes:
        agent: The agent as stored.
        silence: If a new start of the agent has replaced a record: the time since the last heartbeat in it, else None.
        replaced: The incarnation in that record.
    """

    agent: AgentInfo
    silence: timedelta | None = None
    replaced: int = 0


class DrainOrder(NamedTuple):
    """An order to drain an agent.

    Attributes:
        reason: As in `Drain`.
        by: As in `Drain`.
        seconds: After how many seconds it ends by itself; None for never.
    """

    reason: str
    by: str
    seconds: float | None


class Backend(ABC):
    """A store of agents. `AgentRegistry` passes it batches of items and expects one outcome per item, in order.

    **Arguments** have been checked. Ids are strings of 1 to 512 bytes in UTF-8. Agents and changes have exactly the
    types of `AgentInfo`, with times in UTC. An agent is at most 64 KiB as JSON. Changes name at least one field.
    Incarnations are 0, or of 16 digits and below 2**53.

    **Batches** contain 1 to 256 items. In `touch` and `fetch`, an id may repeat: return an outcome for each occurrence.
    In the other primitives, all ids are distinct. Calls overlap: up to `max_batches` batches of each kind
    (and shard) run concurrently, together with walks and all other calls. Two concurrent batches contain the same agent
    only if both are `touch` or both are `fetch`.

    **Outcomes**: return the result; None or False if the agent does not exist or is gone; or a `RegistryError` that
    concerns only this agent, such as `CorruptRecordError`. If the whole call fails, raise a `BackendError`:
    `BackendUnavailableError` if a retry may help, `BackendRejectedError` if an operator must act. Never return an empty
    or partial result because the store cannot be read. Any other exception is a bug, and is raised to the callers.

    **Clock**: the store's clock decides whether an agent is alive, stale or gone, never the caller's. The backend
    clamps: a `last_heartbeat` later than the store's current time is stored, and read, as the current time.
    `AgentInfo.stamped` does this.

    **Atomicity**: a change to one agent is one atomic step that includes its precondition. A batch as a whole need not
    be atomic.

    **Incarnations** tell the starts of an agent apart; see `agentic.incarnations`, whose functions decide all that
    follows. A stored one that is not an incarnation, or is more than a year ahead of the store's clock, counts as 0.
    `touch`, `patch` and `delete` get one with each id. If it is 0, it is ignored. Otherwise it is compared with the
    stored one, in the same step as the change:

    - the stored one is higher: change nothing; the outcome is an `AgentReplacedError`;
    - the stored one is lower, but not 0: change nothing; the agent counts as absent;
    - they are equal, or the stored one is 0: make the change;
    - the given one is more than a year ahead of the store's clock: change nothing; `incarnations.too_far_ahead()`.

    **Drains** are kept by id, apart from the record: neither a change of the record nor its absence affects them. One
    that has ended by the store's clock does not count. Each `AgentInfo` that a primitive returns has `draining` filled
    in, and so has each `Beat`; it is not stored in the record.

    **Expiry**: an agent is gone `ttl` seconds after its last `insert` or `touch`. All primitives treat it as absent
    from then on, even if its record stays in the store until the next `sweep`.

    **Cancellation**: the registry cancels a call that takes longer than `timeout`. A cancelled or failed write may or
    may not have taken effect, but it must not take effect after a later call on the same agent has returned.

    **Walks** of the whole fleet are `scan`, `sweep`, `clear` and `diagnose`. Each call returns one page, which may be
    empty, and the cursor for the next call. The first call gets the cursor None. A walk ends when a call returns the
    cursor None, fails or is cancelled, or when the caller stops. Therefore nothing may keep running between two calls,
    and a cursor must not contain anything that needs closing. Each cursor is used at most once, in the process and
    event loop that it comes from.

    **Corrupt records** that a walk or a `page` reads are passed to `on_corrupt`, left unchanged, and skipped. `clear`
    may delete them instead.

    Attributes:
        ttl: Seconds; None keeps agents until they are removed.
        timeout: Seconds that a batch, a page, opening or closing may take.
        on_corrupt: Call it with the error for each corrupt record that is skipped. Set by the registry.
        is_immediate: Set it to True if `insert`, `touch`, `fetch`, `patch` and `delete` never wait. The registry then
            makes each call immediately, as a batch of one.
        shard_of: Returns the name of an agent's shard, a part of the store that can fail independently; None if there
            is only one. All agents of a batch are in the same shard. May be set in `open`.
    """

    max_batches: ClassVar[int] = 1
    """The most batches of one kind, and one shard, that run concurrently."""

    def __init__(self, *, ttl: float | timedelta | None, timeout: float | timedelta) -> None:
        """Check the options that all stores have.

        Raises:
            ConfigurationError: `ttl` or `timeout` is not a finite number of seconds greater than 0.
        """
        self.ttl = None if ttl is None else positive_seconds(ttl, "ttl")
        self.timeout = positive_seconds(timeout, "timeout")
        self.on_corrupt: Callable[[CorruptRecordError], object] = _ignore
        self.is_immediate = False
        self.shard_of: Callable[[str], str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy of a backend that is not open; the registry of the copy sets `on_corrupt`."""
        return vars(self) | {"on_corrupt": _ignore}

    @property
    @abstractmethod
    def store(self) -> str:
        """The name of the store in messages and logs: a URL without secrets."""

    @abstractmethod
    async def open(self) -> None:
        """Open the store, and verify that it answers, within `timeout`.

        If this fails, times out or is cancelled, the registry calls `close` as soon as this has ended. A closed store
        can be opened again.

        Raises:
            BackendError: The store cannot be reached or used.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close everything that is open, including what a failed `open` or an interrupted call has left open.

        May be called more than once, and when nothing is open.
        """

    def second(self) -> Backend:
        """Return a second backend for the same store, to be opened in the event loop of another thread.

        Both are used at the same time. A cancelled or failed write of one must not take effect after a later call of
        the other on the same agent has returned.

        Raises:
            ConfigurationError: The store does not support this, as by default.
        """
        raise ConfigurationError(f"thread: must be False for {self.store}, which cannot be opened in a second thread")

    @abstractmethod
    async def insert(self, agents: Sequence[AgentInfo]) -> Sequence[Registered | RegistryError]:
        """Store each agent, replacing any record with its id, even a corrupt one, and restart its `ttl`.

        If `last_heartbeat` is None or later than the store's current time, store the current time.

        If `incarnation` is 0, this is a new start: store `incarnations.next_incarnation`, with the highest incarnation
        that the store has stored so far as the counter. Otherwise store the given one, unless a higher one is stored.

        Returns:
            For each agent: the agent as stored, and what a new start has replaced; or an `AgentReplacedError`.
        """

    @abstractmethod
    async def touch(self, beats: Sequence[tuple[str, int]]) -> Sequence[Beat | RegistryError | None]:
        """Set `last_heartbeat` of each agent that exists to the store's current time, and restart its `ttl`.

        An agent that a sweep marked offline gets back its status before that; one that was set offline otherwise
        becomes available. Nothing else changes, and no agent is created.

        Args:
            beats: For each agent, its id and its incarnation.

        Returns:
            For each agent: what the heartbeat found, or None if the agent does not exist. It was rewritten if an
            incarnation is given and none is stored. Return `agentic.agent.USUAL_BEAT` in the common case.
        """

    @abstractmethod
    async def fetch(self, ids: Sequence[str]) -> Sequence[AgentInfo | RegistryError | None]:
        """Return each agent, or None if it does not exist."""

    @abstractmethod
    async def patch(
        self, changes: Sequence[tuple[str, AgentChanges, int]]
    ) -> Sequence[AgentInfo | RegistryError | None]:
        """Change the given fields of each agent that exists, and nothing else: neither its heartbeat nor its `ttl`.

        If an incarnation is given and none is stored, the given one is stored as well.

        If the record would exceed 64 KiB, change nothing, and return the `InvalidAgentError` that
        `agentic.validation.check_size` raises as the outcome.

        Args:
            changes: For each agent, its id, the new values of fields, and its incarnation.

        Returns:
            For each agent: the agent after the change, or None if it does not exist.
        """

    @abstractmethod
    async def delete(self, starts: Sequence[tuple[str, int]]) -> Sequence[bool | RegistryError]:
        """Remove each agent that exists, or its corrupt record, which counts with its incarnation if that can be read.

        Keep the record of an agent that is gone but has not been returned by a sweep: the next sweep returns it.

        Args:
            starts: For each agent, its id and its incarnation.

        Returns:
            For each agent: whether a record was removed.
        """

    @abstractmethod
    async def set_drains(
        self, orders: Sequence[tuple[str, DrainOrder | None]]
    ) -> Sequence[Drain | bool | RegistryError]:
        """Store an order to drain each agent, in place of an earlier one, or for None remove it. Agents need not exist.

        Returns:
            For each agent: the drain as stored, or for None whether there was one.
        """

    @abstractmethod
    async def drains(self) -> dict[str, Drain]:
        """Return the drains of all agents by id."""

    @abstractmethod
    async def times(self) -> Sequence[datetime]:
        """Return the current time of each server of the store, in the same order while the servers are the same."""

    @abstractmethod
    async def page(self, after: str, limit: int, walk: str) -> tuple[Sequence[AgentInfo], str | None]:
        """Return the next agents in the order of their ids, and the id to continue after, or None at the end.

        Ids are ordered as Python strings, which is also the order of their UTF-8. An agent that exists throughout a
        series of pages is therefore returned exactly once, whatever is registered or removed in the meantime and
        whichever process requests each page. This is not a walk with a `Cursor`: each call is independent.

        Args:
            after: Return only agents with higher ids; empty for all.
            limit: The most agents to return. Fewer may be returned, even none, although there are more.
            walk: A key that is common to all pages of one series. A store that cannot find ids in order may cache the
                ids that come next under this key, but must also work without the cache. Never use the ids of one key
                for another: agents may have been registered in between.
        """

    @abstractmethod
    async def scan(self, cursor: Cursor) -> Step[Sequence[AgentInfo]]:
        """Return a page of a few hundred agents, in any order.

        An agent that exists throughout the walk is in exactly one page.
        """

    @abstractmethod
    async def sweep(self, ttl: timedelta, cursor: Cursor) -> Step[Sequence[str]]:
        """Mark offline the agents of a page whose last heartbeat is older than `ttl`, and return their ids.

        - An agent whose last heartbeat is exactly `ttl` old is alive.
        - An agent is marked in one atomic step; a heartbeat that is stored first prevents the mark. Marking does not
          affect the agent's remaining time in the store. Its status is kept for its next heartbeat. Any other write of
          the status discards what is kept.
        - Exactly one sweep returns each mark, even if this one fails or is cancelled: a mark whose answer was lost is
          returned by the next sweep.
        - Remove agents that are gone and still stored. Return the id of each that was not marked offline before.
        - Silence is measured up to the start of the walk, so that a delay between two pages marks no agent offline.
        - If the store's clock was set back, replace stored times in its future by its current time. Otherwise those
          agents would not age until the clock catches up.

        Args:
            ttl: The age of a heartbeat above which its agent is marked; not the store's `ttl`.
            cursor: As in every walk.
        """

    @abstractmethod
    async def clear(self, cursor: Cursor) -> Step[int]:
        """Delete a page of agents. Return how many there were, not counting those that were gone.

        The last page deletes all drains.
        """

    async def diagnose(self, cursor: Cursor) -> Step[Sequence[Finding]]:
        """Examine the store itself, changing nothing. Return the findings of one request to it; by default, none."""
        return (), None


def _ignore(_: CorruptRecordError) -> None:
    pass
