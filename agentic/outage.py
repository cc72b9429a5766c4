"""A store outage as a loop sees it: logged when it begins and when it is over, with growing pauses between tries."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from random import uniform
from time import monotonic
from typing import Any, Final

from agentic.errors import BackendError, BackendRejectedError
from agentic.logs import FieldLogger

FIRST_PAUSE: Final = 0.5

JITTER: Final = 0.2
"""By which part a pause is shorter at most."""


class Outage:
    """Logs an outage once at each end, and says how long to wait before the next try.

    A store that refuses (`BackendRejectedError`) is logged as an error, since it waits for an operator.
    """

    def __init__(self, log: FieldLogger, subject: str, longest_pause: float) -> None:
        """Name the loop in the log as `subject`.

        Pauses double from half a second up to `longest_pause` seconds; each is up to a fifth shorter at random, so that
        a fleet which lost its store does not try again in step.
        """
        self._log = log
        self._subject = subject
        self._longest_pause = longest_pause
        self._failures = 0
        self._rejected = False

    @property
    def lasts(self) -> bool:
        """Whether the last try failed."""
        return self._failures > 0

    def failed(self, error: BackendError) -> float:
        """Take note of a failed try; return the seconds to wait before the next."""
        self._failures += 1
        rejected = isinstance(error, BackendRejectedError)
        fields = {"failed_tries": self._failures}
        if rejected and not self._rejected:
            self._log.error(
                "%s: the store refuses until an operator acts; retrying: %s", self._subject, error, extra=fields
            )
        elif self._failures == 1:
            self._log.warning("%s: the store failed; retrying: %s", self._subject, error, extra=fields)
        self._rejected = rejected
        return min(math.ldexp(FIRST_PAUSE, min(self._failures - 1, 16)), self._longest_pause) * uniform(1 - JITTER, 1)

    def succeeded(self) -> None:
        """Take note of a try that succeeded."""
        if self._failures:
            self._log.warning(
                "%s: the store is back after %d failed tries",
                self._subject,
                self._failures,
                extra={"failed_tries": self._failures},
            )
        self._failures = 0
        self._rejected = False


class Patience:
    """Bounds how long the sessions of one registry wait, all together, to leave a store that does not answer.

    Each deregistration has the registry's `timeout`. When the time is spent, further ones are sent and end in the
    background, and leaving does not wait for them.
    """

    _LEAST: Final = 0.01
    """Seconds that a call gets in any case, so that it can be sent."""

    def __init__(self, seconds: float) -> None:
        self._seconds = self._left = seconds
        self._calls: set[asyncio.Task[bool]] = set()

    def restore(self) -> None:
        """Take note that the store has answered."""
        self._left = self._seconds

    async def wait(self, call: Coroutine[Any, Any, bool]) -> None:
        """Wait for a call, which returns whether the store answered, as long as the time lasts."""
        task = asyncio.ensure_future(call)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        began = monotonic()
        await asyncio.wait([task], timeout=max(self._left, self._LEAST))
        if task.done() and task.result():
            self.restore()
        else:
            self._left -= monotonic() - began
