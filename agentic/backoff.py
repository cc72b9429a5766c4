"""Retry a failing store with growing pauses, and log when the outage begins and ends."""

from __future__ import annotations

import math
from random import uniform
from typing import Final

from agentic.errors import BackendError, BackendRejectedError
from agentic.logs import FieldLogger

FIRST_PAUSE: Final = 0.5

JITTER: Final = 0.2
"""The fraction by which a pause may be shortened at random."""


class Backoff:
    """Computes the pause before each retry, and logs when an outage begins and when it ends.

    `BackendRejectedError` is logged as an error, because an operator must act before a retry can succeed.
    """

    def __init__(self, log: FieldLogger, subject: str, longest_pause: float) -> None:
        """Log as `subject`.

        Pauses double from half a second up to `longest_pause` seconds. Each is shortened by up to a fifth at random, so
        that the retries of a fleet spread out.
        """
        self._log = log
        self._subject = subject
        self._longest_pause = longest_pause
        self._failures = 0
        self._rejected = False

    @property
    def is_failing(self) -> bool:
        """Whether the last try failed."""
        return self._failures > 0

    def failed(self, error: BackendError) -> float:
        """Record a failed try. Return the seconds to wait before the next one."""
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
        """Record a successful try."""
        if self._failures:
            self._log.warning(
                "%s: the store is back after %d failed tries",
                self._subject,
                self._failures,
                extra={"failed_tries": self._failures},
            )
        self._failures = 0
        self._rejected = False
