"""Refuse use outside the process and event loop that opened a registry: its connections work nowhere else."""

from __future__ import annotations

import asyncio
import os

from agentic.errors import RegistryClosedError


class Home:
    """The process and the running event loop in which it is made."""

    def __init__(self) -> None:
        """Record both.

        Raises:
            RegistryClosedError: No asyncio event loop is running.
        """
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RegistryClosedError(
                "no asyncio event loop is running here: agentic works with asyncio, not with trio"
            ) from None
        self._pid = os.getpid()

    def is_gone(self) -> bool:
        """Return whether nothing can run there any more, as seen from here."""
        return self._loop.is_closed() or self._pid != os.getpid()

    def check(self) -> None:
        """Refuse to go on elsewhere.

        Raises:
            RegistryClosedError: This is another process, forked since, or another event loop; the message says which.
        """
        # No event loop runs in a forked process until one is started there, so a fork is noticed as well.
        try:
            if asyncio.get_running_loop() is self._loop:
                return
        except RuntimeError:
            pass
        if self._pid != os.getpid():
            raise RegistryClosedError("the registry was opened before this process was forked: open one after the fork")
        raise RegistryClosedError("the registry was opened in another event loop: open one in each")
