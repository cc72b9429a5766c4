"""Pass a registry's calls to its backend, which takes batches, and wait for them when the registry closes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any, Generic, Self, TypeVar

from agentic.abc import Backend, Cursor, Step
from agentic.concurrency import SLACK, result_within, start_detached
from agentic.dispatch.affinity import Affinity
from agentic.dispatch.batcher import Batcher, Lane
from agentic.dispatch.immediate import ImmediateLane
from agentic.errors import RegistryClosedError

T = TypeVar("T")
R = TypeVar("R")


class Dispatcher:
    """Created when a registry is opened, and closed with it. It belongs to the running event loop."""

    def __init__(self, backend: Backend, affinity: Affinity) -> None:
        self.affinity = affinity
        self._timeout = backend.timeout
        self._is_immediate = backend.is_immediate
        self._shard_of = backend.shard_of
        self._batcher = Batcher(backend.timeout, backend.max_batches)
        self._closed = False
        self._calls: set[asyncio.Task[Any]] = set()
        self._walks = 0
        self._no_walks = asyncio.Event()
        self._no_walks.set()
        self.insert = self._lane(backend.insert)
        self.touch = self._lane(backend.touch, commutes=True)
        self.fetch = self._lane(backend.fetch, commutes=True)
        self.patch = self._lane(backend.patch)
        self.delete = self._lane(backend.delete)
        self.set_drains = self._lane(backend.set_drains)

    def _lane(
        self, send: Callable[[Sequence[T]], Coroutine[Any, Any, Sequence[R]]], *, commutes: bool = False
    ) -> Callable[[str, T], Awaitable[R]]:
        if self._is_immediate:
            return ImmediateLane(send)
        if self._shard_of is None:
            return self._batcher.lane(send, commutes=commutes).__call__  # A bound method is called faster.
        return _lane_for_each_shard(self._batcher, self._shard_of, send, commutes)

    @contextmanager
    def walk(
        self, page: Callable[[Cursor], Coroutine[Any, Any, Step[T]]], on_page: Callable[[T], object] | None = None
    ) -> Iterator[Walk[T]]:
        """Walk the fleet in the body. Closing waits for it.

        Args:
            page: The backend's method that returns a page.
            on_page: Called with each page, in the task that fetched it. If given, the current page is finished when the
                caller is cancelled, so that no page is lost.
        """
        self._walks += 1
        self._no_walks.clear()
        try:
            yield Walk(self, page, on_page)
        finally:
            self._walks -= 1
            if not self._walks:
                self._no_walks.set()

    async def bounded(self, call: Callable[[], Coroutine[Any, Any, T]], *, finish: bool = False) -> T:
        """Make one call to the store within the registry's `timeout`.

        Args:
            call: Runs in its own task and in an empty context.
            finish: Let it finish when the caller is cancelled.

        Raises:
            BackendUnavailableError: It timed out.
            RegistryClosedError: The registry has been closed.
        """
        self.affinity.check()
        if self._closed:
            raise RegistryClosedError
        task = start_detached(call())
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return await result_within(task, self._timeout, finish=finish)

    async def close(self) -> None:
        """Wait up to `timeout` seconds for the calls and walks in progress; then fail the rest.

        Those raise `RegistryClosedError`. A walk raises it after its current page, for which this waits too, because a
        page of a sweep returns the agents that it has marked.
        """
        end = monotonic() + self._timeout
        try:
            await self._batcher.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(end - monotonic()):
                    await self._no_walks.wait()
        finally:
            self._closed = True
        if self._calls:
            await asyncio.wait(self._calls, timeout=self._timeout * (1 + SLACK))


class Walk(Generic[T]):
    """The pages of a walk. Each is fetched within the registry's `timeout`."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        page: Callable[[Cursor], Coroutine[Any, Any, Step[T]]],
        on_page: Callable[[T], object] | None,
    ) -> None:
        self._dispatcher = dispatcher
        self._page = page
        self._on_page = on_page
        self._cursor: Cursor = None
        self._is_over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._is_over:
            raise StopAsyncIteration
        return await self._dispatcher.bounded(self._fetch, finish=self._on_page is not None)

    async def _fetch(self) -> T:
        page, self._cursor = await self._page(self._cursor)
        self._is_over = self._cursor is None
        if self._on_page is not None:
            self._on_page(page)
        return page


def _lane_for_each_shard(
    batcher: Batcher,
    shard_of: Callable[[str], str],
    send: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
    commutes: bool,
) -> Callable[[str, T], Awaitable[R]]:
    """Return a call with one lane per shard, so that a shard that does not answer delays only its own agents."""
    lanes: dict[str, Lane[T, R]] = {}

    def lane(agent_id: str, item: T) -> Awaitable[R]:
        shard = shard_of(agent_id)
        if shard not in lanes:
            lanes[shard] = batcher.lane(send, commutes=commutes)
        return lanes[shard](agent_id, item)

    return lane
