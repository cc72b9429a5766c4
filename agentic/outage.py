"""A store outage as a loop sees it: told when it begins and when it is over, with growing pauses between tries."""

from __future__ import annotations

import logging
import math
from typing import Final

from agentic.errors import BackendError, BackendRejectedError

FIRST_PAUSE: Final = 0.5


class Outage:
    """Tells the log of an outage, once at each end, and says how long to wait before the next try.

    A store that refuses (`BackendRejectedError`) is told as an error, since it waits for an operator.
    """

    def __init__(self, logger: logging.Logger, subject: str, longest_pause: float) -> None:
        """Name the loop in the log as `subject`; pauses double from half a second up to `longest_pause` seconds."""
        self._logger = logger
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
        rejected = isinstance(error, BackendRejectedError)
        if rejected and not self._rejected:
            self._logger.error("%s: the store refuses until somebody acts, trying on: %s", self._subject, error)
        elif not self._failures:
            self._logger.warning("%s: the store fails, trying on: %s", self._subject, error)
        self._rejected = rejected
        self._failures += 1
        return min(math.ldexp(FIRST_PAUSE, min(self._failures - 1, 16)), self._longest_pause)

    def succeeded(self) -> None:
        """Take note of a try that succeeded."""
        if self._failures:
            self._logger.warning("%s: the store is back after %d failed tries", self._subject, self._failures)
        self._failures = 0
        self._rejected = False
