"""What a store implements. Provisional: it may change until presence, placement and watching stand on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar, TypeVar

from agentic.agent import AgentChanges, AgentInfo
from agentic.clock import positive_seconds
from agentic.errors import CorruptRecordError, RegistryError
from agentic.findings import Finding

T = TypeVar("T")

Cursor = Any
"""Where a walk goes on, in whatever form suits the store; None begins a walk, and ends it."""

Step = tuple[T, Cursor]
"""What a call of a walk returns: one page, and the cursor for the next call."""


class Backend(ABC):
    """A store of agents, as `AgentRegistry` drives it: batches in, one outcome each out, in order.

    **Arguments** are checked before they get here: ids are texts of 1 to 512 bytes of UTF-8, agents are complete, of
    plain types and at most 64 KiB as JSON.

    **Batches** have 1 to 256 items. In `touch` and `fetch` an id may occur twice; each occurrence gets its outcome. In
    `insert`, `patch` and `delete` ids are distinct. Batches overlap: up to `max_batches` of each kind are under way at
    once, and walks beside them. Two of them have an agent in common only where both are `touch`, or both `fetch`.

    **Outcomes**: the fact that was asked for; None or False where there is no such agent; or a `RegistryError` that is
    this agent's alone, such as `CorruptRecordError`. What fails the batch is raised, as a `BackendError`:
    `BackendUnavailableError` where trying again may help, `BackendRejectedError` where somebody must act. A store that
    cannot be reached never answers with nothing or with less. Any other exception is a bug, and reaches the callers.

    **Clock**: the store's own decides who is alive, stale or gone, never the caller's. A heartbeat in the store's
    future is stored and read as one of now.

    **Atomicity**: the change of one agent is one step, its precondition included; nothing is promised for a batch.

    **Time**: an agent is gone `ttl` seconds after its last `insert` or `touch`: for every call, though a store may keep
    what it holds of it until the next `sweep`. A registry cancels what takes longer than `timeout`. A cancelled or
    failed write may have happened; it must not take effect after a later call on that agent has been answered.

    **Walks** of the whole fleet are `scan`, `sweep`, `clear` and `diagnose`: each call returns one page, which may be
    empty, and the cursor for the next call. A walk begins with the cursor None. It ends where None is returned, where a
    call fails or is cancelled, or where it is not continued. So nothing may be under way between two calls, and no
    cursor holds what has to be closed. A cursor is used once, in the process and event loop that it comes from.

    **Corrupt records** that a walk or a `page` meets are passed to `on_corrupt`, left as they are and skipped.

    Attributes:
        ttl: Seconds; None keeps agents until they are removed.
        timeout: Seconds that a batch, a page, opening or closing may take.
        on_corrupt: Called with each corrupt record that is skipped; set by the registry.
        is_immediate: Whether no primitive for agents ever waits. Then each call is made at once, as a batch of one.
        shard_of: Which part of the store, failing by itself, holds an agent; None where there is but one. A batch has
            agents of one shard.
    """

    max_batches: ClassVar[int] = 1
    """How many batches of one kind may be under way at once."""

    def __init__(self, *, ttl: float | timedelta | None, timeout: float | timedelta) -> None:
        """Check the options that every store has.

        Raises:
            ConfigurationError: `ttl` or `timeout` is not a finite number of seconds greater than 0.
        """
        self.ttl = None if ttl is None else positive_seconds(ttl, "ttl")
        self.timeout = positive_seconds(timeout, "timeout")
        self.on_corrupt: Callable[[CorruptRecordError], object] = _ignore
        self.is_immediate = False
        self.shard_of: Callable[[str], str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy of a backend that is not open needs; its registry sets `on_corrupt` anew."""
        return vars(self) | {"on_corrupt": _ignore}

    @property
    @abstractmethod
    def store(self) -> str:
        """What names the store in messages and logs: a URL without its secrets."""

    @abstractmethod
    async def open(self) -> None:
        """Open the store and prove that it answers, within `timeout`.

        Where it fails, takes longer or is cancelled, `close` follows as soon as it has ended. May be opened again.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close what `open` opened: all of it, or what a failed `open` or an interrupted call has left."""

    @abstractmethod
    async def insert(self, agents: Sequence[AgentInfo]) -> Sequence[AgentInfo | RegistryError]:
        """Store each agent in place of the one with its id, or of a corrupt record, and start its `ttl`; return them.

        A `last_heartbeat` of None, or one in the store's future, becomes the store's now.
        """

    @abstractmethod
    async def touch(self, ids: Sequence[str]) -> Sequence[bool | RegistryError]:
        """Stamp the store's now on each agent that is there, and start its `ttl` anew; return whether it was.

        An offline one becomes available.
        """

    @abstractmethod
    async def fetch(self, ids: Sequence[str]) -> Sequence[AgentInfo | RegistryError | None]:
        """Return each agent that is there."""

    @abstractmethod
    async def patch(self, changes: Sequence[tuple[str, AgentChanges]]) -> Sequence[AgentInfo | RegistryError | None]:
        """Change the given fields of each agent that is there, and nothing else; return it as it then is.

        Where the record would be longer than 64 KiB, nothing changes, and the outcome is the `InvalidAgentError` that
        `agentic.validation.check_size` raises.
        """

    @abstractmethod
    async def delete(self, ids: Sequence[str]) -> Sequence[bool | RegistryError]:
        """Remove each agent that is there, or its corrupt record; return whether it was.

        One that is gone, but not yet reported by a sweep, stays for the next sweep.
        """

    @abstractmethod
    async def times(self) -> Sequence[datetime]:
        """Return the time of each of the store's servers, in an order that stays while the servers do."""

    @abstractmethod
    async def page(self, after: str, limit: int, walk: str) -> tuple[Sequence[AgentInfo], str | None]:
        """Return the agents that come next in the order of their ids, and the id after which to go on; None at the end.

        The order is that of Python strings, which is that of UTF-8. So an agent that stays is returned once, whatever
        comes and goes meanwhile, and whichever process asks for the next page. Not a walk: each call stands alone.

        Args:
            after: Only agents with a higher id; empty for all.
            limit: How many agents to return at most. Fewer may be returned, even none, although there are more.
            walk: What all pages of one walk have in common, and those of no other. A store that keeps no order may
                remember under it which ids come next, and must work without that too. What it has found for one walk
                is not valid for another: agents may have been registered between the two.
        """

    @abstractmethod
    async def scan(self, cursor: Cursor) -> Step[Sequence[AgentInfo]]:
        """Return a page of some hundred agents, in any order; an agent that stays is in exactly one page of a walk."""

    @abstractmethod
    async def sweep(self, ttl: timedelta, cursor: Cursor) -> Step[Sequence[str]]:
        """Mark offline the agents of a page whose last heartbeat is more than `ttl` ago, and return their ids.

        One exactly `ttl` old is alive. Each is marked in one step that a heartbeat landing first prevents; its
        remaining time in the store is kept. Every mark is returned once among all sweeps, whatever ends this one: where
        it was lost on its way, by the next one. An agent that was gone before it was ever marked is returned where the
        store still has it, and removed.

        Silence is measured up to the beginning of the walk, so that time that passes between two pages takes nobody
        offline. A time in the store's future, whose clock was set back, becomes now, so that the agent ages from then
        on.
        """

    @abstractmethod
    async def clear(self, cursor: Cursor) -> Step[int]:
        """Delete a page of agents, and return how many there were; those that are gone do not count."""

    async def diagnose(self, cursor: Cursor) -> Step[Sequence[Finding]]:
        """Look at the store itself and change nothing; return what one exchange with it has shown."""
        return (), None


def _ignore(_: CorruptRecordError) -> None:
    pass
