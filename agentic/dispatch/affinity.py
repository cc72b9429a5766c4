"""Refuse use outside the process and event loop that opened a registry, because its connections only work there."""

from __future__ import annotations

import asyncio
import os

from agentic.errors import RegistryClosedError


class Affinity:
    """The process and event loop in which it was created.

    Attributes:
        loop: The event loop.
    """

    def __init__(self) -> None:
        """Record the current process and event loop.

        Raises:
            RegistryClosedError: No asyncio event loop is running.
        """
        try:
            self.loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RegistryClosedError(
                "no asyncio event loop is running: agentic works with asyncio, not with trio"
            ) from None
        self._pid = os.getpid()

    def is_gone(self) -> bool:
        """Return whether the event loop is closed or belongs to another process, so that nothing can run in it."""
        return self.loop.is_closed() or self._pid != os.getpid()

    def check(self) -> None:
        """Check that the current process and event loop are the same.

        Raises:
            RegistryClosedError: They are not; the message says which.
        """
        # This also detects a fork, because no event loop runs in the child until it starts one.
        try:
            if asyncio.get_running_loop() is self.loop:
                return
        except RuntimeError:
            pass
        if self._pid != os.getpid():
            raise RegistryClosedError("the registry was opened before this process was forked: open one after the fork")
        raise RegistryClosedError("the registry was opened in another event loop: open one in each")
