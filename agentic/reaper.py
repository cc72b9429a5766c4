"""The sweep that marks silent agents offline, as a task in the caller's event loop."""

from __future__ import annotations

import inspect
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Self

import anyio

from agentic.clock import positive_seconds
from agentic.errors import BackendError, ConfigurationError
from agentic.outage import Outage
from agentic.registry import AgentRegistry
from agentic.tasks import background, finish

logger = logging.getLogger("agentic.reaper")

OnReaped = Callable[[list[str]], Awaitable[object] | object]


class Reaper(anyio.AsyncContextManagerMixin):
    """Marks agents offline once they have been silent for longer than `ttl`.

    Either `await reaper.run()` in a task group of your own, or `async with Reaper(...)` to run it beside a body. Any
    number of reapers may share a store: each agent's going offline is reported by exactly one of them.

    - A store outage is logged once, retried after half a second and then at doubling pauses up to `interval`, and
      logged once more when it is over.
    - A bug is logged and raised out of `run`; in the `async with` form it cancels the body and comes out as it is.
    - A sweep under way when the reaper is cancelled, with its `on_reaped`, has the registry's `timeout` to end.

    Attributes:
        ttl: Seconds of silence after which an agent is offline; one silent for exactly `ttl` is alive.
        interval: Seconds between sweeps, a tenth more or less at random; a third of `ttl` by default.
    """

    def __init__(
        self,
        registry: AgentRegistry,
        ttl: float | timedelta = 30.0,
        interval: float | timedelta | None = None,
        on_reaped: OnReaped | None = None,
    ) -> None:
        """Check the options; no I/O.

        Args:
            registry: Open while the reaper runs.
            ttl: Seconds or a `timedelta`, shorter than the registry's own `ttl` where it has one.
            interval: Seconds or a `timedelta`.
            on_reaped: Called, and awaited where it returns an awaitable, with the ids of each sweep that marked any.
                Its exceptions are logged and do not end the reaper.

        Raises:
            ConfigurationError: A duration is not finite or not greater than 0, or `ttl` is not shorter than the
                registry's: an agent would be gone before it could be marked offline.
        """
        self._registry = registry
        self.ttl = positive_seconds(ttl, "ttl")
        self.interval = self.ttl / 3 if interval is None else positive_seconds(interval, "interval")
        self._on_reaped = on_reaped
        if registry.ttl is not None and self.ttl >= registry.ttl:
            raise ConfigurationError(
                f"the reaper's ttl must be shorter than the registry's, or agents are gone before they can be marked "
                f"offline: got {self.ttl:g} s and {registry.ttl:g} s"
            )

    async def run(self) -> None:
        """Sweep for ever, the first time at once.

        Raises:
            Exception: A bug, or a registry that is not open; a store outage is not raised.
        """
        outage = Outage(logger, "reaper", self.interval)
        while True:
            try:
                await finish(self._sweep(), self._registry.timeout)
            except BackendError as error:
                pause = outage.failed(error)
            except Exception:
                logger.exception("the reaper ends: this is a bug, or its registry is not open")
                raise
            else:
                outage.succeeded()
                pause = self.interval * random.uniform(0.9, 1.1)
            await anyio.sleep(pause)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        async with background(self.run):
            yield self

    async def _sweep(self) -> None:
        try:
            reaped = await self._registry.reap(self.ttl)
        except BackendError as error:
            await self._report(list(error.reaped))
            raise
        await self._report(reaped)

    async def _report(self, reaped: list[str]) -> None:
        if not reaped:
            return
        logger.info("marked %d silent agents offline", len(reaped))
        if self._on_reaped is None:
            return
        try:
            result = self._on_reaped(reaped)
            if inspect.isawaitable(result):
                await result
        except Exception:
            logger.exception("on_reaped failed for %d agents", len(reaped))
