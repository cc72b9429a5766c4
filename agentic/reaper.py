"""The sweep that marks silent agents offline, as a task in the caller's event loop."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta

from agentic.agent import AgentStatus
from agentic.callbacks import Callbacks, OnHeld, OnReaped
from agentic.clock import NEVER, is_stale, positive_seconds
from agentic.concurrency import finish
from agentic.errors import BackendError, ConfigurationError
from agentic.guard import JITTER, Deadline, GracePeriod, StallDetector, deadline_that_fits, longest
from agentic.logs import FieldLogger
from agentic.options import fraction, function
from agentic.outage import Outage
from agentic.registry import AgentRegistry
from agentic.service import Service
from agentic.text import type_name

logger = logging.getLogger("agentic.reaper")


class Reaper(Service):
    """Marks agents offline once they have been silent for longer than `ttl`.

    Use `async with Reaper(...)` to run it beside a body, `open` and `aclose` where that is not possible, or
    `await reaper.run()` in a task group of your own. Any number of reapers may share a store: each agent that goes
    offline is reported by one of them, once; by none where the store's answer to the marks was lost on its way.

    - A store outage is logged once, retried after half a second and then at doubling pauses up to `interval`, and
      logged once more when it is over.
    - Any other error, a registry that is not open, and a cancellation of the background task by other code end the
      reaper: logged, and raised out of `run`. `async with` cancels its body, if it runs in the task that entered, and
      raises the error as it is; `aclose` raises it.
    - Callbacks run beside the sweeps, one at a time and in order, in a copy of the context in which the reaper was
      opened. While one runs, further ids are gathered for the next call. One that runs for longer than `interval` is
      logged. Whatever a callback raises is logged and does not end the reaper, but for `KeyboardInterrupt` and
      `SystemExit`.
    - Agents are reported as soon as they are marked, page by page, whatever ends the sweep. When the reaper ends, the
      page under way has the registry's `timeout` to end, and then callbacks have it; one that has not returned by then
      is cancelled, and what was not delivered is logged with its ids.
    - Agents that could not send a heartbeat are not marked for it: after a store outage, or after the store's clock was
      stepped or the reaper itself was stalled by more than a third of `ttl`, the next sweep waits for a third of `ttl`
      or one `interval`, whichever is longer. That is enough for agents that beat every third of `ttl` or sooner.
    - With `max_fraction`, a sweep that would mark more than that part of the live agents at once is held back, logged,
      and reported to `on_held`.
    - For neither reason are sweeps put off for more than `guard_deadline` seconds on end, outages not counted. In a
      registry with a `ttl`, none is held back any longer once a stale agent has been silent for `ttl` + 1.1 `interval`
      + `guard_deadline` seconds, which are fewer than that `ttl`. So agents are marked before they are gone: with any
      number of restarts of reapers, unless the store does not answer, or the sweep itself takes too long.

    Attributes:
        ttl: Seconds of silence after which an agent is **offline**; one silent for exactly `ttl` is alive. Not the
            registry's `ttl`, after which it is gone.
        interval: Seconds between sweeps, not between heartbeats, a tenth more or less at random; a third of `ttl` by
            default.
        max_fraction: As given.
        guard_deadline: Seconds for which sweeps may be put off on end.
    """

    def __init__(
        self,
        registry: AgentRegistry,
        ttl: float | timedelta | None = None,
        interval: float | timedelta | None = None,
        on_reaped: OnReaped | None = None,
        *,
        max_fraction: float | None = None,
        guard_deadline: float | timedelta | None = None,
        on_held: OnHeld | None = None,
    ) -> None:
        """Check the options; no I/O.

        Args:
            registry: Open while the reaper runs.
            ttl: Seconds or a `timedelta`; the registry's `stale_after` by default. Another value is warned of in the
                log, since sessions choose their interval by `stale_after`.
            interval: Seconds or a `timedelta`.
            on_reaped: Called, and awaited where it returns an awaitable, with the ids of agents that were marked.
            max_fraction: From a millionth to 1; None never holds a sweep back. Costs one more walk of the fleet
                for each sweep.
            guard_deadline: Seconds or a `timedelta`; by default 300 s, or nine tenths of what `ttl` and 1.1 `interval`
                leave of the registry's `ttl` where that is less.
            on_held: Called like `on_reaped`, once each time sweeps begin to be held back, with the numbers of stale and
                of live agents.

        Raises:
            ConfigurationError: A duration is not finite or not greater than 0, `max_fraction` is out of its range, or
                `ttl`, 1.1 `interval` and `guard_deadline` together are not shorter than the registry's `ttl`: an agent
                could be gone before it is marked offline.
        """
        if not isinstance(registry, AgentRegistry):
            raise ConfigurationError(f"registry: must be an AgentRegistry, got {type_name(registry)}")
        super().__init__("the reaper", registry.timeout, FieldLogger(logger, store=registry.store))
        self._registry = registry
        self.ttl = registry.stale_after if ttl is None else positive_seconds(ttl, "ttl")
        self.interval = self.ttl / 3 if interval is None else positive_seconds(interval, "interval")
        self._on_reaped = None if on_reaped is None else function(on_reaped, "on_reaped")
        self.max_fraction = None if max_fraction is None else fraction(max_fraction, "max_fraction")
        self.guard_deadline = deadline_that_fits(
            guard_deadline, ttl=self.ttl, interval=self.interval, expires_after=registry.ttl
        )
        self._on_held = None if on_held is None else function(on_held, "on_held")

    async def run(self) -> None:
        """Sweep until cancelled, starting at once; without `open`.

        Earlier faults are unknown to a reaper, so its first sweep gives nobody a grace period.

        Raises:
            Exception: A bug, or a registry that is not open; a store outage is not raised.
        """
        try:
            await self._serve()
        except Exception as error:
            self._log_failure(error)
            raise

    async def _begin(self) -> None:
        self._registry.check_open()

    async def _serve(self) -> None:
        if self.ttl != self._registry.stale_after:
            self._log.warning(
                "the reaper's ttl=%g s differs from the registry's stale_after=%g s, by which sessions choose their "
                "interval: set stale_after=%g in every program of this fleet",
                self.ttl,
                self._registry.stale_after,
                self.ttl,
            )
        callbacks = Callbacks(self._log, self._on_reaped, self._on_held, slow_after=self.interval)
        try:
            await _Sweeps(self, self._registry, callbacks, self._log).run()
        finally:
            await finish(callbacks.aclose(self._timeout), 2 * self._timeout)

    async def _end(self) -> None:
        pass


@dataclass
class _Fleet:
    """How many agents live, how many of them are stale, and for how many seconds one has been silent at most.

    That is 0 in a registry without a `ttl`, where agents are not gone before they are marked.
    """

    live: int = 0
    stale: int = 0
    longest_silence: float = 0.0


class _Sweeps:
    """The sweeps of one run of a reaper, and what it has noticed since it began."""

    def __init__(self, options: Reaper, registry: AgentRegistry, callbacks: Callbacks, log: FieldLogger) -> None:
        self._options = options
        self._registry = registry
        self._callbacks = callbacks
        self._log = log
        self._outage = Outage(log, "the reaper", options.interval)
        self._stalls = StallDetector(options.ttl)
        self._grace = GracePeriod(options.ttl, options.interval)
        self._deadline = Deadline(options.guard_deadline, self._grace.length)
        self._holding = False
        self._longest_silence = options.ttl + longest(options.interval) + options.guard_deadline

    async def run(self) -> None:
        with self._stalls.running():
            while True:
                try:
                    pause = await self._sweep_if_fair()
                except BackendError as error:
                    pause = self._outage.failed(error)
                    self._grace.store_failed()
                    self._deadline.store_failed(asyncio.get_running_loop().time())
                await asyncio.sleep(pause)

    async def _sweep_if_fair(self) -> float:
        """Sweep, unless agents must be given time first; return the seconds to wait before the next try."""
        # Counting a large fleet takes long, and much may happen meanwhile: so the clocks are looked at after it.
        fleet = _Fleet() if self._options.max_fraction is None else await self._count()
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        store_times = await self._registry.store_times()
        now = loop.time()
        # A store that answers late may have kept the heartbeats waiting as well.
        reason = self._grace.reason(now, max(self._stalls.longest(), now - asked_at), store_times)
        if reason is not None:
            self._begin_grace(now, reason)
        wait = self._grace.left(now) or self._hold_back(now, fleet)
        if wait > 0 and (left := self._deadline.left(now)) > 0:
            return min(wait, left)
        await self._registry.reap(self._options.ttl, on_marked=self._report)
        self._deadline.reset()
        self._holding = False
        self._outage.succeeded()
        return self._pause()

    def _begin_grace(self, now: float, reason: str) -> None:
        self._grace.begin(now)
        # An outage has been logged already.
        level = logging.INFO if self._outage.lasts else logging.WARNING
        self._log.log(level, "agents have %g s more to send a heartbeat: %s", self._grace.length, reason)

    def _hold_back(self, now: float, fleet: _Fleet) -> float:
        """Return for how many seconds a sweep of so many agents is to wait, and tell when that begins."""
        max_fraction = self._options.max_fraction
        oldest_may_wait = self._longest_silence - fleet.longest_silence
        if max_fraction is None or fleet.stale <= max_fraction * fleet.live or oldest_may_wait <= 0:
            self._holding = False
            return 0.0
        left = min(self._deadline.left(now), oldest_may_wait)
        if left > 0 and not self._holding:
            self._holding = True
            self._log.error(
                "sweeps are held back: %d of %d live agents are stale, over max_fraction=%g; they go ahead in %g s",
                fleet.stale,
                fleet.live,
                max_fraction,
                left,
                extra={"count": fleet.stale},
            )
            self._callbacks.held(fleet.stale, fleet.live)
        return min(self._pause(), oldest_may_wait)

    async def _count(self) -> _Fleet:
        store_time = await self._registry.store_time()
        ttl, fleet = timedelta(seconds=self._options.ttl), _Fleet()
        async with aclosing(self._registry.scan()) as agents:
            async for agent in agents:
                if agent.status is AgentStatus.OFFLINE:
                    continue
                fleet.live += 1
                heard_at = agent.last_heartbeat or NEVER
                if is_stale(heard_at, store_time, ttl):
                    fleet.stale += 1
                    silence = (store_time - heard_at).total_seconds()
                    # Where it is longer, the agent was registered with an old heartbeat, and stays for the whole ttl.
                    if silence <= (self._registry.ttl or 0.0):
                        fleet.longest_silence = max(fleet.longest_silence, silence)
        return fleet

    def _report(self, marked: list[str]) -> None:
        self._log.info("marked %d silent agents offline", len(marked), extra={"count": len(marked)})
        self._callbacks.reaped(marked)

    def _pause(self) -> float:
        return self._options.interval * random.uniform(1 - JITTER, 1 + JITTER)
