"""Where something was opened, its process and its event loop: connections work nowhere else."""

from __future__ import annotations

import asyncio
import os
from threading import get_ident

from agentic.errors import RegistryClosedError


class _Process:
    """This process's id, known without a system call each time."""

    def __init__(self) -> None:
        self.take_note()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.take_note)

    def take_note(self) -> None:
        self.pid = os.getpid()


_process = _Process()


class Home:
    """The process and the running event loop in which it is made."""

    def __init__(self) -> None:
        """Take note of both.

        Raises:
            RegistryClosedError: No asyncio event loop is running.
        """
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RegistryClosedError(
                "no asyncio event loop is running here: agentic works with asyncio, not with trio"
            ) from None
        self._is_running = self._loop.is_running
        self._thread = get_ident()
        self._pid = _process.pid

    def is_gone(self) -> bool:
        """Tell whether nothing can run there any more, as seen from here."""
        return self._loop.is_closed() or self._pid != _process.pid

    def check(self) -> None:
        """Refuse to go on elsewhere.

        Raises:
            RegistryClosedError: This is another process, forked since, or another event loop; the message says which.
        """
        # A thread runs one event loop at a time, so this loop is the one. Asking asyncio costs a system call on Python
        # 3.11, which was a fifth of a heartbeat's time.
        if get_ident() == self._thread and self._is_running() and self._pid == _process.pid:
            return
        if self._pid != _process.pid:
            raise RegistryClosedError("the registry was opened before this process was forked: open one after the fork")
        if self._loop is not asyncio.get_running_loop():
            raise RegistryClosedError("the registry was opened in another event loop: open one in each")
