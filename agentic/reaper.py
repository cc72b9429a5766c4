"""Mark silent agents offline by periodic sweeps, in the caller's event loop."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta

from agentic.agent import AgentStatus
from agentic.backoff import Backoff
from agentic.clock import NEVER, is_stale, positive_seconds
from agentic.concurrency import finish
from agentic.errors import BackendError, ConfigurationError
from agentic.fairness import JITTER, GracePeriod, StallDetector, SweepDeadline, longest_pause, valid_guard_deadline
from agentic.logs import FieldLogger
from agentic.options import fraction, function
from agentic.reaper_callbacks import Callbacks, OnHeld, OnReaped
from agentic.registry import AgentRegistry
from agentic.service import Service
from agentic.text import type_name

logger = logging.getLogger("agentic.reaper")


class Reaper(Service):
    """Marks agents offline once they have been silent for longer than `ttl`.

    Use `async with Reaper(...)`, or `open` and `aclose`, or `await reaper.run()` in your own task group. Any number of
    reapers may share a store: each agent that goes offline is reported once, by one of them. If the store's answer
    was lost, the next sweep of the same registry reports the agent.

    - A store outage is logged when it begins and when it ends. Sweeps are retried after half a second, then after
      pauses that double up to `interval`.
    - Any other error, a registry that is not open, or a cancellation of the background task by other code ends the
      reaper. The error is logged and `run` raises it. `async with` cancels its body, if it runs in the task that
      entered, and raises the error; `aclose` raises it.
    - Callbacks run concurrently with the sweeps, one at a time and in order, in a copy of the context in which the
      reaper was opened. While one is running, further ids are collected for the next call. A callback that takes longer
      than `interval` logs a warning. Errors of a callback are logged and do not end the reaper, except
      `KeyboardInterrupt` and `SystemExit`.
    - Agents are reported as soon as they are marked, page by page, even if the sweep fails later. When the reaper ends,
      the page in progress has the registry's `timeout` to finish, and callbacks then have the same time. A callback
      that is still running is cancelled, and undelivered ids are logged.
    - Agents that could not send heartbeats get a grace period. After a store outage, or after the store's clock was
      stepped or the reaper was stalled by more than a third of `ttl`, the next sweep is postponed by a third of `ttl`
      or one `interval`, whichever is longer. This suffices for agents that send a heartbeat every third of `ttl`.
    - With `max_fraction`, a sweep that would mark more than this fraction of the live agents is held back, logged, and
      reported to `on_held`.
    - Sweeps are postponed for at most `guard_deadline` seconds in a row, not counting outages. If the registry has a
      `ttl`, no sweep is held back once a stale agent has been silent for `ttl` + 1.1 `interval` + `guard_deadline`
      seconds, which is less than the registry's `ttl`. So agents are marked before they are gone, however often reapers
      restart, unless the store does not answer or the sweep itself takes too long.

    Attributes:
        ttl: Seconds of silence after which an agent is **offline**; one silent for exactly `ttl` is alive. After the
            registry's `ttl` it is gone.
        interval: Seconds between sweeps, not between heartbeats; a third of `ttl` by default. Each pause is randomly up
            to a tenth longer or shorter.
        max_fraction: As passed in.
        guard_deadline: The most seconds in a row for which sweeps may be postponed.
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
            registry: Must be open while the reaper runs.
            ttl: Seconds or a `timedelta`; the registry's `stale_after` by default. Any other value logs a warning,
                because sessions derive their interval from `stale_after`.
            interval: Seconds or a `timedelta`.
            on_reaped: Called with the ids of the agents that were marked. An awaitable result is awaited.
            max_fraction: From a millionth to 1; None holds no sweep back. Costs one more walk of the fleet for each
                sweep.
            guard_deadline: Seconds or a `timedelta`; by default 300 s, or if that is less, nine tenths of the
                registry's `ttl` minus `ttl` and 1.1 `interval`.
            on_held: Called like `on_reaped`, with the numbers of stale and of live agents, each time that sweeps start
                to be held back.

        Raises:
            ConfigurationError: A duration is not finite or not greater than 0, `max_fraction` is out of range, or `ttl`
                + 1.1 `interval` + `guard_deadline` is not less than the registry's `ttl`, so that an agent could be
                gone before it is marked offline.
        """
        if not isinstance(registry, AgentRegistry):
            raise ConfigurationError(f"registry: must be an AgentRegistry, got {type_name(registry)}")
        super().__init__("the reaper", registry.timeout, FieldLogger(logger, store=registry.store))
        self._registry = registry
        self.ttl = registry.stale_after if ttl is None else positive_seconds(ttl, "ttl")
        self.interval = self.ttl / 3 if interval is None else positive_seconds(interval, "interval")
        self._on_reaped = None if on_reaped is None else function(on_reaped, "on_reaped")
        self.max_fraction = None if max_fraction is None else fraction(max_fraction, "max_fraction")
        self.guard_deadline = valid_guard_deadline(
            guard_deadline, ttl=self.ttl, interval=self.interval, expires_after=registry.ttl
        )
        self._on_held = None if on_held is None else function(on_held, "on_held")

    async def run(self) -> None:
        """Sweep until cancelled, starting immediately. Use it instead of `open`.

        Earlier faults are unknown, so the first sweep gives no grace period.

        Raises:
            Exception: A bug, or the registry is not open. A store outage is retried, not raised.
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
                "the reaper's ttl=%g s differs from the registry's stale_after=%g s, from which sessions derive their "
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
    """The number of live agents, the number of stale ones among them, and their longest silence in seconds.

    `longest_silence` is 0 if the registry has no `ttl`, because then no agent can be gone before it is marked.
    """

    live: int = 0
    stale: int = 0
    longest_silence: float = 0.0


class _Sweeps:
    """The sweeps of one run of a reaper, and its state."""

    def __init__(self, options: Reaper, registry: AgentRegistry, callbacks: Callbacks, log: FieldLogger) -> None:
        self._options = options
        self._registry = registry
        self._callbacks = callbacks
        self._log = log
        self._backoff = Backoff(log, "the reaper", options.interval)
        self._stalls = StallDetector(options.ttl)
        self._grace = GracePeriod(options.ttl, options.interval)
        self._deadline = SweepDeadline(options.guard_deadline, self._grace.length)
        self._is_held_back = False
        self._longest_silence = options.ttl + longest_pause(options.interval) + options.guard_deadline

    async def run(self) -> None:
        with self._stalls.running():
            while True:
                try:
                    pause = await self._sweep_if_fair()
                except BackendError as error:
                    pause = self._backoff.failed(error)
                    self._grace.store_failed()
                    self._deadline.store_failed(asyncio.get_running_loop().time())
                await asyncio.sleep(pause)

    async def _sweep_if_fair(self) -> float:
        """Sweep, or postpone the sweep. Return the seconds to wait before the next try."""
        # Count first: counting a large fleet takes long, and a stall or a clock step may occur meanwhile.
        fleet = _Fleet() if self._options.max_fraction is None else await self._count()
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        store_times = await self._registry.store_times()
        now = loop.time()
        # A store that answers late may have delayed heartbeats as well.
        reason = self._grace.reason(now, max(self._stalls.take_longest(), now - asked_at), store_times)
        if reason is not None:
            self._begin_grace(now, reason)
        wait = self._grace.left(now) or self._hold_back(now, fleet)
        if wait > 0 and (left := self._deadline.left(now)) > 0:
            return min(wait, left)
        await self._registry.reap(self._options.ttl, on_marked=self._report)
        self._deadline.reset()
        self._is_held_back = False
        self._backoff.succeeded()
        return self._pause()

    def _begin_grace(self, now: float, reason: str) -> None:
        self._grace.begin(now)
        # `Backoff` has already logged an outage as a warning.
        level = logging.INFO if self._backoff.is_failing else logging.WARNING
        self._log.log(level, "grace period of %g s for agents to send a heartbeat: %s", self._grace.length, reason)

    def _hold_back(self, now: float, fleet: _Fleet) -> float:
        """Return how many seconds to hold back a sweep of this fleet; log and report when that starts."""
        max_fraction = self._options.max_fraction
        oldest_may_wait = self._longest_silence - fleet.longest_silence
        if max_fraction is None or fleet.stale <= max_fraction * fleet.live or oldest_may_wait <= 0:
            self._is_held_back = False
            return 0.0
        left = min(self._deadline.left(now), oldest_may_wait)
        if left > 0 and not self._is_held_back:
            self._is_held_back = True
            self._log.error(
                "sweeps are held back: %d of %d live agents are stale, more than max_fraction=%g allows; they "
                "resume in %g s at the latest",
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
                    # A longer silence is an old heartbeat given at registration; such an agent stays for a full ttl.
                    if silence <= (self._registry.ttl or 0.0):
                        fleet.longest_silence = max(fleet.longest_silence, silence)
        return fleet

    def _report(self, marked: list[str]) -> None:
        self._log.info("marked %d silent agents offline", len(marked), extra={"count": len(marked)})
        self._callbacks.reaped(marked)

    def _pause(self) -> float:
        return self._options.interval * random.uniform(1 - JITTER, 1 + JITTER)
