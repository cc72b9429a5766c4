"""The sweep that marks silent agents offline, as a task in the caller's event loop."""

from __future__ import annotations

import inspect
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from typing import Self

import anyio

from agentic.agent import AgentStatus
from agentic.clock import NEVER, is_stale, positive_seconds
from agentic.errors import BackendError, ConfigurationError
from agentic.guard import Grace, Hold, Watch
from agentic.outage import Outage
from agentic.registry import AgentRegistry
from agentic.tasks import background, finish

logger = logging.getLogger("agentic.reaper")

OnReaped = Callable[[list[str]], Awaitable[object] | object]
OnHeld = Callable[[int, int], Awaitable[object] | object]


class Reaper(anyio.AsyncContextManagerMixin):
    """Marks agents offline once they have been silent for longer than `ttl`.

    Either `await reaper.run()` in a task group of your own, or `async with Reaper(...)` to run it beside a body. Any
    number of reapers may share a store: each agent's going offline is reported by one of them, once; by none where the
    store's answer to the marks was lost on its way.

    - A store outage is logged once, retried after half a second and then at doubling pauses up to `interval`, and
      logged once more when it is over.
    - A bug is logged and raised out of `run`; in the `async with` form it cancels the body and comes out as it is.
    - A sweep under way when the reaper is cancelled, with its `on_reaped`, has the registry's `timeout` to end.
    - Agents that had no chance to beat are not marked for it: after a store outage, or after the store's clock was
      stepped or the reaper itself was held up by more than a third of `ttl`, the next sweep waits for a third of `ttl`
      or one `interval`, whichever is longer. That is enough for agents that beat every third of `ttl` or sooner.
    - With `max_fraction`, a sweep that would take more than that part of the live agents at once is held back and told
      by the log and `on_held`; when it still would after `guard_deadline` seconds, it goes ahead.

    Attributes:
        ttl: Seconds of silence after which an agent is offline; one silent for exactly `ttl` is alive.
        interval: Seconds between sweeps, a tenth more or less at random; a third of `ttl` by default.
        max_fraction: As given.
        guard_deadline: Seconds for which sweeps may be put off on end.
    """

    def __init__(
        self,
        registry: AgentRegistry,
        ttl: float | timedelta = 30.0,
        interval: float | timedelta | None = None,
        on_reaped: OnReaped | None = None,
        *,
        max_fraction: float | None = None,
        guard_deadline: float | timedelta = 300.0,
        on_held: OnHeld | None = None,
    ) -> None:
        """Check the options; no I/O.

        Args:
            registry: Open while the reaper runs.
            ttl: Seconds or a `timedelta`, shorter than the registry's own `ttl` where it has one.
            interval: Seconds or a `timedelta`.
            on_reaped: Called, and awaited where it returns an awaitable, with the ids of each sweep that marked any.
                Its exceptions are logged and do not end the reaper.
            max_fraction: Greater than 0 and at most 1; None never holds a sweep back. Costs one more walk of the fleet
                for each sweep.
            guard_deadline: Seconds or a `timedelta`.
            on_held: Called like `on_reaped`, once each time sweeps begin to be held back, with the numbers of stale and
                of live agents.

        Raises:
            ConfigurationError: A duration is not finite or not greater than 0, `max_fraction` is out of its range, or
                `ttl` is not shorter than the registry's: an agent would be gone before it could be marked offline.
        """
        self._registry = registry
        self.ttl = positive_seconds(ttl, "ttl")
        self.interval = self.ttl / 3 if interval is None else positive_seconds(interval, "interval")
        self._on_reaped = on_reaped
        self.max_fraction = _fraction(max_fraction)
        self.guard_deadline = positive_seconds(guard_deadline, "guard_deadline")
        self._on_held = on_held
        if registry.ttl is not None and self.ttl >= registry.ttl:
            raise ConfigurationError(
                f"the reaper's ttl must be shorter than the registry's, or agents are gone before they can be marked "
                f"offline: got {self.ttl:g} s and {registry.ttl:g} s"
            )

    async def run(self) -> None:
        """Sweep for ever, the first time at once: of what befell agents before it ran, a reaper knows nothing.

        Raises:
            Exception: A bug, or a registry that is not open; a store outage is not raised.
        """
        outage = Outage(logger, "reaper", self.interval)
        watch = Watch(self.ttl)
        grace = Grace(self.ttl, self.interval, self.guard_deadline)
        hold = None if self.max_fraction is None else Hold(self.max_fraction, self.guard_deadline)
        async with background(watch.run):
            while True:
                try:
                    pause = await finish(self._sweep_if_fair(outage, watch, grace, hold), self._registry.timeout)
                except BackendError as error:
                    pause = outage.failed(error)
                    grace.store_failed()
                except Exception:
                    logger.exception("the reaper ends: this is a bug, or its registry is not open")
                    raise
                await anyio.sleep(pause)

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        async with background(self.run):
            yield self

    async def _sweep_if_fair(self, outage: Outage, watch: Watch, grace: Grace, hold: Hold | None) -> float:
        """Sweep, unless that would be unfair; return the seconds to wait before the next."""
        # The count of a large fleet takes long, and much may happen meanwhile: the clocks are looked at after it.
        stale, live = (0, 0) if hold is None else await self._count()
        asked_at = anyio.current_time()
        store_times = await self._registry._store_times()
        now = anyio.current_time()
        # A store that answers late may have kept the heartbeats waiting as well.
        reason = grace.reason(now, max(watch.held(), now - asked_at), store_times)
        if reason is not None:
            grace.begin(now)
            # An outage has been told already.
            level = logging.INFO if outage.lasts else logging.WARNING
            logger.log(level, "agents have %g s more to send a heartbeat: %s", grace.length, reason)
        left = grace.left(now)
        if left > 0:
            return left
        if hold is None or not await self._held_back(hold, stale, live):
            await self._sweep()
            if hold is not None:
                hold.swept()
        outage.succeeded()
        return self.interval * random.uniform(0.9, 1.1)

    async def _count(self) -> tuple[int, int]:
        """Return how many agents are stale, and how many live."""
        store_time = await self._registry.store_time()
        ttl, stale, live = timedelta(seconds=self.ttl), 0, 0
        async with aclosing(self._registry.scan()) as agents:
            async for agent in agents:
                if agent.status is not AgentStatus.OFFLINE:
                    live += 1
                    stale += is_stale(agent.last_heartbeat or NEVER, store_time, ttl)
        return stale, live

    async def _held_back(self, hold: Hold, stale: int, live: int) -> bool:
        was_held = hold.holding
        if not hold.holds(anyio.current_time(), stale, live):
            return False
        if not was_held:
            logger.error(
                "sweeps are held back: %d of %d live agents are stale, over max_fraction=%g; they go ahead in %g s",
                stale,
                live,
                self.max_fraction,
                self.guard_deadline,
            )
            await self._tell("on_held", self._on_held, stale, live)
        return True

    async def _sweep(self) -> None:
        try:
            reaped = await self._registry.reap(self.ttl)
        except BackendError as error:
            await self._report(list(error.reaped))
            raise
        await self._report(reaped)

    async def _report(self, reaped: list[str]) -> None:
        if reaped:
            logger.info("marked %d silent agents offline", len(reaped))
            await self._tell("on_reaped", self._on_reaped, reaped)

    async def _tell(self, name: str, callback: Callable[..., object] | None, *args: object) -> None:
        if callback is None:
            return
        try:
            result = callback(*args)
            if inspect.isawaitable(result):
                await result
        except Exception:
            logger.exception("%s failed", name)


def _fraction(value: float | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ConfigurationError(f"max_fraction: must be greater than 0 and at most 1, got {value!r}")
    return float(value)
